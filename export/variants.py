"""The networks a quantized file may be made from, and which of them made the best one.

All of them compute the same; what differs is how the ranges are spread over the layers, which
costs nothing in float and decides how much of the signal survives in few bits.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from pathlib import Path

import keras
import numpy as np

from ..artifacts.manifest import Artifact
from ..artifacts.precisions import precision_named
from ..artifacts.samples import SampleSet
from . import golden_set as golden
from .formats.freeze import FrozenGraph, freeze
from .formats.unroll import Loops
from .host import run_artifact
from .quantization.equalization import STRENGTHS, Equalizer
from .quantization.trained import IntegerModel, TrainedModel
from .signature import Signature

_JUDGED = 64  # samples a file is judged by
_WORTH = 1.0  # dB; two sets of so few samples disagree about less


@dataclasses.dataclass(frozen=True)
class Variant:
    """One network.

    Attributes:
        name: Short name, for files; empty for the folded network itself.
        model: The network.
    """

    name: str
    model: keras.Model


class Variants:
    """The folded network and, where there are samples to judge by, equalized ones."""

    def __init__(
        self,
        folded: keras.Model,
        signature: Signature,
        samples: SampleSet | None,
        *,
        batch_size: int | None,
        equalize: str,
        trained: TrainedModel | None = None,
    ) -> None:
        """Take the folded network.

        Args:
            folded: The network.
            signature: Its inputs and outputs.
            samples: Samples to measure ranges and noise on; without any, nothing is equalized.
            batch_size: As the files have it.
            equalize: `auto`, `always` or `never`.
            trained: The model where it was trained in integers.
        """
        self.trained = trained
        self.plain = Variant("", folded)
        self.samples = samples.take(_JUDGED) if samples else None
        self._signature = signature
        self._batch_size = batch_size
        self._equalize = equalize

    def integers(self, precision: str) -> IntegerModel | None:
        """Return the network of the integers that the model was trained in, if it was."""
        if self.trained is None or precision != self.trained.precision:
            return None
        return self.trained.integers

    def for_precision(self, precision: str) -> tuple[Variant, ...]:
        """Return the networks to try for a file."""
        integers = self.integers(precision)
        if integers is not None:
            return (Variant("", integers.model),)
        return self._equalized if precision_named(precision).quantized else (self.plain,)

    @functools.cached_property
    def _equalized(self) -> tuple[Variant, ...]:
        """The networks to try for a quantized file; the folded network itself comes first."""
        if self._equalize == "never" or self.samples is None:
            return (self.plain,)
        inputs = [self.samples.arrays[t.name] for t in self._signature.inputs]
        equalizer = Equalizer(self.plain.model, inputs)
        made = [
            Variant(f"equalized-{strength}", model)
            for strength in (STRENGTHS if equalizer.possible else ())
            if (model := equalizer.equalized(strength)) is not None
        ]
        if self._equalize == "always" and made:
            return tuple(made)
        return (self.plain, *made)

    @functools.cache  # noqa: B019 - lives as long as one export
    def graph(self, variant: Variant, channels_first: bool, loops: Loops) -> FrozenGraph:
        """Return a variant as a frozen graph, traced once."""
        return freeze(
            variant.model,
            self._signature,
            batch_size=self._batch_size,
            channels_first=channels_first,
            loops=loops,
        )

    def judge(self, artifact: Artifact, folder: Path) -> float:
        """Return a file's signal-to-noise ratio against the folded network, in decibels.

        The mean over samples and outputs of each one's own ratio, so that no single sample, such
        as the only one that a saturated softmax is not sure of, decides; one without any noise is
        left out.
        """
        assert self.samples is not None
        outputs = run_artifact(artifact, folder, self.samples.arrays)
        ratios = [
            ratio
            for name, truth in self._truth.items()
            for wanted, got in zip(truth, outputs[name], strict=True)
            if (ratio := golden.decibels(wanted, got)) is not None
        ]
        return float(np.mean(ratios)) if ratios else math.inf

    @functools.cached_property
    def _truth(self) -> dict[str, np.ndarray]:
        assert self.samples is not None
        outputs = golden.evaluate(self.plain.model, self._signature, self.samples.arrays)
        return {name: values.astype(np.float64) for name, values in outputs.items()}


def choose(ratios: list[tuple[Variant, float]]) -> Variant:
    """Return the variant with the highest ratio, the folded network itself unless it is beaten."""
    best, ratio = max(ratios, key=lambda pair: pair[1])
    first, before = ratios[0]
    return best if first.name or ratio >= before + _WORTH else first


def choice_note(ratios: list[tuple[Variant, float]], chosen: Variant) -> str:
    """Say in one sentence what was chosen and by how much."""
    by_name = {variant.name: ratio for variant, ratio in ratios}
    sentence = f"ranges {chosen.name} across layers: {by_name[chosen.name]:.1f} dB on samples"
    return sentence + (f" instead of {by_name['']:.1f} dB without" if "" in by_name else "")
