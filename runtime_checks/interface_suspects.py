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

import numpy as np

from ..artifacts.golden_set import Arrays, GoldenSet
from ..artifacts.manifest import Artifact, TensorSpec
from ..artifacts.precisions import Arithmetic, precision_named
from ..artifacts.sample_kinds import TYPICAL
from ..runtimes import HOSTS, LOCAL, Target, make_runner
from ..runtimes.base import ArtifactError
from ..runtimes.session import Session
from .end_to_end.findings import TargetResult, judge_outputs

# An error below this share of the signal comes from arithmetic, not from the interface.
_DIFFERENT = 0.05
# An explanation must reduce the error by this factor: a wide bound alone admits too much.
_BETTER = 2.0
# Another calibration of the same model may err this many times as much as the exported file.
_OTHER_STEPS = 3.0
_SAMPLES = 6
# With more tensors or channels there are too many orders to try.
_MOST_EXCHANGED, _MOST_CHANNELS, _MOST_AXES = 4, 4, 3

# Ranges that preprocessing commonly confuses: name, and the map from the model's own inputs.
RANGES: tuple[tuple[str, Callable[[np.ndarray], np.ndarray]], ...] = (
    ("multiplied by 255", lambda x: 255 * x),
    ("divided by 255", lambda x: x / 255),
    ("mapped from 0..1 to -1..1", lambda x: 2 * x - 1),
    ("mapped from -1..1 to 0..1", lambda x: (x + 1) / 2),
    ("mapped from -1..1 to 0..255", lambda x: (x + 1) * 127.5),
    ("mapped from 0..255 to -1..1", lambda x: x / 127.5 - 1),
    ("lowered by 128", lambda x: x - 128),
    ("raised by 128", lambda x: x + 128),
    ("lowered by 0.5", lambda x: x - 0.5),
    ("raised by 0.5", lambda x: x + 0.5),
    ("subtracted from 1", lambda x: 1 - x),
    ("negated", lambda x: -x),
)


@dataclass(frozen=True)
class _Hypothesis:
    """A possible fault of the interface.

    Attributes:
        says: What is wrong and how to mend it.
        feed: Converts the model's inputs to those that the file needs.
        read: Converts the file's outputs to those of the model.
    """

    says: str
    feed: Callable[[Arrays], Arrays] | None = None
    read: Callable[[Arrays], Arrays] | None = None


def interface_suspect(
    path: Path, artifact: Artifact, golden: GoldenSet, target: Target, result: TargetResult
) -> str:
    """Return the fault of a file's interface, or an empty string.

    Args:
        path: The file.
        artifact: The manifest's entry of the file.
        golden: The samples that were run.
        target: Where they were run.
        result: The verdict on the outputs.
    """
    typical = np.flatnonzero(np.isin(golden.kind, TYPICAL))
    index = typical[np.linspace(0, len(typical) - 1, min(_SAMPLES, len(typical))).astype(int)]
    if not len(index) or not result.given or not _differs(result, golden, index):
        return ""
    part = golden.select(index)
    given = {name: array[index] for name, array in result.given.items()}
    least = _error(given, part, artifact)[0] / _BETTER
    for hypothesis in _of_outputs(given, part, artifact.outputs):
        if hypothesis.read is not None and _fits(hypothesis.read(given), part, artifact, least):
            return hypothesis.says
    on = target if target.device == LOCAL else Target(HOSTS[artifact.format])
    try:
        with make_runner(on, path) as runner:
            session = Session(runner, artifact)
            for hypothesis in _of_inputs(part.inputs, artifact.inputs):
                assert hypothesis.feed is not None
                if _fits(session.run(hypothesis.feed(part.inputs)), part, artifact, least):
                    return hypothesis.says
    except ArtifactError:
        return ""
    return ""


def _differs(result: TargetResult, golden: GoldenSet, index: np.ndarray) -> bool:
    """Return whether an output is entirely different, or has another shape."""
    if any(array.shape != golden.truth[name].shape for name, array in result.given.items()):
        return True
    for entry in result.outputs:
        error, signal = entry.metrics.rms_error[index], entry.metrics.rms_truth[index]
        if not entry.sound and np.median(error) > _DIFFERENT * np.median(signal):
            return True
    return False


def _error(given: Arrays, golden: GoldenSet, artifact: Artifact) -> tuple[float, bool]:
    """Return the greatest error over the expected one, and whether arithmetic explains it.

    Floats are judged by their noise. The integers of a file with another interface have other
    steps, so their error against truth is compared with that of the exported file.
    """
    if any(given[name].shape != golden.truth[name].shape for name in given):
        return np.inf, False
    exported = golden.artifacts.get(artifact.file, {})
    if precision_named(artifact.precision).arithmetic is Arithmetic.INTEGER and exported:
        tiny = float(np.finfo(np.float32).tiny)
        if given.keys() != golden.truth.keys():
            return np.inf, False
        errors = {name: _rms(given[name] - truth) for name, truth in golden.truth.items()}
        ratios = {
            name: errors[name] / max(_rms(exported[name] - truth), tiny)
            for name, truth in golden.truth.items()
        }
        explained = all(
            ratios[name] <= _OTHER_STEPS or errors[name] <= _DIFFERENT * _rms(truth)
            for name, truth in golden.truth.items()
        )
        return max(ratios.values()), explained
    _, verdicts = judge_outputs(given, golden, artifact)
    if len(verdicts) < len(artifact.outputs):
        return np.inf, False
    return max(entry.worst_ratio for entry in verdicts), all(entry.sound for entry in verdicts)


