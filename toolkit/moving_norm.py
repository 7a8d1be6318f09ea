"""Base class of norms with moving statistics: their storage, and inference."""

from __future__ import annotations

import abc
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from ..errors import UserError
from .renorm import Statistics, Tensor, at_least_float32, inference_affine, updated
from .statistics import channel_shape


def channels_of(input_shape: tuple[int | None, ...], axis: int) -> int:
    """Return the number of channels, checked.

    Raises:
        UserError: The input has fewer than two axes or lacks that axis, or the size is not static.
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


def checked_momentum(value: float, name: str = "momentum") -> float:
    """Return a momentum as a float.

    Raises:
        UserError: It is not between 0 and 1.
    """
    if not 0.0 <= value <= 1.0:
        raise UserError(f"Expected {name} between 0 and 1. Received: {value}.")
    return float(value)


def are_initial(
    statistics: Sequence[Tensor],
    mean_initializer: Any = "zeros",
    variance_initializer: Any = "ones",
) -> bool:
    """Return whether statistics still have their initial values.

    Args:
        statistics: A moving mean, a moving variance, and optionally the mean of a second set.
        mean_initializer: Initializer of the means.
        variance_initializer: Initializer of the variance.
    """
    mean, variance = map(keras.initializers.get, (mean_initializer, variance_initializer))
    return all(
        np.array_equal(*map(ops.convert_to_numpy, (value, start(value.shape))))
        for value, start in zip(statistics, (mean, variance, mean), strict=False)
    )


class MovingNorm(keras.layers.Layer, abc.ABC):
    """A layer that trains with the statistics of the batch and infers with their moving average.

    Inference is one multiply-add, ``x * scale + shift``, with the vectors of `scale_and_shift`. A
    subclass adds its weights in `build`, before `_add_statistics`, returns those that scale and
    shift the normalized values from `_gamma_beta`, and implements training in `_train`.

    Args:
        axis: Axis of the channels.
        momentum: Of the moving statistics.
        epsilon: Added to the variances.
        name: Name of the layer.
        dtype: Dtype or dtype policy of the layer.
        trainable: Whether the layer is trained. If not, it runs in inference mode.

    Raises:
        UserError: An argument is out of its range.
    """

    moving_mean: keras.Variable
    moving_variance: keras.Variable

    def __init__(
        self,
        axis: int,
        momentum: float,
        epsilon: float,
        *,
        name: str | None,
        dtype: Any,
        trainable: bool,
    ) -> None:
        super().__init__(name=name, dtype=dtype, trainable=trainable)
        if not isinstance(axis, int):
            raise UserError(f"Expected axis to be one integer. Received: {axis!r}.")
        if not epsilon > 0.0:
            raise UserError(f"Expected epsilon above 0. Received: {epsilon}.")
        self.axis = axis
        self.momentum = checked_momentum(momentum)
        self.epsilon = float(epsilon)
        self.supports_masking = True

    @abc.abstractmethod
    def _gamma_beta(self) -> tuple[Tensor | None, Tensor | None]:
        """Return the vectors that scale and shift normalized values, None for ones and zeros."""

    @abc.abstractmethod
    def _train(self, inputs: Tensor, mask: Tensor | None) -> Tensor:
        """Return the training output, and update the statistics."""

    def _add_statistics(
        self,
        prefix: str,
        channels: int,
        mean_initializer: Any = "zeros",
        variance_initializer: Any = "ones",
    ) -> tuple[keras.Variable, keras.Variable]:
        """Create a mean and a variance, float32 at least."""

        def add(name: str, initializer: Any) -> keras.Variable:
            return self.add_weight(
                shape=(channels,),
                name=f"{prefix}_{name}",
                initializer=initializer,
                dtype=at_least_float32(self.variable_dtype),
                trainable=False,
                autocast=False,
                aggregation="mean",
            )

        return add("mean", mean_initializer), add("variance", variance_initializer)

    def _move(
        self,
        variables: tuple[keras.Variable, keras.Variable],
        before: Statistics,
        batch: Statistics,
        alpha: Tensor | float,
    ) -> None:
        """Update the variables of moving statistics, read as ``before``, with those of a batch."""
        after = updated(before, batch, alpha=alpha, epsilon=self.epsilon)
        for variable, value in zip(variables, after, strict=True):
            variable.assign(value)

    def _expect(self, input_shape: tuple[int | None, ...], channels: int) -> None:
        """Let Keras refuse inputs of another rank or number of channels."""
        self.input_spec = keras.layers.InputSpec(ndim=len(input_shape), axes={self.axis: channels})

    def call(
        self, inputs: Tensor, training: bool | None = None, mask: Tensor | None = None
    ) -> Tensor:
        """Normalize ``inputs``; in training, also update the statistics."""
        if training and self.trainable:
            return ops.cast(self._train(inputs, mask), self.compute_dtype)
        x = ops.cast(inputs, at_least_float32(inputs.dtype))
        layout = channel_shape(len(x.shape), self.axis)
        scale, shift = (ops.cast(ops.reshape(v, layout), x.dtype) for v in self.scale_and_shift())
        return ops.cast(x * scale + shift, self.compute_dtype)

    def scale_and_shift(self) -> tuple[Tensor, Tensor]:
        """Return the vectors of inference: ``x * scale + shift`` on the channel axis."""
        # PyTorch assigns in place, but the gradient needs the current statistics.
        moving = Statistics(ops.copy(self.moving_mean.value), ops.copy(self.moving_variance.value))
        return inference_affine(moving, *self._gamma_beta(), epsilon=self.epsilon)

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
        }
