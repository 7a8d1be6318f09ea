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
from ...reference.integer.certificate import (
    disputed_sums,
    linear_ops,
    portable_scales,
)

_BIAS = {"TRANSPOSE_CONV": 3}
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
        place = _BIAS.get(op.kind, 2)
        bias = op.inputs[place] if len(op.inputs) > place else ""
        if bias and shared[bias] == 1 and tensors[int(bias)].quantization is not None:
            tensors[int(bias)].quantization.scale = (sums.x * scales).astype(np.float32)


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
