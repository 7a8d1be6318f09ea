"""Writes loops and branches: the steps of a loop one after another, both alternatives of a branch.

A network is a list of operators, so the number of steps must not depend on the inputs.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from ...artifacts.graphs.base import ArtifactGraph, GraphOp
from .forms import Write, joined
from .writer import UnknownFormError, Value, Writer

# Constant numbers, or a value that depends on the inputs.
Item = np.ndarray | Value
Graphs = Mapping[str, ArtifactGraph]

# Graphs that are run, by all loops and branches of a file together. Each adds its operators.
_MOST_RUNS = 1024
# Graphs inside of each other. A graph of a damaged file may contain itself.
_DEEPEST = 16

_ON_INPUTS = "a number of steps that depends on the inputs"


class GraphWriter:
    """Writes the ops of a graph, and those of the graphs that its loops and branches run.

    Args:
        writer: The writer of the file.
        write: Appends the nodes of any other op.
    """

    def __init__(self, writer: Writer, write: Write) -> None:
        self._writer, self._write = writer, write
        self._runs = self._depth = 0
        self._forms: Mapping[str, Callable[[GraphOp, Graphs], None]] = {
            "WHILE": self._while,
            "IF": self._if,
            "If": self._if,
            "Loop": self._loop,
        }

    def write(self, graph: ArtifactGraph) -> None:
        """Append the nodes of a graph. An op is opaque if it has no counterpart.

        So is a loop whose number of steps depends on the inputs or is too large, and a branch
        whose alternatives have different shapes.
        """
        inner = graph.read_inner()
        for op in graph.ops:
            write = self._write
            if op.kind in self._forms:
                write = functools.partial(self._write_inner, dict(inner.get(op.index, ())))
            self._writer.write(op, write)

    def _write_inner(self, graphs: Graphs, _: Writer, op: GraphOp) -> None:
        self._forms[op.kind](op, graphs)

    def _run(self, graph: ArtifactGraph, given: Sequence[Item]) -> list[Item]:
        """Append the nodes of a graph for given inputs, and return its outputs."""
        self._runs += 1
        if self._runs > _MOST_RUNS or self._depth == _DEEPEST:
            raise UnknownFormError("too many steps")
        self._writer.enter(graph)
        for key, item in zip(graph.inputs, given, strict=True):
            self._writer.put(key, item)
        self._depth += 1
        self.write(graph)
        self._depth -= 1
        return [self._writer.item(key) for key in graph.outputs]

    def _items(self, keys: Sequence[str]) -> list[Item]:
        return [self._writer.item(key) for key in keys]

    def _give(self, keys: Sequence[str], items: Sequence[Item]) -> None:
        for key, item in zip(keys, items, strict=True):
            if key:
                self._writer.put(key, item)

    def _while(self, op: GraphOp, graphs: Graphs) -> None:
        state = self._items(op.inputs)
        while _known(*self._run(graphs["cond"], state)):
            state = self._run(graphs["body"], state)
        self._give(op.outputs, state)

    def _loop(self, op: GraphOp, graphs: Graphs) -> None:
        count, going, *rest = op.inputs
        most = int(self._writer.ints(count)[0]) if count else None
        more = self._writer.item(going) if going else np.array(True)
        state, kept = self._items(rest), len(rest)
        rows: list[list[Item]] = []
        while _known(more) and (most is None or len(rows) < most):
            step = np.array(len(rows), np.int64)
            more, *found = self._run(graphs["body"], [step, more, *state])
            state = found[:kept]
            rows.append(found[kept:])
        self._give(op.outputs[:kept], state)
        for place, key in enumerate(op.outputs[kept:]):
            if key:
                self._stack(op, key, [row[place] for row in rows])

    def _stack(self, op: GraphOp, key: str, items: Sequence[Item]) -> None:
        """Set a tensor to the items of all steps, joined along a new first axis."""
        if not items:
            raise UnknownFormError("no steps")
        keys = tuple(f"{key}/{step}" for step in range(len(items)))
        self._give(keys, items)
        shapes = [(1, *self._writer.filed(each)) for each in keys]
        joined(self._writer, replace(op, inputs=keys, outputs=(key,)), shapes, 0)

    def _if(self, op: GraphOp, graphs: Graphs) -> None:
        condition, *given = op.inputs
        first, second = (
            next(graph for role, graph in graphs.items() if role.startswith(name))
            for name in ("then", "else")
        )
        decided = self._writer.item(condition)
        if isinstance(decided, np.ndarray):
            chosen = first if decided.item() else second
            self._give(op.outputs, self._run(chosen, self._items(given)))
            return
        alternatives = [self._run(graph, self._items(given)) for graph in (first, second)]
        for output, *items in zip(op.outputs, *alternatives, strict=True):
            keys = (condition, f"{output}/then", f"{output}/else")
            self._give(keys[1:], items)
            if self._writer.filed(keys[1]) != self._writer.filed(keys[2]):
                raise UnknownFormError("alternatives of different shapes")
            self._writer.broadcast(replace(op, outputs=(output,)), "select", keys)


def _known(condition: Item) -> bool:
    """Return a condition that does not depend on the inputs."""
    if not isinstance(condition, np.ndarray):
        raise UnknownFormError(_ON_INPUTS)
    return bool(condition.item())
