"""Writes the op at fault as an export of its own: `renormlite check` on it shows the fault again.

The directory holds the op cut out of an ONNX file, with the inputs it got;
as truth what the network expects of it from these inputs in float64; as reference the same in
float32; and the manifest, golden set and network that any export has, so that it can be checked on
every runtime, bundled and sent on.
"""

from __future__ import annotations

import io
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from .. import __version__
from ..errors import UserError
from ..files import sha256, write_bytes, write_text
from .culprit import Fault
from .manifest import FILE, SCHEMA
from .network import Network, network_arrays
from .noise import expected_noise


def write_reproducer(
    fault: Fault, artifact: Path, directory: str | os.PathLike[str], name: str = "op"
) -> Path:
    """Write a fault as an export of one op.

    Args:
        fault: A fault that a check found by running the file.
        artifact: The file that the op is in; an .onnx file.
        directory: Where to write.
        name: Name of the export.

    Returns:
        The directory.

    Raises:
        UserError: The fault was found without running, or the op cannot be cut out of its file.
    """
    culprit = fault.culprit
    if culprit is None or culprit.op is None or culprit.got is None:
        raise UserError(
            f"The fault of layer '{fault.layer}' was found without running an op, so there is none "
            "to cut out."
        )
    if artifact.suffix != ".onnx":
        raise UserError(
            f"One op can be cut out of .onnx files. Received: {artifact.name}. Export the same "
            "model to ONNX as well."
        )
    folder = Path(directory)
    inputs = {key: value.astype(np.float32) for key, value in culprit.inputs.items()}
    network = Network(
        inputs={key: (None, *value.shape[1:]) for key, value in inputs.items()},
        outputs={"got": culprit.segment[-1].name},
        nodes=culprit.segment,
    )
    file = f"{name}.float32.onnx"
    layout = _cut(artifact, culprit.op.index, inputs, culprit.got, folder / file)
    truth = network.run(inputs)
    arrays = {
        "kind": np.array(["real"] * len(culprit.got)),
        **{f"input:{key}": value for key, value in inputs.items()},
        "truth:got": truth["got"],
        "folded64:got": truth["got"],
        "reference:got": network.run(inputs, dtype=np.float32)["got"],
        **{f"noise:{key}": value for key, value in expected_noise(network, inputs).items()},
    }
    _save(folder / "golden.npz", arrays)
    _save(folder / "network.npz", network_arrays(network))
    _write_manifest(folder, name, file, network, culprit.got, layout)
    return folder


def _cut(
    source: Path,
    index: int,
    inputs: Mapping[str, np.ndarray],
    got: np.ndarray,
    path: Path,
) -> dict[str, tuple[str, tuple[int, ...], list[int] | None]]:
    """Write one node of an ONNX file as a model; return each tensor's name, shape and axes."""
    import onnx

    model = onnx.load(source)
    node = model.graph.node[index]
    weights = {entry.name: entry for entry in model.graph.initializer}
    computed = [key for key in node.input if key and key not in weights]
    if len(computed) != len(inputs) or len(node.output) != 1:
        raise UserError(
            f"Op {index} ({node.op_type}) reads {len(computed)} tensors where the network's layer "
            f"reads {len(inputs)}; such an op cannot be cut out by itself."
        )
    first = node.op_type in ("Conv", "ConvTranspose", "MaxPool", "AveragePool")

    def placed(key: str, value: np.ndarray) -> tuple[str, tuple[int, ...], list[int] | None]:
        rank = value.ndim
        moved = first and rank > 2
        axes = [0, rank - 1, *range(1, rank - 1)] if moved else None
        shape = tuple(value.shape[axis] for axis in axes) if axes else value.shape
        return key, (1, *shape[1:]), axes

    layout = {
        name: placed(key, value)
        for key, (name, value) in zip(computed, inputs.items(), strict=True)
    }
    layout["got"] = placed(node.output[0], got)

    def info(entry: tuple[str, tuple[int, ...], list[int] | None]) -> Any:
        return onnx.helper.make_tensor_value_info(entry[0], onnx.TensorProto.FLOAT, entry[1])

    graph = onnx.helper.make_graph(
        [node],
        "op",
        [info(layout[name]) for name in inputs],
        [info(layout["got"])],
        [weights[key] for key in node.input if key in weights],
    )
    cut = onnx.helper.make_model(graph, opset_imports=model.opset_import)
    cut.ir_version = model.ir_version
    write_bytes(path, cut.SerializeToString())
    return layout


def _save(path: Path, arrays: Mapping[str, Any]) -> None:
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **arrays)
    write_bytes(path, buffer.getvalue())


def _write_manifest(
    folder: Path,
    name: str,
    file: str,
    network: Network,
    got: np.ndarray,
    layout: Mapping[str, tuple[str, tuple[int, ...], list[int] | None]],
) -> None:
    def hashed(entry: str) -> dict[str, str]:
        return {"file": entry, "sha256": sha256(folder / entry)}

    def outer(key: str, shape: tuple[int | None, ...]) -> dict[str, Any]:
        return {"name": key, "shape": list(shape), "dtype": "float32"}

    def inner(key: str) -> dict[str, Any]:
        in_file, shape, axes = layout[key]
        record = {"name": in_file, "shape": list(shape), "dtype": "float32", "keras_name": key}
        return {**record, "axes": axes} if axes else record

    record = {
        "schema": SCHEMA,
        "name": name,
        "created_by": f"renormlite {__version__}",
        "source": {"model_name": name, "sha256": None},
        "versions": {},
        "options": {},
        "inputs": [outer(key, shape) for key, shape in network.inputs.items()],
        "outputs": [outer("got", (None, *got.shape[1:]))],
        "fold": {"records": [], "proof": {}},
        "golden": hashed("golden.npz"),
        "network": hashed("network.npz"),
        "artifacts": [
            {
                **hashed(file),
                "format": "onnx",
                "precision": "float32",
                "bytes": (folder / file).stat().st_size,
                "ops": {},
                "inputs": [inner(key) for key in network.inputs],
                "outputs": [inner("got")],
            }
        ],
    }
    write_text(folder / FILE, json.dumps(record, indent=1) + "\n")
