"""Compares a target's integers with those that the export predicted.

The golden set holds the outputs of an integer file, to the bit, under every known rounding rule
(`reference.integer.prediction`). A target's outputs must equal those of one rule in every sample.
This needs no tensors of the target, so it works on devices and in bundles as well.

If no rule fits, the target may follow an unknown one. It is then judged by the limit of `bounds`,
and the report says so. An unknown rule is one more rule: most of its integers lie between those of
the known ones, as each known rule's lie between those of the others. A wrong kernel's do not, even
if it changes little. The runtime that the export ran, in the same version, has no such allowance:
if that runtime followed a known rule then, it must follow it everywhere.
"""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ...artifacts.golden_set import Arrays, GoldenSet, Predictions
from ...artifacts.manifest import Artifact
from ...artifacts.precisions import precision_named
from ...artifacts.sample_kinds import NONFINITE
from .last_function import other_function

# Dequantization by another sequence of operations differs by a few units in the last place of 24
# bits; a step of 16 bits has 256 of them.
_SAME = 1 / 64

# The range of all known rules is judged if at least the last number of them differ. An unknown rule
# may have this many times as many integers outside of it as a known rule has outside the range of
# the others, or this share of all integers if that is more.
_UNKNOWN_RULE, _LEAST_SHARE, _ENOUGH_RULES = 2.0, 0.02, 3

# Integers whose range is not judged: all known rules of 16 bits share a multiplier of 15 bits, so
# that a rule with a finer one, or floats, lies outside of them all.
_WIDE = "int16"

# The runtime that ran a file at export, by format, its package, and the processors on which its
# rules are known; none stands for all.
_HOSTS: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "tflite": ("litert", "ai-edge-litert", ()),
    "onnx": ("onnxruntime", "onnxruntime", ("x86_64", "AMD64")),
}


@dataclass(frozen=True)
class IntegerAgreement:
    """A target's outputs compared with the predictions for its file.

    Attributes:
        kernels: The kernels with equal bits; empty if no known ones are equal.
        nearest: The kernels with the nearest results; empty if nothing was predicted.
        expected: Keras output name to (N, …) results of these.
        samples: Samples compared; those with NaN or infinity are excluded.
        elements: Elements compared.
        differing: Elements that differ from the nearest prediction.
        first: Output and index of the first of them.
        outside: Elements outside the range of all known rules; 0 where that is not judged.
        allowed: How many of them an unknown rule may have.
        function: Description of the function of a known rule's integers that these are; else empty.
        reason: Why nothing was predicted; else empty.
        rest: Which outputs were not predicted, and why, a clause; else empty.
    """

    kernels: tuple[str, ...]
    nearest: str
    expected: Arrays
    samples: int
    elements: int
    differing: int
    first: tuple[str, tuple[int, ...]] = ("", ())
    outside: int = 0
    allowed: int = 0
    function: str = ""
    reason: str = ""
    rest: str = ""

    def instead_of(self, expected: np.ndarray, output: str, kind: np.ndarray) -> np.ndarray:
        """Return the prediction; in excluded samples, the values expected without it."""
        mute = (kind == NONFINITE).reshape(-1, *[1] * (expected.ndim - 1))
        return np.where(mute, expected, self.expected[output])

    @property
    def sentence(self) -> str:
        """Describe which rule fits, or that none does."""
        if self.reason:
            return f"the file's integers cannot be predicted to the bit: {self.reason}"
        what = f"{self.elements:,} integers of {self.samples} samples"
        if self.kernels:
            others = f" (and of {', '.join(self.kernels[1:])})" if self.kernels[1:] else ""
            return f"equal to the bit: the rounding of {self.kernels[0]}{others}, {what}{self.rest}"
        name, index = self.first
        return (
            f"no known rounding rule gives these integers: {self.differing:,} of {what} differ "
            f"from the nearest, the rounding of {self.nearest}; first output '{name}' at "
            f"{list(index)}{self._range}{self.rest}"
        )

    @property
    def plausible(self) -> bool:
        """Whether a known or an unknown rounding rule may give these integers."""
        return self.outside <= self.allowed and not self.function

    @property
    def _range(self) -> str:
        if self.function:
            return f"; they are {self.function}: the last operator is computed wrongly"
        if self.plausible:
            return ""
        return (
            f"; {self.outside:,} lie outside the range of all known rules, where rounding explains "
            f"{self.allowed:,}: an operator is computed wrongly"
        )


