"""`ChannelAffine`: the multiply-add that replaces a norm that no weights could absorb."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from .moving_norm import channels_of
from .renorm import Tensor
from .statistics import channel_shape


@keras.saving.register_keras_serializable(package="renormlite")
class ChannelAffine(keras.layers.Layer):
    """``y = scale * x + shift`` per channel: replaces a norm that no weights could absorb.

    Weights, in this order: scale, shift (those that are used).

    Args:
        axis: Axis of the channels.
        use_scale: Whether there is a scale.
        use_shift: Whether there is a shift.
        name: Name of the layer.
        dtype: Dtype or dtype policy of the layer.
        trainable: Whether scale and shift are trainable.
    """

    def __init__(
        self,
        axis: int = -1,
        use_scale: bool = True,
        use_shift: bool = True,
        *,
        name: str | None = None,
        dtype: Any = None,
        trainable: bool = True,
    ) -> None:
        super().__init__(name=name, dtype=dtype, trainable=trainable)
        self.axis = axis
        self.use_scale = use_scale
        self.use_shift = use_shift
        self.supports_masking = True
        self.scale: keras.Variable | None = None
        self.shift: keras.Variable | None = None

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        """Create scale and shift for inputs of this shape."""
        channels = channels_of(input_shape, self.axis)
        if self.use_scale:
            self.scale = self.add_weight(shape=(channels,), name="scale", initializer="ones")
        if self.use_shift:
            self.shift = self.add_weight(shape=(channels,), name="shift", initializer="zeros")

    def call(self, inputs: Tensor) -> Tensor:
        """Return ``scale * inputs + shift``."""
        layout = channel_shape(len(inputs.shape), self.axis)
        # Whole numbers too: a Dot of integers, which Keras declares as float, gives those.
        outputs = ops.cast(inputs, self.compute_dtype)
        if self.scale is not None:
            outputs = outputs * ops.reshape(self.scale, layout)
        if self.shift is not None:
            outputs = outputs + ops.reshape(self.shift, layout)
        return outputs

    def compute_output_shape(self, input_shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        """Return the shape of the output: that of the input."""
        return input_shape

    def get_config(self) -> dict[str, Any]:
        """Return the constructor's arguments."""
        return {
            **super().get_config(),
            "axis": self.axis,
            "use_scale": self.use_scale,
            "use_shift": self.use_shift,
        }
