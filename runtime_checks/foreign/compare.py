"""Compares two files of any origin, without a Keras model.

The first one is evaluated in float64 from its own numbers; both files are then checked against the
result as any file is against its model. The comparison passes if their arithmetic explains the
difference.
"""

from __future__ import annotations

import dataclasses
import html
import json
import os
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ...artifacts.archive import save_arrays
from ...artifacts.golden_set import Arrays, predictions_as_arrays
from ...artifacts.graphs import format_of, read_graph, reading, with_shapes
from ...artifacts.graphs.base import ArtifactGraph
from ...artifacts.graphs.onnx_weights import copy_weights
from ...artifacts.manifest import Artifact, FileRecord, Manifest, TensorSpec
from ...artifacts.network import Network, network_arrays
from ...artifacts.precisions import Arithmetic, precision_named
from ...artifacts.sample_checks import refuse_large_samples
from ...artifacts.sample_kinds import RANDOM, REAL, file_inputs
from ...artifacts.samples import Source, load_samples
from ...errors import UserError
from ...files import sha256
from ...locks import temporary_folder
from ...reference.file_networks import network_of_file
from ...reference.file_noise import file_noise, outputs_in_floats, shares_ranges
from ...reference.integer.file_outputs import predicted_outputs
from ...reference.network import evaluate_network, opaque_layers
from ...reference.noise import expected_noise
from ...runtimes import HOSTS, Target, computed_in_floats
from ...runtimes.run import run_target
from ...version import __version__
from ..end_to_end.comparison import compare_output
from ..end_to_end.findings import Finding
from ..options import CheckOptions
from ..parity import ParityReport, run_check
from .interface import UnlikeInterfaceError, match_interface, other_signatures
from .networks import made_from
from .precision import precision_of

CHECK = "difference"
_SAMPLES = 16


class ComparisonReport(ParityReport):
    """The verdict on two files; its findings give the difference of their outputs."""

    @property
    def differences(self) -> tuple[str, ...]:
        """A sentence for each output that both files have, on each pair of targets."""
        return tuple(f.message for f in self.findings if f.check == CHECK)

    @property
    def reference(self) -> str:
        """The file that the outputs are judged against."""
        name = self.manifest["source"]["model_name"]
        kinds = {entry["file"]: entry["precision"] for entry in self.manifest["artifacts"]}
        return f"{name} in real numbers" if precision_named(kinds[name]).quantized else name

    def in_its_terms(self, text: str) -> str:
        """Return a text that names the file of reference instead of a Keras model."""
        return _in_terms_of(self.reference, text)

    def to_json(self) -> str:
        """Return the report as JSON of the schema that docs/reports.md describes."""
        return _in_terms_of(json.dumps(self.reference)[1:-1], super().to_json())

    def to_html(self) -> str:
        """Return the report as one HTML page that needs no other file."""
        return _in_terms_of(html.escape(self.reference), super().to_html())

    def to_junit(self) -> str:
        """Return the report as JUnit XML: a suite for each target, a case for each finding."""
        return _in_terms_of(html.escape(self.reference), super().to_junit())


def compare_files(
    a: str | os.PathLike[str],
    b: str | os.PathLike[str],
    inputs: Source | None = None,
    *,
    map_inputs: Mapping[str, str] | None = None,
    map_outputs: Mapping[str, str] | None = None,
    **options: Any,
) -> ComparisonReport:
    """Compare two files, or one file on several targets.

    Args:
        a: A `.tflite` or `.onnx` file, the reference. A file of integers stands for the real
            numbers that they represent; if ``b`` is a float file, that is the reference.
        b: Another one, or the same.
        inputs: Real samples by the input names of ``a``; by default random numbers.
        map_inputs: Name of an input of ``a`` to that of ``b``, where another one was assumed.
        map_outputs: The same for outputs.
        **options: The options of `check_parity`.

    Returns:
        The report: `passed` if the arithmetic of both files explains their outputs.

    Raises:
        UserError: A file cannot be read or run, an op of both cannot be evaluated in float64, or
            the samples do not fit.
    """
    chosen = CheckOptions(**options)
    files = [_File.read(Path(path)) for path in dict.fromkeys([Path(a), Path(b)])]
    files[0].demand_other_name(files[1:])
    meaning = _meaning(files, inputs)
    wanted = {**(map_inputs or {}), **(map_outputs or {})}
    _demand_known(files, wanted)
    with temporary_folder() as folder:
        directory = folder / "comparison"
        directory.mkdir()
        _write(directory, files, meaning, wanted)
        report = run_check(directory, chosen)
    return _comparison(report, files[0].path.parent)


