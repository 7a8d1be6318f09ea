"""Tests whether only the interface of a file is wrong, when all outputs differ.

Exchanged inputs or outputs, axes in another order, BGR for RGB, labels in another order, bytes
taken as signed, values in another range: each is tried on a few samples. If the file then gives the
trained model's outputs, that is the fault, and the sentence says how to mend it. Otherwise a layer
that computes correctly would be blamed.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..artifacts.golden_set import Arrays, GoldenSet
from ..artifacts.manifest import Artifact, TensorSpec
from ..artifacts.precisions import Arithmetic, precision_named
from ..artifacts.sample_kinds import typical_samples
from ..reference.value_changes import Change, value_changes
from ..runtimes import HOSTS, LOCAL, Target, make_runner
from ..runtimes.base import ArtifactError, TensorInfo
from ..runtimes.session import Session, dequantize, quantize
from .end_to_end.findings import TargetResult, judge_outputs

# An error below this share of the signal comes from arithmetic, not from the interface.
_DIFFERENT = 0.05
# An explanation must reduce the error by this factor: a wide bound alone admits too much. The error
# must become much smaller if weights are altered for an unknown reason.
_BETTER, _MUCH_BETTER = 2.0, 5.0
# Floats that were mapped and mapped back err by less than this share of the signal.
_MAPPED = 1e-4
# The outputs of a device, of one sample, for inputs changed as the device may change them.
_SIMILAR = 0.5
# Another calibration of the same model may err this many times as much as the exported file.
_OTHER_STEPS = 3.0
_SAMPLES = 6
# No better explanation is sought for an error that is at most this many times the expected one.
_CLOSE = 1.5
# With more tensors or channels there are too many orders to try.
_MOST_EXCHANGED, _MOST_CHANNELS, _MOST_AXES = 4, 4, 3


@dataclass(frozen=True)
class _Hypothesis:
    """A possible fault of the inputs or of the order of the outputs.

    Attributes:
        says: What is wrong and how to mend it.
        change: Converts the model's inputs to those that the file needs, or the file's outputs to
            those of the model.
        device: What is wrong if a device gives the outputs for changed inputs.
    """

    says: str
    change: Callable[[Arrays], Arrays]
    device: str = ""


# An error over the expected one, and whether arithmetic explains it.
_Error = tuple[float, bool]
# What is wrong with one output, and the change that corrects it.
_Reading = tuple[str, Callable[[np.ndarray], np.ndarray]]


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
    index = typical[np.linspace(0, len(typical) - 1, min(_SAMPLES, len(typical))).astype(int)]
    if not len(index) or not result.given or not _differs(result, golden, index):
        return ""
    part = golden.select(index)
    given = {name: array[index] for name, array in result.given.items()}
    better = _MUCH_BETTER if altered else _BETTER
    errors = _Errors(
        lambda arrays: _greatest(_errors(arrays, part, artifact)),
        _greatest(_errors(given, part, artifact))[0] / better,
    )
    for hypothesis in _other_outputs(given):
        errors.settled(hypothesis.says, hypothesis.change(given))
    says = errors.best or _of_outputs(given, part, artifact, better)
    if says:
        return says
    local = target.device == LOCAL
    if not local:
        # The file itself computes the right outputs; the device may have fed it otherwise.
        errors = _Errors(lambda arrays: _distance(arrays, given), _DIFFERENT)
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
        return explained or error <= wrong[worst] / _BETTER

    try:
        with make_runner(target if local else Target(HOSTS[artifact.format]), path) as runner:
            session = Session(runner, artifact)
            tried = _of_inputs(part.inputs, artifact.inputs, preprocessing)
            for hypothesis in _likely(tried, session, alone[worst].inputs, likely):
                says = hypothesis.says if local else hypothesis.device
                if errors.settled(says, session.run(hypothesis.change(part.inputs))):
                    break
    except ArtifactError:
        return ""
    return errors.best


def _likely(
    hypotheses: Iterator[_Hypothesis],
    session: Session,
    inputs: Arrays,
    likely: Callable[[Arrays], bool],
) -> Iterator[_Hypothesis]:
    """Yield the hypotheses that may be right, by a run on one sample.

    They share the batches of a file that takes several samples at once.
    """
    size = session.batch_size
    while batch := list(itertools.islice(hypotheses, size)):
        changed = [hypothesis.change(inputs) for hypothesis in batch]
        together = {name: np.concatenate([one[name] for one in changed]) for name in inputs}
        outputs = session.run(together)
        for place, hypothesis in enumerate(batch):
            if likely(_sample(outputs, place)):
                yield hypothesis


def _sample(arrays: Arrays, place: int) -> dict[str, np.ndarray]:
    """Return one sample of some arrays, with its axis."""
    return {name: array[place : place + 1] for name, array in arrays.items()}


class _Errors:
    """Keeps the explanation with the smallest error.

    Args:
        measure: Returns the error of outputs, and whether it is small enough.
        least: The error that an explanation must not exceed.

    Attributes:
        best: The explanation; empty if none was found.
    """

    def __init__(self, measure: Callable[[Arrays], _Error], least: float) -> None:
        self._measure, self._least = measure, least
        self.best = ""

    def settled(self, says: str, given: Arrays) -> bool:
        """Enter an explanation; return whether its error is so small that no other is needed."""
        error, explained = self._measure(given)
        if explained and error <= self._least:
            self.best, self._least = says, error
        return bool(self.best) and self._least <= _CLOSE


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
    is compared with the error of the exported file.
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
            close = ratio <= _OTHER_STEPS or error <= _DIFFERENT * _rms(truth)
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


def _other_outputs(given: Arrays) -> Iterator[_Hypothesis]:
    """Yield the other orders of the outputs."""
    for order in _orders({name: array.shape for name, array in given.items()}):
        yield _Hypothesis(
            f"{_exchange('output', order)} in the file: read them in that order, or convert the "
            "model again",
            _renamed(order),
        )


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
        for says, change in _readings(given[name], exported.get(name, golden.truth[name]), spec):
            changed = change(given[name]).astype(given[name].dtype, copy=False)
            error, close = _errors({name: changed}, golden, artifact)[name]
            if close and error <= least:
                best, least = says, error / _BETTER
        if not best:
            return ""
        explanations.append(best)
    return "; ".join(explanations)


def _readings(given: np.ndarray, expected: np.ndarray, spec: TensorSpec) -> Iterator[_Reading]:
    """Yield possible faults of one output."""
    name = spec.keras_name
    for axes in _axes(given.shape, expected.shape):
        says = f"the axes of output '{name}' are in another order: transpose it by {axes}"
        yield says, functools.partial(np.transpose, axes=axes)
    if given.shape != expected.shape:
        return
    places = _columns(given, expected)
    if places is not None:
        yield (
            f"{_entries(places)} of output '{name}' (last axis): labels or rows of its layer "
            "are in another order than in training: use that order, or convert again",
            functools.partial(np.take, indices=places, axis=-1),
        )
    yield (
        f"the bytes of output '{name}' are in the other order (big-endian for little-endian): "
        "exchange them where it is read",
        functools.partial(_other_order, spec=spec),
    )
    if spec.scale is not None and np.dtype(spec.dtype).itemsize == 1:
        says = f"the bytes of output '{name}' have the wrong sign: its zero point is off by 128"
        yield says, functools.partial(_other_sign, spec=spec)
    yield from _scaled(given, expected, spec)


def _of_inputs(
    inputs: Arrays, specs: Sequence[TensorSpec], preprocessing: Mapping[str, Any] | None
) -> Iterator[_Hypothesis]:
    """Yield possible faults of the inputs: of one alone, and of all that are alike."""
    kinds = {name: (array.shape, array.dtype) for name, array in inputs.items()}
    for order in _orders(kinds):
        what = f"{_exchange('input', order)}"
        yield _Hypothesis(
            f"{what} in the file: feed them in that order, or convert the model again",
            _renamed(order),
            device=f"{what} on the device: feed them in that order",
        )
    groups: dict[object, list[TensorSpec]] = {}
    for spec in specs:
        groups.setdefault(kinds[spec.keras_name], []).append(spec)
    for alike in groups.values():
        yield from _of_alike(alike, inputs, preprocessing)
        for spec in alike if len(alike) > 1 else ():
            yield from _of_alike([spec], inputs, preprocessing)


def _of_alike(
    specs: Sequence[TensorSpec], inputs: Arrays, preprocessing: Mapping[str, Any] | None
) -> Iterator[_Hypothesis]:
    """Yield possible faults that some inputs of one shape and type share."""
    names = [spec.keras_name for spec in specs]
    listed = " and ".join(f"'{name}'" for name in names)
    the = f"input{'s' * (len(names) > 1)} {listed}"
    array = inputs[names[0]]
    shape = array.shape
    if len(shape) > 2 and shape[-1] in range(2, _MOST_CHANNELS + 1):
        for places in _channel_orders(shape[-1]):
            known = " (BGR for RGB)" if places == (2, 1, 0) else ""
            yield _Hypothesis(
                f"the channels of {the} are in the order {places}{known} in the file: use that "
                "order, or convert the model again",
                _changed(names, functools.partial(np.take, indices=places, axis=-1)),
                device=f"the device takes the channels of {the} in the order {places}{known}",
            )
    for axes in _axes(shape, shape):
        yield _Hypothesis(
            f"the axes of {the} are in another order in the file: transpose what it is fed by "
            f"{axes}",
            _changed(names, functools.partial(np.transpose, axes=axes)),
            device=f"the device takes the axes of {the} in the order {axes}",
        )
    (spec, *_) = specs
    if spec.scale is not None and np.dtype(spec.dtype).itemsize == 1:
        yield _Hypothesis(
            f"the bytes of {the} have the wrong sign: the zero point is off by 128",
            _each(specs, _other_sign),
            device=f"the device takes the bytes of {the} with the wrong sign",
        )
    if np.dtype(spec.dtype).itemsize > 1:
        order = f"the bytes of {the} are taken in the other order (big-endian for little-endian)"
        yield _Hypothesis(
            f"{order}: exchange them before",
            _each(specs, _other_order),
            device=f"on the device {order}",
        )
    if array.dtype.kind == "f":
        for says, change in (*_unprocessed(preprocessing), *value_changes(array)):
            yield _Hypothesis(
                f"the file takes {the} {says}: use that range, or convert again",
                _changed(names, change),
                device=f"the device takes {the} {says}",
            )


def _unprocessed(preprocessing: Mapping[str, Any] | None) -> Iterator[tuple[str, Change]]:
    """Yield the changes of a file that has the preprocessing, or that needs it twice."""
    if preprocessing is None:
        return
    mean, scale = (np.asarray(preprocessing[key], np.float64) for key in ("mean", "scale"))
    yield "before the preprocessing of the export (raw pixels)", lambda x: x / scale + mean
    yield "after a second preprocessing like that of the export", lambda x: (x - mean) * scale


def _other_order(array: np.ndarray, spec: TensorSpec) -> np.ndarray:
    """Return numbers whose bytes in a file are in the other order."""
    if spec.scale is None or np.dtype(spec.dtype).kind == "f":
        return array.byteswap() if array.dtype.itemsize > 1 else array
    steps = _steps(spec)
    return dequantize(quantize(array, steps).byteswap(), steps)


def _other_sign(array: np.ndarray, spec: TensorSpec) -> np.ndarray:
    """Return numbers whose bytes in a file are signed where they were unsigned, or reversed."""
    steps = _steps(spec)
    turned = quantize(array, steps).view(np.uint8) ^ np.uint8(128)
    return dequantize(turned.view(steps.dtype), steps)


def _steps(spec: TensorSpec) -> TensorInfo:
    """Return the integers of an input or output."""
    return TensorInfo(spec.name, (), np.dtype(spec.dtype), spec.scale, spec.zero_point)


def _orders(kinds: Mapping[str, object]) -> Iterator[dict[str, str]]:
    """Yield every permutation of tensors of one kind, as name to name."""
    groups: dict[object, list[str]] = {}
    for name, kind in kinds.items():
        groups.setdefault(kind, []).append(name)
    for names in groups.values():
        if len(names) <= _MOST_EXCHANGED:
            for order in itertools.permutations(names):
                if order != tuple(names):
                    yield dict(zip(names, order))


def _exchange(what: str, order: Mapping[str, str]) -> str:
    """Describe which tensors are exchanged."""
    moved = {name: other for name, other in order.items() if name != other}
    if len(moved) == 2:
        first, second = moved
        return f"{what}s '{first}' and '{second}' are exchanged"
    pairs = ", ".join(f"'{name}' is '{other}'" for name, other in moved.items())
    return f"{what}s are in another order ({pairs})"


def _renamed(order: Mapping[str, str]) -> Callable[[Arrays], Arrays]:
    return lambda arrays: {name: arrays[order.get(name, name)] for name in arrays}


def _changed(names: Sequence[str], change: Change) -> Callable[[Arrays], Arrays]:
    """Return a change of some tensors."""

    def apply(arrays: Arrays) -> Arrays:
        changed = {name: change(arrays[name]) for name in names}
        return {
            name: changed[name].astype(array.dtype, copy=False) if name in changed else array
            for name, array in arrays.items()
        }

    return apply


def _each(
    specs: Sequence[TensorSpec], change: Callable[..., np.ndarray]
) -> Callable[[Arrays], Arrays]:
    """Return a change of some tensors that depends on their numbers in the file."""

    def apply(arrays: Arrays) -> Arrays:
        for spec in specs:
            arrays = _changed([spec.keras_name], functools.partial(change, spec=spec))(arrays)
        return arrays

    return apply


def _axes(shape: tuple[int, ...], wanted: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
    """Yield orders of the axes after the samples that turn one shape into another."""
    count = len(shape) - 1
    if len(shape) != len(wanted) or not 2 <= count <= _MOST_AXES:
        return
    for order in itertools.permutations(range(1, count + 1)):
        axes = (0, *order)
        if axes != tuple(range(count + 1)) and tuple(shape[a] for a in axes) == wanted:
            yield axes


def _channel_orders(count: int) -> list[tuple[int, ...]]:
    """Return the orders of channels, the reversed one first."""
    backwards = tuple(reversed(range(count)))
    rest = set(itertools.permutations(range(count))) - {backwards, tuple(range(count))}
    return [backwards, *sorted(rest)]


def _columns(given: np.ndarray, truth: np.ndarray) -> list[int] | None:
    """Return where each entry of the last axis is found in the given output; None if nowhere."""
    count = truth.shape[-1]
    y = given.reshape(-1, count).astype(np.float64)
    t = truth.reshape(-1, count)
    if count < 2 or len(t) < 2 or not (np.isfinite(y).all() and np.isfinite(t).all()):
        return None
    distances = np.square(t[:, :, None] - y[:, None, :]).sum(axis=0)
    places = [int(place) for place in distances.argmin(axis=1)]
    return places if sorted(places) == list(range(count)) != places else None


def _entries(places: Sequence[int]) -> str:
    """Describe which entries are exchanged."""
    moved = [place for place, found in enumerate(places) if place != found]
    if len(moved) == 2:
        return f"entries {moved[0]} and {moved[1]} are exchanged"
    return f"entries are in another order, corrected by {tuple(places)},"


def _scaled(given: np.ndarray, expected: np.ndarray, spec: TensorSpec) -> Iterator[_Reading]:
    """Yield the factor, the offset, and both, that explain an output best."""
    y, t = (array.reshape(-1).astype(np.float64) for array in (given, expected))
    usable = np.isfinite(y) & np.isfinite(t)
    y, t = y[usable], t[usable]
    if not usable.any() or np.ptp(t) == 0:
        return
    name, undo = spec.keras_name, "undo that where it is read, or convert again"
    factor, offset = float(y @ t) / float(t @ t), float(np.median(y - t))
    if offset:
        says = f"output '{name}' is the trained model's plus {offset:.4g}: {undo}"
        yield says, lambda y: y - offset
    if factor:
        says = f"output '{name}' is {factor:.4g} times the trained model's: {undo}"
        yield says, lambda y: y / factor
    slope, start = (float(v) for v in np.polyfit(t, y, 1))
    if slope:
        says = f"output '{name}' is {slope:.4g} times the trained model's plus {start:.4g}: {undo}"
        yield says, lambda y: (y - start) / slope
