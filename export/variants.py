"""Variants of the folded network for float16 and quantized files, and the choice among them.

All variants compute the same function in exact arithmetic. They differ in the distribution of
ranges over the layers, which affects the quantization error, and in whether the norms of the inputs
are folded into the first layers or kept.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping
from pathlib import Path

import keras
import numpy as np

from ..artifacts.manifest import Artifact
from ..artifacts.precisions import Arithmetic, precision_named
from ..artifacts.samples import SampleSet
from . import golden_set as golden
from .fold import FoldResult
from .formats.freeze import FrozenGraph, freeze
from .formats.unroll import Loops
from .host import run_artifact
from .input_norms import InputNorms
from .quantization.equalization import STRENGTHS, Equalizer
from .quantization.trained import IntegerModel, TrainedModel
from .quantization.whole_mean import with_whole_mean
from .signature import Signature

_SAMPLES = 64  # on which a file is measured
_MIN_GAIN = 1.0  # dB; smaller differences are within the variation between sets of samples
_MIN_GAIN_OF_NORM = 3.0  # dB, half a bit, for which an additional operation is accepted

KEPT = "input-norms-kept"
WHOLE = "whole-mean"
UNFOLDED = "unfolded"


@dataclasses.dataclass(frozen=True)
class Variant:
    """One network.

    Attributes:
        name: Short name, for files; empty for the folded network itself.
        model: The network.
        float_layers: Layers that compute in float32 in every precision, where the format can.
        notes: Notes on outputs that its files do not compute exactly.
    """

    name: str
    model: keras.Model
    float_layers: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


class Variants:
    """The folded network and its equivalent variants."""

    def __init__(
        self,
        folded: FoldResult,
        signature: Signature,
        samples: SampleSet | None,
        *,
        batch_size: int | None,
        equalize: str,
        trained: TrainedModel | None = None,
        with_norms: InputNorms | None = None,
        original: keras.Model | None = None,
        nested: Mapping[str, str] | None = None,
        pixels: bool = False,
    ) -> None:
        """Create the variants.

        Args:
            folded: The folded network; norms of inputs that it keeps compute in float32.
            signature: Its inputs and outputs.
            samples: Samples for measuring ranges and noise; without any, nothing is equalized.
            batch_size: Batch size of the files; None leaves it free.
            equalize: `auto`, `always` or `never`.
            trained: The quantization-aware model, if it is one.
            with_norms: The network that keeps the norms of its inputs; None if there are none, or
                if the user has chosen.
            original: The trained network.
            nested: Name of a layer in the folded network to its path in the user's model.
            pixels: Whether the network takes raw pixels.
        """
        self.trained = trained
        self.nested = nested or {}
        self._has_norms = bool(folded.report.records)
        self.plain = Variant("", folded.model, folded.report.input_norms)
        self.samples = samples.take(_SAMPLES) if samples else None
        self._with_norms = with_norms
        self._original = original
        self.signature = signature
        self._batch_size = batch_size
        self._equalize = equalize
        self._pixels = pixels
        # A cache of the class would hold the models and graphs of every export.
        self._graphs: dict[tuple[Variant, bool, Loops], FrozenGraph] = {}
        self._equalized: dict[Variant, tuple[Variant, ...]] = {}

    def integers(self, precision: str) -> IntegerModel | None:
        """Return the integer network of a quantization-aware model; None for other models."""
        if self.trained is None or precision != self.trained.precision:
            return None
        return self.trained.integers

    @property
    def original(self) -> Variant | None:
        """The trained network; None if folding changes nothing, or it takes raw pixels."""
        if self._original is None or self._pixels or not self._has_norms:
            return None
        return Variant(UNFOLDED, self._original)

    def base(self, precision: str) -> Variant:
        """Return the network that the files of a precision are made from; others are derived."""
        is_integer = precision_named(precision).arithmetic is Arithmetic.INTEGER
        return self._whole if is_integer and self._pixels else self.plain

    @functools.cached_property
    def _whole(self) -> Variant:
        """The network of pixels with a whole mean, which integers represent exactly."""
        found = with_whole_mean(self.plain.model)
        notes = (found.note,) if found.note else ()
        if found.model is None:
            return dataclasses.replace(self.plain, notes=notes)
        return dataclasses.replace(self.plain, name=WHOLE, model=found.model, notes=notes)

    def bases(self, precision: str) -> tuple[Variant, ...]:
        """Return the candidate networks before equalization, the folded one first."""
        integers = self.integers(precision)
        if integers is not None:
            return (Variant("", integers.model),)
        kept = self._with_norms
        if kept is None or not kept.may_help(precision):
            return (self.base(precision),)
        return self.base(precision), self._kept

    def of(self, artifact: Artifact) -> Variant:
        """Return the network that a float file was made from."""
        return self.plain if artifact.network is None else self._kept

    @functools.cached_property
    def _kept(self) -> Variant:
        """The network that keeps the norms of its inputs."""
        assert self._with_norms is not None
        return Variant(KEPT, self._with_norms.model, self._with_norms.names)

    def equalized(self, base: Variant, precision: str) -> tuple[Variant, ...]:
        """Return the equalized variants of a network, if a precision can benefit from them."""
        unwanted = self._equalize == "never" or self.samples is None
        if unwanted or self.integers(precision) or not precision_named(precision).quantized:
            return ()
        return self._equalizations(base)

    def _equalizations(self, base: Variant) -> tuple[Variant, ...]:
        if base not in self._equalized:
            self._equalized[base] = self._equalize_each(base)
        return self._equalized[base]

    def _equalize_each(self, base: Variant) -> tuple[Variant, ...]:
        assert self.samples is not None
        inputs = [self.samples.arrays[t.name] for t in self.signature.inputs]
        equalizer = Equalizer(base.model, inputs)
        prefix = f"{base.name}-" if base.name else ""
        return tuple(
            dataclasses.replace(base, name=f"{prefix}equalized-{strength}", model=model)
            for strength in (STRENGTHS if equalizer.possible else ())
            if (model := equalizer.equalized(strength)) is not None
        )

    @property
    def equalizes_always(self) -> bool:
        """Whether an equalized network is used even if it does not measure better."""
        return self._equalize == "always"

    def graph(self, variant: Variant, channels_first: bool, loops: Loops) -> FrozenGraph:
        """Return the frozen graph of a variant, traced once."""
        key = variant, channels_first, loops
        if key not in self._graphs:
            self._graphs[key] = freeze(
                variant.model,
                self.signature,
                batch_size=self._batch_size,
                channels_first=channels_first,
                loops=loops,
            )
        return self._graphs[key]

    def judge(self, artifact: Artifact, folder: Path) -> float:
        """Return the signal-to-noise ratio of a file against the folded network, in decibels.

        It is the mean of the ratios of all samples and outputs, so that no single sample dominates;
        samples without noise are left out. It is minus infinity if the file returns NaN or infinity
        where the network does not.
        """
        return mean_ratio(self._truth, run_artifact(artifact, folder, self._test_inputs))

    @functools.cached_property
    def _test_inputs(self) -> Mapping[str, np.ndarray]:
        """Inputs for measuring files: real samples, else drawn from the norms' statistics."""
        if self.samples is not None:
            return self.samples.arrays
        assert self._with_norms is not None
        return self._with_norms.inputs

    @functools.cached_property
    def _truth(self) -> dict[str, np.ndarray]:
        outputs = golden.evaluate(self.plain.model, self.signature, self._test_inputs)
        return {name: values.astype(np.float64) for name, values in outputs.items()}