def integer_agreement(
    artifact: Artifact, outputs: Arrays, golden: GoldenSet, *, follows_rules: bool = True
) -> IntegerAgreement | None:
    """Compare outputs with every prediction.

    Args:
        artifact: The file that gave them.
        outputs: Keras output name to (N, …).
        golden: The golden set with the predictions.
        follows_rules: Whether the runtime rounds by one rule, known or not; if not, the range of
            the known rules says nothing about it.

    Returns:
        The result; None for a file without predictions, such as one of floats.
    """
    predictions = golden.predictions.get(artifact.file)
    if predictions is None:
        return None
    if predictions.none:
        return IntegerAgreement((), "", {}, 0, 0, 0, reason=predictions.reason)
    outputs, filed = _comparable(outputs, golden), predictions.by_rule
    predictions = replace(
        predictions, by_rule={rule: _comparable(arrays, golden) for rule, arrays in filed.items()}
    )
    finite = np.flatnonzero(golden.kind != NONFINITE)
    differing: dict[str, dict[str, np.ndarray]] = {}
    for rule, expected in predictions.by_rule.items():
        differing[rule] = {
            name: _differing(outputs.get(name), array, predictions.steps[name])[finite]
            for name, array in expected.items()
        }
    counts = {rule: sum(int(a.sum()) for a in found.values()) for rule, found in differing.items()}
    nearest = min(counts, key=lambda rule: counts[rule])
    outside, allowed = 0, 0
    ranged = follows_rules and precision_named(artifact.precision).integer_io != _WIDE
    if counts[nearest] and ranged:
        outside, allowed = _beyond(outputs, predictions, finite)
    function = _function(outputs, predictions, finite) if counts[nearest] and follows_rules else ""
    return IntegerAgreement(
        kernels=tuple(rule for rule, count in counts.items() if not count),
        nearest=nearest,
        expected=filed[nearest],
        samples=len(finite),
        elements=sum(
            int(_expected(golden, name, array)[finite].sum())
            for name, array in filed[nearest].items()
        ),
        differing=counts[nearest],
        first=_first(differing[nearest], finite),
        rest=_rest(predictions, artifact),
        outside=outside,
        allowed=allowed,
        function=function,
    )


def _comparable(arrays: Arrays, golden: GoldenSet) -> dict[str, np.ndarray]:
    """Return outputs with 0 where no number is expected."""
    found = {}
    for name, array in arrays.items():
        expected = _expected(golden, name, array)
        whole = expected.all()
        found[name] = array if whole else np.where(expected, array, 0.0).astype(array.dtype)
    return found


def _expected(golden: GoldenSet, name: str, array: np.ndarray) -> np.ndarray:
    """Return where the trained model gives a number, so that one is expected of an output."""
    known = golden.reference.get(name)
    if known is None or known.shape != array.shape:
        return np.ones(array.shape, bool)
    return np.isfinite(known)


def differing_samples(
    outputs: Arrays, expected: Arrays, steps: Mapping[str, float], golden: GoldenSet
) -> np.ndarray:
    """Return the samples in which an output differs; those with NaN are excluded."""
    given = _comparable(outputs, golden)
    differing = np.zeros(golden.samples, bool)
    for name, array in _comparable(expected, golden).items():
        found = _differing(given.get(name), array, steps[name])
        differing |= found.reshape(len(found), -1).any(axis=1)
    return np.flatnonzero(differing & (golden.kind != NONFINITE))