def _comparison(report: ParityReport, folder: Path) -> ComparisonReport:
    """Return a report with the differences of its results, in terms of the file of reference."""
    record = {field.name: getattr(report, field.name) for field in dataclasses.fields(report)}
    compared = ComparisonReport(**{**record, "directory": folder})
    results = [
        dataclasses.replace(
            result,
            findings=tuple(
                dataclasses.replace(f, message=compared.in_its_terms(f.message))
                for f in result.findings
            ),
        )
        for result in report.results
    ]
    return dataclasses.replace(
        compared,
        results=tuple(results),
        findings=(*report.findings, *_differences(report)),
    )


def _in_terms_of(reference: str, text: str) -> str:
    """Return a text that names the file of reference where it speaks of a Keras model."""
    text = text.replace("the float32 Keras model", f"{reference} in float32")
    text = text.replace("float32 Keras model", f"{reference} in float32")
    return text.replace("the trained model", reference)


@dataclasses.dataclass(frozen=True)
class _File:
    """One of the files."""

    path: Path
    graph: ArtifactGraph
    precision: str

    @classmethod
    def read(cls, path: Path) -> _File:
        """Read a file."""
        graph = with_shapes(read_graph(path, format_of(path)), path)
        return cls(path, graph, precision_of(graph))

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """The file's inputs, in real numbers."""
        tensors = [self.graph.tensors[key] for key in self.graph.inputs]
        return tuple(
            TensorSpec(
                tensor.name,
                (None, *(None if size < 1 else size for size in tensor.shape[1:])),
                _real_type(tensor.dtype),
            )
            for tensor in tensors
        )

    @property
    def format(self) -> str:
        """The file's format."""
        return self.path.suffix.lstrip(".")

    def demand_other_name(self, others: Sequence[_File]) -> None:
        """Refuse two files of the same name, which reports could not distinguish."""
        for other in others:
            if other.path.name == self.path.name:
                raise UserError(
                    f"The two files must have different names. Received: {self.path} and "
                    f"{other.path}. Copy one to another name."
                )


def _demand_known(files: Sequence[_File], wanted: Mapping[str, str]) -> None:
    """Refuse names that neither file has."""
    known = {tensor.name for file in files for tensor in file.graph.tensors.values()}
    for name in wanted.values():
        if name not in known:
            raise UserError(f"Neither file has a tensor '{name}'.")


@dataclasses.dataclass(frozen=True)
class _Meaning:
    """The reference of a comparison.

    Attributes:
        file: The file.
        network: The network that it computes.
        samples: Samples by the file's input names.
        kind: Their kind.
    """

    file: _File
    network: Network
    samples: dict[str, np.ndarray]
    kind: str


def _meaning(files: Sequence[_File], inputs: Source | None) -> _Meaning:
    """Return the reference: the first file, or the second if only its weights are not rounded."""
    refusals = []
    for file in sorted(files, key=_coarseness):
        samples, kind = _samples(file.inputs, inputs)
        sizes = {name: array.shape[1:] for name, array in samples.items()}
        with reading(file.path, "a network"):
            network = network_of_file(file.graph, file.format, sizes)
        opaque = [node for node in network.nodes if node.op == "opaque"]
        if not opaque:
            return _Meaning(file, network, samples, kind)
        kinds = ", ".join(dict.fromkeys(_unknown(node.attributes) for node in opaque))
        refusals.append(f"{file.path.name} has {kinds}")
    raise UserError(
        "A comparison needs one file of ops that can be evaluated in float64; "
        f"{'; '.join(refusals)}. Check them against their Keras model: renormlite check FILE… "
        "--model MODEL.keras."
    )


