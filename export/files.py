"""Writes one file of an export: chooses its network, converts, validates and describes it.

A quantized file is made from several variants of the network, and the one with the highest
signal-to-noise ratio is kept. A file calibrated with random numbers is converted a second time with
real samples, if there are any, to measure the loss from random calibration.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
import shutil
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from ..artifacts.graphs.soundness import BEYOND_FLOAT32
from ..artifacts.manifest import Artifact, FileRecord, TensorSpec
from ..artifacts.samples import SampleSet
from ..errors import UserError
from ..files import hash_folder, sha256
from ..runtimes.base import ArtifactError
from .auto import AutoFile, RecipeNetworks
from .formats.base import Contents, Job, format_named
from .formats.format_table import needs_calibration, takes_channels_first
from .formats.freeze import FrozenGraph
from .formats.onnx_external import weights_path
from .formats.unroll import Loops, loops_for
from .network.write import write_network
from .notes import notes_on_file
from .options import AUTO, MIXED, ExportOptions
from .progress import Steps
from .provenance import Provenance
from .quantization.budget import Budget
from .quantization.calibration import RANDOM_COST, Calibration
from .quantization.quantizer_choices import WIDE_OPSET, QuantizerChoices, choices_for
from .quantization.recipe import Recipe
from .variants import Ratios, Variant, Variants, choice_notes, choose

_NOT_EQUALIZED = (
    "nothing was equalized: no linear layer is followed by another with only relu, pooling or "
    "reshapes between them, or there are no real samples to measure ranges on"
)


@dataclasses.dataclass(frozen=True)
class ArtifactWriter:
    """Writes the files of one export.

    Attributes:
        provenance: Name of the export and the metadata of the files.
        variants: The networks that files are made from.
        calibration: Calibration samples; None if no file needs any.
        step: Reports every stage.
    """

    provenance: Provenance
    variants: Variants
    calibration: Calibration | None
    step: Steps

    def write(self, format_name: str, precision: str, folder: Path) -> Artifact:
        """Write one file into `folder`, from the variant with the least quantization noise.

        Raises:
            UserError: The file cannot be made, or does not pass validation when read back.
        """
        started = time.perf_counter()
        if precision in MIXED and self._options.recipe is not None:
            variant, artifact = self._by_recipe(format_name, precision, folder)
        elif precision == AUTO:
            variant, artifact = self._searched(format_name, folder)
        else:
            variant, artifact = self._best(format_name, precision, folder)
        if self._calibrates(format_name, precision) and self._random:
            note = self._cost_of_random(artifact, variant, folder)
            artifact = dataclasses.replace(artifact, notes=(*artifact.notes, note))
        return dataclasses.replace(artifact, seconds=time.perf_counter() - started)

    def file_name(self, format_name: str, precision: str) -> str:
        """Return the name of a file."""
        return f"{self.provenance.name}.{precision}{format_named(format_name).suffix}"

    @property
    def _options(self) -> ExportOptions:
        return self.provenance.options

    @property
    def _random(self) -> bool:
        return self.calibration is not None and self.calibration.random

    def _calibrates(self, format_name: str, precision: str) -> bool:
        """Whether a file needs calibration; the ranges of a quantization-aware model are known."""
        return needs_calibration(format_name, precision) and not self.variants.integers(precision)

    def _searched(self, format_name: str, folder: Path) -> tuple[Variant, Artifact]:
        """Search for the file with the least noise within its budget."""
        if self.calibration is None or self.calibration.random:
            raise UserError(
                "auto measures files on real samples. Give some (calibration=…, --calibration "
                "DATA), or export int8."
            )

        def convert(variant: Variant, recipe: Recipe, samples: SampleSet, place: Path) -> Artifact:
            using = dataclasses.replace(self, calibration=Calibration(samples))
            return using._convert(format_name, AUTO, variant, place, recipe)

        options = self._options
        auto = AutoFile(
            format_name,
            self.variants.base(AUTO),
            self.variants.original,
            self.variants.signature,
            self.calibration.samples,
            convert,
            Budget.parse(options.budget or ""),
            self._recipe,
            format_name == "tflite" or options.opset >= WIDE_OPSET,
            self.step,
        )
        artifact, variant = auto.write(folder)
        return variant, self._with_network(artifact, variant, (), folder)

    def _by_recipe(
        self, format_name: str, precision: str, folder: Path
    ) -> tuple[Variant, Artifact]:
        """Write a file by the recipe of the options."""
        recipe, samples = self._recipe, self.calibration
        folded = self.variants.base(precision)
        variant: Variant | None = folded
        if recipe.equalize is not None or recipe.changes_weights:
            if samples is None or samples.random:
                raise UserError("A recipe that changes weights needs real calibration samples.")
            networks = RecipeNetworks(folded, None, self.variants.signature, samples.samples)
            with self.step("model", "repair"):
                variant = networks.get(recipe, f"recipe-{format_name}-{precision}")
        if not recipe.fold:
            variant = self.variants.original or folded
        if variant is None:
            across, other = "", ""
            if recipe.across_relu6:
                across, other = " across relus that clip", ", or across_relu6 to false"
            raise UserError(
                "The recipe equalizes channels, but this network has no layers that can be "
                f"equalized{across}. Set equalize to null{other}."
            )
        artifact = self._convert(format_name, precision, variant, folder)
        return variant, self._with_network(artifact, variant, ("made by a recipe",), folder)

    def _best(self, format_name: str, precision: str, folder: Path) -> tuple[Variant, Artifact]:
        """Write a file from every variant and keep the one with the least noise."""
        bases = self.variants.bases(precision)
        made: dict[str, tuple[Artifact, Path]] = {}
        tried = self._measure(bases, made, format_name, precision, folder) if len(bases) > 1 else []
        base = choose(tried) if tried else bases[0]
        with self.step("model", "equalize"):
            others = self.variants.equalized(base, precision)
        always = self.variants.equalizes_always
        if not tried and not others:
            artifact = self._convert(format_name, precision, base, folder)
            if always:
                artifact = dataclasses.replace(artifact, notes=(*artifact.notes, _NOT_EQUALIZED))
            return base, self._with_network(artifact, base, (), folder)
        candidates = others if always and others else (base, *others)
        left = [variant for variant in candidates if variant.name not in made]
        tried += self._measure(left, made, format_name, precision, folder)
        chosen = choose([pair for pair in tried if pair[0] in candidates])
        artifact, place = made[chosen.name]
        for name in artifact.all_files:
            os.replace(place / name, folder / name)
        for _, place in made.values():
            shutil.rmtree(place)
        return chosen, self._with_network(artifact, chosen, choice_notes(tried, chosen), folder)

    def _measure(
        self,
        variants: Sequence[Variant],
        made: dict[str, tuple[Artifact, Path]],
        format_name: str,
        precision: str,
        folder: Path,
    ) -> Ratios:
        """Write the file of each variant into a separate folder and measure its noise.

        The files are added to `made`, by the name of the variant.

        Raises:
            UserError: No file can be made.
        """
        tried: Ratios = []
        refusals: list[UserError] = []
        for variant in variants:
            place = folder / f".{variant.name or 'folded'}"
            place.mkdir()
            try:
                artifact = self._convert(format_name, precision, variant, place)
                with self.step(artifact.file, "judge"):
                    tried.append((variant, self.variants.judge(artifact, place)))
            except UserError as refusal:
                shutil.rmtree(place)
                refusals.append(refusal)
                continue
            made[variant.name] = (artifact, place)
        if not made:
            raise refusals[0]
        return tried

    @staticmethod
    def _with_network(
        artifact: Artifact, variant: Variant, notes: tuple[str, ...], folder: Path
    ) -> Artifact:
        """Write the network of the variant, unless it is the plain one; return the artifact."""
        artifact = dataclasses.replace(artifact, notes=(*artifact.notes, *variant.notes, *notes))
        if not variant.name:
            return artifact
        network = folder / f"network.{variant.name}.npz"
        if not network.exists():
            write_network(variant.model, network)
        return dataclasses.replace(artifact, network=FileRecord.of(network))

    def _cost_of_random(self, artifact: Artifact, variant: Variant, folder: Path) -> str:
        """Return a note on the loss from random calibration, measured if there are real samples."""
        samples = self.variants.samples
        integers = all("float" not in str(t.dtype) for t in self.variants.signature.outputs)
        if samples is None or integers:
            return f"calibrated with random numbers; {RANDOM_COST}"
        real = dataclasses.replace(self, calibration=Calibration(samples))
        with tempfile.TemporaryDirectory(dir=folder) as place, self.step(artifact.file, "compare"):
            other = real._convert(artifact.format, artifact.precision, variant, Path(place))
            before = self.variants.judge(artifact, folder)
            after = self.variants.judge(other, Path(place))
        return (
            f"calibrated with random numbers: {before:.1f} dB on the real samples, on average; "
            f"calibrated with the real samples: {after:.1f} dB"
        )

    def _convert(
        self,
        format_name: str,
        precision: str,
        variant: Variant,
        folder: Path,
        recipe: Recipe | None = None,
    ) -> Artifact:
        """Convert, write and validate one file; the recipe is that of the options by default."""
        file_format = format_named(format_name)
        path = folder / self.file_name(format_name, precision)
        loops = loops_for(variant.model, format_name, precision)
        with self.step(path.name, "trace" if loops is Loops.KEPT else "unroll and trace"):
            job = self.job(format_name, precision, variant, recipe)
        with self.step(path.name, "convert"):
            file_format.write(job, path)
        with self.step(path.name, "validate"):
            try:
                contents = file_format.validate(path, job)
            except ArtifactError as error:
                raise UserError(
                    f"The converter wrote a file that does not load: {error} "
                    f"{_advice(str(error), precision)}"
                ) from error
        artifact = described(path, format_name, job, contents)
        return dataclasses.replace(artifact, notes=notes_on_file(job, path, format_name))

    def job(
        self, format_name: str, precision: str, variant: Variant, recipe: Recipe | None = None
    ) -> Job:
        """Return what the format needs to write a file; the recipe is the options' by default."""
        channels_first = self._options.layout == "nchw" and takes_channels_first(format_name)
        loops = loops_for(variant.model, format_name, precision)
        graph = self.variants.graph(variant, channels_first, loops)
        return Job(
            graph,
            precision,
            self._options,
            self.provenance.metadata(precision),
            self.calibration if self._calibrates(format_name, precision) else None,
            self.variants.integers(precision),
            self._choices(precision, graph, variant, recipe or self._recipe),
            variant.float_layers,
        )

    def _choices(
        self, precision: str, graph: FrozenGraph, variant: Variant, recipe: Recipe
    ) -> QuantizerChoices | None:
        """Return the settings of the quantizer; None for its defaults."""
        if precision not in MIXED:
            return None
        return choices_for(
            recipe,
            graph.layer_names,
            graph.output_layers,
            variant.float_layers,
            nested=self.variants.nested,
            pixels=self._options.preprocessing_in_model,
        )

    @property
    def _recipe(self) -> Recipe:
        options = self._options
        recipe = options.recipe or Recipe()
        return dataclasses.replace(
            recipe,
            keep_float=(*recipe.keep_float, *options.keep_float),
            keep_int16=(*recipe.keep_int16, *options.keep_int16),
        )


