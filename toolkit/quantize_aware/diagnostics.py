"""Monitors the ranges of a model in quantization-aware training: their width and clipping."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
from keras import ops

from ...errors import UserError
from .quantized import Quantized
from .steps import limits


@dataclass(frozen=True)
class RangeReading:
    """One quantized value at the end of an epoch.

    Attributes:
        epoch: The epoch, counted from 0.
        layer: Name of the layer that computes the value.
        low: The least number that its integers represent.
        high: The greatest.
        step: The distance of two integers.
        clipped: Share of the samples' numbers at an end of the range. Zeros at an end, which a ReLU
            makes, do not count.
    """

    epoch: int
    layer: str
    low: float
    high: float
    step: float
    clipped: float


class QuantizationDiagnostics(keras.callbacks.Callback):
    """Keras callback that reads every range of a quantization-aware model after each epoch.

    The logs of the epoch get ``quantized_clipped``, the mean share of clipped numbers over all
    quantized values, and its maximum ``quantized_clipped_max``. `plot_diagnostics` draws the
    readings.

    Args:
        samples: Inputs as the model takes them; a few dozen are enough.
        each: Whether the logs also contain ``LAYER_clipped``, ``LAYER_low``, ``LAYER_high`` and
            ``LAYER_step`` for each value, for use with `CSVLogger` or `TensorBoard`. The progress
            bar becomes long.

    Attributes:
        readings: All readings so far, `RangeReading` by `RangeReading`.

    Raises:
        UserError: When training starts, for a model that `quantize_aware` has not made.
    """

    def __init__(self, samples: Any, *, each: bool = False) -> None:
        super().__init__()
        self.samples = samples
        self.each = each
        self.readings: list[RangeReading] = []
        self._layers: list[Quantized] = []
        self._watched: keras.Model | None = None

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Find the ranges."""
        self._layers = [
            layer for layer in self.model.layers if isinstance(layer, Quantized) and layer.ranged
        ]
        if not self._layers:
            raise UserError(
                f"Expected a model made by quantize_aware. Received: {self.model.name!r}, which "
                "has no range."
            )
        outputs = [layer.output for layer in self._layers]
        self._watched = keras.Model(self.model.inputs, outputs)

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Read every range."""
        assert self._watched is not None
        inputs = keras.tree.map_structure(ops.convert_to_tensor, self.samples)
        results = self._watched(inputs, training=False)
        read = [
            _reading(epoch, layer, *map(ops.convert_to_numpy, result))
            for layer, result in zip(self._layers, results, strict=True)
        ]
        self.readings += read
        if logs is not None:
            shares = [reading.clipped for reading in read]
            logs["quantized_clipped"] = float(np.mean(shares))
            logs["quantized_clipped_max"] = max(shares)
            for reading in read if self.each else ():
                for name in ("clipped", "low", "high", "step"):
                    logs[f"{reading.layer}_{name}"] = getattr(reading, name)


def _reading(epoch: int, layer: Quantized, values: np.ndarray, grid: np.ndarray) -> RangeReading:
    step, zero = (float(number) for number in grid)
    least, most = (end - zero for end in limits(layer.output_range.bits))
    integers = np.rint(values / step)
    at_end = (integers >= most) | ((integers <= least) & (integers < 0))
    return RangeReading(epoch, layer.name, least * step, most * step, step, float(np.mean(at_end)))