def _rms(errors: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(errors))))


def _fits(given: Arrays, golden: GoldenSet, artifact: Artifact, least: float) -> bool:
    """Return whether outputs are the trained model's."""
    error, explained = _error(given, golden, artifact)
    return explained and error <= least


def _of_outputs(
    given: Arrays, golden: GoldenSet, specs: Sequence[TensorSpec]
) -> Iterator[_Hypothesis]:
    """Yield possible faults of the outputs."""
    shapes = {name: array.shape for name, array in given.items()}
    yield from (
        _Hypothesis(
            f"{_exchange('output', order)} in the file: read them in that order, or convert the "
            "model again",
            read=_renamed(order),
        )
        for order in _orders(shapes)
    )
    for spec in specs:
        name = spec.keras_name
        truth = golden.truth[name]
        if name not in given:
            continue
        for axes in _axes(given[name].shape, truth.shape):
            yield _Hypothesis(
                f"the axes of output '{name}' are in another order: transpose it by {axes}",
                read=_changed(name, functools.partial(np.transpose, axes=axes)),
            )
        if given[name].shape != truth.shape:
            continue
        places = _columns(given[name], truth)
        if places is not None:
            yield _Hypothesis(
                f"{_entries(places)} of output '{name}' (last axis): labels or rows of its layer "
                "are in another order than in training: use that order, or convert again",
                read=_changed(name, functools.partial(np.take, indices=places, axis=-1)),
            )
        yield from _scaled(given[name], truth, spec)


def _of_inputs(inputs: Arrays, specs: Sequence[TensorSpec]) -> Iterator[_Hypothesis]:
    """Yield possible faults of the inputs."""
    kinds = {name: (array.shape, array.dtype) for name, array in inputs.items()}
    for order in _orders(kinds):
        yield _Hypothesis(
            f"{_exchange('input', order)} in the file: feed them in that order, or convert the "
            "model again",
            feed=_renamed(order),
        )
    for spec in specs:
        name = spec.keras_name
        shape = inputs[name].shape
        if len(shape) > 2 and shape[-1] in range(2, _MOST_CHANNELS + 1):
            for places in _channel_orders(shape[-1]):
                known = " (BGR for RGB)" if places == (2, 1, 0) else ""
                yield _Hypothesis(
                    f"input '{name}' has its channels in the order {places}{known} in the file: "
                    "use that order, or convert the model again",
                    feed=_changed(name, functools.partial(np.take, indices=places, axis=-1)),
                )
        for axes in _axes(shape, shape):
            yield _Hypothesis(
                f"the axes of input '{name}' are in another order in the file: transpose what it "
                f"is fed by {axes}",
                feed=_changed(name, functools.partial(np.transpose, axes=axes)),
            )
        if spec.scale is not None and np.dtype(spec.dtype).kind in "iu":
            for sign in (-1, 1):
                step = sign * 128 * spec.scale
                yield _Hypothesis(
                    f"the bytes of input '{name}' are taken as {'un' if sign < 0 else ''}signed: "
                    "its zero point is off by 128",
                    feed=_changed(name, functools.partial(np.add, step)),
                )
        if inputs[name].dtype.kind == "f":
            for says, change in RANGES:
                yield _Hypothesis(
                    f"the file takes input '{name}' {says}: use that range, or convert again",
                    feed=_changed(name, change),
                )


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


def _changed(name: str, change: Callable[[np.ndarray], np.ndarray]) -> Callable[[Arrays], Arrays]:
    def apply(arrays: Arrays) -> Arrays:
        changed = change(arrays[name])
        return {**arrays, name: changed.astype(arrays[name].dtype, copy=False)}

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


def _scaled(given: np.ndarray, truth: np.ndarray, spec: TensorSpec) -> Iterator[_Hypothesis]:
    """Yield the scale and offset that explain an output best."""
    y, t = given.reshape(-1).astype(np.float64), truth.reshape(-1)
    usable = np.isfinite(y) & np.isfinite(t)
    if not usable.any() or np.ptp(t[usable]) == 0:
        return
    factor, offset = (float(v) for v in np.polyfit(t[usable], y[usable], 1))
    if factor == 0:
        return
    name = spec.keras_name
    says = (
        f"output '{name}' is {factor:.4g} times the trained model's plus {offset:.4g}: undo that "
        "where it is read, or convert again"
    )
    if spec.scale is not None and round(abs(offset) / spec.scale) == 128 and abs(factor - 1) < 0.01:
        says = f"the bytes of output '{name}' have the wrong sign: its zero point is off by 128"
    yield _Hypothesis(says, read=_changed(name, lambda y: (y - offset) / factor))
