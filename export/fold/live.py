"""Norms that stay trainable in quantization-aware training.

These are the norms that fold into the linear layer before them and nothing else. They are folded in
every training step with their current statistics. Any other norm is folded once, before training.
"""

from __future__ import annotations

from collections.abc import Container
from typing import Any

from keras.layers import BatchNormalization

from ...toolkit.moving_norm import MovingNorm
from .graph import AffineOp, Call, Graph
from .linear import Linear
from .passes import RULES
from .plan import Plan


def take_out_live_norms(graph: Graph, excluded: Container[str] = ()) -> dict[Call, Any]:
    """Remove the norms from a graph that the linear layers before them can fold.

    Args:
        graph: A recognized graph; changed in place.
        excluded: Names of norms to leave in the graph.

    Returns:
        The call of each linear layer to the norm after it.
    """
    calls = graph.calls()
    live: dict[Call, Any] = {}
    for call in calls:
        if not isinstance(call.op, AffineOp) or call.op.name in excluded:
            continue
        if not isinstance(call.op.origin, (MovingNorm, BatchNormalization)):
            continue
        (value,) = call.inputs
        producer = value.producer
        alone = all(_times_called(calls, c.op) == 1 for c in (call, producer))
        if isinstance(producer.op, Linear) and alone and _folds_into(graph, call, producer):
            graph.remove(call)
            live[producer] = call.op.origin
    return live


def _folds_into(graph: Graph, norm: Call, linear: Call) -> bool:
    """Return whether a norm folds backward into the linear layer alone."""
    plan = Plan(graph, RULES, copy_budget=0)
    refusal = plan.backward(norm.inputs[0], norm.op.affine, norm)
    return refusal is None and set(plan.ops) == {linear}


def _times_called(calls: list[Call], op: Any) -> int:
    return sum(call.op is op for call in calls)
