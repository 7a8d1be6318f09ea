"""Attributes the error to stages: trained -> folded -> exported -> quantized -> target.

A quantization-aware model has one more stage, "quantized in training", to which the quantized file
should add nothing.

The golden set holds the outputs of every stage for the same inputs, so the final error is a sum of
differences, one for each stage:

    target - truth = (folded - truth) + (exported - folded) + (quantized - exported)
                   + (target - quantized)

A stage's share of the squared error is the scalar product of its difference with the whole error
over the whole error's square: the shares add up to one exactly, and a stage that cancels what an
earlier one did has a negative share.

Each stage is then classified by its difference: *exact* (no change), *rounding* (no more than the
arithmetic explains), *quantization* (lower precision, as requested), or a *fault*. Whether a
quantized stage is loss or a fault follows from its weights and operators, which are checked
separately (`per_op/`).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from ...artifacts.golden_set import GoldenSet
from ...artifacts.manifest import Artifact
from ...artifacts.precisions import precision_named
from ...artifacts.sample_kinds import typical_samples
from .bounds import NoiseBound
from .comparison import sample_errors
from .error_budget import (
    EXACT,
    FAULT,
    QUANTIZATION,
    ROUNDING,
    TRAINED,
    ErrorBudget,
    Stage,
    main_cause,
    sentence_of,
)


@dataclasses.dataclass(frozen=True)
class _Rung:
    """A stage before it is measured: its names, its file, and all samples of its output."""

    names: tuple[str, ...]
    file: str
    output: np.ndarray


def error_budget(
    output: str,
    actual: np.ndarray,
    golden: GoldenSet,
    artifact: Artifact,
    siblings: Sequence[Artifact],
    *,
    limit: NoiseBound,
    rounding: NoiseBound,
    sound: bool,
    worst_sample: int,
) -> ErrorBudget:
    """Measure what each stage adds to the error of one output.

    Args:
        output: Keras output name.
        actual: (N, …) outputs of the target for the golden inputs.
        golden: The golden set with the outputs of every earlier stage.
        artifact: The file that ran.
        siblings: All artifacts of the export; the float32 file of the same format separates
            conversion from quantization.
        limit: The bound that the target's output was held to.
        rounding: The bound of float32 arithmetic.
        sound: Whether the target's output was within its bound, and finite where the truth is.
        worst_sample: The sample with the greatest error relative to its bound.

    Returns:
        The error budget, over the real samples where there are any; where the output is not sound
        and its worst sample is of another kind, over that kind.
    """
    truth = golden.truth[output].astype(np.float64)
    kind, index = _basis(golden, None if sound else worst_sample)
    rungs = _rungs(output, actual, golden, artifact, siblings)
    causes = _causes(truth, rungs, rounding, golden.kind, sound=sound)
    stages = _measure(truth[index], rungs, causes, index)
    signal, reference = _yardstick(truth[index], golden.reference[output][index])
    cause = main_cause(stages)
    return ErrorBudget(
        output=output,
        kind=kind,
        samples=len(index),
        signal_rms=signal,
        reference_rms=reference,
        reference_db=_decibel(signal, reference),
        stages=stages,
        cause=cause,
        sentence=sentence_of(output, stages, cause, artifact, limit),
    )


def _basis(golden: GoldenSet, worst: int | None) -> tuple[str, np.ndarray]:
    """Return the kind of samples to measure on, and their indices."""
    chosen, index = typical_samples(golden.kind)
    if worst is None or golden.kind[worst] == chosen:
        return chosen, index
    return str(golden.kind[worst]), np.flatnonzero(golden.kind == golden.kind[worst])


def _rungs(
    output: str,
    actual: np.ndarray,
    golden: GoldenSet,
    artifact: Artifact,
    siblings: Sequence[Artifact],
) -> list[_Rung]:
    """Return the stages whose output is known; others are merged with the next one."""
    known: list[tuple[str, str, np.ndarray | None]] = [("folded", "", golden.folded64.get(output))]
    # The files that a foreign file was made from are not known.
    plain = next(
        (
            a
            for a in ([artifact] if artifact.foreign else siblings)
            if a.format == artifact.format and a.precision == "float32"
        ),
        None,
    )
    file = plain.file if plain else ""
    known.append(("exported", file, golden.artifacts.get(file, {}).get(output)))
    if precision_named(artifact.precision).integer_io is not None:
        trained = golden.trained_integers.get(output)
        if trained is not None and len(trained) == golden.samples:  # samples added since have none
            known.append((TRAINED, "", trained))
    if artifact.precision != "float32":
        exported = golden.artifacts.get(artifact.file, {}).get(output)
        known.append(("quantized", artifact.file, exported))
    known.append(("target", artifact.file, np.asarray(actual)))
    rungs: list[_Rung] = []
    waiting: tuple[str, ...] = ()
    for name, file, values in known:
        waiting = (*waiting, name)
        if values is not None:
            rungs.append(_Rung(waiting, file, np.asarray(values, np.float64)))
            waiting = ()
    return rungs


def _causes(
    truth: np.ndarray,
    rungs: Sequence[_Rung],
    rounding: NoiseBound,
    kind: np.ndarray,
    *,
    sound: bool,
) -> list[str]:
    """Return the class of each stage's difference."""
    causes = []
    before = truth
    for rung in rungs:
        if np.array_equal(before, rung.output, equal_nan=True):
            causes.append(EXACT)
        elif rung.names[-1] == "target":
            coarser = "quantized" in rung.names
            causes.append((QUANTIZATION if coarser else ROUNDING) if sound else FAULT)
        elif rung.names[-1] in ("quantized", TRAINED):
            causes.append(QUANTIZATION)
        else:
            # The folded weights are float32 as well, rounded once after the algebra in float64.
            # Errors of earlier stages do not count.
            right = any(_explained(rung.output, other, rounding, kind) for other in (truth, before))
            causes.append(ROUNDING if right else FAULT)
        before = rung.output
    return causes


