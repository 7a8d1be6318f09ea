"""The layers: `BatchRenormalization` and `ChannelAffine`."""

from __future__ import annotations

from typing import Any

import keras
from keras import constraints, initializers, ops, regularizers

from ..errors import UserError
from .renorm import Statistics, Tensor, at_least_float32, inference_affine, updated
from .schedules import PAPER_D_MAX, PAPER_R_MAX, ScheduleLike, as_schedule
from .statistics import channel_shape
from .training_step import Settings, training_step


def channels_of(input_shape: tuple[int | None, ...], axis: int) -> int:
    """Return the number of channels, checked.

    Raises:
        UserError: When the input has fewer than two axes, not that axis, or its size is not static.
    """
    rank = len(input_shape)
    if rank < 2 or not -rank <= axis < rank:
        raise UserError(
            f"Expected inputs of rank 2 or more that have the axis {axis}. "
            f"Received: inputs of shape {tuple(input_shape)}."
        )
    channels = input_shape[axis]
    if channels is None:
        raise UserError(
            f"Expected the size of the channel axis {axis} to be known when the layer is built. "
            f"Received: inputs of shape {tuple(input_shape)}."
        )
    return channels


@keras.saving.register_keras_serializable(package="renormlite")
class BatchRenormalization(keras.layers.Layer):
    """Batch Renormalization (Ioffe 2017, arXiv:1702.03275): trains with what inference will use.

    Batch normalization trains with the statistics of each batch and infers with their moving
    averages. Here every training output is carried over to the moving statistics,

        y = gamma * ((x - mu_B) / sigma_B * r + d) + beta
        r = clip(sigma_B / sigma, 1 / r_max, r_max)    d = clip((mu_B - mu) / sigma, -d_max, d_max)

    with r and d constant to the gradient. Where neither is clipped, the training output *is* the
    inference output, which makes small and uneven batches trainable, and leaves inference the plain
    affine map ``gamma * (x - mu) / sqrt(moving_variance + epsilon) + beta`` that
    `renormlite.fold` folds into the neighbouring weights.

    The layer counts its own training steps in a weight, so r_max and d_max go on where they were
    when training is resumed from a saved model. With ``trainable = False`` the layer infers.

    Weights, in this order: gamma, beta, moving_mean, moving_variance, step, and with
    ``renorm_momentum`` also renorm_mean and renorm_variance. The statistics are float32 at least,
    also under ``mixed_float16``.

    Args:
        axis: Axis of the channels. Inputs may have any rank from 2 up.
        momentum: Of the moving statistics; the paper's alpha is ``1 - momentum``. Other than in
            batch normalization this bears on training: the paper found 0.99 good.
        epsilon: Added to the variances.
        center: Whether to learn beta.
        scale: Whether to learn gamma.
        r_max: Bound on r, at least 1: a number, ``None`` for no bound, a schedule or any callable
            from the step to a number. The paper's own by default; it is made for 130k steps, so
            take `paper_schedule` to fit it to a shorter run.
        d_max: Bound on d, at least 0, likewise.
        beta_initializer: Initializer of beta.
        gamma_initializer: Initializer of gamma.
        moving_mean_initializer: Initializer of the moving mean.
        moving_variance_initializer: Initializer of the moving variance.
        beta_regularizer: Regularizer of beta.
        gamma_regularizer: Regularizer of gamma.
        beta_constraint: Constraint on beta.
        gamma_constraint: Constraint on gamma.
        renorm_momentum: Momentum of statistics that only training uses, to get r and d from.
            Inference then has its own with ``momentum``, which no longer bears on training.
            ``None``, the paper's way, has one set for both.
        synchronized: Whether replicas share their statistics: under a `tf.distribute` strategy each
            then sees the whole batch, weighted by what every shard counted. On JAX,
            `keras.distribution` shares them always.
        virtual_batch_size: Samples in a ghost batch: larger batches are cut into ghosts, each with
            statistics, r and d of its own.
        name: Name of the layer.
        dtype: Dtype or dtype policy of the layer.
        trainable: Whether the layer learns. If not, it infers.

    Call arguments:
        inputs: Tensor of rank 2 or more.
        training: Whether to normalize with the batch and move the statistics.
        mask: Optional, over the leading axes of the inputs; masked elements take no part in the
            statistics.

    Example:
        >>> import renormlite as rl
        >>> r_max, d_max = rl.paper_schedule(total_steps=2_000)
        >>> layer = rl.BatchRenormalization(r_max=r_max, d_max=d_max)
    """

    def __init__(
        self,
        axis: int = -1,
        momentum: float = 0.99,
        epsilon: float = 1e-3,
        center: bool = True,
        scale: bool = True,
        r_max: ScheduleLike = PAPER_R_MAX,
        d_max: ScheduleLike = PAPER_D_MAX,
        beta_initializer: Any = "zeros",
        gamma_initializer: Any = "ones",
        moving_mean_initializer: Any = "zeros",
        moving_variance_initializer: Any = "ones",
        beta_regularizer: Any = None,
        gamma_regularizer: Any = None,
        beta_constraint: Any = None,
        gamma_constraint: Any = None,
        *,
        renorm_momentum: float | None = None,
        synchronized: bool = False,
        virtual_batch_size: int | None = None,
        name: str | None = None,
        dtype: Any = None,
        trainable: bool = True,
    ) -> None:
        super().__init__(name=name, dtype=dtype, trainable=trainable)
        if not isinstance(axis, int):
            raise UserError(f"Expected axis to be one integer. Received: {axis!r}.")
        for name_of, value in (("momentum", momentum), ("renorm_momentum", renorm_momentum)):
            if value is not None and not 0.0 <= value <= 1.0:
                raise UserError(f"Expected {name_of} between 0 and 1. Received: {value}.")
        if not epsilon > 0.0:
            raise UserError(f"Expected epsilon above 0. Received: {epsilon}.")
        self.axis = axis
        self.momentum = float(momentum)
        self.epsilon = float(epsilon)
        self.center = center
        self.scale = scale
        self.r_max = as_schedule(r_max, name="r_max", at_least=1.0)
        self.d_max = as_schedule(d_max, name="d_max", at_least=0.0)
        self.beta_initializer = initializers.get(beta_initializer)
        self.gamma_initializer = initializers.get(gamma_initializer)
        self.moving_mean_initializer = initializers.get(moving_mean_initializer)
        self.moving_variance_initializer = initializers.get(moving_variance_initializer)
        self.beta_regularizer = regularizers.get(beta_regularizer)
        self.gamma_regularizer = regularizers.get(gamma_regularizer)
        self.beta_constraint = constraints.get(beta_constraint)
        self.gamma_constraint = constraints.get(gamma_constraint)
        if virtual_batch_size is not None and virtual_batch_size < 1:
            raise UserError(
                f"Expected virtual_batch_size to be at least 1. Received: {virtual_batch_size}."
            )
        if synchronized and virtual_batch_size is not None:
            raise UserError(
                "Expected either synchronized or virtual_batch_size: the one makes the batch that "
                "is normalized larger, the other smaller."
            )
        self.renorm_momentum = None if renorm_momentum is None else float(renorm_momentum)
        self.synchronized = synchronized
        self.virtual_batch_size = virtual_batch_size
        self.supports_masking = True
        self.gamma: keras.Variable | None = None
        self.beta: keras.Variable | None = None

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        """Create the weights for inputs of this shape."""
        channels = channels_of(input_shape, self.axis)
        if self.scale:
            self.gamma = self.add_weight(
                shape=(channels,),
                name="gamma",
                initializer=self.gamma_initializer,
                regularizer=self.gamma_regularizer,
                constraint=self.gamma_constraint,
                autocast=False,
            )
        if self.center:
            self.beta = self.add_weight(
                shape=(channels,),
                name="beta",
                initializer=self.beta_initializer,
                regularizer=self.beta_regularizer,
                constraint=self.beta_constraint,
                autocast=False,
            )
        self.moving_mean = self._add_statistic(
            "moving_mean", channels, self.moving_mean_initializer
        )
        self.moving_variance = self._add_statistic(
            "moving_variance", channels, self.moving_variance_initializer
        )
        self.step = self.add_weight(
            shape=(),
            name="step",
            initializer="zeros",
            dtype="int",
            trainable=False,
            aggregation="only_first_replica",
        )
        if self.renorm_momentum is not None:
            self.renorm_mean = self._add_statistic(
                "renorm_mean", channels, self.moving_mean_initializer
            )
            self.renorm_variance = self._add_statistic(
                "renorm_variance", channels, self.moving_variance_initializer
            )
        self.input_spec = keras.layers.InputSpec(ndim=len(input_shape), axes={self.axis: channels})

    @property
    def _settings(self) -> Settings:
        return Settings(self.axis, self.epsilon, self.synchronized, self.virtual_batch_size)

    def _add_statistic(self, name: str, channels: int, initializer: Any) -> keras.Variable:
        return self.add_weight(
            shape=(channels,),
            name=name,
            initializer=initializer,
            dtype=at_least_float32(self.variable_dtype),
            trainable=False,
            autocast=False,
            aggregation="mean",
        )

    def call(
        self, inputs: Tensor, training: bool | None = None, mask: Tensor | None = None
    ) -> Tensor:
        """Normalize ``inputs``; in training also move the statistics."""
        if training and self.trainable:
            return ops.cast(self._train(inputs, mask), self.compute_dtype)
        x = ops.cast(inputs, at_least_float32(inputs.dtype))
        layout = channel_shape(len(x.shape), self.axis)
        scale, shift = (ops.reshape(v, layout) for v in self.scale_and_shift())
        return ops.cast(x * ops.cast(scale, x.dtype) + ops.cast(shift, x.dtype), self.compute_dtype)

    def scale_and_shift(self) -> tuple[Tensor, Tensor]:
        """Return the vectors of inference: ``x * scale + shift`` on the channel axis."""
        moving = Statistics(self.moving_mean.value, self.moving_variance.value)
        return inference_affine(moving, *self._gamma_beta(), epsilon=self.epsilon)

    def _gamma_beta(self) -> tuple[Tensor | None, Tensor | None]:
        dtype = self.moving_mean.dtype
        return (
            None if self.gamma is None else ops.cast(self.gamma.value, dtype),
            None if self.beta is None else ops.cast(self.beta.value, dtype),
        )

    def _train(self, inputs: Tensor, mask: Tensor | None) -> Tensor:
        moving = Statistics(self.moving_mean.value, self.moving_variance.value)
        reference = moving
        if self.renorm_momentum is not None:
            reference = Statistics(self.renorm_mean.value, self.renorm_variance.value)
        result = training_step(
            inputs,
            reference,
            *self._gamma_beta(),
            self._settings,
            r_max=ops.cast(self.r_max(self.step), self.moving_mean.dtype),
            d_max=ops.cast(self.d_max(self.step), self.moving_mean.dtype),
            mask=mask,
        )
        after = updated(moving, result.batch, momentum=self.momentum, epsilon=self.epsilon)
        self.moving_mean.assign(after.mean)
        self.moving_variance.assign(after.variance)
        if self.renorm_momentum is not None:
            after = updated(
                reference, result.batch, momentum=self.renorm_momentum, epsilon=self.epsilon
            )
            self.renorm_mean.assign(after.mean)
            self.renorm_variance.assign(after.variance)
        self.step.assign_add(1)
        return result.outputs

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
            "center": self.center,
            "scale": self.scale,
            "r_max": keras.saving.serialize_keras_object(self.r_max),
            "d_max": keras.saving.serialize_keras_object(self.d_max),
            "beta_initializer": initializers.serialize(self.beta_initializer),
            "gamma_initializer": initializers.serialize(self.gamma_initializer),
            "moving_mean_initializer": initializers.serialize(self.moving_mean_initializer),
            "moving_variance_initializer": initializers.serialize(self.moving_variance_initializer),
            "beta_regularizer": regularizers.serialize(self.beta_regularizer),
            "gamma_regularizer": regularizers.serialize(self.gamma_regularizer),
            "beta_constraint": constraints.serialize(self.beta_constraint),
            "gamma_constraint": constraints.serialize(self.gamma_constraint),
            "renorm_momentum": self.renorm_momentum,
            "synchronized": self.synchronized,
            "virtual_batch_size": self.virtual_batch_size,
        }


@keras.saving.register_keras_serializable(package="renormlite")
class ChannelAffine(keras.layers.Layer):
    """``y = scale * x + shift`` per channel: what folding leaves where no weights could absorb it.

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
        outputs = inputs
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
