"""Tests whether only the interface of a file is wrong, when all outputs differ.

Exchanged inputs or outputs, axes in another order, BGR for RGB, labels in another order, bytes
taken as signed, values in another range: each is tried on one sample, and what may be right on a
few more. If the file then gives the trained model's outputs, that is the fault, and the sentence
says how to mend it. Otherwise a layer that computes correctly would be blamed.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..artifacts.golden_set import Arrays, GoldenSet
from ..artifacts.manifest import Artifact
from ..artifacts.precisions import Arithmetic, precision_named
from ..artifacts.sample_kinds import typical_samples
from ..runtimes import HOSTS, LOCAL, Target, make_runner
from ..runtimes.base import ArtifactError
from ..runtimes.session import Session
from .end_to_end.findings import TargetResult, judge_outputs
from .interface_changes import (
    InterfaceChange,
    changes_of_inputs,
    orders_of_outputs,
)
from .output_readings import output_readings, row_orders

# An error below this share of the signal comes from arithmetic, not from the interface.
_DIFFERENT = 0.05
# An explanation must reduce the error by this factor: a wide bound alone admits too much. The error
# must become much smaller if weights are altered for an unknown reason.
_BETTER, _MUCH_BETTER = 2.0, 5.0
# Floats that were mapped and mapped back, or computed elsewhere, err by less than this share of the
# signal.
_MAPPED = 1e-4
# Outputs that differ by less than this share of their variation may be explained: those of a device
# for one sample, and those of integers, where a large error of quantization would explain any.
_SIMILAR = 0.5
# Another calibration of the same model may err this many times as much as the exported file.
_OTHER_STEPS = 3.0
# Samples, and numbers of outputs: among hundreds of changes, one fits a few numbers by chance.
_SAMPLES, _NUMBERS = 6, 64
# No better explanation is sought for an error that is at most this many times the expected one.
_CLOSE = 1.5

# After this time no further changes of the inputs are tried.
_MOST_SECONDS = 60.0

# An error over the expected one, and whether arithmetic explains it.
_Error = tuple[float, bool]


# Any number may come of wrong bytes.
@np.errstate(all="ignore")
def interface_suspect(
    path: Path,
    artifact: Artifact,
    golden: GoldenSet,
    target: Target,
    result: TargetResult,
    preprocessing: Mapping[str, Any] | None = None,
    *,
    altered: bool = False,
) -> str:
    """Return the fault of a file's interface, or an empty string.

    Args:
        path: The file.
        artifact: The manifest's entry of the file.
        golden: The samples that were run.
        target: Where they were run.
        result: The verdict on the outputs.
        preprocessing: The mean and scale that turn pixels into the model's inputs; None if unknown.
        altered: Whether weights of the file are altered for an unknown reason.
    """
    _, typical = typical_samples(golden.kind)
    numbers = sum(array[:1].size for array in golden.truth.values())
    count = min(max(_SAMPLES, -(-_NUMBERS // numbers)), len(typical))
    index = typical[np.linspace(0, len(typical) - 1, count).astype(int)]
    if not len(index) or not result.given or not _differs(result, golden, index):
        return ""
    part = golden.select(index)
    given = {name: array[index] for name, array in result.given.items()}
    better = _MUCH_BETTER if altered else _BETTER
    errors = _Errors(
        lambda arrays: _greatest(_errors(arrays, part, artifact)),
        _greatest(_errors(given, part, artifact))[0] / better,
    )
    for order in orders_of_outputs(given):
        errors.settled(order.says, order.change(given))
    says = (
        errors.best
        or _of_outputs(given, part, artifact, better)
        or _of_ordered_outputs(given, part, artifact, better)
        or _of_rows(result.given, golden, artifact, typical, better)
    )
    if says:
        return says
    local = target.device == LOCAL
    if not local:
        # The file itself computes the right outputs; the device may have fed it otherwise.
        errors = _Errors(lambda arrays: _distance(arrays, given), _DIFFERENT, _MAPPED)
    alone = [part.select(np.array([place])) for place in range(part.samples)]
    wrong = [
        _greatest(_errors(_sample(given, i), alone[i], artifact))[0] for i in range(len(alone))
    ]
    worst = int(np.argmax(np.nan_to_num(wrong, nan=np.inf)))

    def likely(outputs: Arrays) -> bool:
        """Return whether an explanation may fit, by the outputs for the worst sample alone."""
        if not local:
            return _distance(outputs, _sample(given, worst))[0] <= _SIMILAR
        error, explained = _greatest(_errors(outputs, alone[worst], artifact))
        return explained or error <= wrong[worst] / _BETTER or _rearranged(outputs, alone[worst])

    both = ""
    try:
        with make_runner(target if local else Target(HOSTS[artifact.format]), path) as runner:
            session = Session(runner, artifact)
            tried = changes_of_inputs(part.inputs, artifact.inputs, preprocessing)
            for change in _likely(tried, session, alone[worst].inputs, likely):
                outputs = session.run(change.change(part.inputs))
                if errors.settled(change.says if local else change.device, outputs):
                    break
                if local and not errors.best and not both:
                    rest = _of_outputs(outputs, part, artifact, better)
                    rest = rest or _of_ordered_outputs(outputs, part, artifact, better)
                    both = rest and f"{change.says}; and {rest}"
    except ArtifactError:
        return ""
    return errors.best or both


def _likely(
    changes: Iterator[InterfaceChange],
    session: Session,
    inputs: Arrays,
    likely: Callable[[Arrays], bool],
) -> Iterator[InterfaceChange]:
    """Yield the changes that may be right, by a run on one sample.

    They share the batches of a file that takes several samples at once.
    """
    size, end = session.batch_size, time.monotonic() + _MOST_SECONDS
    while (batch := list(itertools.islice(changes, size))) and time.monotonic() < end:
        changed = [change.change(inputs) for change in batch]
        together = {name: np.concatenate([one[name] for one in changed]) for name in inputs}
        outputs = session.run(together)
        for place, change in enumerate(batch):
            if likely(_sample(outputs, place)):
                yield change


def _rearranged(outputs: Arrays, golden: GoldenSet) -> bool:
    """Return whether outputs of one sample have the numbers of the model's, in any order."""

    def far(name: str, other: str) -> bool:
        given, truth = (np.sort(a[key], -1) for a, key in ((outputs, other), (golden.truth, name)))
        return given.shape != truth.shape or not (
            _rms(given - truth) <= 2 * _DIFFERENT * _rms(truth)
        )

    return not any(all(far(name, other) for other in outputs) for name in golden.truth)


