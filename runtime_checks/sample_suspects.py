"""Are the user's own samples what the network was trained on?

A file can compute exactly what the trained model computes and still be fed pixels in another range,
blue before red, or judged by labels in another order. The export knows the range of its real
samples and its preprocessing; the labels tell whether the trained model itself does its task on
these samples, and what would let it.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from ..artifacts.directory import ExportDirectory
from ..artifacts.golden_set import Arrays, GoldenSet
from ..artifacts.images import Preprocessing
from ..artifacts.network import Network
from ..artifacts.sample_kinds import REAL
from ..artifacts.samples import SampleSet
from ..reference.network import evaluate_network
from .end_to_end.chance import at_least
from .end_to_end.comparison import as_scores
from .end_to_end.findings import Finding
from .end_to_end.task_agreement import deciding_outputs
from .interface_suspects import RANGES

CHECK = "inputs"

# Values this share of the known range beyond it are still inside: a sample of samples is smaller.
_MARGIN = 0.05
# Of samples that are those of training, at most this share lies outside.
_OUTSIDE = 0.25
# Samples whose range is this small a part of the known one were scaled otherwise.
_NARROW = 1 / 20
# Fewer labels tell nothing; more are not needed to try explanations.
_FEWEST, _TRIED = 20, 32
# An accuracy that chance alone reaches in more than this share of cases is near chance.
_CHANCE = 0.01
# With an accuracy like this nothing is looked for; explanations this close are equally likely.
_GOOD, _AS_GOOD = 0.9, 0.05

# Share of right decisions, and what leads to it.
_Cure = tuple[float, str]


def sample_suspects(
    own: SampleSet,
    known: GoldenSet,
    joint: GoldenSet,
    export: ExportDirectory,
    preprocessing: Preprocessing | None,
) -> list[Finding]:
    """Return what is wrong, or looks wrong, with own samples; nothing where all is well.

    Args:
        own: The samples.
        known: The golden set of the export.
        joint: The same with the samples at its end.
        export: The export.
        preprocessing: What was asked for; None for what the export was told.
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
                f"--{key} {given[key]} is not what the export was told ({told[key]}), and what its "
                "files say of themselves: leave it out, or export again",
                key,
            )
            for key in differing
        ]
    if own.labels is not None:
        findings += _labels(own, joint, export)
    return findings


def _ranges(inputs: Arrays, known: GoldenSet) -> Iterator[Finding]:
    """Compare the range of each float input with the export's real samples."""
    real = known.kind == REAL
    for name, array in inputs.items():
        usual = known.inputs[name][real]
        usual, values = (a[np.isfinite(a)] for a in (usual, array))
        if array.dtype.kind != "f" or not usual.size or not values.size or np.ptp(usual) == 0:
            continue
        low, high, span = float(usual.min()), float(usual.max()), float(np.ptp(usual))
        margin = _MARGIN * span
        outside = float(np.mean((values < low - margin) | (values > high + margin)))
        narrow = 0 < np.ptp(values) < _NARROW * span
        if outside > _OUTSIDE or narrow:
            yield Finding(
                CHECK,
                False,
                f"own samples of '{name}' lie in {values.min():.4g}..{values.max():.4g}, the "
                f"export's real ones in {low:.4g}..{high:.4g}; {100 * outside:.0f} % of the values "
                "are outside: preprocess them as in training",
                name,
            )


def _labels(own: SampleSet, joint: GoldenSet, export: ExportDirectory) -> list[Finding]:
    """Ask whether the trained model does its task on the samples, and if not, what would let it."""
    assert own.labels is not None
    classes = export.manifest.metadata.get("labels", ())
    network = export.folded_network
    assert network is not None  # the truth of own samples comes from it
    findings = []
    for output in deciding_outputs(network, joint, classes):
        scores = joint.truth[output][-own.count :]
        known = np.flatnonzero((own.labels >= 0) & np.isfinite(scores).all(axis=1))
        labels, count = own.labels[known], as_scores(scores).shape[1]
        if len(known) < _FEWEST or labels.max() >= count:
            continue
        decided = as_scores(scores)[known].argmax(axis=1)
        right = int(np.sum(decided == labels))
        cures = [
            *_label_cures(decided, labels, count),
            *_input_cures(own, output, known, network),
        ]
        best = max((share for share, _ in cures), default=0.0)
        likely = " or ".join(says for share, says in cures if share > best - _AS_GOOD)
        near = at_least(right, len(known), 1 / count) > _CHANCE
        if cures or near:
            findings.append(
                Finding(
                    CHECK,
                    not cures,
                    f"the trained model itself is right on {100 * right / len(known):.0f} % of "
                    f"{len(known)} own samples (output '{output}'), chance is {100 / count:.0f} %: "
                    + (
                        f"{likely} would make it right on {100 * best:.0f} %"
                        if cures
                        else "look at preprocessing and the order of the labels"
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


def _input_cures(
    own: SampleSet, output: str, known: np.ndarray, network: Network
) -> Iterator[_Cure]:
    """Yield the changes of the inputs under which the model is right."""
    assert own.labels is not None
    index = known[np.linspace(0, len(known) - 1, min(_TRIED, len(known))).astype(int)]
    part, labels = {name: a[index] for name, a in own.arrays.items()}, own.labels[index]

    def right(inputs: Arrays) -> int:
        with np.errstate(all="ignore"):
            scores = as_scores(evaluate_network(network, inputs, dtype=np.float32)[output])
        return int(np.sum(scores.argmax(axis=1) == labels))

    before = right(part)
    if before > _GOOD * len(labels):
        return
    for says, changed in _changes(part):
        after = right(changed)
        if _clearly(before, after, len(labels)):
            yield after / len(labels), says


def _changes(inputs: Arrays) -> Iterator[tuple[str, Arrays]]:
    """Yield what may have to be done to the inputs, and the inputs with it done."""
    for name, array in inputs.items():
        if array.dtype.kind == "f":
            for says, changed in _changed(array):
                yield f"{says} of '{name}'", {**inputs, name: changed.astype(np.float32)}


def _changed(array: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    """Yield the changes of one input."""
    if array.ndim > 2 and array.shape[-1] in (3, 4):
        order = [2, 1, 0, *range(3, array.shape[-1])]
        yield "exchanging channels 0 and 2", array[..., order]
    if array.ndim > 2 and array.shape[1] == array.shape[2]:
        yield "exchanging rows and columns", np.swapaxes(array, 1, 2)
    for says, change in RANGES:
        yield f"values {says}", change(array)


def _clearly(before: int, after: int, count: int) -> bool:
    """Return whether an accuracy is a good one and far better than another."""
    return after >= 0.5 * count and at_least(after, count, max(before, 1) / count) < _CHANCE
