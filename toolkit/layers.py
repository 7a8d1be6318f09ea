"""The layer: `BatchRenormalization`."""

from __future__ import annotations

from typing import Any

import keras
from keras import constraints, initializers, ops, regularizers

from ..errors import UserError
from .moving_norm import MovingNorm, are_initial, channels_of, checked_momentum
from .renorm import Statistics, Tensor, warm_up_alpha
from .schedules import ScheduleLike, as_schedule
from .training_step import Settings, training_step


@keras.saving.register_keras_serializable(package="renormlite")
class BatchRenormalization(MovingNorm):
    """Batch Renormalization (Ioffe 2017, arXiv:1702.03275): training matches inference.

    Batch normalization trains with the statistics of each batch and infers with their moving
    averages. Here every training output is corrected to the moving statistics,

        y = gamma * ((x - mu_B) / sigma_B * r + d) + beta
        r = clip(sigma_B / sigma, 1 / r_max, r_max)    d = clip((mu_B - mu) / sigma, -d_max, d_max)

    with r and d constant to the gradient. Where neither is clipped, the training output *is* the
    inference output. This makes training with small and uneven batches possible, and inference
    stays the affine map ``gamma * (x - mu) / sqrt(moving_variance + epsilon) + beta`` that
    `renormlite.fold` folds into the neighbouring weights.

    The layer counts its training steps in a weight, so the schedules of r_max and d_max continue
    when training is resumed from a saved model. With ``trainable = False`` the layer runs in
    inference mode.

    Weights, in this order: gamma, beta, moving_mean, moving_variance, step, and with
    ``renorm_momentum`` also renorm_mean and renorm_variance. The statistics are float32 at least,
    also under ``mixed_float16``.

    Args:
        axis: Axis of the channels. Inputs may have any rank from 2 up.
        momentum: Of the moving statistics; the paper's alpha is ``1 - momentum``. Unlike
            in batch normalization it affects training: the paper recommends 0.99.
        epsilon: Added to the variances.
        center: Whether to learn beta.
        scale: Whether to learn gamma.
        r_max: Bound on r, at least 1: ``"settling"``, ``"paper"``, a number, ``None`` for no bound,
            a schedule or any callable from the step to a number. ``"settling"`` (see `Settling`)
            starts as batch normalization and opens by one with each batch, whatever the length of
            the run. ``"paper"`` is the schedule of the paper's run of 130k steps; `paper_schedule`
            scales it to another length.
        d_max: Bound on d, at least 0, likewise.
        beta_initializer: Initializer of beta.
        gamma_initializer: Initializer of gamma.
        moving_mean_initializer: Initializer of the moving mean.
        moving_variance_initializer: Initializer of the moving variance.
        beta_regularizer: Regularizer of beta.
        gamma_regularizer: Regularizer of gamma.
        beta_constraint: Constraint on beta.
        gamma_constraint: Constraint on gamma.
        renorm_momentum: Momentum of a separate set of statistics from which training computes r
            and d. Inference then uses its own set with ``momentum``, which no longer affects
            training. ``None``, as in the paper, uses one set for both.
        warm_up: Whether the moving statistics start as the mean over all batches so far:
            ``alpha = max(1 - momentum, 1 / (1 + step))``. Their initial values then have no weight
            after the first step. ``False`` is the paper's plain moving average,
            ``alpha = 1 - momentum``, in which initial values still weigh 0.37 after 100 steps with
            a momentum of 0.99. The first step would replace trained statistics that come with step
            0, so `to_renorm`, ``set_weights`` and ``load_weights`` turn it off for them; set it to
            False if you assign the variables one by one.
        synchronized: Whether replicas share their statistics: under a `tf.distribute` strategy each
            replica then uses the statistics of the whole batch, weighted by the number of elements
            of each shard. On JAX, `keras.distribution` always shares them.
        virtual_batch_size: Samples in a ghost batch: larger batches are split into ghosts, each
            with its own statistics, r and d.
        name: Name of the layer.
        dtype: Dtype or dtype policy of the layer.
        trainable: Whether the layer is trained. If not, it runs in inference mode.

    Call arguments:
        inputs: Tensor of rank 2 or more.
        training: Whether to normalize with the batch statistics and update the moving ones.
        mask: Optional, over the leading axes of the inputs; masked elements are excluded from the
            statistics.

    Examples:
        >>> import renormlite as rl
        >>> layer = rl.BatchRenormalization()
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
        r_max: ScheduleLike = "settling",
        d_max: ScheduleLike = "settling",
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
        warm_up: bool = True,
        synchronized: bool = False,
        virtual_batch_size: int | None = None,
        name: str | None = None,
        dtype: Any = None,
        trainable: bool = True,
    ) -> None:
        super().__init__(axis, momentum, epsilon, name=name, dtype=dtype, trainable=trainable)
        self.center = center
        self.scale = scale
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
                "Expected either synchronized or virtual_batch_size, not both: one enlarges the "
                "batch that is normalized, the other divides it."
            )
        if renorm_momentum is not None:
            renorm_momentum = checked_momentum(renorm_momentum, "renorm_momentum")
        self.renorm_momentum = renorm_momentum
        self.r_max = as_schedule(r_max, "r_max")
        self.d_max = as_schedule(d_max, "d_max")
        self.warm_up = bool(warm_up)
        self.synchronized = synchronized
        self.virtual_batch_size = virtual_batch_size
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
        starts = self.moving_mean_initializer, self.moving_variance_initializer
        self.moving_mean, self.moving_variance = self._add_statistics("moving", channels, *starts)
        self.step = self.add_weight(
            shape=(),
            name="step",
            initializer="zeros",
            dtype="int",
            trainable=False,
            aggregation="only_first_replica",
        )
        if self.renorm_momentum is not None:
            self.renorm_mean, self.renorm_variance = self._add_statistics(
                "renorm", channels, *starts
            )
        self._expect(input_shape, channels)

    @property
    def correcting_momentum(self) -> float:
        """Momentum of the statistics that r and d are computed from."""
        return self.momentum if self.renorm_momentum is None else self.renorm_momentum

    @property
    def _settings(self) -> Settings:
        return Settings(self.axis, self.epsilon, self.synchronized, self.virtual_batch_size)

    def _gamma_beta(self) -> tuple[Tensor | None, Tensor | None]:
        dtype = self.moving_mean.dtype
        return (
            None if self.gamma is None else ops.cast(self.gamma.value, dtype),
            None if self.beta is None else ops.cast(self.beta.value, dtype),
        )

    def _train(self, inputs: Tensor, mask: Tensor | None) -> Tensor:
        variables = self.moving_mean, self.moving_variance
        moving = reference = Statistics(*map(_read, variables))
        if self.renorm_momentum is not None:
            own = self.renorm_mean, self.renorm_variance
            reference = Statistics(*map(_read, own))
        step = _read(self.step)
        result = training_step(
            inputs,
            reference,
            *self._gamma_beta(),
            self._settings,
            r_max=ops.cast(self.r_max(step), self.moving_mean.dtype),
            d_max=ops.cast(self.d_max(step), self.moving_mean.dtype),
            mask=mask,
        )
        self._move(variables, moving, result.batch, self._alpha(self.momentum, step))
        if self.renorm_momentum is not None:
            self._move(own, reference, result.batch, self._alpha(self.renorm_momentum, step))
        self.step.assign(step + 1)
        return result.outputs

    def _alpha(self, momentum: float, step: Tensor) -> Tensor | float:
        if not self.warm_up:
            return 1.0 - momentum
        return warm_up_alpha(momentum, step, self.moving_mean.dtype)

    def set_weights(self, weights: list[Any]) -> None:
        """Set the weights; statistics that are trained already turn `warm_up` off."""
        super().set_weights(weights)
        self._keep_trained_statistics()

    def load_own_variables(self, store: Any) -> None:
        """Load the weights; statistics that are trained already turn `warm_up` off."""
        super().load_own_variables(store)
        self._keep_trained_statistics()

    def _keep_trained_statistics(self) -> None:
        """Turn `warm_up` off if the first batch would replace trained statistics."""
        if not self.warm_up or not self.built or int(self.step) > 0:
            return
        statistics = [self.moving_mean, self.moving_variance]
        if self.renorm_momentum is not None:
            statistics.append(self.renorm_mean)
        self.warm_up = are_initial(
            statistics, self.moving_mean_initializer, self.moving_variance_initializer
        )

    def get_config(self) -> dict[str, Any]:
        """Return the constructor's arguments in serializable form."""
        return {
            **super().get_config(),
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
            "warm_up": self.warm_up,
            "synchronized": self.synchronized,
            "virtual_batch_size": self.virtual_batch_size,
        }


def _read(variable: keras.Variable) -> Tensor:
    """Return the value as a constant tensor.

    TensorFlow reads a variable anew at each use and cannot merge what is computed from the reads.
    """
    return ops.stop_gradient(variable.value)
