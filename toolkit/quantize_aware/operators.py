"""Operators of integer files without weights: the input's quantization, sums, means, pooling."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from ..renorm import Tensor
from .quantized import Quantized
from .steps import fake_quantized

_register = keras.saving.register_keras_serializable(package="renormlite")


@_register
class Quantize(Quantized):
    """Puts real numbers on a grid."""

    def call(self, x: Tensor, training: bool | None = None) -> Any:
        """Return the quantized numbers and their grid."""
        grid = self.output_range(x, training=training)
        return fake_quantized(x, grid, self.output_range.bits), grid


@_register
class QuantizedAdd(Quantized):
    """The sum of two quantized values.

    Call arguments:
        a, a_grid: First operand and its grid.
        b, b_grid: Second operand and its grid.
    """

    def call(
        self, a: Tensor, a_grid: Tensor, b: Tensor, b_grid: Tensor, training: bool | None = None
    ) -> Any:
        """Return the sum and its grid."""
        steps = a_grid[0], b_grid[0]

        def exact(y: Tensor) -> Tensor:
            return self._rounding.added(a / steps[0], b / steps[1], (*steps, y))

        return self._ended(a + b, exact, training)


@_register
class QuantizedConcatenate(Quantized):
    """Values one after the other, on one grid.

    Args:
        axis: Axis to join along.
        opened: For each value whether it comes straight from the sums of a linear layer, which are
            then rounded here for the first time. Others change from their grid to this one.

    Call arguments:
        values: The values.
        grids: The grid of each; of those that are opened the steps of their sums.
    """

    def __init__(self, axis: int, opened: tuple[bool, ...], **options: Any) -> None:
        super().__init__(**options)
        self.axis = axis
        self.opened = tuple(opened)

    def call(self, values: list[Tensor], grids: list[Tensor], training: bool | None = None) -> Any:
        """Return the joined values and their grid."""

        def exact(y: Tensor) -> Tensor:
            parts = []
            for value, grid, opened in zip(values, grids, self.opened, strict=True):
                if opened:
                    sums = ops.round(value / grid)
                    parts.append(self._rounding.scaled(sums, grid, 1.0, y))
                else:
                    integers = ops.round(value / grid[0])
                    parts.append(self._rounding.requantized(integers, grid[0], y))
            return ops.concatenate(parts, self.axis)

        return self._ended(ops.concatenate(values, self.axis), exact, training)

    def get_config(self) -> dict[str, Any]:
        """Return the constructor's arguments."""
        return {**super().get_config(), "axis": self.axis, "opened": list(self.opened)}


@_register
class QuantizedMean(Quantized):
    """The mean over all places of a map: global average pooling.

    Args:
        axes: Axes to average over.
        keepdims: Whether they stay as axes of size 1.
    """

    def __init__(self, axes: tuple[int, ...], keepdims: bool = False, **options: Any) -> None:
        super().__init__(**options)
        self.axes = tuple(axes)
        self.keepdims = keepdims

    def call(self, x: Tensor, grid: Tensor, training: bool | None = None) -> Any:
        """Return the means and their grid."""
        step, count = grid[0], 1
        for axis in self.axes:
            count *= x.shape[axis]
        sums = ops.sum(x / step, self.axes, keepdims=self.keepdims)
        real = sums * (step / count)
        return self._ended(real, lambda y: self._rounding.averaged(sums, count, step, y), training)

    def get_config(self) -> dict[str, Any]:
        """Return the constructor's arguments."""
        return {**super().get_config(), "axes": list(self.axes), "keepdims": self.keepdims}
