"""The user's own samples, checked together with the golden set.

The trained model is not at hand any more when files are checked, so what the earlier stages make of
these samples is made up for: truth is the folded network in float64, which the export proved equal
to the trained one to 1e-10; the reference is the same network in float32; and each file is run once
more on this machine, as it was at export. A file that is not the one exported any more has no such
output.
"""

from __future__ import annotations

import os
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Union

import numpy as np

from ..errors import UserError
from .file_noise import file_noise
from .golden import Arrays, GoldenSet
from .manifest import Artifact, ExportDirectory
from .network import Network, read_network
from .noise import expected_noise
from .runners import Target
from .target_check import run_target

Source = Union[str, "os.PathLike[str]", np.ndarray, Mapping[str, np.ndarray]]

LABEL = "label"

# The runtimes that the export itself runs its files on.
_HOSTS = {"tflite": "litert", "onnx": "onnxruntime"}


@dataclass(frozen=True)
class OwnSamples:
    """Samples of the user's.

    Attributes:
        inputs: Keras input name to (N, …).
        labels: (N,) true classes; None where they are not known.
    """

    inputs: Arrays
    labels: np.ndarray | None


def read_samples(source: Source, export: ExportDirectory) -> OwnSamples:
    """Read samples and check that they fit the model.

    Args:
        source: An `.npz` file with one array for each input by its Keras name and, if known, the
            true classes as `label`; an `.npy` file or an array for a model with one input; or a
            dictionary of arrays with the names of an `.npz` file.
        export: The export that they are for.

    Raises:
        UserError: The file cannot be read, or lacks an input, or an array has another shape.
    """
    file = "the samples"
    loaded: np.ndarray | Mapping[str, np.ndarray]
    if isinstance(source, (str, os.PathLike)):
        file, loaded = os.fspath(source), _load(Path(source))
    else:
        loaded = source
    if isinstance(loaded, np.ndarray):
        if len(_names(export)) != 1:
            raise UserError(
                f"{file} is one array, and the model has the inputs {_names(export)}: name each, "
                "as in an .npz file."
            )
        arrays = {_names(export)[0]: loaded}
    else:
        arrays = {name: np.asarray(array) for name, array in loaded.items()}
    labels = arrays.pop(LABEL, None) if LABEL not in _names(export) else None
    inputs = {name: _fitting(arrays, name, file, export) for name in _names(export)}
    sizes = {name: len(array) for name, array in inputs.items()}
    if len(set(sizes.values())) != 1 or 0 in sizes.values():
        raise UserError(f"{file} must hold as many samples of every input. Received: {sizes}.")
    count = next(iter(sizes.values()))
    if labels is not None and (labels.shape != (count,) or labels.dtype.kind not in "iu"):
        raise UserError(
            f"{file}: '{LABEL}' must hold one class number for each of {count} samples. Received: "
            f"{labels.dtype} of shape {labels.shape}."
        )
    return OwnSamples(inputs, None if labels is None else labels.astype(np.int64))


def _load(file: Path) -> np.ndarray | dict[str, np.ndarray]:
    """Return what an .npy or .npz file holds."""
    try:
        loaded = np.load(file, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            return loaded
        with loaded:
            return {key: loaded[key] for key in loaded.files}
    except FileNotFoundError:
        raise UserError(f"{file} does not exist. Name an .npz or .npy file with samples.") from None
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f"{file} is no .npz or .npy file ({error}).") from error