def _coarseness(file: _File) -> tuple[bool, float]:
    """Return a key that sorts files by the rounding of their weights."""
    precision = precision_named(file.precision)
    return precision.quantized, precision.unit_roundoff


def _unknown(attributes: Mapping[str, Any]) -> str:
    """Return the kind of an op that cannot be evaluated, with the reason if it has one."""
    kind, why = str(attributes["kind"]), str(attributes["why"])
    return kind if why == kind else f"{kind} ({why})"


def _write(
    folder: Path, files: Sequence[_File], meaning: _Meaning, wanted: Mapping[str, str]
) -> None:
    """Write an export directory with the files as its artifacts."""
    first, network, samples = meaning.file, meaning.network, meaning.samples
    specs = first.inputs
    truth = evaluate_network(network, samples)
    outputs = tuple(
        TensorSpec(name, (None, *array.shape[1:]), "float32") for name, array in truth.items()
    )
    arrays: dict[str, np.ndarray] = {
        "kind": np.full(len(next(iter(samples.values()))), meaning.kind),
        **{f"input:{name}": array for name, array in samples.items()},
        **{f"truth:{name}": array for name, array in truth.items()},
        **{f"folded64:{name}": array for name, array in truth.items()},
        **{
            f"reference:{name}": array
            for name, array in evaluate_network(network, samples, dtype=np.float32).items()
        },
        **{f"noise:{name}": array for name, array in expected_noise(network, samples).items()},
    }
    artifacts = []
    for file in files:
        shutil.copy(file.path, folder / file.path.name)
        weights = copy_weights(file.path, folder)
        artifact = _described(file, first.path.name, specs, outputs, samples, truth, wanted)
        beside = made_from(folder / file.path.name, file.graph, network, network)
        artifacts.append(dataclasses.replace(artifact, network=beside, weights=weights))
        arrays.update(_of_file(folder, artifact, network, samples, truth))
    save_arrays(folder / "golden.npz", arrays)
    save_arrays(folder / "network.npz", network_arrays(network))
    Manifest(
        name=" and ".join(file.path.name for file in files),
        created_by=f"renormlite {__version__}",
        source={"model_name": first.path.name, "sha256": None},
        inputs=specs,
        outputs=outputs,
        golden=FileRecord.of(folder / "golden.npz"),
        network=FileRecord.of(folder / "network.npz"),
        artifacts=tuple(artifacts),
    ).write(folder)


def _real_type(dtype: np.dtype) -> str:
    """Return the type of an input's real numbers: floats where the file takes quantized ones."""
    return str(dtype) if dtype.kind in "iu" and dtype.itemsize > 2 else "float32"


def _samples(
    specs: Sequence[TensorSpec], inputs: Source | None
) -> tuple[dict[str, np.ndarray], str]:
    """Return the samples, and what kind they are."""
    if inputs is not None:
        return load_samples(inputs, specs).arrays, REAL
    for spec in specs:
        refuse_large_samples(spec.name, spec.shape[1:])
    rng = np.random.default_rng(0)
    free = [spec.name for spec in specs if any((size or 0) < 1 for size in spec.shape[1:])]
    if free:
        raise UserError(
            f"The sizes of '{free[0]}' are free: give samples (inputs=…, --inputs DATA)."
        )
    return {
        spec.name: rng.standard_normal((_SAMPLES, *(size or 1 for size in spec.shape[1:]))).astype(
            spec.dtype
        )
        for spec in specs
    }, RANDOM