def _sample(arrays: Arrays, place: int) -> dict[str, np.ndarray]:
    """Return one sample of some arrays, with its axis."""
    return {name: array[place : place + 1] for name, array in arrays.items()}


class _Errors:
    """Keeps the explanation with the smallest error.

    Args:
        measure: Returns the error of outputs, and whether it is small enough.
        least: The error that an explanation must not exceed.
        enough: The error below which no better explanation is sought.

    Attributes:
        least: The same, or the error of the best explanation.
        best: The explanation; empty if none was found.
    """

    def __init__(
        self, measure: Callable[[Arrays], _Error], least: float, enough: float = _CLOSE
    ) -> None:
        self._measure, self.least, self._enough = measure, least, enough
        self.best = ""

    def settled(self, says: str, given: Arrays) -> bool:
        """Enter an explanation; return whether its error is so small that no other is needed."""
        error, explained = self._measure(given)
        if explained and error <= self.least:
            self.best, self.least = says, error
        return bool(self.best) and self.least <= self._enough


def _distance(given: Arrays, others: Arrays) -> _Error:
    """Return the greatest difference of two runs over the signal, and whether it is small."""
    if any(given[name].shape != other.shape for name, other in others.items()):
        return np.inf, False
    tiny = float(np.finfo(np.float32).tiny)
    distance = max(
        _rms(given[name].astype(np.float64) - other) / max(_rms(other.astype(np.float64)), tiny)
        for name, other in others.items()
    )
    return distance, distance <= _DIFFERENT


def _differs(result: TargetResult, golden: GoldenSet, index: np.ndarray) -> bool:
    """Return whether an output is entirely different, or has another shape."""
    if any(array.shape != golden.truth[name].shape for name, array in result.given.items()):
        return True
    for entry in result.outputs:
        error, signal = entry.metrics.rms_error[index], entry.metrics.rms_truth[index]
        if not entry.sound and np.median(error) > _DIFFERENT * np.median(signal):
            return True
    return False


