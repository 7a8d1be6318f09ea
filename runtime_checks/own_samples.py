"""The user's own samples, checked together with the golden set.

The trained model is no longer available when files are checked, so the outputs of the earlier
stages are computed here: truth is the folded network in float64, which the export proved equal to
the trained one to 1e-10; the reference is the same network in float32; and each file is run once
more on this machine, as at export, or predicted. A file that was changed since the export has no
such output.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from ..artifacts.class_names import ClassNames, class_counts, find_class_names
from ..artifacts.directory import ExportDirectory
from ..artifacts.golden_set import Arrays, GoldenSet, Predictions, joined
from ..artifacts.graphs import READERS, read_graph
from ..artifacts.images import Preprocessing
from ..artifacts.manifest import Artifact
from ..artifacts.network import Network, read_network
from ..artifacts.ranges import Misfits
from ..artifacts.sample_kinds import REAL, SEARCH, file_inputs, kinds_of, without
from ..artifacts.sample_shards import find_shards
from ..artifacts.sample_stream import Part, SampleStream
from ..artifacts.samples import SampleSet, Source, open_samples
from ..errors import UserError
from ..reference.file_noise import file_noise, outputs_in_floats
from ..reference.integer.file_outputs import predicted_outputs
from ..reference.misfits import misfits
from ..reference.network import evaluate_network, opaque_layers
from ..reference.noise import expected_noise
from ..reference.nonfinite import expected
from ..runtimes import HOSTS, Target, usable_here
from ..runtimes.run import run_target

# Part of the notes on inputs in the place of layers that process text.
_BY_THE_APP = "the app must compute the output of the layer"


def open_own(
    source: Source,
    export: ExportDirectory,
    *,
    preprocessing: Preprocessing | None = None,
    limit: int | None = None,
) -> SampleStream:
    """Open samples for the model of an export, to be read part by part; see `artifacts.samples`.

    Args:
        source: Anything that `open_samples` takes.
        export: The export to check with them.
        preprocessing: How pixels of a folder of images become inputs; by default as in the export.
        limit: Use at most this many samples, evenly spaced; by default all of a file, and
            `IMAGES` of a folder.

    Raises:
        UserError: The samples cannot be read or do not fit the model, or it is not known how
            pixels become inputs.
    """
    path = Path(source) if isinstance(source, (str, os.PathLike)) else None
    if preprocessing is not None and not (path and (path.is_dir() or find_shards(path))):
        raise UserError(
            "Preprocessing (--mean, --scale) is for a folder of images, and images in tar and "
            "Parquet files; every other source holds what the network takes. Leave it out."
        )
    metadata = export.manifest.metadata
    if preprocessing is not None and Preprocessing.inside(metadata):
        raise UserError(
            "The files of this export take raw pixels and compute the preprocessing themselves. "
            "Leave --mean and --scale out."
        )
    classes = ClassNames(tuple(metadata.get("labels", ())))
    if not classes.names:
        classes = find_class_names(source, class_counts(export.outputs))
    with _naming_removed_layers(export):
        stream = open_samples(
            source,
            export.inputs,
            limit=limit,
            preprocessing=preprocessing or Preprocessing.before(metadata),
            classes=classes.names,
            finite=False,
        )

    def parts(size: int) -> Iterator[Part]:
        with _naming_removed_layers(export):
            yield from stream.parts(size)

    return replace(stream, parts=parts, notes=(*filter(None, [classes.note]), *stream.notes))


@contextlib.contextmanager
def _naming_removed_layers(export: ExportDirectory) -> Iterator[None]:
    """Add to errors in samples which layers the files lack, and what to pass instead."""
    try:
        yield
    except UserError as error:
        removed = [note for note in export.manifest.notes if _BY_THE_APP in note]
        if not removed:
            raise
        raise UserError(
            f"{error} The {'; the '.join(removed)}. Check with these outputs, or give the text to "
            "the export instead (export --inputs FILE), which computes them with the model."
        ) from error


def with_samples(golden: GoldenSet, export: ExportDirectory, own: SampleSet) -> GoldenSet:
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
    return extended(golden, export, network, own, kinds_of(own.arrays))


def extended(
    golden: GoldenSet,
    export: ExportDirectory,
    network: Network,
    own: SampleSet,
    kind: np.ndarray,
) -> GoldenSet:
    """Return the golden set with further samples, and with the outputs of every stage for them.

    Args:
        golden: The golden set of the export.
        export: The export.
        network: What `known_network` returns for it.
        own: The samples.
        kind: (N,) their kinds.
    """
    with np.errstate(invalid="ignore", over="ignore"):
        truth = evaluate_network(network, own.arrays)
        reference = evaluate_network(network, own.arrays, dtype=np.float32)
    wanted = expected(network, own.arrays, truth, reference)
    truth, reference = without(truth, wanted), without(reference, wanted)
    count = len(kind)
    labels = np.full(golden.samples + count, -1)
    if golden.labels is not None:
        labels[: golden.samples] = golden.labels
    if own.labels is not None:
        labels[golden.samples :] = own.labels
    added = {file: _predicted(export, file, own.arrays) for file in golden.predictions}
    artifacts = {}
    for artifact in export.artifacts:
        known = golden.artifacts.get(artifact.file)
        outputs = _run(artifact, export, own.arrays) if known is not None else None
        if outputs is None and artifact.file in added:
            outputs = _by_first_rule(added[artifact.file], export)
        if known is not None and outputs is not None:
            artifacts[artifact.file] = joined(known, without(outputs, wanted))
    noise = _noise(network, own.arrays, kind) if golden.noise else {}
    file_noise = {
        artifact.file: joined(
            golden.file_noise[artifact.file], _file_noise(artifact, export, own.arrays, truth)
        )
        for artifact in export.artifacts
        if artifact.file in golden.file_noise
    }
    in_floats = {
        artifact.file: joined(
            golden.in_floats[artifact.file],
            without(_in_floats(artifact, export, own.arrays), wanted),
        )
        for artifact in export.artifacts
        if artifact.file in golden.in_floats
    }
    predictions = {file: known.joined(added[file]) for file, known in golden.predictions.items()}
    return replace(
        golden,
        predictions=predictions,
        kind=np.concatenate([golden.kind, kind]),
        inputs=joined(golden.inputs, own.arrays),
        truth=joined(golden.truth, truth),
        folded64=joined(golden.folded64, truth),
        reference=joined(golden.reference, reference),
        artifacts=artifacts,
        noise=joined(golden.noise, noise),
        file_noise=file_noise,
        in_floats=in_floats,
        misfits=_misfits(export, own.arrays, kind),
        labels=labels if (labels >= 0).any() else None,
    )


def _misfits(export: ExportDirectory, inputs: Arrays, kind: np.ndarray) -> dict[str, Misfits]:
    """Return the real samples' values that each file cannot represent."""
    real = {name: array[kind == REAL] for name, array in inputs.items()}
    if not (kind == REAL).any():
        return {}
    found = {}
    for artifact in export.artifacts:
        if artifact.format not in READERS or export.damaged(artifact) is not None:
            continue
        # A file that cannot be read is a failed check, which `FileInspection` reports.
        with contextlib.suppress(UserError):
            network = export.read_network(artifact)
            if network is not None:
                graph = read_graph(export.path / artifact.file, artifact.format)
                found[artifact.file] = misfits(artifact, graph, network, real)
    return found


