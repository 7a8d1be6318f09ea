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

from ..artifacts.directory import ExportDirectory
from ..artifacts.golden_set import Arrays, GoldenSet, joined
from ..artifacts.images import Preprocessing, read_images
from ..artifacts.manifest import Artifact
from ..artifacts.network import Network, read_network
from ..artifacts.sample_kinds import SEARCH, fed, kinds_of, without
from ..errors import UserError
from ..reference.file_noise import file_noise
from ..reference.network import evaluate_network, opaque_layers
from ..reference.noise import expected_noise
from ..reference.nonfinite import expected
from ..runtimes import Target
from ..runtimes.run import run_target

Source = Union[str, "os.PathLike[str]", np.ndarray, Mapping[str, np.ndarray]]

LABEL = "label"

# Images of a folder that are taken unless another number is asked for; it may hold millions.
IMAGES = 200

# The runtimes that the export itself runs its files on.
HOSTS = {"tflite": "litert", "onnx": "onnxruntime"}


@dataclass(frozen=True)
class OwnSamples:
    """Samples of the user's.

    Attributes:
        inputs: Keras input name to (N, …).
        labels: (N,) true classes; None where they are not known.
    """

    inputs: Arrays
    labels: np.ndarray | None

    def take(self, limit: int) -> OwnSamples:
        """Return at most `limit` of them, evenly spread."""
        count = len(next(iter(self.inputs.values())))
        if count <= limit:
            return self
        spread = np.linspace(0, count - 1, limit).round().astype(int)
        return OwnSamples(
            {name: array[spread] for name, array in self.inputs.items()},
            None if self.labels is None else self.labels[spread],
        )


def read_samples(
    source: Source,
    export: ExportDirectory,
    *,
    preprocessing: Preprocessing | None = None,
    limit: int | None = None,
) -> OwnSamples:
    """Read samples and check that they fit the model.

    Args:
        source: An `.npz` file with one array for each input by its Keras name and, if known, the
            true classes as `label`; an `.npy` file or an array for a model with one input; a
            dictionary of arrays with the names of an `.npz` file; or a folder of images, in which
            folders named as the model's classes tell the true ones.
        export: The export that they are for.
        preprocessing: Of the pixels of images; by default what the export was told.
        limit: At most so many samples, evenly spread; by default all of a file, and `IMAGES` of a
            folder.

    Raises:
        UserError: The file cannot be read, or lacks an input, or an array has another shape; or
            nobody said how pixels become inputs.
    """
    if isinstance(source, (str, os.PathLike)) and Path(source).is_dir():
        return _from_folder(Path(source), export, preprocessing, limit or IMAGES)
    if preprocessing is not None:
        raise UserError(
            "Preprocessing (--mean, --scale) is for a folder of images; every other source holds "
            "what the network takes. Leave it out, or name a folder."
        )
    samples = _from_arrays(source, export)
    return samples if limit is None else samples.take(limit)


def _from_arrays(source: Source, export: ExportDirectory) -> OwnSamples:
    """Read samples that are what the network takes."""
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