def _explained(actual: np.ndarray, truth: np.ndarray, bound: NoiseBound, kind: np.ndarray) -> bool:
    """Return whether an error is no more than float32 arithmetic explains."""
    errors = sample_errors(actual, truth)
    bound = dataclasses.replace(bound, expected=truth)
    return errors.nonfinite == 0 and bound.holds(errors.rms_error, kind, actual)


def _measure(
    truth: np.ndarray, rungs: Sequence[_Rung], causes: Sequence[str], index: np.ndarray
) -> tuple[Stage, ...]:
    """Return each stage with its sizes, on the chosen samples."""
    # Elements that are NaN or infinite in the truth have no error to attribute.
    usable = np.isfinite(truth)
    signal = _rms(truth[usable])
    outputs = [rung.output[index] for rung in rungs]
    errors = [_change(output, truth, usable) for output in outputs]
    # The first stage adds all of its error.
    steps = [_change(after, before, usable) for before, after in zip(outputs, outputs[1:])]
    final = errors[-1]
    power = float(np.sum(np.square(final)))
    stages: list[Stage] = []
    for rung, cause, added, error in zip(rungs, causes, [errors[0], *steps], errors):
        added_rms, error_rms = _rms(added), _rms(error)
        if math.isfinite(power):
            share = float(np.sum(added * final)) / power if power else 0.0
        else:  # all of the error is the first stage's that is not finite
            share = float(added_rms == math.inf and all(s.share == 0 for s in stages))
        stages.append(
            Stage(
                name=" + ".join(rung.names),
                file=rung.file,
                added_rms=added_rms,
                added_db=_decibel(signal, added_rms),
                error_rms=error_rms,
                snr_db=_decibel(signal, error_rms),
                share=share,
                cause=cause,
            )
        )
    return tuple(stages)


def _yardstick(truth: np.ndarray, reference: np.ndarray) -> tuple[float, float]:
    """Return the root mean squares of the truth and of the float32 Keras model's error."""
    usable = np.isfinite(truth)
    return _rms(truth[usable]), _rms(_change(reference.astype(np.float64), truth, usable))


def _change(after: np.ndarray, before: np.ndarray, usable: np.ndarray) -> np.ndarray:
    """Return after - before where usable; equal infinities and NaN on both sides are no change."""
    same = (after == before) | (np.isnan(after) & np.isnan(before)) | ~usable
    return np.subtract(after, before, where=~same, out=np.zeros_like(before))


def _rms(values: np.ndarray) -> float:
    """Return the root mean square; infinite where a value is not finite."""
    if not np.isfinite(values).all():
        return math.inf
    peak = float(np.max(np.abs(values), initial=0.0))
    # Scaled by the peak first, so that squares neither overflow nor vanish.
    return peak * float(np.sqrt(np.mean(np.square(values / peak)))) if peak else 0.0


def _decibel(signal: float, noise: float) -> float:
    """Return the ratio of two root mean squares in decibels."""
    if noise == 0:
        return math.inf
    if signal == 0 or noise == math.inf:
        return -math.inf
    return 20 * math.log10(signal / noise)
