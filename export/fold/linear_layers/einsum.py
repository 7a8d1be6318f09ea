"""``EinsumDense``."""

# ruff: noqa: D102 - the base class documents the methods
from __future__ import annotations

from typing import Any

import keras
import numpy as np

from ...equations import spelled_out
from ..graph import Function, Shape
from ..linear import Array, Kind, Linear
from .base import along, kernel_of, read


class EinsumKind(Kind):
    """``EinsumDense``: the axes are the letters of its equation."""

    def letters(self, layer: Any) -> tuple[str, str, str]:
        """Return the letters of input, kernel and output, with letters for an ellipsis."""
        equation = spelled_out(layer.equation, (layer.input_spec.ndim, len(layer.kernel.shape)))
        operands, output = equation.split("->")
        data, kernel = operands.split(",")
        return data, kernel, output

    def inputs(self, layer: Any, rank: int) -> dict[int, int]:
        data, kernel, _ = self.letters(layer)
        return self._axes(layer, data, kernel)

    def outputs(self, layer: Any, rank: int) -> dict[int, int]:
        _, kernel, output = self.letters(layer)
        return self._axes(layer, output, kernel)

    @staticmethod
    def _axes(layer: Any, letters: str, kernel: str) -> dict[int, int]:
        if layer.equation.strip().endswith("..."):
            return {}  # Keras aligns the bias of such a layer differently
        return {
            axis: layer.kernel.shape[kernel.index(letter)]
            for axis, letter in enumerate(letters)
            if letter in kernel
        }

    def borders(self, layer: Any, shape: Shape) -> str:
        data, kernel, output = self.letters(layer)
        if set(data) <= set(kernel) | set(output):
            return ""
        return "its equation sums over an axis that its kernel does not have"

    def variables(self, layer: Any) -> list[keras.Variable]:
        return [layer.kernel] if layer.bias is None else [layer.kernel, layer.bias]

    def adapt(self, config: dict[str, Any], op: Linear, activation: Function | None) -> None:
        config["use_bias"] = False  # not an option of this layer, which has `bias_axes` instead
        super().adapt(config, op, activation)
        del config["use_bias"]
        config["bias_axes"] = self._bias_letters(op) or None

    def arrays(self, op: Linear) -> list[Array]:
        layer: Any = op.layer
        data, letters, output = self.letters(layer)
        kernel = kernel_of(layer)
        size = dict(zip(letters, kernel.shape, strict=True))
        bias = np.zeros([1] * len(output))
        if layer.bias is not None:
            bias = bias + read(layer.bias)
        if op.before is not None:
            letter = data[op.before.axis]
            kept = "".join(c for c in output if c in letters)
            part = np.einsum(f"{letters},{letter}->{kept}", kernel, op.before.shift)
            bias = bias + part.reshape([size[c] if c in kept else 1 for c in output])
            kernel = kernel * along(op.before.scale, letters.index(letter), kernel.ndim)
        if op.after is not None:
            axis, letter = op.after.axis, output[op.after.axis]
            bias = bias * along(op.after.scale, axis, bias.ndim)
            bias = bias + along(op.after.shift, axis, bias.ndim)
            kernel = kernel * along(op.after.scale, letters.index(letter), kernel.ndim)
        wanted = self._bias_letters(op)
        if not wanted:
            return [kernel]
        # An axis outside `bias_axes` has length 1 here unless a shift has extended it.
        shape = [bias.shape[i] if c in wanted else 1 for i, c in enumerate(output)]
        return [kernel, bias.reshape(shape[output.index(wanted[0]) :])]

    def _bias_letters(self, op: Linear) -> str:
        """Return the axes of the bias after the affines are absorbed."""
        layer: Any = op.layer
        _, kernel, output = self.letters(layer)
        wanted = set(layer.bias_axes or "")
        if op.before is not None and op.before.shifts:
            wanted |= set(kernel) & set(output)
        if op.after is not None and (wanted or op.after.shifts):
            wanted.add(output[op.after.axis])
        return "".join(c for c in output if c in wanted)
