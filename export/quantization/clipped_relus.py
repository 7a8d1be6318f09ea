"""Equalization across a relu that clips, such as relu6.

A scale does not move through ``min(relu(x), c)``, but it does where the limit c has no effect. With
a_i the largest input of channel i over the samples,

- a relu that clips no sample (a_i < c for all i) is replaced by one without a limit, as
  data-free equalization does with every relu6 (Nagel et al. 2019, arXiv:1906.04721);
- otherwise the limit stays, and only channels that never reach it are scaled: channel i is divided
  by some ``s_i >= a_i / c``, so that it still does not reach the limit. The others keep s_i = 1.

The network computes the same on every input on which no channel is larger than on the samples. A
larger value is clipped at ``c·s_i`` instead of c, or not at all.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import keras
import numpy as np
from keras import layers as kl

from ...toolkit.quantize_aware.quantized import ends_of
from ..fold.graph import ActivationOp, Call, Graph, Kept, Value
from .integer_operations import fusable


@dataclass(frozen=True, eq=False)
class ClippedRelu:
    """A relu with a limit.

    Attributes:
        call: Its call.
        op: The op of the call.
        limit: The limit.
    """

    call: Call
    op: Any
    limit: float

    @property
    def value(self) -> Value:
        """Its input."""
        return self.call.inputs[0]

    def remove(self) -> None:
        """Replace it by a relu without a limit, which stays part of a layer if it was one."""
        if isinstance(self.op, ActivationOp):
            self.call.op = replace(self.op, function=keras.activations.relu)
        else:
            self.call.op = Kept(kl.ReLU(), self.op.name)

    def restore(self) -> None:
        """Undo `remove`."""
        self.call.op = self.op


def clipped_relus(graph: Graph) -> list[ClippedRelu]:
    """Return every relu of a recognized graph that clips, in the order of the calls."""
    found = []
    for call in graph.calls():
        name = fusable(call.op) or ""
        limit = ends_of(name)[1] if name.startswith("relu") else None
        if limit is not None and 0 < limit < math.inf:
            found.append(ClippedRelu(call, call.op, limit))
    return found


@dataclass(frozen=True, eq=False)
class Limit:
    """The condition of a clipped relu on the scales that move through it.

    Attributes:
        number: Index of the relu among those of the graph.
        relu: The relu.
        axis: The channel axis of its input.
        source: For each of its channels, the channel of the scaled layer that it comes from.
    """

    number: int
    relu: ClippedRelu
    axis: int
    source: np.ndarray

    def shares(self, largest: np.ndarray, size: int) -> np.ndarray:
        """Return the largest a_i / c for each channel of the scaled layer.

        Args:
            largest: Largest input of each channel of the relu.
            size: Number of channels of the layer.
        """
        shares = np.full(size, -np.inf)
        np.maximum.at(shares, self.source, largest / self.relu.limit)
        return shares


def limited(scale: np.ndarray, shares: np.ndarray) -> np.ndarray:
    """Return the allowed scales that are nearest to the wanted ones, but for a common factor.

    Args:
        scale: The wanted scales.
        shares: The largest a_i / c of each channel, at least one of them 1 or larger.
    """
    clipped = shares >= 1
    factor = np.exp(np.log(scale[clipped]).mean())
    return np.where(clipped, 1.0, np.maximum(scale / factor, shares))
