"""Measures the effect of differences on the task: decisions kept and changed, and accuracy.

A decision is the greatest of the scores of an output of shape (N, classes), or whether a single
probability exceeds one half. An output of class numbers in an order, such as that of an argmax or
of the indices of a top k, decides for the first of them. The network determines which outputs
decide: the output of an autoencoder has the shape of scores too, but its greatest number means
nothing. If labels are known, the accuracies of the trained model and of the target are compared
sample by sample, so that two files of equal accuracy with errors on different samples are not
considered equal.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...artifacts.golden_set import GoldenSet
from ...artifacts.network import Network
from ...artifacts.sample_kinds import typical_samples
from .chance import CHANCE, at_least, mcnemar
from .comparison import as_scores

# A model that decides prefers its class to the next one by at least these odds in half of the
# samples. By its own scores one with lower odds is wrong in a third of its decisions or more.
_DECIDES = 2.0

_MOVING = ("identity", "linear", "reshape", "flatten", "slice")

# Operators whose results are class numbers in an order.
_ORDERS = ("argmax", "argmin", "argsort")


@dataclass(frozen=True)
class ChangedDecision:
    """One sample on which the target's decision differs from the trained model's.

    Attributes:
        sample: Its index in the golden set.
        before: Class that the trained model chooses.
        after: Class that the target chooses.
        label: Its true class; None if it is not known.
        margin: Difference of the trained model's scores of the two classes.
        tie: Whether that is within twice the error of float32 arithmetic, so that both classes are
            correct.
    """

    sample: int
    before: int
    after: int
    label: int | None
    margin: float
    tie: bool


@dataclass(frozen=True)
class TaskAgreement:
    """Decisions of one output on the target compared with those of the trained model.

    Attributes:
        output: Keras output name.
        kind: The samples counted: "real", "random", … or "all".
        samples: How many they are.
        changes: Every sample with a different decision; empty where too many samples were judged
            to keep them.
        changed: How many they are.
        flips: How many of them are not ties.
        confusion: (before, after, count) of the changed samples, most frequent first.
        labelled: Number of samples with a label; the values below count these.
        right_before: How many of them the trained model labels correctly.
        right_after: How many the target labels correctly.
        lost: Right before, wrong after.
        gained: Wrong before, right after.
        chance: Probability that lost and gained differ this much or more when either is as likely
            (McNemar's exact test); None without labels.
        odds: Median of the trained model's odds for its class against the next one.
        beyond_guessing: Whether the trained model is right on the labelled samples more often than
            one that always names the most frequent label, beyond chance.
    """

    output: str
    kind: str
    samples: int
    changes: tuple[ChangedDecision, ...]
    changed: int
    flips: int
    confusion: tuple[tuple[int, int, int], ...]
    labelled: int
    right_before: int
    right_after: int
    lost: int
    gained: int
    chance: float | None
    odds: float = math.inf
    beyond_guessing: bool = False

    @property
    def unjudged(self) -> str:
        """Why changed decisions say nothing about a file; empty if they do.

        A network that was not trained to decide, or not yet, has nearly equal scores for all
        classes. Which one is the greatest is then up to the rounding of any 8-bit file.
        """
        if self.beyond_guessing or self.odds >= _DECIDES:
            return ""
        shown = "its accuracy is within chance" if self.labelled else "no sample has a label"
        return (
            f"nothing shows that the model decides: it prefers its class to the next one by odds "
            f"of {self.odds:.2f} in the median sample (at least {_DECIDES:g} expected), and {shown}"
        )

    @property
    def same(self) -> int:
        """Samples with the same decision."""
        return self.samples - self.changed

    @property
    def sentence(self) -> str:
        """Describe the agreement of the decisions and the change of accuracy."""
        ties = self.changed - self.flips
        of_them = f" ({self.flips} changed, {ties} ties of float32)" if self.changed else ""
        if self.flips and self.unjudged:
            of_them += f"; not judged, since {self.unjudged}"
        text = (
            f"output '{self.output}' decides {self.same} / {self.samples} {self.kind} samples as "
            f"the trained model does{of_them}"
        )
        if not self.labelled:
            return text
        before, after = self.right_before / self.labelled, self.right_after / self.labelled
        moved = self.lost + self.gained
        chance = f"; chance alone splits {moved} so in {100 * (self.chance or 0):.2g} % of cases"
        return (
            f"{text}; accuracy {100 * before:.2f} % before, {100 * after:.2f} % after "
            f"({self.lost} lost, {self.gained} gained of {self.labelled}{chance if moved else ''})"
        )

    def to_json(self) -> dict[str, Any]:
        """Return nested dictionaries for JSON, without the output's name."""
        return {
            **{key: value for key, value in vars(self).items() if key not in ("output", "changed")},
            "odds": self.odds if math.isfinite(self.odds) else None,
            "same": self.same,
            "confusion": [
                {"before": before, "after": after, "count": count}
                for before, after, count in self.confusion
            ],
            "changes": [vars(change) for change in self.changes],
            "sentence": self.sentence,
        }


def odds_of(scores: np.ndarray) -> np.ndarray:
    """Return (N,) odds of the greatest score against the next one.

    Args:
        scores: (N, classes) probabilities, or logits.
    """
    scores = as_scores(scores)
    second, first = np.sort(scores, axis=1)[:, -2:].T
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        if scores.min() >= 0 and scores.max() <= 1:
            return np.where(first > second, first / second, 1.0)
        return np.asarray(np.exp(first - second))


def beyond_guessing(right: int, labels: Mapping[int, int]) -> bool:
    """Return whether significantly more samples are right than with the most frequent label.

    Args:
        right: Number of samples with the right label.
        labels: Label to its number of samples.
    """
    total = sum(labels.values())
    return bool(total) and at_least(right, total, max(labels.values()) / total) < CHANCE


def deciding_outputs(
    network: Network | None, golden: GoldenSet, classes: Sequence[str] = ()
) -> frozenset[str]:
    """Return the outputs that decide between classes.

    These end in a softmax, or in a sigmoid over one number. If none does, as in a network that
    returns logits: the outputs with as many numbers as the manifest has class names; without these,
    if samples have class numbers, the only output of shape (N, classes). A sigmoid over several
    numbers makes a separate decision for each (a pixel, a tag).

    Args:
        network: The folded network; None if there is none.
        golden: The truth, and the labels where they are known.
        classes: Names of the classes, as the user gave them at export.
    """
    ends = {} if network is None else {name: _end(network, name) for name in network.outputs}
    orders = ordering_outputs(network)
    rows = {n: t.shape[1] for n, t in golden.truth.items() if t.ndim == 2 and n not in orders}
    certain = {
        name
        for name, size in rows.items()
        if (ends.get(name) == "softmax" and size > 1) or (ends.get(name) == "sigmoid" and size == 1)
    }
    if certain:
        return frozenset(certain)
    several = {name: size for name, size in rows.items() if size > 1}
    if classes:
        return frozenset(name for name, size in several.items() if size == len(classes))
    return frozenset(several if golden.labels is not None and len(several) == 1 else ())


def ordering_outputs(network: Network | None) -> frozenset[str]:
    """Return the outputs (N,) or (N, places) that are class numbers in an order."""
    if network is None:
        return frozenset()
    ranks = {node.name: len(node.shape) for node in network.nodes}
    return frozenset(
        name
        for name, node in network.outputs.items()
        if _end(network, name) in _ORDERS and ranks.get(node, 0) <= 2
    )


def _first_as_scores(orders: np.ndarray, classes: int) -> np.ndarray:
    """Return (N, classes) scores, 1 for the first class of each row."""
    first = np.clip(orders.reshape(len(orders), -1)[:, :1], -1, classes - 1)
    return np.asarray((first == np.arange(classes)).astype(np.float64))


def _end(network: Network, output: str) -> str:
    """Return the operation that computes an output, skipping those that only move numbers."""
    nodes = {node.name: node for node in network.nodes}
    name = network.outputs[output]
    while name in nodes and nodes[name].op in _MOVING:
        name = nodes[name].inputs[0]
    return nodes[name].op if name in nodes else ""


def task_agreement(
    output: str,
    actual: np.ndarray,
    golden: GoldenSet,
    allowed: np.ndarray,
    *,
    orders: bool = False,
) -> TaskAgreement | None:
    """Compare a target's decisions with the trained model's.

    Args:
        output: Keras output name of one of the `deciding_outputs` or `ordering_outputs`.
        actual: (N, …) outputs of the target.
        golden: The truth, and the labels where they are known.
        allowed: (N,) greatest error of an element that float32 arithmetic explains in each sample.
        orders: Whether the output is one of the `ordering_outputs`.

    Returns:
        The comparison, over the real samples if there are any; None for an output that is not a
        row of scores, or not finite everywhere.
    """
    truth = np.asarray(golden.truth[output], np.float64)
    scores = np.asarray(actual, np.float64)
    if scores.shape != truth.shape or (truth.ndim != 2 and not orders):
        return None
    kind, index = typical_samples(golden.kind)
    finite = np.isfinite(truth) & np.isfinite(scores)
    usable = np.asarray(finite.reshape(golden.samples, -1).all(axis=1))
    index = index[usable[index]]
    if not len(index):
        return None
    labels = golden.labels
    if orders:
        known = truth[usable] if labels is None else np.append(truth[usable], labels)
        classes = int(known.max()) + 2  # one more for numbers that no class has
        truth, scores = (_first_as_scores(array, classes) for array in (truth, scores))
    else:
        truth, scores = as_scores(truth), as_scores(scores)
    if labels is None or labels.max(initial=-1) >= truth.shape[1]:
        labels = np.full(golden.samples, -1)
    before, after = truth.argmax(axis=1), scores.argmax(axis=1)
    # Classes with equal scores in the truth are one decision: either is correct.
    rows = np.arange(golden.samples)
    margin = truth[rows, before] - truth[rows, after]
    other = index[margin[index] > 0]
    changes = tuple(
        ChangedDecision(
            sample=int(i),
            before=int(before[i]),
            after=int(after[i]),
            label=int(labels[i]) if labels[i] >= 0 else None,
            margin=float(margin[i]),
            tie=bool(margin[i] <= 2 * allowed[i]),
        )
        for i in other
    )
    counted = Counter((change.before, change.after) for change in changes)
    known = index[labels[index] >= 0]
    right = before[known] == labels[known], after[known] == labels[known]
    lost, gained = int(np.sum(right[0] & ~right[1])), int(np.sum(~right[0] & right[1]))
    return TaskAgreement(
        output=output,
        kind=kind,
        samples=len(index),
        changes=changes,
        changed=len(changes),
        flips=sum(not change.tie for change in changes),
        confusion=tuple((a, b, count) for (a, b), count in counted.most_common()),
        labelled=len(known),
        right_before=int(right[0].sum()),
        right_after=int(right[1].sum()),
        lost=lost,
        gained=gained,
        chance=mcnemar(lost, gained) if len(known) else None,
        odds=float(np.median(odds_of(truth[index]))),
        beyond_guessing=beyond_guessing(int(right[0].sum()), Counter(labels[known].tolist())),
    )
