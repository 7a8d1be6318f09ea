"""Operators of integer files that compute a function of each number: tables, products, softmax."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
from keras import ops

from ...errors import UserError
from ..renorm import Tensor
from .quantized import Quantized
from .rounding import FIXED_POINT
from .steps import weight_integers, weight_steps
from .wide import WIDE

_register = keras.saving.register_keras_serializable(package="renormlite")

# The grids that runtimes require for 8-bit results.
_SHARES = (1.0 / 256.0, -128)
_SIGNED = (1.0 / 128.0, 0)

FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "sigmoid": ops.sigmoid,
    "tanh": ops.tanh,
    "gelu": lambda x: ops.gelu(x, approximate=False),
    "elu": ops.elu,
    "exponential": ops.exp,
}
_GRIDS = {"sigmoid": _SHARES, "tanh": _SIGNED}
_WIDE = (2.0**-15, 0)


@_register
class QuantizedFunction(Quantized):
    """A function of each number, which runtimes look up in a table of all 256 results.

    Args:
        function: Among `FUNCTIONS`.
    """

    def __init__(self, function: str, **options: Any) -> None:
        super().__init__(**options)
        if function not in FUNCTIONS:
            raise UserError(
                f"Expected function to be one of {', '.join(FUNCTIONS)}. Received: {function!r}."
            )
        self.function = function

    @property
    def fixed(self) -> tuple[float, int] | None:
        """See the base class."""
        grid = _GRIDS.get(self.function)
        return grid if grid is None or self._rounding.bits == 8 else _WIDE

    def plain(self) -> keras.layers.Layer:
        """See the base class."""
        return keras.layers.Activation(self.function, name=self.name)

    def call(self, x: Tensor, grid: Tensor, training: bool | None = None) -> Any:
        """Return the function's values and their grid."""
        real = FUNCTIONS[self.function](x)
        if self._rounding.bits == 8:
            return self._ended(real, lambda y: ops.round(real * (1.0 / y)), training)
        curves = {"sigmoid": WIDE[self.rounding].sigmoid, "tanh": WIDE[self.rounding].tanh}
        if self.function not in curves:
            return self._ended(real, None, training)
        integers = curves[self.function](x / grid[0], grid[0])
        return self._ended(real, lambda y: integers, training)

    def get_config(self) -> dict[str, Any]:
        """Return the constructor's arguments."""
        return {**super().get_config(), "function": self.function}


@_register
class QuantizedLeakyReLU(Quantized):
    """ReLU with a slope for negative numbers.

    Args:
        negative_slope: The slope.
    """

    def __init__(self, negative_slope: float, **options: Any) -> None:
        super().__init__(**options)
        self.negative_slope = float(negative_slope)

    def plain(self) -> keras.layers.Layer:
        """See the base class."""
        return keras.layers.LeakyReLU(self.negative_slope, name=self.name)

    def call(self, x: Tensor, grid: Tensor, training: bool | None = None) -> Any:
        """Return the activated numbers and their grid."""
        step = grid[0]
        return self._ended(
            ops.leaky_relu(x, self.negative_slope),
            lambda y: self._rounding.leaky(x / step, self.negative_slope, step, y),
            training,
        )

    def get_config(self) -> dict[str, Any]:
        """Return the constructor's arguments."""
        return {**super().get_config(), "negative_slope": self.negative_slope}


@_register
class QuantizedPReLU(Quantized):
    """ReLU with a trained slope for negative numbers, in 8-bit steps.

    Args:
        layer: Keras' layer, with its weights.
        weight_bits: Number of bits of the slopes.
    """

    def __init__(self, layer: keras.layers.PReLU, weight_bits: int = 8, **options: Any) -> None:
        super().__init__(**options)
        self.layer = layer
        self.weight_bits = weight_bits

    def plain(self) -> keras.layers.Layer:
        """See the base class."""
        made = keras.layers.PReLU(shared_axes=self.layer.shared_axes, name=self.name)
        made.build((None, *self.layer.alpha.shape))
        made.set_weights(self.layer.get_weights())
        return made

    def build(self, x_shape: tuple[int | None, ...], grid_shape: Any = None) -> None:
        """Build the slopes."""
        if not self.layer.built:
            self.layer.build(x_shape)
        super().build(x_shape)

    def call(self, x: Tensor, grid: Tensor, training: bool | None = None) -> Any:
        """Return the activated numbers and their grid."""
        step = grid[0]
        slopes, unit = self.integer_slopes()

        def exact(y: Tensor) -> Tensor:
            values = x / step
            positive = FIXED_POINT.scaled(values, step, 1.0, y)
            return ops.where(
                values >= 0, positive, FIXED_POINT.scaled(values * slopes, step, unit, y)
            )

        negative = ops.minimum(x, 0.0) * (slopes * unit)
        return self._ended(ops.maximum(x, 0.0) + negative, exact, training)

    def integer_slopes(self) -> tuple[Tensor, Tensor]:
        """Return the integers of the slopes, and their step."""
        slopes = self.layer.alpha.value
        unit = weight_steps(slopes, self.weight_bits, tuple(range(len(slopes.shape))))
        unit = ops.reshape(unit, ())
        return weight_integers(slopes, unit, self.weight_bits), unit

    def get_config(self) -> dict[str, Any]:
        """Return the constructor's arguments in serializable form."""
        return {
            **super().get_config(),
            "layer": keras.saving.serialize_keras_object(self.layer),
            "weight_bits": self.weight_bits,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> QuantizedPReLU:
        """Make the layer from `get_config`."""
        config["layer"] = keras.saving.deserialize_keras_object(config["layer"])
        return super().from_config(config)


@_register
class QuantizedMultiply(Quantized):
    """The product of two quantized values.

    Call arguments:
        a, a_grid: First operand and its grid.
        b, b_grid: Second operand and its grid.
    """

    def plain(self) -> keras.layers.Layer:
        """See the base class."""
        return keras.layers.Multiply(name=self.name)

    def call(
        self, a: Tensor, a_grid: Tensor, b: Tensor, b_grid: Tensor, training: bool | None = None
    ) -> Any:
        """Return the product and its grid."""
        steps = a_grid[0], b_grid[0]

        def exact(y: Tensor) -> Tensor:
            return self._rounding.product(a / steps[0], b / steps[1], (*steps, y))

        return self._ended(a * b, exact, training)


@_register
class QuantizedSoftmax(Quantized):
    """Softmax over the last axis."""

    @property
    def fixed(self) -> tuple[float, int] | None:
        """See the base class."""
        return _SHARES if self._rounding.bits == 8 else _WIDE

    def plain(self) -> keras.layers.Layer:
        """See the base class."""
        return keras.layers.Softmax(name=self.name)

    def call(self, x: Tensor, grid: Tensor, training: bool | None = None) -> Any:
        """Return the shares and their grid."""
        step = grid[0]
        shares = self._rounding.shares
        exact = (lambda y: shares(x / step, step, y)) if self._rounding.bits == 8 else None
        return self._ended(ops.softmax(x), exact, training)
