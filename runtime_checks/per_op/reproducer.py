"""Writes the op at fault as an export of its own: `renormlite check` on it shows the fault again.

The directory holds the op extracted from its file, with its inputs; as truth the network's float64
result for these inputs; as reference the same in float32; and a manifest, golden set and network
like any export, so that it can be checked on every runtime, bundled and shared.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from ...artifacts.archive import save_arrays
from ...artifacts.manifest import Artifact, FileRecord, Manifest, TensorSpec
from ...artifacts.network import Network, network_arrays
from ...artifacts.precisions import Arithmetic, precision_named
from ...errors import UserError
from ...files import sha256, write_bytes
from ...reference.network import evaluate_network
from ...reference.noise import expected_noise, in_steps, input_step
from ...version import __version__
from .culprit import Fault
from .cut import cut_op
from .cut.base import Cut
from .op_results import Culprit


def write_reproducer(
    fault: Fault, artifact: Path, directory: str | os.PathLike[str], name: str = "op"
) -> Path:
    """Write a fault as an export of one op.

    Args:
        fault: A fault that a check found by running the file.
        artifact: The file that the op is in; a .tflite or .onnx file.
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
    folder, inputs = Path(directory), _inputs(culprit)
    network = Network(
        inputs={key: (None, *value.shape[1:]) for key, value in inputs.items()},
        outputs={"got": culprit.segment[-1].name},
        nodes=culprit.segment,
    )
    cut = cut_op(artifact, culprit.op.index, inputs, culprit.got)
    file = f"{name}.{cut.precision}{artifact.suffix}"
    write_bytes(folder / file, cut.data)
    save_arrays(folder / "golden.npz", _golden(culprit, network, inputs, cut, file))
    save_arrays(folder / "network.npz", network_arrays(network))
    _manifest(folder, name, file, network, cut).write(folder)
    return folder


def _inputs(culprit: Culprit) -> dict[str, np.ndarray]:
    """Return the op's inputs as float32, in the order in which the layers read them."""
    order = dict.fromkeys(key for node in culprit.segment for key in node.inputs)
    return {key: culprit.inputs[key].astype(np.float32) for key in order if key in culprit.inputs}


def _golden(
    culprit: Culprit, network: Network, inputs: Mapping[str, np.ndarray], cut: Cut, file: str
) -> dict[str, np.ndarray]:
    """Return the arrays of the golden set."""
    truth = evaluate_network(network, inputs)["got"]
    arrays = {
        "kind": np.array(["real"] * len(truth)),
        **{f"input:{key}": value for key, value in inputs.items()},
        "truth:got": truth,
        "folded64:got": truth,
        "reference:got": evaluate_network(network, inputs, dtype=np.float32)["got"],
        **{f"noise:{key}": value for key, value in expected_noise(network, inputs).items()},
    }
    if cut.precision != "float32":
        arrays[f"artifact:{file}:got"] = _right(culprit, network, inputs, cut, truth)
    return arrays


def _right(
    culprit: Culprit,
    network: Network,
    inputs: Mapping[str, np.ndarray],
    cut: Cut,
    truth: np.ndarray,
) -> np.ndarray:
    """Return the result of the file's op without the fault, rounded as its precision requires.

    A file of lower precision is judged by its error at export. This file has no export, so the
    walk's expected result is used instead: the op with the file's rounded weights, inputs rounded
    where the op rounds them, and the result rounded to the steps of its type.
    """
    expected = culprit.expected
    if precision_named(cut.precision).arithmetic is Arithmetic.HYBRID:
        stepped = {key: in_steps(array, input_step(array)) for key, array in inputs.items()}
        # To first order, rounded inputs have the same effect with rounded and exact weights.
        expected = expected + evaluate_network(network, stepped)["got"] - truth
    spec = cut.output
    if spec.scale is not None and spec.zero_point is not None:
        limits = np.iinfo(spec.dtype)
        steps = np.clip(np.rint(expected / spec.scale) + spec.zero_point, limits.min, limits.max)
        expected = (steps - spec.zero_point) * spec.scale
    return expected.astype(np.float32)


def _manifest(folder: Path, name: str, file: str, network: Network, cut: Cut) -> Manifest:
    """Return the manifest."""
    path = folder / file

    def outer(spec: TensorSpec) -> TensorSpec:
        """Return the specification in the network: floats, channels last."""
        shape = spec.shape
        if spec.axes is not None:
            shape = tuple(shape[spec.axes.index(axis)] for axis in range(len(shape)))
        return TensorSpec(spec.keras_name, (None, *shape[1:]), "float32")

    return Manifest(
        name=name,
        created_by=f"renormlite {__version__}",
        source={"model_name": name, "sha256": None},
        # One op has no task whose quality could be judged.
        metadata={"reproducer": True},
        inputs=tuple(map(outer, cut.inputs)),
        outputs=(outer(cut.output),),
        golden=FileRecord.of(folder / "golden.npz"),
        network=FileRecord.of(folder / "network.npz"),
        artifacts=(
            Artifact(
                file=file,
                format=path.suffix.lstrip("."),
                precision=cut.precision,
                sha256=sha256(path),
                bytes=path.stat().st_size,
                ops=cut.ops,
                inputs=cut.inputs,
                outputs=(cut.output,),
            ),
        ),
    )
