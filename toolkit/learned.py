"""`LearnedRenormalization`: r and d as trainable weights, the variant often found in tutorials."""

from __future__ import annotations

from typing import Any

import keras
from keras import initializers, ops, regularizers

from ..errors import UserError
from .moving_norm import MovingNorm, channels_of
from .renorm import Statistics, Tensor
from .training_step import Settings, training_step


@keras.saving.register_keras_serializable(package="renormlite")
class ClipTo(keras.constraints.Constraint):
    """Constrains a weight to an interval after each update by the optimizer.

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
class LearnedRenormalization(MovingNorm):
    """Batch normalization whose scale and shift are called r and d, learned, and bounded.

        training:   y = r * (x - mu_B) / sigma_B + d
        inference:  y = r * (x - mu) / sqrt(moving_variance + epsilon) + d
        r in [0, r_max], d in [-d_max, d_max], both trained by the optimizer

    **It is not Batch Renormalization.** In the paper r and d are not weights: they are computed for
    each batch to correct its statistics to the moving ones, which makes training and inference
    agree on small batches, and they do not exist at inference. Here they are kept at inference, and
    training still uses only the batch's own statistics, so the gap of batch normalization between
    training and inference remains. Prefer `BatchRenormalization` for small or uneven batches.
    Use this layer to load models written after such tutorials, or for batch normalization with a
    bounded, non-negative scale: a bounded output range helps quantization.

    It avoids the common mistakes of those tutorials: moments are taken over all axes but the
    channel axis, also for images; the moving statistics are updated; the bounds leave room
    (r_max = 1 with d_max = 0 would freeze d in its first step); and a weight at its bound still
    gets a gradient, since the weight is projected after the update and the gradient passes the
    clip.

    Weights, in this order: r, d, moving_mean, moving_variance.

    Args:
        axis: Axis of the channels. Inputs may have any rank from 2 up.
        momentum: Of the moving statistics.
        epsilon: Added to the variances.
        r_max: Upper bound of r, above 0; r starts at min(1, r_max).
        d_max: Bound of abs(d), at least 0.
        r_initializer: Initializer of r, clipped to its bounds.
        d_initializer: Initializer of d, clipped to its bounds.
        r_regularizer: Regularizer of r.
        d_regularizer: Regularizer of d.
        name: Name of the layer.
        dtype: Dtype or dtype policy of the layer.
        trainable: Whether the layer is trained. If not, it runs in inference mode.

    Call arguments:
        inputs: Tensor of rank 2 or more.
        training: Whether to normalize with the batch statistics and update the moving ones.
        mask: Optional, over the leading axes of the inputs; masked elements are excluded from the
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
        super().__init__(axis, momentum, epsilon, name=name, dtype=dtype, trainable=trainable)
        if not r_max > 0.0:
            raise UserError(f"Expected r_max above 0. Received: {r_max}.")
        if not d_max >= 0.0:
            raise UserError(f"Expected d_max to be at least 0. Received: {d_max}.")
        self.r_max = float(r_max)
        self.d_max = float(d_max)
        self.r_initializer = initializers.get(r_initializer)
        self.d_initializer = initializers.get(d_initializer)
        self.r_regularizer = regularizers.get(r_regularizer)
        self.d_regularizer = regularizers.get(d_regularizer)

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        """Create the weights for inputs of this shape."""
        channels = channels_of(input_shape, self.axis)
        self.r = self._add_bounded(
            "r", channels, self.r_initializer, self.r_regularizer, ClipTo(0.0, self.r_max)
        )
        self.d = self._add_bounded(
            "d", channels, self.d_initializer, self.d_regularizer, ClipTo(-self.d_max, self.d_max)
        )
        self.moving_mean, self.moving_variance = self._add_statistics("moving", channels)
        self._expect(input_shape, channels)

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

    def bounded_r_and_d(self) -> tuple[Tensor, Tensor]:
        """Return r and d within their bounds, as vectors; gradients pass the clip unchanged.

        Optimizers keep the weights within their bounds; weights set by hand may be outside.
        """

        def clipped(weight: keras.Variable) -> Tensor:
            value = ops.cast(weight.value, self.moving_mean.dtype)
            return value + ops.stop_gradient(weight.constraint(value) - value)

        return clipped(self.r), clipped(self.d)

    def _gamma_beta(self) -> tuple[Tensor | None, Tensor | None]:
        return self.bounded_r_and_d()

    def _train(self, inputs: Tensor, mask: Tensor | None) -> Tensor:
        # The paper's own r and d, held at 1 and 0, leave gamma * (x - mu_B) / sigma_B + beta.
        moving = Statistics(self.moving_mean.value, self.moving_variance.value)
        r, d = self.bounded_r_and_d()
        settings = Settings(self.axis, self.epsilon)
        step = training_step(inputs, moving, r, d, settings, r_max=1.0, d_max=0.0, mask=mask)
        variables = self.moving_mean, self.moving_variance
        self._move(variables, moving, step.batch, 1.0 - self.momentum)
        return step.outputs

    def get_config(self) -> dict[str, Any]:
        """Return the constructor's arguments in serializable form."""
        return {
            **super().get_config(),
            "r_max": self.r_max,
            "d_max": self.d_max,
            "r_initializer": initializers.serialize(self.r_initializer),
            "d_initializer": initializers.serialize(self.d_initializer),
            "r_regularizer": regularizers.serialize(self.r_regularizer),
            "d_regularizer": regularizers.serialize(self.d_regularizer),
        }
