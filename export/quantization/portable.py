"""Adjusts the scales of weights so that more runtimes compute equal integers from a TFLite file.

An accumulator a is multiplied by M = s_x s_w / s_y and rounded: in float32 by XNNPACK, in fixed
point by TFLite's kernels with single rounding. With |a M| at most 256, the two products differ from
a M by at most

    256 (3 · 2^-24 + 2^-25)

(the float32 product, division and scale, and the product with a). The rules can therefore only
differ if a M is closer than that to a tie, k + 1/2. Two changes of s_w avoid this:

- moving it by a few units in the last place, which removes most differences by chance;
- moving it so that M is next to a fraction u / v with an odd v. Then a M is next to a multiple of
  1 / v, and no multiple of 1 / v is closer to a tie than 1 / 2v. All differences of a channel
  disappear if v is below about 10,000, or 20,000 if |a M| is at most 128. Fractions with such
  denominators are dense: a relative change of 2^-13 reaches one from any M above 2^-14.

Every change is verified on all possible accumulators.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Iterator
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

_FARTHEST = 4  # units in the last place
_DENOMINATORS = tuple(2**power for power in range(16, 10, -1))  # largest v, in the order of trials
# Largest relative change of a scale: a thirtieth of a step of the largest weight.
_LARGEST_CHANGE = 2.0**-12
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
    or up, then by two, up to `_FARTHEST`, then next to fractions u / v with smaller and smaller v,
    until they agree. If they never do, the scale with the fewest differing accumulators is used.

    Args:
        sums: The operator.

    Returns:
        The scales, and the number of accumulators of each channel that still differ.
    """
    chosen, left = sums.w.copy(), disputed_sums(sums, sums.w)
    single = sums.w.size == 1  # one scale serves all channels
    for move in _moves(float(sums.x[0]) / float(sums.output.scale[0])):
        if not left.any():
            break
        if single:
            moved = move(sums.w)
            found = disputed_sums(sums, moved)
            if found.sum() < left.sum():
                chosen, left = moved, found
            continue
        active = np.flatnonzero(left)
        moved = move(sums.w[active])
        # A single scale would mean per-tensor quantization, which some rules round differently:
        # a single channel is passed twice.
        pair = np.resize(np.arange(len(active)), max(len(active), 2))
        found = disputed_sums(sums.channels(active[pair]), moved[pair])[: len(active)]
        better = found < left[active]
        chosen[active[better]] = moved[better]
        left[active[better]] = found[better]
    return chosen, left


def _moves(factor: float) -> Iterator[Callable[[Scales], Scales]]:
    """Yield the changes of scales w to try, where M = w times a factor."""
    for distance in range(1, _FARTHEST + 1):
        for direction in (-distance, distance):
            yield functools.partial(_moved, distance=direction)
    for largest in _DENOMINATORS:
        for distance in (0, -1, 1, -2, 2):  # M itself is computed in float32
            yield functools.partial(
                _next_to_fractions, factor=factor, largest=largest, distance=distance
            )


def _moved(w: Scales, distance: int) -> Scales:
    """Return scales moved by a number of units in the last place."""
    return np.asarray((w.view(np.int32) + np.int32(distance)).view(np.float32))


def _next_to_fractions(w: Scales, factor: float, largest: int, distance: int) -> Scales:
    """Return scales for which w times a factor is next to a fraction with an odd denominator.

    Scales whose change would be too large are returned as they are.

    Args:
        w: (C,) scales.
        factor: The factor.
        largest: The largest denominator.
        distance: Units in the last place to move the result by.
    """
    odd = np.arange(1, largest, 2)
    found = w.copy()
    for place, scale in enumerate(w):
        ratio = float(scale) * factor
        fractions = np.maximum(np.rint(ratio * odd), 1) / odd
        change = fractions[np.argmin(np.abs(fractions - ratio))] / ratio
        if abs(change - 1) <= _LARGEST_CHANGE:
            found[place] = float(scale) * change
    return _moved(found, distance)


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
