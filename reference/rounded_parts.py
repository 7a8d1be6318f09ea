"""The part of an input that a file rounds.

A table of ids and numbers may be one input. TFLite files of int8 take the ids as they are, cut out
the numbers, and have one range for these, which the ids may exceed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from ..artifacts.graphs.base import ArtifactGraph, GraphOp
from .file_networks.tflite import computed
from .file_networks.writer import Tensors, UnknownFormError
from .integer.tflite_moving import MOVING_OPS
from .rounding.quantized import NotKnownError

_ROUNDING = ("QUANTIZE", "QuantizeLinear")

Places = dict[str, np.ndarray]


def rounded_part(graph: ArtifactGraph, name: str, samples: np.ndarray) -> np.ndarray:
    """Return the values of an input that a file reads in its integers.

    Args:
        graph: The file.
        name: Name of the input.
        samples: (N, …) values of the input.

    Returns:
        (N, values): those that another operator than one that moves numbers reads as integers;
        (N, …) all, if all are read so, or if the file has the input in other axes.
    """
    keys = {graph.tensors[key].name: key for key in graph.inputs}
    shape = graph.tensors[keys[name]].shape if name in keys else ()
    if shape != (1, *samples.shape[1:]):
        return samples
    read = _read_places(graph, keys[name])
    every = read.size in (0, np.prod(shape))
    return samples if every else samples.reshape(len(samples), -1)[:, read]


def _read_places(graph: ArtifactGraph, key: str) -> np.ndarray:
    """Return the places of an input, flattened, that are read in integers."""
    plain = {name: replace(tensor, quantization=None) for name, tensor in graph.tensors.items()}
    bare = replace(graph, tensors=plain)
    constants = {t.key: t.data for t in graph.tensors.values() if t.data is not None}
    shape = graph.tensors[key].shape
    # Counted from 1, since operators that pad add zeros.
    places: Places = {key: np.arange(1, int(np.prod(shape)) + 1).reshape(shape)}
    read = [np.zeros(1, int)]
    for op in graph.ops:
        own = {name: places[name] for name in op.inputs if name in places}
        if not own:
            continue
        moved = _moved(op, own, bare, constants, graph)
        if moved is not None:
            places.update(moved)
        else:
            read += _in_integers(graph, own)
    read += _in_integers(graph, {name: places[name] for name in graph.outputs if name in places})
    found = np.unique(np.concatenate([array.reshape(-1) for array in read]))
    return found[found > 0] - 1


def _in_integers(graph: ArtifactGraph, places: Places) -> list[np.ndarray]:
    return [p for name, p in places.items() if graph.tensors[name].quantization is not None]


def _moved(
    op: GraphOp,
    own: Places,
    bare: ArtifactGraph,
    constants: Mapping[str, np.ndarray],
    graph: ArtifactGraph,
) -> Places | None:
    """Return the places that the results of an op come from; None if it computes."""
    if op.kind in _ROUNDING and graph.tensors[op.inputs[0]].quantization is None:
        return {op.outputs[0]: own[op.inputs[0]]}
    if op.kind not in MOVING_OPS:
        return None
    try:
        results = computed(op, Tensors(bare, {**constants, **own}))
    except (NotKnownError, UnknownFormError):
        return None
    return {name: result[0] for name, result in zip(op.outputs, results)}
