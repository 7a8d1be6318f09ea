"""`Range`: the range of a quantized value, observed in training or learned."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from ...errors import UserError
from ..moving_norm import checked_momentum
from ..renorm import Tensor
from .steps import grid_of

METHODS = ("average", "percentile", "learned")
NEVER = 2**31 - 1  # the step at which nothing is frozen


@keras.saving.register_keras_serializable(package="renormlite")
class Range(keras.layers.Layer):
    """The ends of the range of a value, which determine its step and zero point.

    - ``"average"``: moving averages of the least and greatest number of each training batch. The
      first batches count alike, so that the first one sets the range.
    - ``"percentile"``: moving averages of two percentiles; rare outliers are clipped.
    - ``"learned"``: both ends are trained (Esser et al. 2020, arXiv:1902.08153), starting from
      those that `renormlite.quantize_aware` observed on samples.

    Before the first training batch, the range is that of the values it is called with.

    A layer that is called several times in a step has one range for all its results. The ends of a
    batch are then the least and greatest number of all calls.

    Weights, in this order: low, high, step, frozen_at; with several calls also the ends of the
    calls so far and their number.

    Args:
        bits: Number of bits of the integers.
        method: How the range is found.
        momentum: Of the moving averages.
        percentile: Share of the numbers below the upper end, in percent, for ``"percentile"``.
        freeze_after: Number of training steps after which the range is frozen; None for never.
        calls: Number of calls in each step.
        name: Name of the layer.
        dtype: Passed to Keras only: ranges are float32.
    """

    def __init__(
        self,
        bits: int = 8,
        method: str = "average",
        momentum: float = 0.99,
        percentile: float = 99.99,
        freeze_after: int | None = None,
        calls: int = 1,
        *,
        name: str | None = None,
        dtype: Any = None,
        trainable: bool = True,
    ) -> None:
        super().__init__(name=name, dtype="float32", trainable=trainable)
        if method not in METHODS:
            raise UserError(
                f"Expected ranges to be one of {', '.join(METHODS)}. Received: {method!r}."
            )
        if not 50.0 < percentile <= 100.0:
            raise UserError(f"Expected percentile above 50, up to 100. Received: {percentile}.")
        self.bits = bits
        self.method = method
        self.momentum = checked_momentum(momentum)
        self.percentile = float(percentile)
        self.freeze_after = freeze_after
        self.calls = calls
        self.observing = False  # whether calls outside training are observed too

    def build(self, input_shape: Any = None) -> None:
        """Create the weights."""

        def add(name: str, start: Any, dtype: str, *, learned: bool = False) -> keras.Variable:
            return self.add_weight(
                shape=(),
                name=name,
                initializer=keras.initializers.Constant(start),
                dtype=dtype,
                trainable=learned,
                autocast=False,
                aggregation="mean" if dtype == "float32" else "only_first_replica",
            )

        learned = self.method == "learned"
        self.low = add("low", 0.0, "float32", learned=learned)
        self.high = add("high", 0.0, "float32", learned=learned)
        self.step = add("step", 0, "int32")
        never = NEVER if self.freeze_after is None else self.freeze_after
        self.frozen_at = add("frozen_at", never, "int32")
        if self.calls > 1:
            self.least = add("least", 0.0, "float32")
            self.greatest = add("greatest", 0.0, "float32")
            self.call_number = add("call_number", 0, "int32")
        self.built = True

    def call(self, values: Tensor, training: bool | None = None) -> Tensor:
        """Return the grid of ``values``; in training also observe them."""
        data, learned = ops.stop_gradient(values), self.method == "learned"
        seen = self.step.value
        active = seen < self.frozen_at.value
        low, high = self.low.value, self.high.value
        counts = self.observing or training
        observes = self.observing or (training and self.trainable and not learned)
        ends = self._ends(data) if observes else (ops.min(data), ops.max(data))
        known, moves, passed = seen > 0, active, 1
        if self.calls > 1 and counts:
            ends, is_last = self._gathered(ends)
            known, moves = ops.logical_or(known, is_last), ops.logical_and(active, is_last)
            passed = ops.cast(is_last, "int32")
        if observes:
            low, high = self._moved(ends, (low, high), seen, moves)
            self.low.assign(low)
            self.high.assign(high)
        low, high = (ops.where(known, *pair) for pair in zip((low, high), ends, strict=True))
        if counts:
            self.step.assign_add(passed)
        if learned:
            low, high = (self._slowed(end, data, active) for end in (low, high))
        else:
            low, high = ops.stop_gradient(low), ops.stop_gradient(high)
        return grid_of(low, high, self.bits, symmetric=self.bits > 8)

    def _gathered(self, ends: tuple[Tensor, Tensor]) -> tuple[tuple[Tensor, Tensor], Tensor]:
        """Return the ends of this step's calls so far, and whether this is the last call."""
        number = self.call_number.value
        low = ops.where(number == 0, ends[0], ops.minimum(self.least.value, ends[0]))
        high = ops.where(number == 0, ends[1], ops.maximum(self.greatest.value, ends[1]))
        is_last = number == self.calls - 1
        self.least.assign(low)
        self.greatest.assign(high)
        self.call_number.assign(ops.where(is_last, 0, number + 1))
        return (low, high), is_last

    def _ends(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """Return the ends of the range of a batch."""
        if self.method != "percentile":
            return ops.min(values), ops.max(values)
        share = self.percentile / 100.0
        ends = ops.quantile(ops.reshape(values, (-1,)), [1.0 - share, share])
        return ends[0], ends[1]

    def _moved(
        self, batch: tuple[Tensor, Tensor], before: tuple[Tensor, Tensor], seen: Tensor, active: Any
    ) -> tuple[Tensor, Tensor]:
        """Return the moving averages after a batch."""
        count = ops.cast(seen, "float32")
        momentum = ops.minimum(count / (count + 1.0), self.momentum)
        low, high = (
            ops.where(active, momentum * old + (1.0 - momentum) * new, old)
            for old, new in zip(before, batch, strict=True)
        )
        return low, high

    def _slowed(self, end: Tensor, values: Tensor, active: Tensor) -> Tensor:
        """Scale the gradient of a learned end by 1 / sqrt(numbers * integers), as in LSQ."""
        numbers = ops.cast(ops.size(values), "float32")
        rate = ops.rsqrt(numbers * (2.0 ** (self.bits - 1) - 1.0)) * ops.cast(active, "float32")
        return end * rate + ops.stop_gradient(end * (1.0 - rate))

    def freeze(self) -> None:
        """Freeze the range."""
        self.frozen_at.assign(0)

    def get_config(self) -> dict[str, Any]:
        """Return the constructor's arguments."""
        return {
            **super().get_config(),
            "bits": self.bits,
            "method": self.method,
            "momentum": self.momentum,
            "percentile": self.percentile,
            "freeze_after": self.freeze_after,
            "calls": self.calls,
        }
