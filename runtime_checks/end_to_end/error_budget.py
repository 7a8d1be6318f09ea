"""The error budget: stages, causes, and a sentence that summarizes them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ...artifacts.manifest import Artifact
from .bounds import NoiseBound

TRAINED = "quantized in training"
EXACT, ROUNDING, QUANTIZATION, FAULT = "exact", "rounding", "quantization", "fault"


@dataclass(frozen=True)
class Stage:
    """The change of one output by one stage.

    Attributes:
        name: "folded", "exported", "quantized in training", "quantized" or "target"; several
            joined by " + " where the golden set lacks the output between them.
        file: The artifact that computed this stage's output; empty for the folded network.
        added_rms: Root mean square of the change, in the output's units.
        added_db: The truth's power over that of the change, in decibels; infinite for no change.
        error_rms: Root mean square error against truth after the stage.
        snr_db: The truth's power over the error's after the stage, in decibels.
        share: Share of the final squared error due to the stage; all add up to 1.
        cause: "exact", "rounding", "quantization" or "fault".
    """

    name: str
    file: str
    added_rms: float
    added_db: float
    error_rms: float
    snr_db: float
    share: float
    cause: str


@dataclass(frozen=True)
class ErrorBudget:
    """The error budget of one output of one artifact on one target.

    Attributes:
        output: Keras output name.
        kind: The samples it is measured on: "real", "random", …, or "all".
        samples: How many they are.
        signal_rms: Root mean square of their truth.
        reference_rms: Root mean square error of the float32 Keras model on them, for reference.
        reference_db: The same in decibels.
        stages: In order; the last one is the target.
        cause: The main cause: a fault if there is one, else that of the greatest share.
        sentence: A summary in one sentence.
    """

    output: str
    kind: str
    samples: int
    signal_rms: float
    reference_rms: float
    reference_db: float
    stages: tuple[Stage, ...]
    cause: str
    sentence: str

    def to_json(self) -> dict[str, Any]:
        """Return nested dictionaries for JSON, without the output's name."""
        record = {key: value for key, value in vars(self).items() if key != "output"}
        return {**record, "stages": [vars(stage) for stage in self.stages]}


def main_cause(stages: Sequence[Stage]) -> str:
    """Return the main cause."""
    if any(stage.cause == FAULT for stage in stages):
        return FAULT
    return max(stages, key=lambda stage: stage.share).cause


def sentence_of(
    output: str, stages: Sequence[Stage], cause: str, artifact: Artifact, bound: NoiseBound
) -> str:
    """Return one sentence that says whether it is a fault, rounding or quantization loss."""
    last = stages[-1]
    if last.error_rms == 0:
        return f"output '{output}' is exact: no stage changed it"
    if cause == FAULT:
        wrong = next(stage for stage in stages if stage.cause == FAULT)
        before = stages[stages.index(wrong) - 1].snr_db if stages.index(wrong) else math.inf
        return (
            f"output '{output}' has a fault {_where(wrong)}: {decibels(before)} before, "
            f"{decibels(wrong.snr_db)} after ({_percent(wrong.share)} of the error)"
        )
    main = max(stages, key=lambda stage: stage.share)
    if cause == QUANTIZATION:
        rest = (
            "the target adds nothing"
            if last.cause == EXACT
            else f"the target adds {_percent(last.share)}"
            if last is not main
            else "the golden set cannot separate it from the target's own"
        )
        return (
            f"output '{output}' is {decibels(last.snr_db)} from truth: quantization loss, "
            f"{_percent(main.share)} of the error comes with {artifact.precision}; "
            f"{_of_training(stages)}{rest}"
        )
    if artifact.precision != "float32":
        return (
            f"output '{output}' is {decibels(last.snr_db)} from truth: {_percent(last.share)} of "
            f"the error comes from how the target rounds, within the noise of {bound.reason}"
        )
    return (
        f"output '{output}' is {decibels(last.snr_db)} from truth: rounding only, within the noise "
        f"of {bound.reason}"
    )


def _of_training(stages: Sequence[Stage]) -> str:
    """Describe what the file adds to quantization in training, if there was any."""
    names = [stage.name.split(" + ")[-1] for stage in stages]
    if TRAINED not in names or "quantized" not in names:
        return ""
    file = stages[names.index("quantized")]
    if file.cause == EXACT:
        return "the file computes the trained integers; "
    return f"the file adds {_percent(file.share)} to the trained quantization; "


def _where(stage: Stage) -> str:
    """Return the place of a stage, to follow `a fault`."""
    places = {
        "folded": "in the fold",
        "exported": f"in the conversion to {stage.file}",
        "quantized": f"in the quantization of {stage.file}",
        "target": "on the target, or in the file since it was exported",
    }
    return places[stage.name.split(" + ")[-1]]


def decibels(value: float) -> str:
    """Return a signal-to-noise ratio as text: `137.2 dB`, `exact`."""
    if value == math.inf:
        return "exact"
    return "no signal" if value == -math.inf or math.isnan(value) else f"{value:.1f} dB"


def _percent(share: float) -> str:
    """Return a share of the error as text."""
    value = 100 * share
    if value != 0 and abs(value) < 0.1:
        return "less than 0.1 %"
    return f"{value:.1f} %" if abs(value) < 99.95 or value > 100.05 else "100 %"
