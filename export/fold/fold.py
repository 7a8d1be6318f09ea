"""`fold`: read, recognize, run the passes, build, prove."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import keras

from ...errors import UserError
from .build import build
from .graph import Graph
from .keras_graph import read_graph
from .passes import Outcome, run
from .proof import TOLERANCE, Proof, Prover
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
    """

    model: keras.Model
    report: FoldReport
    proof: Proof | None


def fold(
    model: keras.Model, *, verify: bool = True, inputs: Any = None, copy_budget: int = 0
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

    Returns:
        The folded model, the report and the proof.

    Raises:
        UserError: The model is not built or cannot be read, or a layer cannot be rebuilt.
    """
    if keras.backend.backend() != "tensorflow":
        raise UserError(
            "Folding needs the TensorFlow backend of Keras. "
            f"Received: {keras.backend.backend()!r}. Set KERAS_BACKEND=tensorflow."
        )
    graph, norms, outcome = _folded(model, copy_budget)
    proof = None
    rolled_back: tuple[str, ...] = ()
    if verify:
        prover = Prover(read_graph(model), inputs)
        worst = prover.worst(graph)
        if worst > TOLERANCE:
            graph, norms, outcome, rolled_back, worst = _roll_back(model, prover, copy_budget)
        passed = worst <= TOLERANCE
        proof = Proof(passed, worst, TOLERANCE, prover.samples(), rolled_back)
    return FoldResult(
        build(graph, "float32"), make_report(graph, norms, outcome, rolled_back), proof
    )


def inspect(model: keras.Model, *, copy_budget: int = 0) -> FoldReport:
    """Return the report of a fold without making it: no weight but those of norms is read."""
    graph, norms, outcome = _folded(model, copy_budget)
    return make_report(graph, norms, outcome)


def _folded(
    model: keras.Model, copy_budget: int, **limits: Any
) -> tuple[Graph, list[Norm], Outcome]:
    graph = read_graph(model)
    norms = recognize(graph)
    outcome = run(graph, copy_budget=copy_budget, **limits)
    settle(graph)
    return graph, norms, outcome


def _roll_back(
    model: keras.Model, prover: Prover, copy_budget: int
) -> tuple[Graph, list[Norm], Outcome, tuple[str, ...], float]:
    """Find the folds that change an output and fold again without them.

    Each fold keeps the outputs, so the first prefix of folds that does not ends with a wrong one:
    bisection finds it. Repeated until the rest is right.
    """
    banned: frozenset[tuple[str, ...]] = frozenset()
    while True:
        graph, norms, outcome = _folded(model, copy_budget, banned=banned)
        worst = prover.worst(graph)
        if worst <= TOLERANCE or not outcome.steps:
            names = tuple(name for group in banned for name in group)
            return graph, norms, outcome, names, worst
        right, wrong = 0, len(outcome.steps)
        while wrong - right > 1:
            middle = (right + wrong) // 2
            part, _, _ = _folded(model, copy_budget, banned=banned, most_steps=middle)
            right, wrong = (middle, wrong) if prover.worst(part) <= TOLERANCE else (right, middle)
        banned |= {outcome.steps[wrong - 1].norms}
