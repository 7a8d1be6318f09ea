"""Operators of integer files that have no weights: quantization, sums, means, pooling."""

from __future__ import annotations

import functools
import math
from typing import Any

import keras
from keras import ops

from ..renorm import Tensor
from .quantized import Quantized
from .steps import as_if, fake_quantized

_register = keras.saving.register_keras_serializable(package="renormlite")


@_register
class Quantize(Quantized):
    """Quantizes real numbers."""

    def plain(self) -> keras.layers.Layer:
        """See the base class."""
        return keras.layers.Identity(name=self.name)

    def call(self, x: Tensor, training: bool | None = None) -> Any:
        """Return the quantized numbers and their grid."""
        return self._ended(x, lambda y: self._rounding.quantized(x, y), training)


@_register
class QuantizedAdd(Quantized):
    """The sum of two quantized values.

    Call arguments:
        a, a_grid: First operand and its grid.
        b, b_grid: Second operand and its grid.
    """

    sign = 1.0

    def plain(self) -> keras.layers.Layer:
        """See the base class."""
        return keras.layers.Add(name=self.name)

    def call(
        self, a: Tensor, a_grid: Tensor, b: Tensor, b_grid: Tensor, training: bool | None = None
    ) -> Any:
        """Return the sum and its grid."""
        steps = a_grid[0], b_grid[0]

        def exact(y: Tensor) -> Tensor:
            return self._rounding.added(a / steps[0], self.sign * b / steps[1], (*steps, y))

        return self._ended(a + self.sign * b, exact, training)


@_register
class QuantizedSubtract(QuantizedAdd):
    """The difference of two quantized values."""

    sign = -1.0

    def plain(self) -> keras.layers.Layer:
        """See the base class."""
        return keras.layers.Subtract(name=self.name)


@_register
class QuantizedExtreme(Quantized):
    """The greatest or the least of several values, which are requantized to one grid.

    Args:
        greatest: Whether it is the greatest.

    Call arguments:
        values: The values.
        grids: The grid of each.
    """

    def __init__(self, greatest: bool, **options: Any) -> None:
        super().__init__(**options)
        self.greatest = greatest

    def plain(self) -> keras.layers.Layer:
        """See the base class."""
        kind = keras.layers.Maximum if self.greatest else keras.layers.Minimum
        return kind(name=self.name)

    def operands(self, inputs: list[Any]) -> list[Any]:
        """Return the values, which come before all grids."""
        return inputs[: len(inputs) // 2]

    def call(self, values: list[Tensor], grids: list[Tensor], training: bool | None = None) -> Any:
        """Return the values and their grid."""
        chosen = ops.maximum if self.greatest else ops.minimum

        def exact(y: Tensor) -> Tensor:
            parts = (
                self._rounding.requantized(ops.round(value / grid[0]), grid[0], y)
                for value, grid in zip(values, grids, strict=True)
            )
            return functools.reduce(chosen, parts)

        return self._ended(functools.reduce(chosen, values), exact, training)

    def get_config(self) -> dict[str, Any]:
        """Return the constructor's arguments."""
        return {**super().get_config(), "greatest": self.greatest}


@_register
class QuantizedResizing(Quantized):
    """Bilinear resizing of maps, on the grid of the input.

    Args:
        height: Height of the result.
        width: Its width.
    """

    def __init__(self, height: int, width: int, **options: Any) -> None:
        super().__init__(**options)
        self.sizes = height, width

    @property
    def ranged(self) -> bool:
        """The grid is the input's."""
        return False

    def plain(self) -> keras.layers.Layer:
        """See the base class."""
        return keras.layers.Resizing(*self.sizes, data_format="channels_last", name=self.name)

    def call(self, x: Tensor, grid: Tensor, training: bool | None = None) -> Any:
        """Return the resized maps and the grid of the input."""
        step, zero = ops.stop_gradient(grid[0]), ops.stop_gradient(grid[1])
        real = ops.image.resize(x, self.sizes, "bilinear", data_format="channels_last")
        if self._rounding.bits > 8:
            return fake_quantized(real, grid, self._rounding.bits), grid
        exact = self._rounding.resized(ops.round(x / step), zero, self.sizes)
        return as_if(exact * step, real), grid

    def get_config(self) -> dict[str, Any]:
        """Return the constructor's arguments."""
        height, width = self.sizes
        return {**super().get_config(), "height": height, "width": width}


@_register
class QuantizedConcatenate(Quantized):
    """Concatenation of values, on one grid.

    Args:
        axis: Axis to concatenate along.
        opened: For each value whether it is the unrounded sums of a linear layer, which are then
            rounded here. Other values are requantized to this grid.

    Call arguments:
        values: The values.
        grids: The grid of each; for opened values the steps of their sums.
    """

    def __init__(self, axis: int, opened: tuple[bool, ...], **options: Any) -> None:
        super().__init__(**options)
        self.axis = axis
        self.opened = tuple(opened)

    def plain(self) -> keras.layers.Layer:
        """See the base class."""
        return keras.layers.Concatenate(self.axis, name=self.name)

    def operands(self, inputs: list[Any]) -> list[Any]:
        """Return the values, which come before all grids."""
        return inputs[: len(self.opened)]

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
class QuantizedAveragePooling(Quantized):
    """Means over windows, rounded half away from zero on the grid of the input.

    Args:
        layer: Keras' average pooling layer.
    """

    def __init__(self, layer: Any, **options: Any) -> None:
        super().__init__(**options)
        self.layer = layer

    @property
    def ranged(self) -> bool:
        """The grid is the input's."""
        return False

    def plain(self) -> keras.layers.Layer:
        """See the base class."""
        config = {**self.layer.get_config(), "name": self.name}
        made: keras.layers.Layer = type(self.layer).from_config(config)
        return made

    def call(self, x: Tensor, grid: Tensor, training: bool | None = None) -> Any:
        """Return the means and the grid of the input."""
        step, zero = ops.stop_gradient(grid[0]), ops.stop_gradient(grid[1])
        real = self.layer(x)
        # A mean of integers is off a half by 1 / (2 * places) at least, or is one: then float32 may
        # put it on either side.
        places = math.prod(self.layer.pool_size)
        means = self.layer(x / step) + zero
        exact = ops.sign(means) * ops.floor(ops.abs(means) + 0.5 + 0.25 / places) - zero
        return as_if(exact * step, real), grid

    def get_config(self) -> dict[str, Any]:
        """Return the constructor's arguments in serializable form."""
        return {
            **super().get_config(),
            "layer": keras.saving.serialize_keras_object(self.layer),
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> QuantizedAveragePooling:
        """Make the layer from `get_config`."""
        config["layer"] = keras.saving.deserialize_keras_object(config["layer"])
        return super().from_config(config)


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

    def plain(self) -> keras.layers.Layer:
        """See the base class."""
        kinds = {1: keras.layers.GlobalAveragePooling1D, 2: keras.layers.GlobalAveragePooling2D}
        return kinds[len(self.axes)](keepdims=self.keepdims, name=self.name)

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