# What runtimes say of a scale that is not a normal number, and of ranges that differ too much.
_SCALE = re.compile(r"unsupported scale value \(([^)]*)\)")
_UNEQUAL_SCALES = "scale_diff / output_scale"


def _advice(reason: str, precision: str) -> str:
    """Return what to do about a file that a runtime does not load, for the causes that are known.

    Args:
        reason: What the runtime says.
        precision: The precision of the file.
    """
    scale = _SCALE.search(reason)
    if scale and scale[1].lstrip("-+").lower().startswith(("inf", "nan")):
        return BEYOND_FLOAT32
    if scale:
        return (
            "The values of a tensor were too close to zero when the file was calibrated. "
            "Calibrate on samples of the usual size."
        )
    if _UNEQUAL_SCALES in reason:
        return (
            f"Ranges that differ too much for {precision} cause this. Keep the norms of inputs: "
            "input_norms='keep', --input-norms keep."
        )
    return "Export another precision, or the other format."


def described(path: Path, format_name: str, job: Job, contents: Contents) -> Artifact:
    """Return the description of a validated file."""
    expected = job.graph.signature

    def in_keras_terms(found: TensorSpec, wanted: TensorSpec) -> TensorSpec:
        return dataclasses.replace(found, axes=wanted.axes, keras_name=wanted.keras_name)

    files = hash_folder(path) if path.is_dir() else None
    weights = weights_path(path)
    return Artifact(
        file=path.name,
        format=format_name,
        precision=job.precision,
        sha256=sha256(path) if files is None else _hash_of(files),
        bytes=_size(path),
        ops=contents.ops,
        inputs=tuple(map(in_keras_terms, contents.inputs, expected.inputs)),
        outputs=tuple(map(in_keras_terms, contents.outputs, expected.outputs)),
        files=files,
        weights=FileRecord.of(weights) if weights.exists() else None,
    )


def _hash_of(files: dict[str, str]) -> str:
    return hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()


def _size(path: Path) -> int:
    if path.is_dir():
        return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    return path.stat().st_size
