"""`LearnedRenormalization`: r and d as trainable weights, the variant often found in tutorials."""

from __future__ import annotations

from typing import Any

import keras
from keras import initializers, ops, regularizers

from ..errors import UserError
from .layers import channels_of
from .renorm import Statistics, Tensor, at_least_float32, inference_affine, updated
from .statistics import channel_shape
from .training_step import Settings, training_step


@keras.saving.register_keras_serializable(package="renormlite")
class ClipTo(keras.constraints.Constraint):
    """Keeps a weight between two bounds, after each update by the optimizer.

    Args:
        low: Smallest value.
        high: Largest value.
    """

    def __init__(self, low: float, high: float) -> None:
        self.low = float(low)
        self.high = float(high)

    def __call__(self, w: Tensor) -> Tensor:
        """Return ``w`` clipped."""
        return ops.clip(w, self.low, self.high)

    def get_config(self) -> dict[str, float]:
        """Return the constructor's arguments."""
        return {"low": self.low, "high": self.high}


@keras.saving.register_keras_serializable(package="renormlite")
class LearnedRenormalization(keras.layers.Layer):
    """Batch normalization whose scale and shift are called r and d, learned, and bounded.

        training:   y = r * (x - mu_B) / sigma_B + d
        inference:  y = r * (x - mu) / sqrt(moving_variance + epsilon) + d
        r in [0, r_max], d in [-d_max, d_max], both trained by the optimizer

    **It is not Batch Renormalization.** In the paper r and d are no weights: they are computed anew
    for each batch to carry its statistics over to the moving ones, which is what makes training and
    inference agree on small batches, and they vanish at inference. Here they stay, and training
    still sees only the batch's own statistics, so that the gap of batch normalization between
    training and inference remains. Prefer `BatchRenormalization` for small or uneven batches.
    Prefer this layer to read models written after such tutorials, or where batch normalization with
    a bounded, non-negative scale is wanted: a bounded output range serves quantization.

    What tutorials commonly get wrong is right here: moments are taken over all axes but the
    channels', also for images; the moving statistics exist and move; the bounds leave room
    (r_max = 1 with d_max = 0 freezes d in its first step); and a weight at its bound still gets its
    gradient, since the weight is projected after the update and the gradient passes the clip.

    Weights, in this order: r, d, moving_mean, moving_variance.

    Args:
        axis: Axis of the channels. Inputs may have any rank from 2 up.
        momentum: Of the moving statistics.
        epsilon: Added to the variances.
        r_max: Upper bound of r, above 0; r starts at min(1, r_max).
        d_max: Bound of d's size, at least 0.
        r_initializer: Initializer of r, clipped to its bounds.
        d_initializer: Initializer of d, clipped to its bounds.
        r_regularizer: Regularizer of r.
        d_regularizer: Regularizer of d.
        name: Name of the layer.
        dtype: Dtype or dtype policy of the layer.
        trainable: Whether the layer learns. If not, it infers.

    Call arguments:
        inputs: Tensor of rank 2 or more.
        training: Whether to normalize with the batch and move the statistics.
        mask: Optional, over the leading axes of the inputs; masked elements take no part in the
            statistics.
    """

    def __init__(
        self,
        axis: int = -1,
        momentum: float = 0.99,
        epsilon: float = 1e-3,
        r_max: float = 3.0,
        d_max: float = 5.0,
        r_initializer: Any = "ones",
        d_initializer: Any = "zeros",
        r_regularizer: Any = None,
        d_regularizer: Any = None,
        *,
        name: str | None = None,
        dtype: Any = None,
        trainable: bool = True,
    ) -> None:
        super().__init__(name=name, dtype=dtype, trainable=trainable)
        if not r_max > 0.0:
            raise UserError(f"Expected r_max above 0. Received: {r_max}.")
        if not d_max >= 0.0:
            raise UserError(f"Expected d_max to be at least 0. Received: {d_max}.")
        if not 0.0 <= momentum <= 1.0:
            raise UserError(f"Expected momentum between 0 and 1. Received: {momentum}.")
        if not epsilon > 0.0:
            raise UserError(f"Expected epsilon above 0. Received: {epsilon}.")
        self.axis = axis
        self.momentum = float(momentum)
        self.epsilon = float(epsilon)
        self.r_max = float(r_max)
        self.d_max = float(d_max)
        self.r_initializer = initializers.get(r_initializer)
        self.d_initializer = initializers.get(d_initializer)
        self.r_regularizer = regularizers.get(r_regularizer)
        self.d_regularizer = regularizers.get(d_regularizer)
        self.supports_masking = True

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        """Create the weights for inputs of this shape."""
        channels = channels_of(input_shape, self.axis)
        self.r = self._add_bounded(
            "r", channels, self.r_initializer, self.r_regularizer, ClipTo(0.0, self.r_max)
        )
        self.d = self._add_bounded(
            "d", channels, self.d_initializer, self.d_regularizer, ClipTo(-self.d_max, self.d_max)
        )
        self.moving_mean = self._add_statistic("moving_mean", channels, "zeros")
        self.moving_variance = self._add_statistic("moving_variance", channels, "ones")
        self.input_spec = keras.layers.InputSpec(ndim=len(input_shape), axes={self.axis: channels})

    def _add_bounded(
        self, name: str, channels: int, initializer: Any, regularizer: Any, bounds: ClipTo
    ) -> keras.Variable:
        def bounded(shape: tuple[int, ...], dtype: Any = None) -> Tensor:
            return bounds(initializer(shape, dtype=dtype))

        return self.add_weight(
            shape=(channels,),
            name=name,
            initializer=bounded,
            regularizer=regularizer,
            constraint=bounds,
            autocast=False,
        )

    def _add_statistic(self, name: str, channels: int, initializer: str) -> keras.Variable:
        return self.add_weight(
            shape=(channels,),
            name=name,
            initializer=initializer,
            dtype=at_least_float32(self.variable_dtype),
            trainable=False,
            autocast=False,
            aggregation="mean",
        )

    def bounded_r_and_d(self) -> tuple[Tensor, Tensor]:
        """Return r and d within their bounds, as vectors; gradients pass the clip unchanged.

        Optimizers keep the weights within their bounds; weights set by hand may not be.
        """

        def clipped(weight: keras.Variable) -> Tensor:
            value = ops.cast(weight.value, self.moving_mean.dtype)
            return value + ops.stop_gradient(weight.constraint(value) - value)

        return clipped(self.r), clipped(self.d)

    def scale_and_shift(self) -> tuple[Tensor, Tensor]:
        """Return the vectors of inference: ``x * scale + shift`` on the channel axis."""
        moving = Statistics(self.moving_mean.value, self.moving_variance.value)
        return inference_affine(moving, *self.bounded_r_and_d(), epsilon=self.epsilon)

    def call(
        self, inputs: Tensor, training: bool | None = None, mask: Tensor | None = None
    ) -> Tensor:
        """Normalize ``inputs``; in training also move the statistics."""
        if training and self.trainable:
            return ops.cast(self._train(inputs, mask), self.compute_dtype)
        x = ops.cast(inputs, at_least_float32(inputs.dtype))
        layout = channel_shape(len(x.shape), self.axis)
        scale, shift = (ops.cast(ops.reshape(v, layout), x.dtype) for v in self.scale_and_shift())
        return ops.cast(x * scale + shift, self.compute_dtype)

    def _train(self, inputs: Tensor, mask: Tensor | None) -> Tensor:
        # The paper's own r and d, held at 1 and 0, leave gamma * (x - mu_B) / sigma_B + beta.
        moving = Statistics(self.moving_mean.value, self.moving_variance.value)
        r, d = self.bounded_r_and_d()
        settings = Settings(self.axis, self.epsilon)
        step = training_step(inputs, moving, r, d, settings, r_max=1.0, d_max=0.0, mask=mask)
        after = updated(moving, step.batch, momentum=self.momentum, epsilon=self.epsilon)
        self.moving_mean.assign(after.mean)
        self.moving_variance.assign(after.variance)
        return step.outputs

    def compute_output_shape(self, input_shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        """Return the shape of the output: that of the input."""
        channels_of(input_shape, self.axis)
        return input_shape

    def get_config(self) -> dict[str, Any]:
        """Return the constructor's arguments in serializable form."""
        return {
            **super().get_config(),
            "axis": self.axis,
            "momentum": self.momentum,
            "epsilon": self.epsilon,
            "r_max": self.r_max,
            "d_max": self.d_max,
            "r_initializer": initializers.serialize(self.r_initializer),
            "d_initializer": initializers.serialize(self.d_initializer),
            "r_regularizer": regularizers.serialize(self.r_regularizer),
            "d_regularizer": regularizers.serialize(self.d_regularizer),
        }
