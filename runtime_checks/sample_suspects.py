"""Tests whether the user's own samples resemble those that the network was trained on.

A file can compute exactly what the trained model computes and still receive pixels in another
range, BGR instead of RGB, or labels in another order. The export records the range of its real
samples and its preprocessing; with labels, the accuracy of the trained model on these samples shows
whether they are right, and which change would make them right.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from ..artifacts.directory import ExportDirectory
from ..artifacts.golden_set import Arrays, GoldenSet
from ..artifacts.images import Preprocessing
from ..artifacts.network import Network
from ..artifacts.sample_kinds import REAL, kinds_of
from ..artifacts.samples import SampleSet
from ..reference.network import evaluate_network
from ..reference.value_changes import value_changes
from .end_to_end.chance import at_least
from .end_to_end.comparison import as_scores
from .end_to_end.findings import Finding
from .end_to_end.task_agreement import deciding_outputs

CHECK = "inputs"

# Values beyond the known range by this share of it still count as inside: few samples span less.
_MARGIN = 0.05
# At most this share of the values of correct samples lies outside.
_OUTSIDE = 0.25
# Samples whose range is this small a share of the known one were scaled differently.
_NARROW = 1 / 20
# Fewer labels are not significant; more are not needed to test explanations.
_FEWEST, _TRIED = 20, 32
# An accuracy that is reached by chance in more than this share of cases is near chance.
_CHANCE = 0.01
# Above this accuracy no explanation is sought; explanations this close are equally likely.
_GOOD, _AS_GOOD = 0.9, 0.05
# More explanations that are equally likely say nothing.
_MOST_NAMED = 3

# Share of right decisions, and the change that leads to it.
_Cure = tuple[float, str]


def sample_suspects(
    own: SampleSet,
    known: GoldenSet,
    joint: GoldenSet,
    export: ExportDirectory,
    preprocessing: Preprocessing | None,
) -> list[Finding]:
    """Return findings on own samples that are, or seem, wrong; none if all is well.

    Args:
        own: The samples.
        known: The golden set of the export.
        joint: The same with the samples at its end.
        export: The export.
        preprocessing: As given by the user; None for that of the export.
    """
    findings = list(_ranges(own.arrays, known))
    told = export.manifest.metadata.get("preprocessing")
    if preprocessing is not None and told is not None:
        given = {"mean": preprocessing.mean, "scale": preprocessing.scale}
        differing = [
            k for k, v in given.items() if not np.array_equal(np.ravel(v), np.ravel(told[k]))
        ]
        findings += [
            Finding(
                CHECK,
                False,
                f"--{key} {given[key]} differs from the value at export ({told[key]}), which "
                "the files' metadata also states: leave it out, or export again",
                key,
            )
            for key in differing
        ]
    if own.labels is not None:
        findings += _labels(own, known, joint, export)
    return findings


def _ranges(inputs: Arrays, known: GoldenSet) -> Iterator[Finding]:
    """Compare the range of each float input with the export's real samples."""
    real = known.kind == REAL
    for name, array in inputs.items():
        usual = known.inputs[name][real]
        if usual.size and np.isfinite(usual).all() and not np.any(kinds_of({name: array}) == REAL):
            yield Finding(
                CHECK,
                False,
                f"every own sample of '{name}' contains NaN or infinity, and no real one of the "
                "export does: preprocess them as in training",
                name,
            )
            continue
        says = _unlike(array, known, name)
        if says:
            yield Finding(CHECK, False, f"own samples of {says}", name)


def _unlike(array: np.ndarray, known: GoldenSet, name: str) -> str:
    """Describe how the range of an input's values differs from that of the export's real samples.

    Empty if it does not, or if that is not known.
    """
    usual, values = (a[np.isfinite(a)] for a in (known.inputs[name][known.kind == REAL], array))
    if array.dtype.kind != "f" or not usual.size or not values.size or np.ptp(usual) == 0:
        return ""
    low, high, span = float(usual.min()), float(usual.max()), float(np.ptp(usual))
    margin = _MARGIN * span
    outside = float(np.mean((values < low - margin) | (values > high + margin)))
    narrow = 0 < np.ptp(values) < _NARROW * span
    if outside <= _OUTSIDE and not narrow:
        return ""
    return (
        f"'{name}' lie in {values.min():.4g}..{values.max():.4g}, the export's real ones in "
        f"{low:.4g}..{high:.4g}; {100 * outside:.0f} % of the values are outside: preprocess them "
        "as in training"
    )