def _rest(predictions: Predictions, artifact: Artifact) -> str:
    """Return a clause on the outputs without a prediction."""
    names = [s.keras_name for s in artifact.outputs if s.keras_name not in predictions.steps]
    listed = ", ".join(f"'{name}'" for name in names)
    return f"; not predicted: {listed} ({predictions.reason})" if names else ""


def must_agree(
    artifact: Artifact,
    golden: GoldenSet,
    ran: Mapping[str, Any],
    variant: str,
    versions: Mapping[str, str],
) -> bool:
    """Return whether a target has to follow a known rule.

    Args:
        artifact: The file.
        golden: The golden set with the predictions and the file's outputs at export.
        ran: The runner's description of itself.
        variant: The target's variant.
        versions: Versions of the packages used at export.
    """
    if artifact.format not in _HOSTS or variant:
        return False
    runtime, package, machines = _HOSTS[artifact.format]
    version = dict(ran.get("versions", {})).get(package)
    if ran.get("runtime") != runtime or version is None or version != versions.get(package):
        return False
    if machines and platform.machine() not in machines:
        return False
    exported = integer_agreement(artifact, golden.artifacts.get(artifact.file, {}), golden)
    return exported is not None and bool(exported.kernels)


def _function(outputs: Arrays, predictions: Predictions, samples: np.ndarray) -> str:
    """Describe an output that is another function of some rule's integers; empty if none is."""
    for rule, known in predictions.by_rule.items():
        for name, expected in known.items():
            if name not in outputs or outputs[name].shape != expected.shape:
                continue
            step = predictions.steps[name]
            says = other_function(outputs[name][samples], expected[samples], step)
            if says:
                return f"those of {rule} {says}"
    return ""


def _beyond(outputs: Arrays, predictions: Predictions, samples: np.ndarray) -> tuple[int, int]:
    """Return how many elements are outside the range of all rules, and how many may be.

    Both are 0 where too few rules differ, or an output is missing or has another shape.
    """
    rules = list(predictions.by_rule.values())
    if any(name not in outputs or outputs[name].shape != a.shape for name, a in rules[0].items()):
        return 0, 0
    distinct: list[np.ndarray] = []
    for rule in rules:
        steps = _in_steps(rule, predictions, samples)
        if not any(np.array_equal(steps, other) for other in distinct):
            distinct.append(steps)
    if len(distinct) < _ENOUGH_RULES:
        return 0, 0
    usual = max(
        _outside(steps, distinct[:place] + distinct[place + 1 :])
        for place, steps in enumerate(distinct)
    )
    allowed = max(_UNKNOWN_RULE * usual, _LEAST_SHARE * distinct[0].size)
    return _outside(_in_steps(outputs, predictions, samples), distinct), int(allowed)


def _in_steps(outputs: Arrays, predictions: Predictions, samples: np.ndarray) -> np.ndarray:
    """Return all outputs of some samples in one row, in units of their steps."""
    return np.concatenate(
        [(outputs[name][samples] / step).ravel() for name, step in predictions.steps.items()]
    )


def _outside(values: np.ndarray, rules: Sequence[np.ndarray]) -> int:
    """Return how many values lie outside the range of some rules."""
    inside = (values >= np.min(rules, axis=0) - _SAME) & (values <= np.max(rules, axis=0) + _SAME)
    return int(np.sum(~inside))


def _differing(got: np.ndarray | None, expected: np.ndarray, step: float) -> np.ndarray:
    """Return which elements are different integers; all for a missing output."""
    if got is None or got.shape != expected.shape:
        return np.ones(expected.shape, bool)
    with np.errstate(invalid="ignore"):
        return np.asarray(~(np.abs(got - expected) <= _SAME * step))


def _first(differing: Mapping[str, np.ndarray], samples: np.ndarray) -> tuple[str, tuple[int, ...]]:
    """Return output and index of the first element that differs."""
    for name, array in differing.items():
        if array.any():
            place = np.unravel_index(int(np.argmax(array)), array.shape)
            return name, (int(samples[place[0]]), *(int(index) for index in place[1:]))
    return "", ()
