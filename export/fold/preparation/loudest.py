"""Clips the decibels of each sample below its own loudest value.

Keras' `MelSpectrogram` raises values that are more than `top_db` below the loudest one, of the
whole batch. A file takes one sample, as an app does.
"""

from __future__ import annotations

from typing import Any

import keras
import numpy as np

from ..graph import Graph, Kept


class MelSpectrogram(keras.layers.MelSpectrogram):
    """A `keras.layers.MelSpectrogram` in decibels whose limit is that of each sample.

    Args:
        options: The arguments of Keras' layer.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**{**options, "power_to_db": False})

    def call(self, inputs: Any) -> Any:
        """Return (N, …, mel bins, time) decibels of (N, …, time) sound."""
        powers = super().call(inputs)
        reference = 10 * np.log10(max(abs(self.ref_power), self.min_power))
        decibels = 10.0 * keras.ops.log10(keras.ops.maximum(powers, self.min_power)) - reference
        axes = tuple(range(1, len(decibels.shape)))
        loudest = keras.ops.max(decibels, axis=axes, keepdims=True)
        return keras.ops.maximum(decibels, loudest - self.top_db)


def clip_each_sample(graph: Graph) -> list[str] | None:
    """Replace every layer that clips the decibels of a batch of any size, in place.

    Args:
        graph: The network.

    Returns:
        One sentence; None if there is no such layer.
    """
    made: dict[int, Kept] = {}
    for call in graph.calls():
        layer: Any = call.op.operation if isinstance(call.op, Kept) else None
        if type(layer) is not keras.layers.MelSpectrogram or not layer.power_to_db:
            continue
        if call.inputs[0].shape[0] is None:
            if id(call.op) not in made:
                twin = MelSpectrogram.from_config(layer.get_config())
                made[id(call.op)] = Kept(twin, call.op.name)
            call.op = made[id(call.op)]
    if not made:
        return None
    names = ", ".join(repr(op.name) for op in made.values())
    return [
        f"MelSpectrogram {names} clips values far below the loudest of each sample (top_db), where "
        "Keras takes the loudest of the whole batch"
    ]
