"""Determines the precision of a file from its contents."""

from __future__ import annotations

import numpy as np

from ...artifacts.graphs.base import ArtifactGraph

_DYNAMIC = {"DynamicQuantizeLinear", "ConvInteger", "MatMulInteger"}
# The greatest magnitude of a 4-bit integer.
_INT4 = 8


def precision_of(graph: ArtifactGraph) -> str:
    """Return the precision of a file.

    Args:
        graph: The file.

    Returns:
        A key of `artifacts.precisions.PRECISIONS`.
    """
    kinds = {op.kind for op in graph.ops}
    computed = {
        steps.dtype
        for op in graph.ops
        for key in op.outputs
        if key and (steps := graph.tensors[key].quantization) is not None
    }
    weights = [c for c in graph.constants if c.data is not None and c.data.ndim > 1]
    integers = [c.data for c in weights if c.quantization is not None and c.data is not None]
    if np.dtype(np.int16) in computed:
        return "int16x8"
    if kinds & _DYNAMIC:
        return "dynamic"
    stored = any(dtype.kind in "iu" for dtype in computed)
    if stored or any(kind.startswith("QLinear") for kind in kinds):
        return "int8"
    if integers:
        small = all(np.abs(data.astype(int)).max(initial=0) <= _INT4 for data in integers)
        return "int4" if small else "dynamic"
    halves = any(c.data is not None and c.data.dtype == np.float16 for c in weights)
    return "float16" if halves else "float32"
