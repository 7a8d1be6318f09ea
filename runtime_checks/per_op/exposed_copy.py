"""A copy of a .tflite file that also returns its intermediate tensors.

A device, or a runtime that exposes no tensors, runs the copy like any other file. So its operators
can be checked on the target itself, even if its integers follow no known rounding rule.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from ...artifacts.graphs.base import ArtifactGraph
from ...artifacts.manifest import Artifact, TensorSpec
from ...files import sha256, write_bytes

# Types that runtimes return.
_RETURNED = frozenset({"float32", "int8", "uint8", "int16", "int32", "int64", "bool"})


def write_exposed(
    path: Path, artifact: Artifact, graph: ArtifactGraph, batch: int, folder: Path
) -> Artifact:
    """Write the copy, under the same name.

    Args:
        path: The file.
        artifact: The manifest's entry of the file.
        graph: The file's graph.
        batch: Samples in one run: only tensors with that first axis can be returned.
        folder: Where to write the copy.

    Returns:
        The entry of the copy; the Keras names of its further outputs are the keys of the graph.
    """
    from ...artifacts.flatbuffer import pack, parse

    model = parse(path.read_bytes())
    subgraph = model.subgraphs[0]
    further = []
    for op in graph.as_filed.ops:
        for key in op.outputs:
            tensor = graph.tensors[key]
            sizes = subgraph.tensors[int(key)].shape  # None for a single number
            shape = () if sizes is None else tuple(int(size) for size in sizes)
            if key in graph.outputs or tensor.dtype.name not in _RETURNED or shape[:1] != (batch,):
                continue
            name = f"tensor {key}"
            subgraph.tensors[int(key)].name = name.encode()
            further.append(TensorSpec(name, shape, tensor.dtype.name, key))
    subgraph.outputs = [*subgraph.outputs, *(int(spec.keras_name) for spec in further)]
    model.signatureDefs = []
    write_bytes(folder / artifact.file, pack(model))
    return replace(
        artifact,
        sha256=sha256(folder / artifact.file),
        bytes=(folder / artifact.file).stat().st_size,
        outputs=(*artifact.outputs, *further),
    )


def exposed_tensors(
    outputs: Mapping[str, np.ndarray], copied: Artifact, artifact: Artifact, graph: ArtifactGraph
) -> dict[str, np.ndarray]:
    """Return every tensor that a copy returned, by key, as the file stores it.

    Args:
        outputs: Keras output name to (P, …) outputs of the copy, dequantized.
        copied: The entry of the copy.
        artifact: The entry of the file.
        graph: The file's graph.
    """
    keys = {graph.tensors[key].name: key for key in graph.outputs}
    named = {spec.keras_name: keys[spec.name] for spec in artifact.outputs}
    found = {}
    for spec in copied.outputs:
        if spec.keras_name not in outputs:  # a constant, which this runtime does not return
            continue
        key = named.get(spec.keras_name, spec.keras_name)
        array, tensor = outputs[spec.keras_name], graph.tensors[key]
        if tensor.quantization is not None and array.dtype != tensor.dtype:
            steps = array / tensor.quantization.scales[0] + tensor.quantization.zero_points[0]
            array = np.rint(steps).astype(tensor.dtype)
        found[key] = array[:, None]
    return found
