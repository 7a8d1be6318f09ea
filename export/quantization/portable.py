"""Adjusts the scales of weights so that more runtimes compute equal integers from a TFLite file.

XNNPACK multiplies an accumulator in float32, TFLite's kernels with single rounding in fixed point.
If the product is close to a tie, the results can differ. The accumulators for which they do depend
on the last bits of the scale: moving it by a few units in the last place removes them, and changes
nothing else.
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

# Largest change of a scale in units in the last place: a relative change of at most 2e-6, which is
# a two-thousandth of a step of the largest weight.
_FARTHEST = 16
_MOST_NAMED = 3


def make_portable(model: Any) -> None:
    """Adjust the scales of the weights of a file.

    Args:
        model: The parsed file; changed in place.
    """
    graph = read_graph(Path("model.tflite"), "tflite", pack(model))
    tensors = model.subgraphs[0].tensors
    shared = Counter(key for op in graph.ops for key in set(op.inputs))
    for op, sums in linear_ops(graph):
        kernel = op.inputs[1]
        if shared[kernel] > 1:  # a scale that suits one reader may not suit the other
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
    """Return scales of a kernel for which XNNPACK and single rounding agree.

    A scale is kept if they agree already. Otherwise it is moved by one unit in the last place, down
    or up, then by two, up to `_FARTHEST`, until they agree. If they never do, the scale with the
    fewest differing accumulators is used.

    Args:
        sums: The operator.

    Returns:
        The scales, and the number of accumulators of each channel that still differ.
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
            # A single scale would mean per-tensor quantization, which some rules round differently:
            # a single channel is passed twice.
            pair = np.resize(active, max(len(active), 2))
            found = disputed_sums(sums.channels(pair), moved[pair])[: len(active)]
            better = found < left[active]
            chosen[active[better]] = moved[active[better]]
            left[active[better]] = found[better]
    return chosen, left


def disputed_sums(sums: LinearSums, w: Scales) -> Ints:
    """Return the number of accumulators per channel for which the two rules differ."""
    xnnpack, single = TFLITE_RULES[0], TFLITE_RULES[-1]
    return differing_sums(sums.thresholds(xnnpack, w), sums.thresholds(single, w))


def portability_note(graph: ArtifactGraph) -> str:
    """Return a note on the number of channels in which both rules agree on every input."""
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
        f"portable: XNNPACK and single rounding in fixed point agree on every input in "
        f"{channels - disputed} of {channels} channels"
    )
    if not left:
        return text
    more = f" and {len(left) - _MOST_NAMED} more" if len(left) > _MOST_NAMED else ""
    return f"{text}; not removable: {', '.join(left[:_MOST_NAMED])}{more} (renormlite certify)"