def with_samples(golden: GoldenSet, export: ExportDirectory, own: OwnSamples) -> GoldenSet:
    """Return the golden set with the user's samples after its own.

    Args:
        golden: The golden set of the export.
        export: The export.
        own: The user's samples; their kind becomes "real".

    Raises:
        UserError: A layer of the network cannot be evaluated outside Keras.
    """
    network = _network(export)
    truth = network.run(own.inputs)
    count = len(next(iter(own.inputs.values())))
    labels = np.full(golden.samples + count, -1)
    if golden.labels is not None:
        labels[: golden.samples] = golden.labels
    if own.labels is not None:
        labels[golden.samples :] = own.labels
    artifacts = {}
    for artifact in export.artifacts:
        known = golden.artifacts.get(artifact.file)
        outputs = _run(artifact, export, own.inputs) if known is not None else None
        if known is not None and outputs is not None:
            artifacts[artifact.file] = _joined(known, outputs)
    noise = expected_noise(network, own.inputs) if golden.noise else {}
    file_noise = {
        artifact.file: _joined(
            golden.file_noise[artifact.file], _file_noise(artifact, export, own.inputs, truth)
        )
        for artifact in export.artifacts
        if artifact.file in golden.file_noise
    }
    return replace(
        golden,
        kind=np.concatenate([golden.kind, np.full(count, "real")]),
        inputs=_joined(golden.inputs, own.inputs),
        truth=_joined(golden.truth, truth),
        folded64=_joined(golden.folded64, truth),
        reference=_joined(golden.reference, network.run(own.inputs, dtype=np.float32)),
        artifacts=artifacts,
        noise=_joined(golden.noise, noise),
        file_noise=file_noise,
        labels=labels if (labels >= 0).any() else None,
    )


def _names(export: ExportDirectory) -> list[str]:
    return [spec.name for spec in export.inputs]


def _fitting(
    arrays: Mapping[str, np.ndarray], name: str, file: str, export: ExportDirectory
) -> np.ndarray:
    """Return one input in the type that the model takes, after checking its shape."""
    if name not in arrays:
        raise UserError(
            f"{file} must hold the model's inputs {_names(export)}. Received: {sorted(arrays)}."
        )
    array = arrays[name]
    spec = next(spec for spec in export.inputs if spec.name == name)
    sizes = spec.shape[1:]
    fits = array.ndim == len(spec.shape) and all(
        size in (None, given) for size, given in zip(sizes, array.shape[1:])
    )
    if not fits or array.dtype.kind not in "fiub":
        raise UserError(
            f"{file}: '{name}' must hold numbers of the shape (N, {', '.join(map(str, sizes))}). "
            f"Received: {array.dtype} of shape {array.shape}."
        )
    return array.astype(spec.dtype)


def _network(export: ExportDirectory) -> Network:
    """Return the folded network under the trained model's names."""
    if export.network is None:
        raise UserError(f"{export.path} has no network to evaluate own samples with. Export again.")
    names = [spec.name for spec in export.inputs], [spec.name for spec in export.outputs]
    network = read_network(export.network).named(*names)
    if network.opaque:
        raise UserError(
            f"Own samples need float64 truth, and the layer '{network.opaque[0]}' can be evaluated "
            "by Keras alone. Give them to the export instead: renormlite export --inputs FILE."
        )
    return network


def _run(artifact: Artifact, export: ExportDirectory, inputs: Arrays) -> Arrays | None:
    """Return what a file gives on this machine; None for one that is damaged or cannot be run."""
    if artifact.format not in _HOSTS or export.damaged(artifact) is not None:
        return None
    target = Target(_HOSTS[artifact.format])
    outputs = run_target(export.path / artifact.file, artifact, inputs, target).outputs
    return outputs or None


def _file_noise(
    artifact: Artifact, export: ExportDirectory, inputs: Arrays, truth: Arrays
) -> dict[str, np.ndarray]:
    """Return the noise that a file's own arithmetic explains; none where it cannot be read."""
    path, network = export.path / artifact.file, export.read_network(artifact)
    if network is None or export.damaged(artifact) is not None:
        return {}
    return file_noise(path, artifact.format, artifact.precision, network, inputs, truth)


def _joined(first: Arrays, second: Arrays) -> dict[str, np.ndarray]:
    """Return the arrays that both have, one after the other."""
    return {name: np.concatenate([first[name], second[name]]) for name in first if name in second}
