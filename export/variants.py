"""The networks a file of few bits may be made from, and which of them made the best one.

All of them compute the same; what differs is how the ranges are spread over the layers, which
costs nothing in float and decides how much of the signal survives in few bits, and whether norms
of the inputs are in front of the network or in its first layers.
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
from ..artifacts.precisions import precision_named
from ..artifacts.samples import SampleSet
from . import golden_set as golden
from .fold import FoldResult
from .formats.freeze import FrozenGraph, freeze
from .formats.unroll import Loops
from .host import run_artifact
from .input_norms import InputNorms
from .quantization.equalization import STRENGTHS, Equalizer
from .quantization.trained import IntegerModel, TrainedModel
from .signature import Signature

_JUDGED = 64  # samples a file is judged by
_WORTH = 1.0  # dB; two sets of so few samples disagree about less
_WORTH_A_NORM = 3.0  # dB, half a bit: a norm that stays is an operation more

KEPT = "input-norms-kept"


@dataclasses.dataclass(frozen=True)
class Variant:
    """One network.

    Attributes:
        name: Short name, for files; empty for the folded network itself.
        model: The network.
        float_layers: Layers that compute in float32 in every precision, where the format can.
    """

    name: str
    model: keras.Model
    float_layers: tuple[str, ...] = ()


class Variants:
    """The folded network and others that compute the same."""

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
    ) -> None:
        """Take the folded network.

        Args:
            folded: The network; norms of inputs that it has left compute in float32.
            signature: Its inputs and outputs.
            samples: Samples to measure ranges and noise on; without any, nothing is equalized.
            batch_size: As the files have it.
            equalize: `auto`, `always` or `never`.
            trained: The model where it was trained in integers.
            with_norms: The network with the norms of its inputs in front; None where there are
                none, or where nothing is to be chosen.
        """
        self.trained = trained
        self.plain = Variant("", folded.model, folded.report.input_norms)
        self.samples = samples.take(_JUDGED) if samples else None
        self._with_norms = with_norms
        self.signature = signature
        self._batch_size = batch_size
        self._equalize = equalize

    def integers(self, precision: str) -> IntegerModel | None:
        """Return the network of the integers that the model was trained in, if it was."""
        if self.trained is None or precision != self.trained.precision:
            return None
        return self.trained.integers

    def bases(self, precision: str) -> tuple[Variant, ...]:
        """Return the networks to choose a file's network from; the folded one comes first."""
        integers = self.integers(precision)
        if integers is not None:
            return (Variant("", integers.model),)
        kept = self._with_norms
        if kept is None or not kept.may_help(precision):
            return (self.plain,)
        return self.plain, self._kept

    def of(self, artifact: Artifact) -> Variant:
        """Return the network that a float file was made from."""
        return self.plain if artifact.network is None else self._kept

    @functools.cached_property
    def _kept(self) -> Variant:
        """The network with the norms of its inputs in front."""
        assert self._with_norms is not None
        return Variant(KEPT, self._with_norms.model, self._with_norms.names)

    def equalized(self, base: Variant, precision: str) -> tuple[Variant, ...]:
        """Return the networks to try instead of the one that was chosen."""
        unwanted = self._equalize == "never" or self.samples is None
        if unwanted or self.integers(precision) or not precision_named(precision).quantized:
            return ()
        return self._equalizations(base)

    @functools.cache  # noqa: B019 - lives as long as one export
    def _equalizations(self, base: Variant) -> tuple[Variant, ...]:
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
        """Whether an equalized network is taken even where it measures no better."""
        return self._equalize == "always"

    @functools.cache  # noqa: B019 - lives as long as one export
    def graph(self, variant: Variant, channels_first: bool, loops: Loops) -> FrozenGraph:
        """Return a variant as a frozen graph, traced once."""
        return freeze(
            variant.model,
            self.signature,
            batch_size=self._batch_size,
            channels_first=channels_first,
            loops=loops,
        )

    def judge(self, artifact: Artifact, folder: Path) -> float:
        """Return a file's signal-to-noise ratio against the folded network, in decibels.

        The mean over samples and outputs of each one's own ratio, so that no single sample, such
        as the only one that a saturated softmax is not sure of, decides; one without any noise is
        left out. Minus infinity where the file gives NaN or infinity and the network does not.
        """
        return mean_ratio(self._truth, run_artifact(artifact, folder, self._judging))

    @functools.cached_property
    def _judging(self) -> Mapping[str, np.ndarray]:
        """What files are judged on: real samples, else what the norms say the inputs are."""
        if self.samples is not None:
            return self.samples.arrays
        assert self._with_norms is not None
        return self._with_norms.inputs

    @functools.cached_property
    def _truth(self) -> dict[str, np.ndarray]:
        outputs = golden.evaluate(self.plain.model, self.signature, self._judging)
        return {name: values.astype(np.float64) for name, values in outputs.items()}


def mean_ratio(truth: Mapping[str, np.ndarray], outputs: Mapping[str, np.ndarray]) -> float:
    """Return the mean over samples and outputs of each one's own ratio, in decibels."""
    ratios = [
        ratio
        for name, array in truth.items()
        for wanted, got in zip(array, outputs[name], strict=True)
        if (ratio := _ratio(wanted, got)) is not None
    ]
    return float(np.mean(ratios)) if ratios else math.inf


def _ratio(wanted: np.ndarray, got: np.ndarray) -> float | None:
    if np.isfinite(wanted).all() and not np.isfinite(got).all():
        return -math.inf
    return golden.decibels(wanted, got)


Ratios = list[tuple[Variant, float]]


def choose(ratios: Ratios) -> Variant:
    """Return the variant with the highest ratio, unless it is hardly better than the first."""
    best, ratio = max(ratios, key=lambda pair: pair[1])
    first, before = ratios[0]
    if "equalized" in first.name:  # one of them is wanted anyway
        return best
    return best if ratio >= before + _worth(best, first) else first


def _worth(best: Variant, first: Variant) -> float:
    return _WORTH_A_NORM if len(best.float_layers) > len(first.float_layers) else _WORTH


def choice_notes(ratios: Ratios, chosen: Variant) -> tuple[str, ...]:
    """Say what was chosen among the variants that were measured, and by how much."""
    by_name = {variant.name: ratio for variant, ratio in ratios}
    notes = []
    if KEPT in by_name:
        kept, folded = _said(by_name[KEPT]), _said(by_name.get("", -math.inf))
        notes.append(
            f"norms of inputs kept in front: {kept} on samples instead of {folded} folded"
            if chosen.float_layers
            else f"norms of inputs folded: {folded} on samples, {kept} with them in front"
        )
    if "equalized" in chosen.name:
        base = KEPT if chosen.float_layers else ""
        strength = chosen.name.removeprefix(f"{KEPT}-")
        sentence = f"ranges {strength} across layers: {_said(by_name[chosen.name])} on samples"
        notes.append(
            sentence + (f" instead of {_said(by_name[base])} without" if base in by_name else "")
        )
    return tuple(notes)


def _said(ratio: float) -> str:
    return "no numbers" if ratio == -math.inf else f"{ratio:.1f} dB"
