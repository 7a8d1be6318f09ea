"""Chooses the fused kernels for a tensor: fast paths for the reference in `renorm`.

A module of kernels has three functions with the meaning and results of the reference:
``available``, ``batch_statistics`` and ``normalize``. It imports its backend on first use.
"""

from __future__ import annotations

from typing import Protocol

import keras

from . import fused_tensorflow, fused_torch
from .renorm import Correction, Statistics, Tensor


class Kernels(Protocol):
    """A backend's own batch-norm kernels, used for algorithm 1."""

    def available(self, x: Tensor) -> bool:
        """Return whether the kernels support ``x``."""
        ...

    def batch_statistics(self, x: Tensor, moving: Statistics, *, axis: int) -> Statistics:
        """Return mean and biased variance of the batch as vectors, constant to the gradient."""
        ...

    def normalize(
        self,
        x: Tensor,
        batch: Statistics,
        corrected: Correction,
        gamma: Tensor | None,
        beta: Tensor | None,
        *,
        axis: int,
        epsilon: float,
    ) -> Tensor:
        """Return the outputs, differentiable through the statistics too."""
        ...


_OF_BACKEND: dict[str, Kernels] = {"tensorflow": fused_tensorflow, "torch": fused_torch}


def fused_kernels(x: Tensor) -> Kernels | None:
    """Return the kernels that support ``x``, or None if only the reference does."""
    kernels = _OF_BACKEND.get(keras.backend.backend())
    return kernels if kernels is not None and kernels.available(x) else None