def _errors(given: Arrays, golden: GoldenSet, artifact: Artifact) -> dict[str, _Error]:
    """Return the error of each output over the expected one, and whether arithmetic explains it.

    Floats are judged by their noise. The integers of a file with another interface may have other
    steps, so their distance from the truth, or from the exported file's outputs if that is smaller,
    is compared with the error of the exported file and with the variation between the samples.
    """
    exported = golden.artifacts.get(artifact.file, {})
    found: dict[str, _Error] = dict.fromkeys(golden.truth, (np.inf, False))
    same = {
        name: array
        for name, array in given.items()
        if name in golden.truth and array.shape == golden.truth[name].shape
    }
    if precision_named(artifact.precision).arithmetic is Arithmetic.INTEGER and exported:
        tiny = float(np.finfo(np.float32).tiny)
        for name, array in same.items():
            truth = golden.truth[name]
            error = min(_rms(array - expected) for expected in (truth, exported[name]))
            ratio = error / max(_rms(exported[name] - truth), tiny)
            varies = _rms(truth - truth.mean(axis=0)) if len(truth) > 1 else _rms(truth)
            usual = ratio <= _OTHER_STEPS and error <= _SIMILAR * varies
            close = usual or error <= _DIFFERENT * varies
            found[name] = ratio, close
        return found
    for entry in judge_outputs(same, golden, artifact)[1]:
        metrics = entry.metrics
        close = entry.sound or _rms(metrics.rms_error) <= _MAPPED * _rms(metrics.rms_truth)
        found[metrics.output] = entry.worst_ratio, close
    return found


def _greatest(errors: Mapping[str, _Error]) -> _Error:
    """Return the greatest of several errors, and whether all are explained."""
    return max(error for error, _ in errors.values()), all(close for _, close in errors.values())


def _rms(errors: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(errors))))


def _of_outputs(given: Arrays, golden: GoldenSet, artifact: Artifact, better: float) -> str:
    """Return what is wrong with each output that differs; empty unless all are explained."""
    exported = golden.artifacts.get(artifact.file, {})
    explanations = []
    for name, (before, right) in _errors(given, golden, artifact).items():
        if right and before <= _CLOSE:
            continue
        (spec,) = (spec for spec in artifact.outputs if spec.keras_name == name)
        if name not in given:
            return ""
        best, least = "", before / better
        for says, change in output_readings(
            given[name], exported.get(name, golden.truth[name]), spec
        ):
            changed = change(given[name]).astype(given[name].dtype, copy=False)
            error, close = _errors({name: changed}, golden, artifact)[name]
            if close and error <= least:
                best, least = says, error / _BETTER
        if not best:
            return ""
        explanations.append(best)
    return "; ".join(explanations)


def _of_ordered_outputs(given: Arrays, golden: GoldenSet, artifact: Artifact, better: float) -> str:
    """Return the order of the outputs, and what else is wrong with them; empty if unexplained."""
    for order in orders_of_outputs(given):
        changed = order.change(given)
        if _greatest(_errors(changed, golden, artifact))[1]:
            return order.says
        rest = _of_outputs(changed, golden, artifact, better)
        if rest:
            return f"{order.says}; and {rest}"
    return ""


def _of_rows(
    given: Arrays, golden: GoldenSet, artifact: Artifact, index: np.ndarray, better: float
) -> str:
    """Return how the outputs belong to other samples than those of their rows; empty if not."""
    best = "", np.inf
    for says, source in row_orders(golden.samples, artifact.inputs[0].shape[0] or 1):
        known = index[source[index] >= 0]
        if len(known) < 2:
            continue
        before, (error, explained) = (
            _greatest(_errors({n: a[rows] for n, a in given.items()}, part, artifact))
            for part in [golden.select(known)]
            for rows in (known, source[known])
        )
        if explained and error <= before[0] / better and error < best[1]:
            best = says, error
    return best[0] and (
        f"{best[0]}: read each output after the run that computes it, or move the rows back"
    )
