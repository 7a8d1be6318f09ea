"""Operators of integer files that compute a function of each number: tables, products, softmax."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
from keras import ops

from ...errors import UserError
from ..renorm import Tensor
from .quantized import Quantized

_register = keras.saving.register_keras_serializable(package="renormlite")

# The grids that runtimes require for 8-bit results.
_SHARES = (1.0 / 256.0, -128)
_SIGNED = (1.0 / 128.0, 0)

FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "sigmoid": ops.sigmoid,
    "tanh": ops.tanh,
    "gelu": lambda x: ops.gelu(x, approximate=False),
}
_GRIDS = {"sigmoid": _SHARES, "tanh": _SIGNED}


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
        return _GRIDS.get(self.function)

    def plain(self) -> keras.layers.Layer:
        """See the base class."""
        return keras.layers.Activation(self.function, name=self.name)

    def call(self, x: Tensor, grid: Tensor, training: bool | None = None) -> Any:
        """Return the function's values and their grid."""
        real = FUNCTIONS[self.function](x)
        return self._ended(real, lambda y: ops.round(real * (1.0 / y)), training)

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
            return self._rounding.scaled((a / steps[0]) * (b / steps[1]), *steps, y)

        return self._ended(a * b, exact, training)


@_register
class QuantizedSoftmax(Quantized):
    """Softmax over the last axis."""

    @property
    def fixed(self) -> tuple[float, int] | None:
        """See the base class."""
        return _SHARES

    def plain(self) -> keras.layers.Layer:
        """See the base class."""
        return keras.layers.Softmax(name=self.name)

    def call(self, x: Tensor, grid: Tensor, training: bool | None = None) -> Any:
        """Return the shares and their grid."""
        step = grid[0]
        return self._ended(
            ops.softmax(x),
            lambda y: self._rounding.shares(x / step, step, y),
            training,
        )