def _from_folder(
    folder: Path, export: ExportDirectory, preprocessing: Preprocessing | None, limit: int
) -> OwnSamples:
    """Read a folder of images; a folder in it that bears the name of a class is its samples."""
    if len(export.inputs) != 1:
        raise UserError(
            f"A folder of images ({folder}) serves a model with one input, and this one has "
            f"{_names(export)}. Give an .npz file with an array for each."
        )
    told = export.record.get("metadata", {})
    if preprocessing is None and "preprocessing" in told:
        entry = {
            key: tuple(value) if isinstance(value, list) else value
            for key, value in told["preprocessing"].items()
        }
        preprocessing = Preprocessing(**entry)
    (spec,) = export.inputs
    images = read_images(folder, spec.shape, spec.dtype, preprocessing, limit=limit)
    numbers = {str(name): number for number, name in enumerate(told.get("labels", ()))}
    labels = np.array([numbers.get(name, -1) for name in images.classes])
    return OwnSamples({spec.name: images.inputs}, labels if (labels >= 0).any() else None)


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
        own: The user's samples; their kind becomes "real", of those with NaN or infinity
            "nonfinite".

    Raises:
        UserError: A layer of the network cannot be evaluated outside Keras.
    """
    network = known_network(
        export,
        "Own samples need",
        "Give them to the export instead: renormlite export --inputs FILE.",
    )
    return extended(golden, export, network, own, kinds_of(own.inputs))


def extended(
    golden: GoldenSet,
    export: ExportDirectory,
    network: Network,
    own: OwnSamples,
    kind: np.ndarray,
) -> GoldenSet:
    """Return the golden set with samples after its own, and with what every stage makes of them.

    Args:
        golden: The golden set of the export.
        export: The export.
        network: What `known_network` returns for it.
        own: The samples.
        kind: (N,) their kinds.
    """
    with np.errstate(invalid="ignore", over="ignore"):
        truth = evaluate_network(network, own.inputs)
        reference = evaluate_network(network, own.inputs, dtype=np.float32)
    wanted = expected(network, own.inputs, truth, reference)
    truth, reference = without(truth, wanted), without(reference, wanted)
    count = len(kind)
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
            artifacts[artifact.file] = joined(known, without(outputs, wanted))
    noise = _noise(network, own.inputs, kind) if golden.noise else {}
    file_noise = {
        artifact.file: joined(
            golden.file_noise[artifact.file], _file_noise(artifact, export, own.inputs, truth)
        )
        for artifact in export.artifacts
        if artifact.file in golden.file_noise
    }
    return replace(
        golden,
        kind=np.concatenate([golden.kind, kind]),
        inputs=joined(golden.inputs, own.inputs),
        truth=joined(golden.truth, truth),
        folded64=joined(golden.folded64, truth),
        reference=joined(golden.reference, reference),
        artifacts=artifacts,
        noise=joined(golden.noise, noise),
        file_noise=file_noise,
        labels=labels if (labels >= 0).any() else None,
    )


def _noise(network: Network, inputs: Arrays, kind: np.ndarray) -> dict[str, np.ndarray]:
    """Return the expected noise; of samples that a search chose, of each by itself."""
    if (kind == SEARCH).any():
        return expected_noise(network, inputs, work=np.inf)
    return expected_noise(network, inputs)


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


def known_network(export: ExportDirectory, why: str, cure: str) -> Network:
    """Return the folded network under the trained model's names.

    Args:
        export: The export.
        why: What needs it, to begin a sentence with.
        cure: What to do where a layer of it is known to Keras alone.

    Raises:
        UserError: There is none, or a layer of it is known to Keras alone.
    """
    if export.network is None:
        raise UserError(f"{export.path} has no network to evaluate samples with. Export again.")
    names = [spec.name for spec in export.inputs], [spec.name for spec in export.outputs]
    network = read_network(export.network).named(*names)
    opaque = opaque_layers(network)
    if opaque:
        raise UserError(
            f"{why} float64 truth, and only Keras can evaluate the layer '{opaque[0]}'. {cure}"
        )
    return network


def _run(artifact: Artifact, export: ExportDirectory, inputs: Arrays) -> Arrays | None:
    """Return what a file gives on this machine; None for one that is damaged or cannot be run."""
    if artifact.format not in HOSTS or export.damaged(artifact) is not None:
        return None
    target = Target(HOSTS[artifact.format])
    outputs = run_target(export.path / artifact.file, artifact, inputs, target).outputs
    return outputs or None


def _file_noise(
    artifact: Artifact, export: ExportDirectory, inputs: Arrays, truth: Arrays
) -> dict[str, np.ndarray]:
    """Return the noise that a file's own arithmetic explains; none where it cannot be read."""
    path, network = export.path / artifact.file, export.read_network(artifact)
    if network is None or export.damaged(artifact) is not None:
        return {}
    given = fed(inputs, artifact.precision)
    return file_noise(path, artifact.format, artifact.precision, network, given, truth)
