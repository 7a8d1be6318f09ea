"""What every layer that computes in integers shares: its output's range, and how it ends."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from ...errors import UserError
from ..renorm import Tensor
from .ranges import Range
from .rounding import rounding_named
from .steps import as_if, fake_quantized, fixed_grid, limits

# Activations that are part of another integer operator, as what they clip to.
FUSED: dict[str | None, tuple[float | None, float | None]] = {
    None: (None, None),
    "relu": (0.0, None),
    "relu6": (0.0, 6.0),
}


class Quantized(keras.layers.Layer):
    """A layer that computes what one operator of an integer file computes.

    Args:
        activation: Activation that the operator ends with, among `FUSED`.
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
        if activation not in FUSED:
            raise UserError(
                f"Expected activation to be one of {', '.join(map(str, FUSED))}. "
                f"Received: {activation!r}."
            )
        self.activation = activation
        self.rounding = rounding
        self.output_range = Range() if output_range is None else output_range
        self._rounding = rounding_named(rounding)

    @property
    def fixed(self) -> tuple[float, int] | None:
        """Step and zero point where every file has the same for this operator."""
        return None

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
        low, high = FUSED[self.activation]
        values = values if low is None else ops.maximum(values, low)
        return values if high is None else ops.minimum(values, high)

    def _saturated(self, centred: Tensor, grid: Tensor) -> Tensor:
        """Return centred integers within the activation and the number of bits."""
        least, most = limits(self.output_range.bits)
        low, high = FUSED[self.activation]
        step, zero = grid[0], grid[1]
        top = most - zero
        if high is not None:
            top = ops.minimum(top, ops.floor(high / step + 0.5))
        return ops.clip(centred, 0.0 if low is not None else least - zero, top)

    def _ended(self, real: Tensor, exact: Any, training: bool | None) -> tuple[Tensor, Tensor]:
        """Put a result on its grid: the integers of the runtime, the gradient of plain rounding.

        Args:
            real: The result as real numbers, before the activation.
            exact: Function of the output's step to the centred integers of the runtime.
            training: Whether the range observes.

        Returns:
            The numbers and their grid.
        """
        real = self._clipped(real)
        grid = self._grid(real, training)
        soft = fake_quantized(real, grid, self.output_range.bits)
        if self.output_range.bits > 8:
            return soft, grid  # sums of 16-bit integers exceed what float32 holds exactly
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
