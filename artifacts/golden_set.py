"""The golden set: inputs, and the outputs of float64, float32 and each artifact for them."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from ..errors import UserError
from .archive import Archive, DamageError
from .ranges import Misfits

Arrays = Mapping[str, np.ndarray]


# Separates the names of rules that agree on all samples.
_AND = " | "

# Arrays of one number for each sample.
_BY_SAMPLE = ("kind", "noise", "file-noise", "step", "saturated", "unpredicted")


def joined(first: Arrays, second: Arrays) -> dict[str, np.ndarray]:
    """Return the concatenation of the arrays that both have."""
    return {name: np.concatenate([first[name], second[name]]) for name in first if name in second}


@dataclass(frozen=True)
class Predictions:
    """The exact outputs of an integer file under each known rounding rule.

    Attributes:
        by_rule: Name of the rule (the kernels that follow it) to Keras output name to (N, …)
            float32: the dequantized integers. Rules that agree on all samples share their arrays.
        steps: Keras output name to its quantization step, for each predicted output.
        reason: Reason why an output, or all of them, is not predicted, a clause; else empty.
        saturated: (N,) whether a sum of a sample is beyond the range of its integers; None if that
            is the case in no sample, or if no output is predicted and it is not known.
    """

    by_rule: Mapping[str, Arrays]
    steps: Mapping[str, float]
    reason: str = ""
    saturated: np.ndarray | None = None

    @property
    def none(self) -> bool:
        """Whether no output is predicted."""
        return not self.by_rule

    def joined(self, other: Predictions) -> Predictions:
        """Return the predictions for the samples of both, of the outputs that both predict."""
        reason = self.reason or other.reason
        saturated, first, second = None, self._flags(), other._flags()
        if first is not None and second is not None:
            saturated = np.concatenate([first, second])
        if self.none or other.none:
            return Predictions({}, {}, reason, saturated)
        both = {
            rule: joined(outputs, other.by_rule[rule])
            for rule, outputs in self.by_rule.items()
            if rule in other.by_rule
        }
        steps = {name: step for name, step in self.steps.items() if name in other.steps}
        return Predictions(both if steps else {}, steps, reason, saturated)

    def select(self, index: np.ndarray) -> Predictions:
        """Return the predictions for some samples."""
        by_rule = {rule: pick(outputs, index) for rule, outputs in self.by_rule.items()}
        saturated = None if self.saturated is None else self.saturated[index]
        return replace(self, by_rule=by_rule, saturated=saturated)

    def _flags(self) -> np.ndarray | None:
        """Return (N,) which samples are saturated; None if it is not known."""
        if self.none or self.saturated is not None:
            return self.saturated
        outputs = next(iter(self.by_rule.values()))
        return np.zeros(len(next(iter(outputs.values()))), bool)


def pick(arrays: Arrays, index: np.ndarray) -> dict[str, np.ndarray]:
    """Return some samples of all arrays."""
    return {name: array[index] for name, array in arrays.items()}


@dataclass(frozen=True)
class GoldenSet:
    """Inputs and the outputs of each stage; N samples on the first axis.

    Attributes:
        kind: (N,) "real", "random", "border", "extreme", "denormal", "nonfinite" or "search"; see
            `sample_kinds`. In "nonfinite" samples NaN marks elements without an expected value.
        inputs: Keras input name to (N, …) float32.
        truth: Keras output name to (N, …) float64: the trained model evaluated in float64.
        folded64: The same for the folded network.
        reference: Keras output name to (N, …) float32: the trained model as Keras runs it.
        artifacts: File name to the outputs of that file on the exporting machine.
        noise: Keras output name to (N,) root mean square error that float32 arithmetic is expected
            to make; empty if a layer has no noise model.
        file_noise: File name to the same for the arithmetic of that file; only files whose
            precision has a noise model (`precisions.Precision.noise`).
        in_floats: File name to the outputs that the network has with that file's weights, without
            any rounding at run time; only files of integers that a runtime computes in floats.
        predictions: File name to the prediction of its integers; only files of integers.
        misfits: File name to the values that it cannot represent, in samples added after export;
            those found at export are in the manifest.
        labels: (N,) true class of each sample, -1 if unknown; None if none is known.
        trained_integers: Keras output name to (M, …) float32: outputs of a quantization-aware model
            with its fake quantization for the export's own samples, the first M; empty for other
            models.
    """

    kind: np.ndarray
    inputs: Arrays
    truth: Arrays
    folded64: Arrays
    reference: Arrays
    artifacts: Mapping[str, Arrays]
    noise: Arrays = field(default_factory=dict)
    file_noise: Mapping[str, Arrays] = field(default_factory=dict)
    in_floats: Mapping[str, Arrays] = field(default_factory=dict)
    predictions: Mapping[str, Predictions] = field(default_factory=dict)
    misfits: Mapping[str, Misfits] = field(default_factory=dict)
    labels: np.ndarray | None = None
    trained_integers: Arrays = field(default_factory=dict)

    @property
    def samples(self) -> int:
        """Number of samples."""
        return len(self.kind)

    def select(self, index: np.ndarray) -> GoldenSet:
        """Return the golden set restricted to some samples, in the order of ``index``."""
        return GoldenSet(
            kind=self.kind[index],
            inputs=pick(self.inputs, index),
            truth=pick(self.truth, index),
            folded64=pick(self.folded64, index),
            reference=pick(self.reference, index),
            artifacts={file: pick(arrays, index) for file, arrays in self.artifacts.items()},
            noise=pick(self.noise, index),
            file_noise={file: pick(arrays, index) for file, arrays in self.file_noise.items()},
            in_floats={file: pick(arrays, index) for file, arrays in self.in_floats.items()},
            predictions={file: found.select(index) for file, found in self.predictions.items()},
            misfits=self.misfits,
            labels=None if self.labels is None else self.labels[index],
            trained_integers=pick(
                {n: a for n, a in self.trained_integers.items() if len(a) == self.samples}, index
            ),
        )


def read_golden(path: str | os.PathLike[str], outputs: Iterable[str]) -> GoldenSet:
    """Read `golden.npz`; see `golden_of`."""
    try:
        archive = Archive(path)
    except OSError as error:
        raise UserError(f"{path} is not a golden set ({error}). Export again.") from error
    return golden_of(archive, str(path), outputs)


def golden_of(archive: Archive, path: str, outputs: Iterable[str]) -> GoldenSet:
    """Return the golden set in a file.

    Args:
        archive: The file.
        path: Its path, for messages.
        outputs: Keras names of the outputs that it must contain.

    Returns:
        The golden set; every array has the same number of samples, and at least one.

    Raises:
        UserError: The file is damaged, lacks an output, or its arrays disagree on N.
    """
    try:
        arrays = dict(archive)
    except DamageError as error:
        raise UserError(f"{path} is not a golden set ({error}). Export again.") from error

    groups: dict[str, dict[str, np.ndarray]] = {
        prefix: {}
        for prefix in ("input", "truth", "folded64", "reference", "noise", "trained-integers")
    }
    by_file: dict[str, dict[str, dict[str, np.ndarray]]] = {
        prefix: {}
        for prefix in (
            *("artifact", "file-noise", "in-floats", "predicted", "step", "unpredicted"),
            "saturated",
        )
    }
    for key, array in arrays.items():
        prefix, _, name = key.partition(":")
        if prefix in by_file:
            file, _, output = name.partition(":")
            by_file[prefix].setdefault(file, {})[output] = array
        elif prefix in groups:
            groups[prefix][name] = array
    if "kind" not in arrays or not groups["input"]:
        raise UserError(f"{path} is not a golden set: it lacks its samples. Export again.")
    samples = len(arrays["kind"]) if arrays["kind"].ndim else 0
    for key, array in arrays.items():
        by_sample = key.partition(":")[0] in _BY_SAMPLE
        if array.ndim == 0 or len(array) != samples or (by_sample and array.ndim > 1):
            raise UserError(
                f"{path}: '{key}' must hold {samples} samples as 'kind' does. Received shape "
                f"{array.shape}. Export again."
            )
    if samples == 0:
        raise UserError(f"{path} holds no sample, so nothing could be compared. Export again.")
    for prefix in ("truth", "folded64", "reference"):
        for output in outputs:
            if output not in groups[prefix]:
                raise UserError(f"{path} lacks '{prefix}:{output}'. Export again.")
    for key, array in arrays.items():
        if array.dtype.kind not in ("U" if key == "kind" else "fiub"):
            raise UserError(f"{path}: '{key}' holds {array.dtype}, no numbers. Export again.")
    return GoldenSet(
        kind=arrays["kind"],
        inputs=groups["input"],
        truth=groups["truth"],
        folded64=groups["folded64"],
        reference=groups["reference"],
        artifacts=by_file["artifact"],
        noise=groups["noise"],
        file_noise=by_file["file-noise"],
        in_floats=by_file["in-floats"],
        trained_integers=groups["trained-integers"],
        predictions=_predictions(by_file),
    )


def predictions_as_arrays(
    predictions: Mapping[str, Predictions], samples: int
) -> dict[str, np.ndarray]:
    """Return the arrays of predictions in a golden set; see `export.golden_set` for their names."""
    content: dict[str, np.ndarray] = {}
    for file, found in predictions.items():
        if found.reason:
            content[f"unpredicted:{file}:{found.reason}"] = np.zeros(samples, np.bool_)
        sharing: dict[int, list[str]] = {}
        for rule, outputs in found.by_rule.items():
            sharing.setdefault(id(outputs), []).append(rule)
        for rules in sharing.values():
            for name, array in found.by_rule[rules[0]].items():
                content[f"predicted:{file}:{_AND.join(rules)}:{name}"] = array
        if found.saturated is not None:
            content[f"saturated:{file}:"] = found.saturated
        for name, step in found.steps.items():
            content[f"step:{file}:{name}"] = np.full(samples, step)
    return content


def _predictions(by_file: Mapping[str, Mapping[str, Arrays]]) -> dict[str, Predictions]:
    """Return the predictions of every file.

    Args:
        by_file: First part of the arrays' names to the file's name to the rest to the array.
    """
    reasons = {file: next(iter(why)) for file, why in by_file["unpredicted"].items()}
    found = {file: Predictions({}, {}, reason) for file, reason in reasons.items()}
    for file, arrays in by_file["predicted"].items():
        sharing: dict[str, dict[str, np.ndarray]] = {}
        for key, array in arrays.items():
            rules, _, name = key.partition(":")
            sharing.setdefault(rules, {})[name] = array
        by_rule = {
            rule: outputs for rules, outputs in sharing.items() for rule in rules.split(_AND)
        }
        own = {name: float(array[0]) for name, array in by_file["step"].get(file, {}).items()}
        found[file] = Predictions(by_rule, own, reasons.get(file, ""))
    for file, flags in by_file["saturated"].items():
        if file in found and "" in flags:
            found[file] = replace(found[file], saturated=flags[""].astype(np.bool_))
    return found