def mean_ratio(truth: Mapping[str, np.ndarray], outputs: Mapping[str, np.ndarray]) -> float:
    """Return the mean signal-to-noise ratio over samples and outputs, in decibels.

    Integers, such as indices of classes, count only if all outputs are integers: the ratio then
    orders files by how many differ, but its value means nothing.
    """
    floats = [name for name in truth if outputs[name].dtype.kind == "f"]
    ratios = [
        ratio
        for name in floats or truth
        for wanted, got in zip(truth[name], outputs[name], strict=True)
        if (ratio := _ratio(wanted, got)) is not None
    ]
    return float(np.mean(ratios)) if ratios else math.inf


def _ratio(wanted: np.ndarray, got: np.ndarray) -> float | None:
    if np.isfinite(wanted).all() and not np.isfinite(got).all():
        return -math.inf
    return golden.decibels(wanted, got)


Ratios = list[tuple[Variant, float]]


def choose(ratios: Ratios) -> Variant:
    """Return the variant with the highest ratio; the first if the gain is too small."""
    best, ratio = max(ratios, key=lambda pair: pair[1])
    first, before = ratios[0]
    if "equalized" in first.name:  # the user wants an equalized network in any case
        return best
    more_norms = len(best.float_layers) > len(first.float_layers)
    return best if ratio >= before + (_MIN_GAIN_OF_NORM if more_norms else _MIN_GAIN) else first


def choice_notes(ratios: Ratios, chosen: Variant) -> tuple[str, ...]:
    """Return notes on the chosen variant, with the ratios that were measured."""
    by_name = {variant.name: ratio for variant, ratio in ratios}
    notes = []
    if KEPT in by_name:
        kept, folded = _decibels(by_name[KEPT]), _decibels(by_name.get("", -math.inf))
        notes.append(
            f"norms of inputs kept: {kept} on samples, {folded} if folded"
            if chosen.float_layers
            else f"norms of inputs folded: {folded} on samples, {kept} if kept"
        )
    if "equalized" in chosen.name:
        base = chosen.name.partition("equalized")[0].rstrip("-")
        strength = chosen.name.removeprefix(f"{base}-")
        sentence = f"ranges {strength} across layers: {_decibels(by_name[chosen.name])} on samples"
        notes.append(
            sentence + (f", {_decibels(by_name[base])} without" if base in by_name else "")
        )
    return tuple(notes)


def _decibels(ratio: float) -> str:
    return "not finite" if ratio == -math.inf else f"{ratio:.1f} dB"
