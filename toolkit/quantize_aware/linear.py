"""`QuantizedLinear`: a linear layer, its norm, its activation and its output's grid, in one."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from ...errors import UserError
from ..moving_norm import MovingNorm
from ..renorm import Statistics, Tensor, inference_affine
from .kernels import KERNELS
from .quantized import Quantized
from .ranges import NEVER
from .steps import bias_room, rounded, weight_integers, weight_steps
from .wide import scaled_pairs, split


@keras.saving.register_keras_serializable(package="renormlite")
class QuantizedLinear(Quantized):
    """A linear layer in integers, with the norm after it folded in *before* quantization.

    With ``k = gamma / sigma`` of the norm's moving statistics, integers ``q`` and steps ``s``,

        a = sum of q_x * Q(W * k)                       exactly; Q is symmetric, one step a channel
        inference:  q_y = round((a + round(shift / (s_x s_w))) * s_x s_w / s_y)
        training:   z = a s_x s_w / k;   y = norm(z);   q_y the same of round(y / (s_x s_w))

    Where batch renormalization clips neither r nor d, its training output is its inference output,
    so that both are the same integers: r and d never enter the weights before they are quantized.
    Gradients pass roundings unchanged (straight-through), and pass z as they pass the norm.

    Args:
        layer: The linear layer, without its activation: any type of `kernels.KERNELS`.
        norm: The norm after it; None for none: `BatchRenormalization` or another norm with moving
            statistics of this package, or Keras' `BatchNormalization`.
        activation: ``"relu"``, ``"relu6"`` or None: part of the same integer operator.
        weight_bits: Number of bits of the weights.
        output_range: Range of the output.
        rounding: Arithmetic of the target, see `rounding.ROUNDINGS`.
        freeze_statistics_after: Training steps after which training uses the norm's inference mode.
        opened: Whether the next layer rounds the output: it is then returned with the steps of the
            sums instead of a grid.
        name: Name of the layer.

    Call arguments:
        x: Quantized numbers.
        grid: Their grid.
    """

    def __init__(
        self,
        layer: keras.layers.Layer,
        norm: keras.layers.Layer | None = None,
        activation: str | None = None,
        weight_bits: int = 8,
        freeze_statistics_after: int | None = None,
        opened: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(activation=activation, **options)
        if type(layer) not in KERNELS:
            raise UserError(
                "Expected a linear layer among "
                f"{', '.join(cls.__name__ for cls in KERNELS)}. Received: {type(layer).__name__}."
            )
        if not 2 <= weight_bits <= 8:
            raise UserError(f"Expected weight_bits from 2 to 8. Received: {weight_bits}.")
        self.layer = layer
        self.norm = norm
        self.weight_bits = weight_bits
        self.freeze_statistics_after = freeze_statistics_after
        self.opened = opened
        self.kernel_type = KERNELS[type(layer)]

    @property
    def ranged(self) -> bool:
        """Whether the output is rounded here."""
        return super().ranged and not self.opened

    def build(self, x_shape: tuple[int | None, ...], grid_shape: Any = None) -> None:
        """Build the layer and its norm."""
        if not self.layer.built:
            self.layer.build(x_shape)
        if self.norm is not None and not self.norm.built:
            self.norm.build(self.layer.compute_output_shape(x_shape))
        never = self.freeze_statistics_after
        if self.norm is not None:
            self.trained_steps = self._counter("trained_steps", 0)
            self.frozen_at = self._counter("frozen_at", NEVER if never is None else never)
        super().build(x_shape)

    def _counter(self, name: str, start: int) -> keras.Variable:
        return self.add_weight(
            shape=(),
            name=name,
            initializer=keras.initializers.Constant(start),
            dtype="int32",
            trainable=False,
            aggregation="only_first_replica",
        )

    def call(self, x: Tensor, grid: Tensor, training: bool | None = None) -> Any:
        """Return the output and its grid."""
        step = ops.stop_gradient(grid[0])
        factor, shift = self.scale_and_shift()
        kernel, steps = self._in_steps(factor, shift, step)
        sums = self.kernel_type.apply(self.layer, x / step, kernel)
        unit = step * steps
        total = sums + rounded(shift / unit)
        normalizes = training and self.norm is not None
        if normalizes:
            frozen = self.trained_steps.value >= self.frozen_at.value
            self.trained_steps.assign_add(1)
            trained = rounded(self._normalized(self.norm, sums * unit, factor, frozen) / unit)
            total = ops.where(frozen, total, trained)
        if self.opened:
            return self._clipped(total * unit), unit
        if self._rounding.bits > 8:
            pair = split(total) if normalizes else self._pair(x / step, kernel, shift / unit)
            return self._ended(
                total * unit, lambda y: scaled_pairs(*pair, step, steps, y), training
            )
        first: Any = step
        second: Any = steps
        # XNNPACK multiplies the steps of a dense layer first, in float32. For the other target
        # dense layers become convolutions.
        if not self.kernel_type.per_channel and self.rounding == "float":
            first, second = unit, 1.0
        return self._ended(
            total * unit, lambda y: self._rounding.scaled(total, first, second, y), training
        )

    def _pair(self, x: Tensor, kernel: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        """Return the exact sums of 16-bit integers as ``256 high + low``."""
        x, kernel = ops.stop_gradient(ops.round(x)), ops.stop_gradient(kernel)
        high, low = (
            self.kernel_type.apply(self.layer, part, kernel) + shift
            for part, shift in zip(split(x), split(ops.round(bias)), strict=True)
        )
        return high, low

    def scale_and_shift(self) -> tuple[Tensor, Tensor]:
        """Return the vectors of inference: ``conv(x, W * scale) + shift``."""
        bias = self.layer.bias.value if self.layer.use_bias else 0.0
        if self.norm is None:
            channels = self._channels
            return ops.ones(channels), ops.zeros(channels) + bias
        scale, shift = norm_affine(self.norm)
        return scale, bias * scale + shift

    def integer_weights(self, step: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the integers of the file for inputs with a given step.

        Returns:
            The integers of the kernel, the steps of its output channels, the integers of the bias.
        """
        factor, shift = self.scale_and_shift()
        kernel, steps = self._in_steps(factor, shift, step)
        return kernel, steps, ops.round(shift / (step * steps))

    def _in_steps(self, factor: Tensor, shift: Tensor, step: Tensor) -> tuple[Tensor, Tensor]:
        """Return the integers of the kernel, and the steps as a vector of output channels."""
        variable = self.layer.kernel
        # A channel that the norm scales by zero keeps its weights' own steps: it can recover.
        factor = ops.where(factor == 0.0, 1.0, factor)
        kernel = variable.value * self.kernel_type.along(factor, variable.shape)
        room = self.kernel_type.along(bias_room(shift, step, self._rounding.bits), variable.shape)
        shared = self.kernel_type.shared(len(variable.shape))
        if not self.kernel_type.per_channel:
            room = ops.max(room)
        steps = weight_steps(kernel, self.weight_bits, shared, room)
        integers = weight_integers(kernel, steps, self.weight_bits)
        return integers, ops.broadcast_to(ops.reshape(steps, (-1,)), (self._channels,))

    @property
    def _channels(self) -> int:
        shape = self.layer.kernel.shape
        count = 1
        for axis in self.kernel_type.channels:
            count *= shape[axis]
        return count

    def _normalized(self, norm: Any, u: Tensor, factor: Tensor, frozen: Tensor) -> Tensor:
        """Apply the norm to ``u / k``, the layer's output before the fold."""
        statistics = [(v, ops.copy(v)) for v in norm.non_trainable_variables]
        z = u / ops.where(factor == 0.0, 1.0, factor)
        if self.layer.use_bias:
            z = z + self.layer.bias.value
        outputs = norm(z, training=True)
        for variable, before in statistics:
            variable.assign(ops.where(frozen, before, variable.value))
        return outputs

    def freeze_statistics(self) -> None:
        """Freeze the norm: training uses its inference mode from now on."""
        self.frozen_at.assign(0)

    def get_config(self) -> dict[str, Any]:
        """Return the constructor's arguments in serializable form."""
        save = keras.saving.serialize_keras_object
        return {
            **super().get_config(),
            "layer": save(self.layer),
            "norm": None if self.norm is None else save(self.norm),
            "weight_bits": self.weight_bits,
            "freeze_statistics_after": self.freeze_statistics_after,
            "opened": self.opened,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> QuantizedLinear:
        """Make the layer from `get_config`."""
        for key in ("layer", "norm", "output_range"):
            config[key] = keras.saving.deserialize_keras_object(config[key])
        return cls(**config)


def norm_affine(norm: Any) -> tuple[Tensor, Tensor]:
    """Return scale and shift of a norm's inference, differentiable in gamma and beta."""
    if isinstance(norm, MovingNorm):
        return norm.scale_and_shift()
    moving = Statistics(ops.copy(norm.moving_mean.value), ops.copy(norm.moving_variance.value))
    gamma = norm.gamma.value if norm.scale else None
    beta = norm.beta.value if norm.center else None
    return inference_affine(moving, gamma, beta, epsilon=norm.epsilon)
