"""`fold` and `inspect`: read a model, recognize its norms, run the passes, build, prove."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import keras

from ...artifacts.html_table import html_table
from .backend import require_tensorflow
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
        report: One record per norm.
        proof: The float64 comparison; None with ``verify=False``.
        notes: Changes made to the model before the fold, one sentence each (`preparation`).
    """

    model: keras.Model
    report: FoldReport
    proof: Proof | None
    notes: tuple[str, ...] = ()

    def __repr__(self) -> str:
        """Return the number of folded norms and the proof, in one line."""
        return f"FoldResult({self.model.name!r}: {self._summary})"

    def _repr_html_(self) -> str:
        """Return the outcome of every norm as a table, for notebooks."""
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


_HEADINGS = ("norm", "outcome", "into", "reason")


def fold(
    model: keras.Model,
    *,
    verify: bool = True,
    inputs: Any = None,
    copy_budget: int = 0,
    shapes: Shapes | None = None,
    keep_input_norms: bool = False,
) -> FoldResult:
    """Fold every norm of a model exactly into the weights of neighbouring layers.

    Args:
        model: Any built Keras model: Sequential, Functional, nested or subclassed. Not changed.
        verify: Whether to prove the result in float64 on random, border and extreme inputs; a fold
            that changes an output is rolled back and reported.
        inputs: Additional real inputs for the proof: an array, a list of arrays, or a dict of
            arrays by input name.
        copy_budget: Total number of parameters that copies of layers may add. A layer that feeds a
            norm and something else can be computed twice; by default it is not.
        shapes: Sizes of the free axes of inputs, by input name; the folded network has them. Axes
            may stay free: the proof then tries sizes until the network accepts one.
        keep_input_norms: Whether to keep norms that read an input. If raw features have very
            different scales, folding their norm gives the weights of the first layer equally
            different scales, which float16 and int8 represent poorly; see
            `NormRecord.range_growth`.

    Returns:
        The folded model, the report, the proof, and notes on changes made before the fold.

    Raises:
        UserError: The model is not built or cannot be read, or a layer cannot be rebuilt.
    """
    require_tensorflow("Folding")
    prepared = prepare(model, shapes, for_files=False)
    model = prepared.model
    limits = Limits(keep_input_norms=keep_input_norms)
    graph, norms, outcome = _folded(model, copy_budget, limits)
    proof = None
    rolled_back: tuple[str, ...] = ()
    if verify:
        prover = Prover(read_graph(model), inputs)
        prover.require_faithful(model)
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
        report: One record per norm.
        picture: The network before and after, an SVG document.
        notes: Changes made to the model before the fold, one sentence each.
    """

    report: FoldReport
    picture: str
    notes: tuple[str, ...] = ()


def inspect(
    model: keras.Model, *, copy_budget: int = 0, shapes: Shapes | None = None
) -> Inspection:
    """Report what a fold would do, without building or proving the folded network.

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
    """Limits of a run of the fold; all but the first are used in the search for a wrong fold.

    Attributes:
        keep_input_norms: Whether to keep norms that read an input.
        distrusted: Norms that are not converted to affines.
        most_norms: Greatest number of norms to convert; None for all.
        banned: Norms that are not folded, in the form of `Step.norms`.
        most_steps: Greatest number of folds; None for all.
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
    """Find the norms that were read wrongly and the wrong folds, and repeat the fold without them.

    Reading norms and folding must not change the outputs. Bisection finds the shortest prefix of
    these steps that does, and its last step is wrong. This is repeated until the result is right.
    """

    def right(**more: Any) -> bool:
        return prover.accepts(prover.worst(_folded(model, copy_budget, replace(limits, **more))[0]))

    while True:
        graph, norms, outcome = _folded(model, copy_budget, limits)
        error = prover.worst(graph)
        taken_back = (*limits.distrusted, *(name for group in limits.banned for name in group))
        if prover.accepts(error) or not right(most_norms=0, most_steps=0):
            # In the second case the network differs from itself without any fold.
            return graph, norms, outcome, taken_back, error
        if not right(most_steps=0):
            wrong = _first_wrong(len(norms), lambda n: right(most_norms=n, most_steps=0))
            limits = replace(limits, distrusted=limits.distrusted | {norms[wrong].name})
        else:
            wrong = _first_wrong(len(outcome.steps), lambda n: right(most_steps=n))
            limits = replace(limits, banned=limits.banned | {outcome.steps[wrong].norms})


def _first_wrong(count: int, is_right: Callable[[int], bool]) -> int:
    """Return the index of the last step of the shortest wrong prefix; all steps are wrong."""
    right, wrong = 0, count
    while wrong - right > 1:
        middle = (right + wrong) // 2
        right, wrong = (middle, wrong) if is_right(middle) else (right, middle)
    return wrong - 1
