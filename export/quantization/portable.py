"""Scales of weights under which more runtimes agree on every integer of a TFLite file.

XNNPACK multiplies a sum in float32, the one-rounding build of TFLite's kernels in fixed point.
Where the product is next to a tie they differ. Which sums these are depends on the last bits of the
scale: one that moves by a few units in the last place removes them, and changes nothing else.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from ...artifacts.flatbuffer import pack
from ...artifacts.graphs import read_graph
from ...artifacts.graphs.base import ArtifactGraph
from ...reference.integer.linear_sums import LINEAR, LinearSums, linear_ops
from ...reference.rounding.quantized import Ints, Scales
from ...reference.rounding.thresholds import differing_sums
from ...reference.rounding.xnnpack import TFLITE_RULES

# Units in the last place that a scale may move by: a relative change of 2e-6 at most, which is a
# two-thousandth of a step of the largest weight.
_FARTHEST = 16
_MOST_NAMED = 3


def make_portable(model: Any) -> None:
    """Move the scales of a file's weights.

    Args:
        model: The parsed file; changed in place.
    """
    graph = read_graph(Path("model.tflite"), "tflite", pack(model))
    tensors = model.subgraphs[0].tensors
    shared = Counter(key for op in graph.ops for key in set(op.inputs))
    for op, sums in linear_ops(graph):
        kernel = op.inputs[1]
        if shared[kernel] > 1:  # what suits one reader would change the other
            continue
        scales, _ = portable_scales(sums)
        if np.array_equal(scales, sums.w):
            continue
        tensors[int(kernel)].quantization.scale = scales
        place = LINEAR[op.kind][2]
        bias = op.inputs[place] if len(op.inputs) > place else ""
        if bias and shared[bias] == 1 and tensors[int(bias)].quantization is not None:
            tensors[int(bias)].quantization.scale = (sums.x * scales).astype(np.float32)


def portable_scales(sums: LinearSums) -> tuple[Scales, Ints]:
    """Return scales of a kernel under which XNNPACK's rule and single rounding agree.

    A scale stays where they agree already. Else it moves by one unit in the last place, down or up,
    then by two, up to `_FARTHEST`, until they do. If none agrees, that with the fewest differing
    sums is taken.

    Args:
        sums: The operator.

    Returns:
        The scales, and how many sums of each channel still differ.
    """
    chosen, left = sums.w.copy(), disputed_sums(sums, sums.w)
    single = sums.w.size == 1  # one scale serves all channels
    for distance in range(1, _FARTHEST + 1):
        for direction in (-distance, distance):
            if not left.any():
                return chosen, left
            moved = (sums.w.view(np.int32) + np.int32(direction)).view(np.float32)
            if single:
                found = disputed_sums(sums, moved)
                if found.sum() < left.sum():
                    chosen, left = moved, found
                continue
            active = np.flatnonzero(left)
            # One scale alone would be taken for that of a whole kernel, which some rules round
            # otherwise: a single channel comes twice.
            pair = np.resize(active, max(len(active), 2))
            found = disputed_sums(sums.channels(pair), moved[pair])[: len(active)]
            better = found < left[active]
            chosen[active[better]] = moved[active[better]]
            left[active[better]] = found[better]
    return chosen, left


def disputed_sums(sums: LinearSums, w: Scales) -> Ints:
    """Return on how many sums of each channel XNNPACK's rule and single rounding differ."""
    xnnpack, single = TFLITE_RULES[0], TFLITE_RULES[-1]
    return differing_sums(sums.thresholds(xnnpack, w), sums.thresholds(single, w))


def portability_note(graph: ArtifactGraph) -> str:
    """Say for how many channels both rules agree on every input, and where they do not."""
    channels = disputed = 0
    left: list[str] = []
    for op, sums in linear_ops(graph):
        found = disputed_sums(sums, sums.w)
        channels += len(found)
        disputed += int((found > 0).sum())
        if found.any():
            name = graph.tensors[op.outputs[0]].name
            left.append(f"{name} ({int((found > 0).sum())} channels, {int(found.sum())} sums)")
    text = (
        f"portable: XNNPACK and one rounding in fixed point agree on every input in "
        f"{channels - disputed} of {channels} channels"
    )
    if not left:
        return text
    more = f" and {len(left) - _MOST_NAMED} more" if len(left) > _MOST_NAMED else ""
    return f"{text}; not removable: {', '.join(left[:_MOST_NAMED])}{more} (renormlite certify)"