def _labels(
    own: SampleSet, known: GoldenSet, joint: GoldenSet, export: ExportDirectory
) -> list[Finding]:
    """Measure the trained model's accuracy on the samples; if poor, find what raises it."""
    assert own.labels is not None
    classes = export.manifest.metadata.get("labels", ())
    network = export.folded_network
    assert network is not None  # the truth of own samples comes from it
    findings = []
    for output in deciding_outputs(network, joint, classes):
        scores = joint.truth[output][-own.count :]
        index = np.flatnonzero((own.labels >= 0) & np.isfinite(scores).all(axis=1))
        labels, count = own.labels[index], as_scores(scores).shape[1]
        if len(index) < _FEWEST or labels.max() >= count:
            continue
        decided = as_scores(scores)[index].argmax(axis=1)
        right = int(np.sum(decided == labels))
        cures = [
            *_label_cures(decided, labels, count),
            *_input_cures(own, output, index, network, known),
        ]
        best = max((share for share, _ in cures), default=0.0)
        # The simplest ones come first.
        close = [says for share, says in cures if share > best - _AS_GOOD]
        likely = " or ".join(close[:_MOST_NAMED])
        near = at_least(right, len(index), 1 / count) > _CHANCE
        if cures or near:
            findings.append(
                Finding(
                    CHECK,
                    not cures,
                    f"the trained model itself is right on {100 * right / len(index):.0f} % of "
                    f"{len(index)} own samples (output '{output}'), chance is {100 / count:.0f} %: "
                    + (
                        f"{likely} would make it right on {100 * best:.0f} %"
                        if cures
                        else "check the preprocessing and the order of the labels"
                    ),
                    output,
                )
            )
    return findings


def _label_cures(decided: np.ndarray, labels: np.ndarray, count: int) -> Iterator[_Cure]:
    """Yield the order of labels under which the model is right."""
    table = np.zeros((count, count), int)
    np.add.at(table, (labels, decided), 1)
    present = np.flatnonzero(table.sum(axis=1))
    meant = table[present].argmax(axis=1)
    after = int(table[present, meant].sum())
    before = int(np.sum(decided == labels))
    one_to_one = len(set(meant.tolist())) == len(present)
    if one_to_one and _clearly(before, after, len(labels)):
        pairs = ", ".join(f"{a} is {b}" for a, b in zip(present, meant) if a != b)
        yield after / len(labels), f"labels in another order ({pairs})"
    for step, which in ((1, "before"), (-1, "after")):
        after = int(np.sum(decided == np.roll(labels, -step)))
        if _clearly(before, after, len(labels)):
            yield after / len(labels), f"labels of the sample {which} (shifted by one)"


def _input_cures(
    own: SampleSet, output: str, index: np.ndarray, network: Network, known: GoldenSet
) -> Iterator[_Cure]:
    """Yield the changes of the inputs under which the model is right.

    Changed values must lie in the range of the export's real samples.
    """
    assert own.labels is not None
    index = index[np.linspace(0, len(index) - 1, min(_TRIED, len(index))).astype(int)]
    part, labels = {name: a[index] for name, a in own.arrays.items()}, own.labels[index]

    def right(inputs: Arrays) -> int:
        with np.errstate(all="ignore"):
            scores = as_scores(evaluate_network(network, inputs, dtype=np.float32)[output])
        return int(np.sum(scores.argmax(axis=1) == labels))

    before = right(part)
    if before > _GOOD * len(labels):
        return
    for changes in (_single_changes, _double_changes):
        best = 0.0
        for name, array in part.items():
            for says, values in changes(array) if array.dtype.kind == "f" else ():
                changed = values.astype(np.float32)
                if _unlike(changed, known, name):
                    continue
                after = right({**part, name: changed})
                if _clearly(before, after, len(labels)):
                    best = max(best, after / len(labels))
                    yield after / len(labels), f"{says} of '{name}'"
        if best > _GOOD:
            return


def _single_changes(array: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    """Yield the changes of one input: of the order of its numbers, or of the numbers."""
    yield from _reordered(array)
    for says, change in value_changes(array):
        yield f"values {says}", change(array)


def _double_changes(array: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    """Yield the changes of both."""
    for order, changed in _reordered(array):
        for says, change in value_changes(array):
            yield f"{order} and values {says}", change(changed)


def _reordered(array: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    """Yield other orders of the numbers of one input."""
    rank, shape = array.ndim, array.shape
    if rank > 2 and shape[-1] in (3, 4):
        order = [2, 1, 0, *range(3, shape[-1])]
        yield "exchanging channels 0 and 2", array[..., order]
    if rank > 2 and shape[1] == shape[2]:
        yield "exchanging rows and columns", np.swapaxes(array, 1, 2)
    for axis in range(1, rank - 1):
        yield f"reversing axis {axis}", np.flip(array, axis)
    if rank > 2 and shape[-1] > 1:
        first = array.reshape(len(array), shape[-1], *shape[1:-1])
        yield "reading the memory with channels first (NCHW)", np.moveaxis(first, 1, -1)


def _clearly(before: int, after: int, count: int) -> bool:
    """Return whether an accuracy is good and far better than another."""
    return after >= 0.5 * count and at_least(after, count, max(before, 1) / count) < _CHANCE
