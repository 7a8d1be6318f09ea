"""Inspects the contents of each file: its weights, its interface, its operators."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from ..artifacts.directory import ExportDirectory
from ..artifacts.golden_set import GoldenSet
from ..artifacts.layer_names import is_inside, is_named
from ..artifacts.manifest import METADATA_KEY, Artifact
from ..artifacts.precisions import Arithmetic, precision_named
from ..artifacts.sample_kinds import REAL, typical_samples
from ..devices.base import DeviceOptions
from ..errors import UserError
from ..reference.calibrated_inputs import miscalibrated_inputs
from ..reference.network import can_evaluate, opaque_layers, unevaluated_nodes
from ..reference.noise import flushing_effect
from ..runtimes import LOCAL, Target
from ..runtimes.run import TargetRun, run_target
from .end_to_end.findings import Finding, TargetResult, judge_proven, judge_unknown_rule
from .end_to_end.integer_agreement import must_agree
from .interface_suspects import interface_suspect
from .per_op.file_contents import FileContents
from .per_op.inspection import inspect, readable
from .per_op.observation import only_operators_tell
from .per_op.op_results import OpCheck

# Findings that are kept whichever layers are selected.
_OF_THE_FILE = ("file", "load", "interface", "training", "calibration", "kernels")

# TFLite's ops that give variables their values.
_SETS_VARIABLES = {"ASSIGN_VARIABLE", "CALL_ONCE"}
_UNFROZEN = (
    "{file} reads variables that it never sets (READ_VARIABLE): its converter left the weights "
    "out. Convert with TFLiteConverter.from_keras_model, or with model.export"
)
_OTHER_CALIBRATION = (
    "the kernels in {file} are those of the trained model with other factors for their channels: "
    "the file is of another export, with other calibration samples or options{beside}. Put the "
    "exported file back, or export again"
)

# Follows the sentence on a poor ratio.
_DENORMAL = (
    "; denormal numbers (below 1.2e-38), which runtimes may replace by zero, explain it: scale the "
    "model's inputs or weights up"
)

# Checks whose failure a wrong calibration explains.
_OF_QUALITY = {"snr", "slices", "decisions", "accuracy", "clipped", "noise"}


class FileInspection:
    """Adds the findings on a file's contents to each result; reads each file once.

    Args:
        export: The export.
        threads: Threads that the runtimes may use.
        per_op: Whether every operator is checked even if all outputs are right.
        layers: Keras layers to judge, by name or pattern; empty for the whole file.
        devices: Options of devices other than this machine.

    Raises:
        UserError: The network has no such layer.
    """

    def __init__(
        self,
        export: ExportDirectory,
        threads: int,
        per_op: bool,
        layers: Sequence[str] = (),
        devices: DeviceOptions | None = None,
    ) -> None:
        self._export, self._threads, self._devices = export, threads, devices
        self._per_op = per_op or bool(layers)
        self._contents: dict[str, FileContents | Finding | None] = {}
        network = export.folded_network
        known = dict.fromkeys(node.layer for node in network.nodes) if network else {}
        paths = network.paths if network else {}
        self._layers: dict[str, None] = {}
        self._layer_of = {node.name: node.layer for node in network.nodes} if network else {}
        for pattern in layers:
            found = [name for name in known if is_named(name, pattern)]
            found = found or [n for n in known if n in paths and is_inside(paths[n], pattern)]
            if not found:
                has = ", ".join(repr(paths.get(name, name)) for name in known)
                raise UserError(
                    f"{export.path} has no layer {pattern!r} with weights or ops of its own. "
                    f"It has {has or 'no network'}."
                )
            self._layers |= dict.fromkeys(found)

    def read(self, artifact: Artifact) -> FileContents | Finding | None:
        """Return a file's contents, the failure to read it, or None if there is no network."""
        if artifact.file not in self._contents:
            self._contents[artifact.file] = self._read(artifact)
        return self._contents[artifact.file]

    def not_evaluated(self) -> list[Finding]:
        """Return a note on the operators that cannot be evaluated in float64."""
        network = self._export.folded_network
        nodes = [] if network is None else unevaluated_nodes(network)
        if network is None or not nodes:
            return []
        reasons = {n.layer: n.attributes.get("why", "") for n in nodes if not can_evaluate(n)}
        named = "; ".join(f"'{layer}' ({why})" for layer, why in reasons.items())
        behind = len(nodes) - len(reasons)
        rest = f", and {behind} that read their results" if behind else ""
        return [
            Finding(
                "evaluated",
                True,
                f"{len(nodes)} of {len(network.nodes)} operators are not evaluated in float64: "
                f"{named}{rest}. They are compared end to end only",
            )
        ]

    def add(
        self, artifact: Artifact, golden: GoldenSet, target: Target, result: TargetResult
    ) -> TargetResult:
        """Return a result with the verdict on weights and, where needed, on every operator."""
        whole = self._whole(artifact, golden, target, result)
        contents = self.read(artifact)
        if isinstance(contents, FileContents):
            whole = _with_calibration(artifact, golden, contents, whole)
            whole = self._with_denormals(golden, whole)
        return self._of_layers(whole) if self._layers and whole.given else whole

    def _with_denormals(self, golden: GoldenSet, result: TargetResult) -> TargetResult:
        """Return a result that names denormal numbers where a poor ratio is due to them."""
        network = self._export.folded_network
        poor = {f.subject for f in result.findings if f.check == "snr" and not f.passed}
        if not poor or network is None or opaque_layers(network):
            return result
        _, typical = typical_samples(golden.kind)
        effect = flushing_effect(network, {n: a[typical] for n, a in golden.inputs.items()})
        explained = {
            entry.metrics.output
            for entry in result.outputs
            for power in [np.square(entry.metrics.rms_error[typical]).sum()]
            if np.square(effect[entry.metrics.output]).sum() >= power / 2
        }
        kept = [
            replace(f, message=f.message + _DENORMAL)
            if f.check == "snr" and f.subject in poor & explained
            else f
            for f in result.findings
            if f.passed or f.check != "slices" or f.subject not in poor & explained
        ]
        return replace(result, findings=tuple(kept))

    def _of_layers(self, result: TargetResult) -> TargetResult:
        """Return a result restricted to the selected layers."""
        ops = tuple(check for check in result.ops if self._computes_selected(check))
        about = [
            finding
            for finding in result.findings
            if finding.check in _OF_THE_FILE or finding.subject in self._layers
        ]
        if all(finding.passed for finding in about):
            names = ", ".join(self._layers)
            worst = max((check.ratio for check in ops), default=0.0)
            says = f"{len(ops)} ops agree with float64 (greatest error {worst:.2f} of the bound)"
            about.append(Finding("ops", bool(ops), f"layer {names}: {says}", names))
        faults = tuple(fault for fault in result.faults if fault.layer in self._layers)
        return replace(result, findings=tuple(about), ops=ops, faults=faults)

    def _computes_selected(self, check: OpCheck) -> bool:
        """Return whether an operator computes a selected layer, alone or with those behind it."""
        layers = {check.layer, *(self._layer_of.get(name) for name in check.fused)}
        return not layers.isdisjoint(self._layers)

    def _whole(
        self, artifact: Artifact, golden: GoldenSet, target: Target, result: TargetResult
    ) -> TargetResult:
        """Return a result with the verdict on the whole file."""
        contents = self.read(artifact)
        if contents is None:
            return result
        if isinstance(contents, Finding):
            return replace(result, findings=(*result.findings, contents))
        stated = _stated(contents, "precision")
        if not artifact.foreign and stated not in (None, artifact.precision):
            says = (
                f"the metadata of {artifact.file} says that it was exported in {stated}; "
                f"manifest.json lists it as {artifact.precision}, whose limits do not fit it"
            )
            result = replace(result, findings=(Finding("file", False, says), *result.findings))
        more = [name for name in contents.output_names if name not in artifact.names[1]]
        if more and not artifact.foreign:
            says = f"{artifact.file} has an output that manifest.json does not list: '{more[0]}'"
            result = replace(result, findings=(Finding("file", False, says), *result.findings))
        if (
            artifact.foreign
            and result.passed
            and not (_of_integers(artifact) and contents.recognised)
            and not contents.changed_in_places
        ):
            return self._foreign(artifact, golden, target, contents, result)
        result = replace(result, findings=(*result.findings, *contents.findings()))
        proven = result.passed and contents.conclusive(artifact)
        wanted = self._per_op or not proven or only_operators_tell(artifact, target)
        if not result.given or not wanted:
            return result
        try:
            contents.graph.demand_ops()
        except UserError as error:
            return replace(result, findings=(*result.findings, self._unreadable(error)))
        suspect = self._suspect(artifact, golden, target, contents, result)
        if suspect is not None:
            result = replace(result, findings=(*result.findings, suspect))
            if suspect.check != "interface" or not _altered(contents):
                return result
        try:
            inspected = inspect(
                self._export.path / artifact.file,
                artifact,
                golden,
                target,
                contents,
                result,
                self._run,
                threads=self._threads,
            )
        except Exception as error:
            # Nothing can be assumed of a file of unknown origin; for any other this is a bug here.
            if self._export.damaged(artifact) is None and not artifact.foreign:
                raise
            says = f"the operators of {artifact.file} cannot be inspected: {error}"
            finding = Finding("ops", artifact.foreign, says)
            return replace(result, findings=(*result.findings, finding))
        versions = self._export.manifest.versions
        known_rule = result.integers is not None and bool(result.integers.kernels)
        if (
            inspected.unknown_rule
            and not known_rule
            and not must_agree(artifact, golden, result.ran, target.variant, versions)
        ):
            result = judge_unknown_rule(result, golden, artifact)
        if inspected.proven:
            result = judge_proven(result, golden, inspected.proven)
        return replace(
            result,
            findings=(*result.findings, *inspected.findings),
            ops=inspected.walk.checks if inspected.walk else (),
            faults=tuple(inspected.faults),
        )

    def _foreign(
        self,
        artifact: Artifact,
        golden: GoldenSet,
        target: Target,
        contents: FileContents,
        result: TargetResult,
    ) -> TargetResult:
        """Return notes on another converter's file whose outputs are right.

        It may hold different weights that compute the same, such as ones scaled through a relu.
        """
        result = replace(result, findings=(*result.findings, contents.summary()))
        if _of_integers(artifact):
            says = "operators were not checked: its integers are not those of the network's weights"
            return replace(result, findings=(*result.findings, Finding("ops", True, says)))
        if not self._per_op:
            return result
        path = self._export.path / artifact.file
        walked, faults, *_ = inspect(
            path, artifact, golden, target, contents, result, self._run, threads=self._threads
        )
        if walked is None:
            return result
        says = f"{len(walked.checks)} ops compute what the trained model computes"
        if faults:
            says += f"; from layer '{faults[0].layer}' on others give the same outputs"
        finding = Finding("ops", True, says)
        return replace(result, findings=(*result.findings, finding), ops=walked.checks)

    def _suspect(
        self,
        artifact: Artifact,
        golden: GoldenSet,
        target: Target,
        contents: FileContents,
        result: TargetResult,
    ) -> Finding | None:
        """Return faults of the whole file, for which no single layer is responsible."""
        if result.passed:
            return None
        kinds = {op.kind for op in contents.graph.ops}
        if "READ_VARIABLE" in kinds and not kinds & _SETS_VARIABLES:
            return Finding("weights", False, _UNFROZEN.format(file=artifact.file))
        path = self._export.path / artifact.file
        known = self._export.manifest.metadata.get("preprocessing")
        altered = _altered(contents)
        says = interface_suspect(path, artifact, golden, target, result, known, altered=altered)
        if says:
            return Finding("interface", False, says)
        if contents.of_another_training:
            return Finding("training", False, self._of_another_training(artifact, contents))
        if contents.of_another_calibration and not artifact.foreign:
            beside = "".join(f"; {says}" for says in contents.beside_calibration)
            says = _OTHER_CALIBRATION.format(file=artifact.file, beside=beside)
            return Finding("calibration", False, says)
        return None

    def _run(
        self, path: Path, artifact: Artifact, inputs: Mapping[str, np.ndarray], target: Target
    ) -> TargetRun:
        """Run a file that is not of the export on a target."""
        if target.device == LOCAL:
            return run_target(path, artifact, inputs, target, threads=self._threads)
        from ..devices import run_on_device

        manifest = replace(self._export.manifest, artifacts=(artifact,))
        alone = replace(self._export, path=path.parent, manifest=manifest)
        runs = run_on_device(
            alone, [artifact], inputs, target, threads=self._threads, options=self._devices
        )
        return next(run for _, run in runs)

    def _read(self, artifact: Artifact) -> FileContents | Finding | None:
        if not readable(artifact):
            return None
        try:
            network = self._export.read_network(artifact)
            if network is None:
                return None
            path, data = self._export.path / artifact.file, self._export.content(artifact)
            contents = FileContents.of(path, artifact, network, data, self._typical)
            if not contents.conclusive(artifact):
                contents.graph.demand_ops()
            return contents
        except UserError as error:
            return self._unreadable(error)

    def _unreadable(self, error: UserError) -> Finding:
        """Return the failure to read a file."""
        return Finding("weights", False, str(error).replace(f"{self._export.path}{os.sep}", ""))

    def _typical(self) -> Mapping[str, np.ndarray]:
        """Return the typical samples of the export by input."""
        golden = self._export.read_golden()
        _, typical = typical_samples(golden.kind)
        return {name: array[typical] for name, array in golden.inputs.items()}

    def _of_another_training(self, artifact: Artifact, contents: FileContents) -> str:
        """Report that all weights of a file differ, and which model its metadata names."""
        text = (
            f"all kernels in {artifact.file} differ from the folded network's: the file is of "
            "another training"
        )
        expected, found = self._export.manifest.source.get("sha256"), _source(contents)
        if expected and found and expected != found:
            text += f" (its metadata names the model {found[:12]}…, manifest.json {expected[:12]}…)"
        return text