def _described(
    file: _File,
    reference: str,
    inputs: tuple[TensorSpec, ...],
    outputs: tuple[TensorSpec, ...],
    samples: Arrays,
    truth: Arrays,
    wanted: Mapping[str, str],
) -> Artifact:
    """Return a file as the manifest lists it."""
    artifact = Artifact(
        file=file.path.name,
        format=file.format,
        precision=file.precision,
        sha256=sha256(file.path),
        bytes=file.path.stat().st_size,
        ops=dict(Counter(op.kind for op in file.graph.ops)),
        inputs=inputs,
        outputs=outputs,
        foreign=True,
    )
    known = {tensor.name for tensor in file.graph.tensors.values()}
    mapped = {name: other for name, other in wanted.items() if other in known}
    try:
        interface = match_interface(file.path, artifact, file.graph, samples, truth, mapped)
    except UnlikeInterfaceError as error:
        says = str(error).rstrip(".").replace("the model's", f"{reference}'s")
        why = "; ".join([says, *other_signatures(file.graph)])
        raise UserError(f"{why}. The files must have the same inputs and outputs.") from error
    return dataclasses.replace(
        artifact,
        inputs=tuple(pair.filed for pair in interface.inputs),
        outputs=tuple(pair.filed for pair in interface.outputs),
        notes=(*interface.sentences, *other_signatures(file.graph)),
    )


def _of_file(
    folder: Path, artifact: Artifact, network: Network, samples: Arrays, truth: Arrays
) -> dict[str, np.ndarray]:
    """Return the arrays of the golden set for a file."""
    path, given = folder / artifact.file, file_inputs(samples, artifact.precision)
    precision = precision_named(artifact.precision)
    run = run_target(path, artifact, given, Target(HOSTS[artifact.format]))
    found = {f"artifact:{artifact.file}:{name}": array for name, array in run.outputs.items()}
    if precision.noise and not shares_ranges(artifact) and not opaque_layers(network):
        noise = file_noise(path, artifact.format, artifact.precision, network, given, truth)
        found.update({f"file-noise:{artifact.file}:{name}": a for name, a in noise.items()})
        if computed_in_floats(artifact.precision):
            floats = outputs_in_floats(path, artifact.format, network, given)
            found.update({f"in-floats:{artifact.file}:{name}": a for name, a in floats.items()})
    if precision.arithmetic is Arithmetic.INTEGER:
        predictions = {artifact.file: predicted_outputs(path, artifact, given)}
        found.update(predictions_as_arrays(predictions, len(next(iter(samples.values())))))
    return found


def _differences(report: ParityReport) -> list[Finding]:
    """Describe the difference of the outputs of every two results."""
    found = []
    results = [result for result in report.results if result.given]
    for place, first in enumerate(results):
        for second in results[place + 1 :]:
            for name in first.given.keys() & second.given.keys():
                pair = [side.given[name].astype(np.float64) for side in (first, second)]
                names = (
                    f"{first.artifact} on {first.target} and {second.artifact} on {second.target}"
                )
                found.append(Finding(CHECK, True, _apart(name, names, *pair), name))
    return found


def _apart(name: str, names: str, a: np.ndarray, b: np.ndarray) -> str:
    """Describe the difference of two arrays."""
    if np.array_equal(a, b, equal_nan=True):
        return f"output '{name}' of {names} is the same, bit for bit"
    metrics = compare_output(name, b, a)
    parts = []
    if metrics.max_abs:
        decibels = f"{metrics.snr_db:.1f} dB" if np.isfinite(metrics.snr_db) else "no signal"
        at = list(metrics.max_abs_at)
        parts.append(f"by up to {metrics.max_abs:.3g} at {at}, {decibels}")
    if metrics.nonfinite:
        of = f"{metrics.nonfinite} of {a.size} values"
        parts.append(f"at {of}, NaN or infinite in one of them")
    return f"output '{name}' of {names} differs {' and '.join(parts)}"
