"""A callback that freezes ranges and statistics for the last epochs."""

from __future__ import annotations

from typing import Any

import keras

from ...errors import UserError
from .linear import QuantizedLinear
from .quantized import Quantized


class FreezeQuantization(keras.callbacks.Callback):
    """Keras callback that freezes ranges, or the statistics of norms, at the start of an epoch.

    `quantize_aware` has the same options in training steps. Ranges and statistics stay frozen in a
    saved model.

    Args:
        ranges: Epoch, counted from 0, from which the ranges are frozen; None for never.
        statistics: Epoch from which training uses the inference mode of norms; None for never.

    Raises:
        UserError: An epoch is not a whole number from 0 on; or, when training starts, the model was
            not made by `quantize_aware`.

    Examples:
        >>> freeze = rl.FreezeQuantization(ranges=3, statistics=4)
        >>> quantized.fit(x, y, epochs=5, callbacks=[freeze])
    """

    def __init__(self, *, ranges: int | None = None, statistics: int | None = None) -> None:
        super().__init__()
        for name, epoch in (("ranges", ranges), ("statistics", statistics)):
            if epoch is not None and (not isinstance(epoch, int) or epoch < 0):
                raise UserError(
                    f"Expected {name} to be None or an epoch, a whole number from 0 on. "
                    f"Received: {epoch!r}."
                )
        self.ranges = ranges
        self.statistics = statistics

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Refuse a model without quantized layers."""
        if not any(isinstance(layer, Quantized) for layer in self.model.layers):
            raise UserError(
                f"Expected a model made by quantize_aware. Received: {self.model.name!r}, which "
                "has no quantized layer."
            )

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Freeze ranges and statistics from their epochs on."""
        for layer in self.model.layers:
            if not isinstance(layer, Quantized):
                continue
            if self.ranges is not None and epoch >= self.ranges and layer.ranged:
                layer.output_range.freeze()
            due = self.statistics is not None and epoch >= self.statistics
            if due and isinstance(layer, QuantizedLinear) and layer.norm is not None:
                layer.freeze_statistics()


__all__ = ["FreezeQuantization"]