def _with_calibration(
    artifact: Artifact, golden: GoldenSet, contents: FileContents, result: TargetResult
) -> TargetResult:
    """Return a result with the inputs that were calibrated on values unlike the real samples.

    If the outputs are good enough, a range that is merely wider is no failure. A file that takes
    other inputs was calibrated on those.
    """
    real = golden.kind == REAL
    if any(finding.check == "interface" for finding in result.findings):
        return result
    if precision_named(artifact.precision).arithmetic is not Arithmetic.INTEGER or not real.any():
        return result
    failed = any(not f.passed and f.check in _OF_QUALITY for f in result.findings)
    inputs = {name: array[real] for name, array in golden.inputs.items()}
    found = [
        Finding("calibration", False, f"{artifact.file}: {entry.sentence}", entry.name)
        for entry in miscalibrated_inputs(artifact, contents.graph, inputs)
        if failed or entry.certain
    ]
    return replace(result, findings=(*found, *result.findings))


def _altered(contents: FileContents) -> bool:
    """Return whether weights of a file are altered for an unknown reason."""
    unknown = any(match.state == "altered" and not match.remark for match in contents.weights)
    return unknown and not contents.of_another_calibration


def _of_integers(artifact: Artifact) -> bool:
    """Return whether a file's steps were chosen by another converter."""
    return artifact.precision not in ("float32", "float16")


def _source(contents: FileContents) -> str | None:
    """Return the SHA-256 of the model that a file says it was made from."""
    return _stated(contents, "source", "sha256")


def _stated(contents: FileContents, *keys: str) -> str | None:
    """Return a text of the metadata in a file; None if there is none."""
    try:
        found = json.loads(contents.graph.metadata.get(METADATA_KEY, "{}"))
        for key in keys:
            found = found[key]
    except (ValueError, KeyError, TypeError):
        return None
    return found if isinstance(found, str) else None
