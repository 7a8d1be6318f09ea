"""Finds the norms of samples among operators, of which half precision can compute few.

A norm divides by the root of a sum of squares: the square of 256 exceeds half precision, and a
constant that prevents a division by zero, such as 1e-12, is 0 there, so that 0 / 0 becomes NaN.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from .base import GraphOp

# Kinds of operators in .onnx files and in networks. These are between the squares and the root.
_SUMS = {
    *("Add", "Max", "ReduceMean", "ReduceSum", "GlobalAveragePool"),
    *("Reshape", "Squeeze", "Transpose", "Unsqueeze"),
    *("add", "maximum", "reduce_mean", "reduce_sum", "global_average_pool", "reshape", "identity"),
}
_PRODUCTS = {"Mul", "multiply"}
_SQUARES = {"ReduceSumSquare", "ReduceL2", "square"}
_ROOTS = {"Sqrt", "ReduceL2", "sqrt", "rsqrt"}
_INVERSES = {"Reciprocal", "reciprocal"}
_DIVISIONS = {"Div", "divide", *_PRODUCTS}


class Norm(NamedTuple):
    """The operators of one norm.

    Attributes:
        inside: From the squares to the root, and its reciprocal.
        divisions: Those that divide by the root, or multiply by its reciprocal.
    """

    inside: tuple[GraphOp, ...]
    divisions: tuple[GraphOp, ...]

    @property
    def squares(self) -> Iterator[GraphOp]:
        """The operators that read the numbers to square."""
        return (op for op in self.inside if _squares(op))


def norms_of(ops: Sequence[GraphOp]) -> Iterator[Norm]:
    """Yield the norms among the operators of a graph.

    Args:
        ops: All operators; an output has one producer.
    """
    makers = {key: op for op in ops for key in op.outputs}
    readers: dict[str, list[GraphOp]] = {}
    for op in ops:
        for key in dict.fromkeys(op.inputs):
            readers.setdefault(key, []).append(op)
    for root in ops:
        before = tuple(_before(root, makers)) if root.kind in _ROOTS else ()
        if any(_squares(op) for op in before):
            behind = list(readers.get(root.outputs[0], []))
            inverses = [op for op in behind if op.kind in _INVERSES]
            behind += [op for each in inverses for op in readers.get(each.outputs[0], [])]
            divisions = [op for op in behind if op.kind in _DIVISIONS]
            for op in divisions:  # the reciprocal may be multiplied by a constant first
                if op.kind in _PRODUCTS and sum(key in makers for key in op.inputs) == 1:
                    after = (each for key in op.outputs for each in readers.get(key, ()))
                    divisions += [
                        each for each in after if each.kind in _DIVISIONS and each not in divisions
                    ]
            yield Norm((*before, *inverses), tuple(divisions))


def _before(root: GraphOp, makers: Mapping[str, GraphOp]) -> Iterator[GraphOp]:
    """Yield a root and the operators before it, up to those that square."""
    waiting, seen = [root], set[int]()
    while waiting:
        op = waiting.pop()
        if id(op) in seen:
            continue
        seen.add(id(op))
        yield op
        if not _squares(op):
            before = (makers[key] for key in op.inputs if key in makers)
            waiting += (each for each in before if each.kind in _SUMS or _squares(each))


def _squares(op: GraphOp) -> bool:
    inputs = op.inputs
    squared = op.kind in _PRODUCTS and len(inputs) == 2 and inputs[0] == inputs[1]
    return squared or op.kind in _SQUARES