def _noise(network: Network, inputs: Arrays, kind: np.ndarray) -> dict[str, np.ndarray]:
    """Return the expected noise; for samples from a search, each by itself."""
    if (kind == SEARCH).any():
        return expected_noise(network, inputs, work=np.inf)
    return expected_noise(network, inputs)


def known_network(export: ExportDirectory, why: str, cure: str) -> Network:
    """Return the folded network under the trained model's names.

    Args:
        export: The export.
        why: Begins the error message: what needs the network.
        cure: Ends the error message: what to do if only Keras can evaluate a layer.

    Raises:
        UserError: There is none, or only Keras can evaluate one of its layers.
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
    """Return a file's outputs on this machine; None if it is damaged or cannot be run here."""
    if artifact.format not in HOSTS or export.damaged(artifact) is not None:
        return None
    if not usable_here(HOSTS[artifact.format]):
        return None
    target = Target(HOSTS[artifact.format])
    outputs = run_target(export.path / artifact.file, artifact, inputs, target).outputs
    return outputs or None


def _predicted(export: ExportDirectory, file: str, inputs: Arrays) -> Predictions:
    """Return the predicted outputs of a file of integers for further samples."""
    artifact = next((entry for entry in export.artifacts if entry.file == file), None)
    if artifact is None or export.damaged(artifact) is not None:
        return Predictions({}, {}, "the file is missing, or not the one that was exported")
    try:
        return predicted_outputs(export.path / file, artifact, inputs)
    except UserError as error:
        return Predictions({}, {}, str(error))


def _by_first_rule(predictions: Predictions, export: ExportDirectory) -> Arrays | None:
    """Return the outputs that a file has under a rounding rule; None if one is not predicted."""
    outputs = next(iter(predictions.by_rule.values()), {})
    return outputs if all(spec.name in outputs for spec in export.outputs) else None


def _file_noise(
    artifact: Artifact, export: ExportDirectory, inputs: Arrays, truth: Arrays
) -> dict[str, np.ndarray]:
    """Return the noise that a file's own arithmetic explains; none if it cannot be read."""
    network = _intact_network(artifact, export)
    if network is None:
        return {}
    path, given = export.path / artifact.file, file_inputs(inputs, artifact.precision)
    return file_noise(path, artifact.format, artifact.precision, network, given, truth)


def _in_floats(artifact: Artifact, export: ExportDirectory, inputs: Arrays) -> Arrays:
    """Return what a runtime computes that does not round the file's activations, if known."""
    network = _intact_network(artifact, export)
    if network is None:
        return {}
    path, given = export.path / artifact.file, file_inputs(inputs, artifact.precision)
    return outputs_in_floats(path, artifact.format, network, given)


def _intact_network(artifact: Artifact, export: ExportDirectory) -> Network | None:
    """Return the network of a file; None if there is none, or if the file is damaged."""
    return None if export.damaged(artifact) is not None else export.read_network(artifact)
