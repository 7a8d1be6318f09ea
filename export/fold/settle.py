"""After the folds: shares layers between calls that agree, and names the others."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from .affine import Affine
from .graph import AffineOp, Graph
from .linear import Linear


def settle(graph: Graph) -> None:
    """Share equal ops between calls, and name the others.

    Folding gives each call a separate op. If the ops of several calls of one layer are equal, they
    are replaced by one, so that the layer stays shared. If they differ, the layer is split, and the
    second layer has the name of the first with the suffix ``_copy``.
    """
    for kind, equal in ((Linear, _same_linear), (AffineOp, _same_affine)):
        _share(graph, kind, equal)


def _share(graph: Graph, kind: type, equal: Callable[[Any, Any], bool]) -> None:
    versions: dict[str, list[Any]] = {}
    for call in graph.calls():
        op: Any = call.op
        if not isinstance(op, kind):
            continue
        known = versions.setdefault(op.name, [])  # type: ignore[attr-defined]
        same = next((other for other in known if other is op or equal(other, op)), None)
        if same is None:
            if known:
                name = graph.unique_name(f"{op.name}_copy")  # type: ignore[attr-defined]
                same = dataclasses.replace(op, name=name)  # type: ignore[type-var]
            else:
                same = op
            known.append(same)
        call.op = same


def _same_linear(one: Linear, other: Linear) -> bool:
    return (
        one.layer is other.layer
        and _same(one.before, other.before)
        and _same(one.after, other.after)
        and (one.border is None) == (other.border is None)
        and (one.border is None or np.array_equal(one.border, other.border))  # type: ignore[arg-type]
        and (one.widened, one.gives) == (other.widened, other.gives)
    )


def _same_affine(one: AffineOp, other: AffineOp) -> bool:
    return one.origin is other.origin and _same(one.affine, other.affine)


def _same(one: Affine | None, other: Affine | None) -> bool:
    if one is None or other is None:
        return one is other
    return one.matches(other)
