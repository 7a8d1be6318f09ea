"""`fold`: read, recognize, run the passes, build, prove."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import keras

from ...artifacts.html_table import html_table
from ...errors import UserError
from .build import build
from .graph import Graph
from .keras_graph import read_graph
from .passes import Outcome, run
from .picture import draw
from .preparation import Shapes, prepare
from .proof import Proof, Prover
from .recognize import Norm, recognize
from .report import FoldReport, make_report
from .settle import settle


@dataclass(frozen=True)
class FoldResult:
    """A folded network.

    Attributes:
        model: The folded network in float32, with the layer, input and output names of the
            original.
        report: One record a norm.
        proof: The float64 comparison, None with ``verify=False``.
        notes: What was changed before the fold, a sentence each (`preparation`).
    """

    model: keras.Model
    report: FoldReport
    proof: Proof | None
    notes: tuple[str, ...] = ()

    def __repr__(self) -> str:
        """Return what folded, and the proof, in one line."""
        return f"FoldResult({self.model.name!r}: {self._summary})"

    def _repr_html_(self) -> str:
        """Return what became of every norm as a table, for notebooks."""
        rows = [
            (record.name, record.outcome, ", ".join(record.into), record.reason)
            for record in self.report.records
        ]
        return html_table(f"{self.model.name}: {self._summary}", _HEADINGS, rows)

    @property
    def _summary(self) -> str:
        norms = len(self.report.records)
        proof = "not proved" if self.proof is None else self.proof.sentence
        return f"{self.report.folded} of {norms} norms folded, {proof}"


_HEADINGS = ("norm", "outcome", "into", "why something is left")


def fold(
    model: keras.Model,
    *,
    verify: bool = True,
    inputs: Any = None,
    copy_budget: int = 0,
    shapes: Shapes | None = None,
    keep_input_norms: bool = False,
) -> FoldResult:
    """Fold every norm of a model exactly into the weights around it.

    Args:
        model: Any built Keras model: Sequential, Functional, nested or subclassed. Not changed.
        verify: Whether to prove the result in float64 on random, border and extreme inputs; a fold
            that changes an output is taken back and reported.
        inputs: Real inputs to prove it on too: an array, a list of arrays, or a dict of arrays by
            input name.
        copy_budget: How many parameters copies of layers may add in all. A layer that feeds a norm
            and something else can be computed twice; by default it is not.
        shapes: Sizes of the free axes of inputs, by input name; the folded network has them. Axes
            may stay free: the proof then tries sizes until the network accepts one.
        keep_input_norms: Whether norms that read an input stay. Folding the norm of raw features of
            very different sizes makes the first layer's weights as different, which float16 and
            int8 cannot hold; `NormRecord.range_growth` tells by how much.

    Returns:
        The folded model, the report, the proof, and what had to be changed before.

    Raises:
        UserError: The model is not built or cannot be read, or a layer cannot be rebuilt.
    """
    if keras.backend.backend() != "tensorflow":
        raise UserError(
            "Folding needs the TensorFlow backend of Keras. "
            f"Received: {keras.backend.backend()!r}. Set KERAS_BACKEND=tensorflow."
        )
    prepared = prepare(model, shapes, for_files=False)
    model = prepared.model
    limits = Limits(keep_input_norms=keep_input_norms)
    graph, norms, outcome = _folded(model, copy_budget, limits)
    proof = None
    rolled_back: tuple[str, ...] = ()
    if verify:
        prover = Prover(read_graph(model), inputs)
        worst = prover.worst(graph)
        if not prover.problem and not prover.accepts(worst):
            graph, norms, outcome, rolled_back, worst = _roll_back(
                model, prover, copy_budget, limits
            )
        proof = prover.proof(worst, rolled_back)
    report = make_report(graph, norms, outcome, rolled_back)
    return FoldResult(build(graph, "float32"), report, proof, prepared.notes)


@dataclass(frozen=True)
class Inspection:
    """The dry run of a fold.

    Attributes:
        report: One record a norm.
        picture: The network before and after, an SVG document.
        notes: What is changed before the fold, a sentence each.
    """

    report: FoldReport
    picture: str
    notes: tuple[str, ...] = ()


def inspect(
    model: keras.Model, *, copy_budget: int = 0, shapes: Shapes | None = None
) -> Inspection:
    """Say what a fold would do, without building or proving the folded network.

    Args:
        model: Any built Keras model. Not changed.
        copy_budget: As for `fold`.
        shapes: As for `fold`; free sizes may stay free.

    Returns:
        The report and the picture.
    """
    prepared = prepare(model, shapes, for_files=False)
    model = prepared.model
    before = read_graph(model)
    recognize(before)
    after, norms, outcome = _folded(model, copy_budget, Limits())
    report = make_report(after, norms, outcome)
    return Inspection(report, draw(before, after, report), prepared.notes)


@dataclass(frozen=True)
class Limits:
    """What a run of the fold may not do; all but the first serve the search for a wrong fold.

    Attributes:
        keep_input_norms: Whether norms that read an input are not read.
        distrusted: Norms that are not read.
        most_norms: Read no norm after so many.
        banned: Norms that are not folded, as `Step.norms` names them.
        most_steps: Stop after so many folds.
    """

    keep_input_norms: bool = False
    distrusted: frozenset[str] = frozenset()
    most_norms: int | None = None
    banned: frozenset[tuple[str, ...]] = frozenset()
    most_steps: int | None = None


def _folded(
    model: keras.Model, copy_budget: int, limits: Limits
) -> tuple[Graph, list[Norm], Outcome]:
    graph = read_graph(model)
    norms = recognize(graph, limits.distrusted, limits.most_norms, limits.keep_input_norms)
    outcome = run(
        graph, copy_budget=copy_budget, most_steps=limits.most_steps, banned=limits.banned
    )
    settle(graph)
    return graph, norms, outcome


def _roll_back(
    model: keras.Model, prover: Prover, copy_budget: int, limits: Limits
) -> tuple[Graph, list[Norm], Outcome, tuple[str, ...], float]:
    """Find what changes an output, a norm read wrongly or a wrong fold, and do without it.

    Every reading and every fold keeps the outputs, so the first prefix of them that does not ends
    with a wrong one: bisection finds it. Repeated until the rest is right.
    """

    def right(**more: Any) -> bool:
        return prover.accepts(prover.worst(_folded(model, copy_budget, replace(limits, **more))[0]))

    while True:
        graph, norms, outcome = _folded(model, copy_budget, limits)
        error = prover.worst(graph)
        taken_back = (*limits.distrusted, *(name for group in limits.banned for name in group))
        if prover.accepts(error) or not right(most_norms=0, most_steps=0):
            # The second is a network that differs from itself: no norm is to blame.
            return graph, norms, outcome, taken_back, error
        if not right(most_steps=0):
            culprit = _first_wrong(len(norms), lambda n: right(most_norms=n, most_steps=0))
            limits = replace(limits, distrusted=limits.distrusted | {norms[culprit].name})
        else:
            culprit = _first_wrong(len(outcome.steps), lambda n: right(most_steps=n))
            limits = replace(limits, banned=limits.banned | {outcome.steps[culprit].norms})


def _first_wrong(count: int, is_right: Callable[[int], bool]) -> int:
    """Return the index of the thing that makes the first wrong prefix; all of them are wrong."""
    right, wrong = 0, count
    while wrong - right > 1:
        middle = (right + wrong) // 2
        right, wrong = (middle, wrong) if is_right(middle) else (right, middle)
    return wrong - 1
