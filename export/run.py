"""Writes a prepared export: files, truth, golden set, network and manifest."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import keras
import numpy as np

from ..artifacts.graphs import READERS, read_graph
from ..artifacts.graphs.base import ArtifactGraph
from ..artifacts.manifest import Artifact, FileRecord, Manifest, TensorSpec
from ..artifacts.network import Network, read_network
from ..artifacts.precisions import SMALLEST_NORMAL, Arithmetic, precision_named
from ..artifacts.sample_kinds import REAL, file_inputs, typical_samples, without
from ..errors import UserError
from ..files import remove
from ..reference.calibrated_inputs import miscalibrated_inputs
from ..reference.file_noise import (
    beyond_float32,
    beyond_half,
    file_noise,
    finite_in_half,
    noise_in_half,
    outputs_in_floats,
    shares_ranges,
)
from ..reference.integer.file_outputs import predicted_outputs
from ..reference.misfits import misfits
from ..reference.noise import expected_noise
from ..reference.nonfinite import expected
from ..reference.unequal_parts import unequal_parts
from ..runtimes import computed_in_floats
from ..runtimes.base import ArtifactError
from . import golden_set as golden
from .faulty_layer import faulty_layer
from .files import ArtifactWriter
from .fold import FoldResult, float32_twin
from .host import run_artifact
from .network.write import build_network, write_network
from .number_limits import activations_beyond_half
from .provenance import CREATED_BY, versions
from .signature import Signature
from .variants import Variant
from .wrong_files import logarithmic_layers, notes_on_outputs

NETWORK_FILE = "network.npz"

# Notes on values that a file cannot represent; further ones have the same cause.
_MOST_NOTES = 3


@dataclasses.dataclass(frozen=True)
class Truth:
    """The golden samples with the true outputs, and the networks that compute them.

    Attributes:
        inputs: The model's inputs.
        outputs: The model's outputs.
        trained: The trained network, norms included.
        folded: The folded network.
        samples: The golden samples.
        truth: Output name to (N, …) output of the trained model in float64.
    """

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    trained: Network
    folded: Network
    samples: golden.Samples
    truth: golden.Arrays


@dataclasses.dataclass(frozen=True)
class ExportRun:
    """A prepared export, which writes its files into a folder."""

    model: keras.Model
    folded: FoldResult
    signature: Signature
    states: Mapping[str, str]
    notes: tuple[str, ...]
    writer: ArtifactWriter
    samples: golden.Samples

    def export(self, folder: Path) -> Manifest:
        """Write every file into `folder`, the manifest last.

        Files that are refused are left out and listed in the manifest.

        Raises:
            UserError: All files are refused.
        """
        artifacts: list[Artifact] = []
        refusals: dict[str, UserError] = {}
        for file in self.writer.provenance.options.files:
            before = set(folder.iterdir())
            try:
                artifacts.append(self.writer.write(*file, folder))
            except UserError as refusal:
                refusals[self.writer.file_name(*file)] = refusal
                for path in set(folder.iterdir()) - before:
                    remove(path)
        network_of = self.writer.variants.of
        beyond_half = functools.cache(self._beyond_half)  # files share a network
        noted = [
            dataclasses.replace(a, notes=(*a.notes, *beyond_half(network_of(a))))
            if a.precision == "float16"
            else a
            for a in artifacts
        ]
        if not noted:
            raise next(iter(refusals.values()))
        return self.complete(folder, lambda _: noted, refusals)

    def complete(
        self,
        folder: Path,
        describe: Callable[[Truth], Sequence[Artifact]],
        refusals: Mapping[str, UserError] | None = None,
    ) -> Manifest:
        """Write everything but the files into `folder`, the manifest last.

        Args:
            folder: The folder.
            describe: Returns the descriptions of the files.
            refusals: Name of each file that was refused to the reason.

        Raises:
            UserError: All files are refused.
        """
        step, refused = self.writer.step, dict(refusals or {})
        with step(NETWORK_FILE, "write"):
            network = write_network(
                self.folded.model,
                folder / NETWORK_FILE,
                inputs=[tensor.name for tensor in self.signature.inputs],
                outputs=[tensor.name for tensor in self.signature.outputs],
                paths=self.writer.variants.nested,
            )
        with step(golden.FILE_NAME, "truth in float64"):
            exact = {name: _exact(value) for name, value in self.samples.inputs.items()}
            run = golden.float64_function(self.model, self.signature)
            truth = run(exact)
            golden.require_independence(self.model, run, exact, truth)
            folded64 = golden.float64_function(self.folded.model, self.signature)(exact)
            del run  # and with it the float64 weights
        with step(golden.FILE_NAME, "reference in float32"):
            model = float32_twin(self.model)
            reference = golden.evaluate(model, self.signature, self.samples.inputs)
        with step(golden.FILE_NAME, "noise of float32"):
            noise = expected_noise(network, self.samples.inputs)
        artifacts = describe(self._truth(network, truth))
        unequal = tuple(unequal_parts(network, self._typical(truth)))
        kind = np.array(self.samples.kind)
        judged, outputs, of_files, in_floats, predictions = [], {}, {}, {}, {}
        for artifact in artifacts:
            inputs = file_inputs(self.samples.inputs, artifact.precision)
            try:
                with step(artifact.file, "run"):
                    given = self._run_file(artifact, folder, inputs, truth)
            except ArtifactError as refusal:
                refused[artifact.file] = refusal
                continue
            if given is None:
                judged.append(artifact)
                continue
            artifact = self._with_misfits(artifact, folder, network, unequal)
            made_from = self._network(artifact, folder, network)
            modelled = precision_named(artifact.precision).noise and artifact.format in READERS
            modelled = modelled and not shares_ranges(artifact)
            noise_of_file: golden.Arrays = {}
            if modelled:
                with step(artifact.file, "noise"):
                    noise_of_file = file_noise(
                        folder / artifact.file,
                        artifact.format,
                        artifact.precision,
                        made_from,
                        inputs,
                        truth,
                    )
            try:
                judged.append(
                    self._measured(artifact, given, truth, reference, made_from, noise_of_file)
                )
            except UserError as refusal:
                refused[artifact.file] = refusal
                continue
            outputs[artifact.file] = given
            if modelled:
                if artifact.precision == "float16":
                    noise_of_file = beyond_half(noise_of_file, made_from, inputs, kind)
                if not _is_integer(artifact):
                    noise_of_file = beyond_float32(noise_of_file, truth, kind)
                of_files[artifact.file] = noise_of_file
                if computed_in_floats(artifact.precision):
                    path, known = folder / artifact.file, artifact.format
                    in_floats[artifact.file] = outputs_in_floats(path, known, made_from, inputs)
            if _is_integer(artifact):
                with step(artifact.file, "predict"):
                    predictions[artifact.file] = predicted_outputs(
                        folder / artifact.file, artifact, inputs
                    )
        if refused and not judged:
            raise next(iter(refused.values()))
        for artifact in artifacts:
            if artifact.file in refused:
                for name in artifact.all_files:
                    remove(folder / name)
        wanted = expected(network, self.samples.inputs, truth, folded64, reference, kind=kind)
        golden.write_golden(
            folder / golden.FILE_NAME,
            self.samples,
            truth=without(truth, wanted),
            folded64=without(folded64, wanted),
            reference=without(reference, wanted),
            artifacts={file: without(given, wanted) for file, given in outputs.items()},
            noise=noise,
            file_noise=of_files,
            in_floats={file: without(given, wanted) for file, given in in_floats.items()},
            trained_integers=without(self._trained_integers(), wanted),
            predictions=predictions,
        )
        manifest = self._manifest(folder, judged, refused)
        manifest.write(folder)
        return manifest

    def _beyond_half(self, variant: Variant) -> tuple[str, ...]:
        """Return a note on activations that exceed half precision on the typical samples."""
        inputs = [tensor.name for tensor in self.signature.inputs]
        with self.writer.step("model", "ranges"):
            return activations_beyond_half(
                variant.model,
                inputs,
                self._typical(self.samples.inputs),
                exact=[*inputs, *variant.float_layers] if variant.float_layers else (),
            )

    def _trained_integers(self) -> dict[str, np.ndarray]:
        """Return the outputs of a quantization-aware model in Keras; empty for other models."""
        trained = self.writer.variants.trained
        if trained is None:
            return {}
        with self.writer.step(golden.FILE_NAME, "quantized in training"):
            inputs = file_inputs(self.samples.inputs, trained.precision)
            return golden.evaluate(trained.model, self.signature, inputs)

    def _truth(self, folded: Network, truth: golden.Arrays) -> Truth:
        """Return the data that does not depend on the files."""
        inputs, outputs = self.signature.inputs, self.signature.outputs
        names = [tensor.name for tensor in inputs], [tensor.name for tensor in outputs]
        trained = build_network(self.model).named(*names)
        return Truth(inputs, outputs, trained, folded, self.samples, truth)

    def _run_file(
        self, artifact: Artifact, folder: Path, inputs: golden.Arrays, truth: golden.Arrays
    ) -> golden.Arrays | None:
        """Return the outputs of a file on this machine; None if a foreign file cannot be run."""
        try:
            given = run_artifact(artifact, folder, inputs)
        except ArtifactError:
            if not artifact.foreign:
                raise
            return None
        fits = all(name in given and given[name].shape == truth[name].shape for name in truth)
        return given if fits or not artifact.foreign else None

    def _typical(self, arrays: golden.Arrays) -> dict[str, np.ndarray]:
        """Return the values of the typical samples, those that are like the training data."""
        _, typical = typical_samples(np.array(self.samples.kind))
        return {name: values[typical] for name, values in arrays.items()}

    def _with_misfits(
        self, artifact: Artifact, folder: Path, folded: Network, unequal: Sequence[str]
    ) -> Artifact:
        """Return the artifact with notes on values that its numbers cannot represent.

        Args:
            artifact: The description of a file.
            folder: The folder of the file.
            folded: The folded network.
            unequal: Notes on outputs that join parts of unequal ranges.
        """
        is_float32 = precision_named(artifact.precision).arithmetic is Arithmetic.FLOAT32
        if artifact.format not in READERS or is_float32:
            return artifact
        usual = self._typical(self.samples.inputs)
        graph = read_graph(folder / artifact.file, artifact.format)
        found = misfits(artifact, graph, self._network(artifact, folder, folded), usual)
        own = unequal if _is_integer(artifact) and not artifact.foreign else ()
        notes = (*artifact.notes, *own, *self._calibration(artifact, graph))
        notes = (*notes, *found.sentences[:_MOST_NOTES])
        return dataclasses.replace(artifact, misfits=found, notes=notes)

    def _calibration(self, artifact: Artifact, graph: ArtifactGraph) -> list[str]:
        """Return notes on inputs that were calibrated on samples unlike the real ones."""
        real = np.array(self.samples.kind) == REAL
        if not _is_integer(artifact) or not real.any():
            return []
        inputs = {name: values[real] for name, values in self.samples.inputs.items()}
        found = miscalibrated_inputs(artifact, graph, inputs)
        return [entry.sentence for entry in found if entry.change]

    def _measured(
        self,
        artifact: Artifact,
        given: golden.Arrays,
        truth: golden.Arrays,
        reference: golden.Arrays,
        network: Network,
        noise: golden.Arrays,
    ) -> Artifact:
        """Return the artifact with its signal-to-noise ratios, and notes on outputs that are far.

        Args:
            artifact: The description of a file.
            given: Output name to its (N, …) outputs.
            truth: The same of the trained model in float64.
            reference: The same in float32.
            network: The network that it was made from.
            noise: Output name to its (N,) noise; empty if that is not known.

        Raises:
            UserError: The file computes in floats, and more than rounding is wrong.
        """
        artifact = dataclasses.replace(artifact, snr_db=golden.snr_db(self.samples, truth, given))
        if artifact.foreign:
            return artifact
        notes = notes_on_outputs(
            artifact,
            self._typical(given),
            self._typical(truth),
            self._typical(reference),
            lambda: self._faulty_layer(artifact),
            self._denormal_layer,
            self._explained_in_half(artifact, given, truth, reference, network, noise),
            logarithmic_layers(network),
        )
        return dataclasses.replace(artifact, notes=(*artifact.notes, *notes))

    def _explained_in_half(
        self,
        artifact: Artifact,
        given: golden.Arrays,
        truth: golden.Arrays,
        reference: golden.Arrays,
        network: Network,
        noise: golden.Arrays,
    ) -> dict[str, np.ndarray] | None:
        """Return the errors that half precision explains on the typical samples.

        None for files of other precisions, and for those with numbers that half precision cannot
        represent, which have their own notes.
        """
        if precision_named(artifact.precision).arithmetic is not Arithmetic.FLOAT16:
            return None
        if artifact.misfits.overflows:
            return None
        usual = self._typical(self.samples.inputs)
        exact = self._typical(truth)
        for name, values in self._typical(given).items():
            lost = np.isfinite(exact[name]) & ~np.isfinite(values)
            if lost.any():
                finite = finite_in_half(network, usual)
                if finite is None or (lost & ~finite[name]).any():
                    return None
        if noise:
            return self._typical(noise)
        return noise_in_half(network, usual, exact, self._typical(reference))

    def _denormal_layer(self) -> str | None:
        """Return a layer with a weight of which no number but 0 is a normal one in float32."""
        for variable in self.folded.model.weights:
            size = np.abs(np.asarray(variable)).max(initial=0.0)
            if 0 < size < SMALLEST_NORMAL:
                return str(variable.path).rpartition("/")[0]
        return None

    def _faulty_layer(self, artifact: Artifact) -> str | None:
        """Return the layer that the converter of a file converts wrongly, if it can be found."""
        writer = self.writer
        with writer.step(artifact.file, "find the layer at fault"):
            job = writer.job(artifact.format, artifact.precision, writer.variants.of(artifact))
            return faulty_layer(job, artifact.format, self._typical(self.samples.inputs))

    def _network(self, artifact: Artifact, folder: Path, folded: Network) -> Network:
        """Return the network that a file was made from: the folded one or a variant of it."""
        if artifact.network is None:
            return folded
        return read_network(folder / artifact.network.file).named(
            [tensor.name for tensor in self.signature.inputs],
            [tensor.name for tensor in self.signature.outputs],
        )

    def _manifest(
        self, folder: Path, artifacts: Sequence[Artifact], refused: Mapping[str, UserError]
    ) -> Manifest:
        provenance, calibration = self.writer.provenance, self.writer.calibration
        return Manifest(
            name=provenance.name,
            created_by=CREATED_BY,
            source=provenance.source,
            versions=versions(),
            options=provenance.options.to_json(),
            metadata=provenance.options.metadata(),
            calibration=None if calibration is None else calibration.to_json(),
            inputs=self.signature.inputs,
            outputs=self.signature.outputs,
            fold={
                "records": [record.to_json() for record in self.folded.report.records],
                "proof": self.folded.proof.to_json() if self.folded.proof else None,
            },
            golden=FileRecord.of(folder / golden.FILE_NAME),
            network=FileRecord.of(folder / NETWORK_FILE),
            notes=self.notes,
            states=self.states,
            artifacts=tuple(artifacts),
            refused={file: str(refusal) for file, refusal in refused.items()},
        )


def _exact(values: np.ndarray) -> np.ndarray:
    return values.astype(np.float64) if values.dtype.kind == "f" else values


def _is_integer(artifact: Artifact) -> bool:
    """Return whether a file computes in integers."""
    return precision_named(artifact.precision).arithmetic is Arithmetic.INTEGER
