"""What every layer that computes in integers shares: its output's range, and how it ends."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from ...errors import UserError
from ..renorm import Tensor
from .ranges import Range
from .rounding import Rounding, rounding_named
from .steps import as_if, fake_quantized, fixed_grid, grid_between, limits
from .wide import WIDE

# Activations that integer operators end with. Any other clip is the range of the output itself.
FUSED: dict[str | None, tuple[float | None, float | None]] = {
    None: (None, None),
    "relu": (0.0, None),
    "relu6": (0.0, 6.0),
}


def ends_of(activation: str | None) -> tuple[float | None, float | None]:
    """Return the numbers that an activation clips to; None for an open end.

    Args:
        activation: Among `FUSED`, ``"hard_tanh"``, or ``"reluN"``, which clips to 0 and N.

    Raises:
        UserError: The activation does not clip.
    """
    if activation in FUSED:
        return FUSED[activation]
    if activation == "hard_tanh":
        return -1.0, 1.0
    try:
        return 0.0, float(str(activation).removeprefix("relu"))
    except ValueError:
        raise UserError(
            f"Expected activation to be one of {', '.join(map(str, FUSED))}, hard_tanh, or relu "
            f"and a number. Received: {activation!r}."
        ) from None


class Quantized(keras.layers.Layer):
    """A layer that computes what one operator of an integer file computes.

    Args:
        activation: Activation that the operator ends with, see `ends_of`.
        output_range: Range of the output.
        rounding: Arithmetic of the target, see `rounding.ROUNDINGS`.
        name: Name of the layer.
        dtype: Ignored: integers are held in float32.
        trainable: Whether the layer learns and observes.
    """

    def __init__(
        self,
        *,
        activation: str | None = None,
        output_range: Range | None = None,
        rounding: str = "float",
        name: str | None = None,
        dtype: Any = None,
        trainable: bool = True,
    ) -> None:
        super().__init__(name=name, dtype="float32", trainable=trainable)
        ends_of(activation)
        self.activation = activation
        self.rounding = rounding
        self.output_range = Range() if output_range is None else output_range
        self._rounding: Rounding = rounding_named(rounding)
        if self.output_range.bits > 8:
            self._rounding = WIDE[rounding]

    @property
    def fixed(self) -> tuple[float, int] | None:
        """Step and zero point that do not depend on the data; None if they do."""
        if self.activation in FUSED:
            return None
        low, high = ends_of(self.activation)
        assert low is not None
        assert high is not None
        return grid_between(low, high, self.output_range.bits)

    @property
    def ranged(self) -> bool:
        """Whether the output's grid follows from the layer's own range."""
        return self.fixed is None

    def plain(self) -> keras.layers.Layer:
        """Return a layer of Keras that computes the same without rounding and activation."""
        raise NotImplementedError

    def operands(self, inputs: list[Any]) -> list[Any]:
        """Return the values among the call's inputs, in which a grid follows each value."""
        return inputs[::2]

    def build(self, *shapes: Any) -> None:
        """Build the range."""
        if self.ranged and not self.output_range.built:
            self.output_range.build()
        self.built = True

    def _grid(self, real: Tensor, training: bool | None) -> Tensor:
        """Return the grid of a result."""
        if self.fixed is not None:
            return fixed_grid(*self.fixed)
        return self.output_range(real, training=training)

    def _clipped(self, values: Tensor) -> Tensor:
        """Apply the activation to real numbers."""
        low, high = ends_of(self.activation)
        values = values if low is None else ops.maximum(values, low)
        return values if high is None else ops.minimum(values, high)

    def _saturated(self, centred: Tensor, grid: Tensor) -> Tensor:
        """Return centred integers within the activation and the number of bits."""
        least, most = limits(self.output_range.bits)
        step, zero = grid[0], grid[1]
        top = most - zero
        if self.activation == "relu6":
            top = ops.minimum(top, ops.floor(6.0 / step + 0.5))
        bottom = 0.0 if ends_of(self.activation)[0] == 0.0 else least - zero
        return ops.clip(centred, bottom, top)

    def _ended(self, real: Tensor, exact: Any, training: bool | None) -> tuple[Tensor, Tensor]:
        """Put a result on its grid: the integers of the runtime, the gradient of plain rounding.

        Args:
            real: The result as real numbers, before the activation.
            exact: Function of the output's step to the centred integers of the runtime. None if
                they are those of the rounded real numbers, up to a step.
            training: Whether the range observes.

        Returns:
            The numbers and their grid.
        """
        real = self._clipped(real)
        grid = self._grid(real, training)
        soft = fake_quantized(real, grid, self.output_range.bits)
        if exact is None:
            return soft, grid
        hard = self._saturated(exact(ops.stop_gradient(grid[0])), grid) * grid[0]
        return as_if(hard, soft), grid

    def get_config(self) -> dict[str, Any]:
        """Return the constructor's arguments in serializable form."""
        return {
            **super().get_config(),
            "activation": self.activation,
            "output_range": keras.saving.serialize_keras_object(self.output_range),
            "rounding": self.rounding,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Quantized:
        """Make the layer from `get_config`."""
        config["output_range"] = keras.saving.deserialize_keras_object(config["output_range"])
        return cls(**config)
