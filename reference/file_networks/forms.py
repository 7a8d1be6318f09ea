"""Nodes of ops that both formats have: reductions, products, resizing, normalization."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from ...artifacts.graphs.base import GraphOp
from .writer import Shape, UnknownFormError, Value, Writer

Write = Callable[[Writer, GraphOp], None]


def same(writer: Writer, op: GraphOp) -> None:
    """Make the output of an op the same value as its first input."""
    writer.same(op.inputs[0], op.outputs[0])


def bias(writer: Writer, op: GraphOp, place: int) -> dict[str, np.ndarray]:
    """Return the bias among an op's weights; an empty mapping if it has none."""
    key = writer.optional(op, place)
    return {"bias": writer.constant(key).reshape(-1)} if key else {}


def function(kind: str, attributes: Mapping[str, Any] | None = None) -> Write:
    """Return a function that appends an elementwise operator."""
    return lambda writer, op: unary(writer, op, kind, attributes)


def unary(
    writer: Writer, op: GraphOp, kind: str, attributes: Mapping[str, Any] | None = None
) -> None:
    """Append an elementwise function."""
    name, _, lead = writer.framed(op.inputs[0])
    writer.add(op, kind, [name], attributes, lead=lead)


def along(writer: Writer, op: GraphOp, kind: str, axis: int) -> None:
    """Append a function along one axis, such as softmax."""
    rank = len(writer.filed(op.inputs[0]))
    axis %= rank
    name, _, lead = writer.framed(op.inputs[0], axis)
    writer.add(op, kind, [name], {"axis": axis + 1 - lead}, lead=lead)


def reduced(
    writer: Writer, op: GraphOp, kind: str, axes: Sequence[int] | None, keepdims: bool
) -> None:
    """Append a reduction over axes of the file's tensor, or over all of them."""
    filed = writer.filed(op.inputs[0])
    chosen = sorted(
        int(axis) % len(filed) for axis in (range(len(filed)) if axes is None else axes)
    )
    name, shape, lead = writer.framed(op.inputs[0])
    places = [axis + 1 - lead for axis in chosen if axis >= lead]
    value = Value(name, shape, filed)
    if places:
        value = writer.part(
            op,
            kind,
            [name],
            {"axes": places, "keepdims": keepdims},
            name=writer.graph.tensors[op.outputs[0]].name,
        )
    writer.give(op.outputs[0], value, reduced_shape(filed, chosen, keepdims))


def reduced_shape(filed: Shape, axes: Sequence[int], keepdims: bool) -> Shape:
    """Return the shape of a file's tensor after a reduction over some of its axes."""
    kept = [1 if axis in axes else size for axis, size in enumerate(filed)]
    return tuple(size for axis, size in enumerate(kept) if keepdims or axis not in axes)


def extreme_place(writer: Writer, op: GraphOp, kind: str, axis: int, keepdims: bool) -> None:
    """Append the index of the greatest or least number along an axis."""
    filed = writer.filed(op.inputs[0])
    axis %= len(filed)
    name, _, lead = writer.framed(op.inputs[0], axis)
    value = writer.part(op, kind, [name], {"axis": axis + 1 - lead})
    writer.give(op.outputs[0], value, reduced_shape(filed, [axis], keepdims))


def permuted(writer: Writer, op: GraphOp, order: Sequence[int]) -> None:
    """Append a permutation of the axes."""
    filed = writer.filed(op.inputs[0])
    after = tuple(filed[axis] for axis in order)
    moving = [axis for axis in order if filed[axis] != 1]
    if moving == sorted(moving):  # only axes of size one move: the order of elements is the same
        writer.same(op.inputs[0], op.outputs[0], after)
        return
    lead = 1 if order[0] == 0 and filed[0] == 1 else 0
    name = writer.read(op.inputs[0], filed[lead:])
    axes = list(order) if lead else [0, *(axis + 1 for axis in order)]
    writer.add(op, "permute", [name], {"axes": axes}, lead=lead)


def padded(writer: Writer, op: GraphOp, pairs: Sequence[Sequence[int]], value: float = 0.0) -> None:
    """Append padding with a constant."""
    axes = [axis for axis, pair in enumerate(pairs) if any(pair)]
    if not axes:
        writer.same(op.inputs[0], op.outputs[0])
        return
    name, _, lead = writer.framed(op.inputs[0], *axes)
    attributes: dict[str, Any] = {"padding": [list(pair) for pair in pairs[lead:]]}
    if min(min(pair) for pair in pairs) < 0:
        raise UnknownFormError("negative padding")
    if value:
        attributes["value"] = value
    writer.add(op, "pad", [name], attributes, lead=lead)


def concatenated(writer: Writer, op: GraphOp) -> None:
    """Append a concatenation along the axis in the attributes of the op."""
    shapes = [writer.filed(key) for key in op.inputs]
    joined(writer, op, shapes, int(op.attributes["axis"]) % len(shapes[0]))


def joined(writer: Writer, op: GraphOp, shapes: Sequence[Sequence[int]], axis: int) -> None:
    """Append a concatenation of the op's inputs in given shapes."""
    lead = 1 if axis > 0 and all(tuple(shape[:1]) == (1,) for shape in shapes) else 0
    parts = [(key, tuple(s)[lead:]) for key, s in zip(op.inputs, shapes) if math.prod(s)]
    names = [writer.read(key, shape) for key, shape in parts]
    writer.add(op, "concatenate", names, {"axis": axis + 1 - lead}, lead=lead)


def dense(
    writer: Writer, op: GraphOp, key: str, weights: Mapping[str, np.ndarray], lead: int
) -> None:
    """Append a product of the last axis with a matrix; see `Writer.framed` for ``lead``."""
    writer.add(op, "dense", [writer.read(key, writer.filed(key)[lead:])], {}, weights, lead=lead)


def product(
    writer: Writer, op: GraphOp, first_turned: bool = False, second_turned: bool = False
) -> None:
    """Append a product of stacks of matrices; one of them may be constant."""
    keys = op.inputs[:2]
    if keys[1] in writer.constants and writer.filed(keys[1]) and not first_turned:
        kernel = writer.constant(keys[1])
        if kernel.ndim == 2:
            kernel = kernel.T if second_turned else kernel
            dense(writer, op, keys[0], {"kernel": kernel}, _batch(writer, keys[0]))
            return
    if min(len(writer.filed(key)) for key in keys) < 2:
        raise UnknownFormError("a product with a vector")
    turned = {"transpose_first": first_turned, "transpose_second": second_turned}
    writer.broadcast(op, "matmul", keys, turned, own_axes=2)


def _batch(writer: Writer, key: str) -> int:
    """Return 1 if the first axis of a tensor is the batch and not also the last axis."""
    filed = writer.filed(key)
    return 1 if len(filed) > 1 and filed[0] == 1 else 0


def looked_up(writer: Writer, op: GraphOp, table: str, places: str) -> None:
    """Append the rows of a constant table at computed indices."""
    name, _, lead = writer.framed(places)
    if len(writer.filed(places)) - lead == 0:
        lead = 0
        name = writer.read(places, writer.filed(places))
    writer.add(op, "gather", [name], {}, {"kernel": writer.constant(table)}, lead=lead)


def resized(writer: Writer, op: GraphOp, matrices: Mapping[int, np.ndarray]) -> None:
    """Append an interpolation, one (out, in) matrix for each axis of the file's tensor."""
    if not matrices:
        writer.same(op.inputs[0], op.outputs[0])
        return
    name, _, lead = writer.framed(op.inputs[0], *matrices)
    axes = [axis + 1 - lead for axis in matrices]
    weights = {f"matrix_{a}": matrix for a, matrix in zip(axes, matrices.values())}
    writer.add(op, "resize", [name], {"axes": axes}, weights, lead=lead)


def interpolation(size: int, places: np.ndarray) -> np.ndarray:
    """Return the (out, in) matrix of a linear interpolation at positions from 0 to size - 1."""
    places = np.clip(places, 0, size - 1)
    low = np.floor(places).astype(int)
    high = np.minimum(low + 1, size - 1)
    matrix = np.zeros((len(places), size))
    rows = np.arange(len(places))
    np.add.at(matrix, (rows, low), 1 - (places - low))
    np.add.at(matrix, (rows, high), places - low)
    return matrix


def normalized(
    writer: Writer,
    op: GraphOp,
    axes: Sequence[int],
    epsilon: float,
    scale: np.ndarray | None,
    shift: np.ndarray | None,
) -> None:
    """Append (x - mean) / sqrt(variance + epsilon) · scale + shift over axes of the file's tensor.

    Scale and shift broadcast against the file's tensor.
    """
    name, shape, lead = writer.framed(op.inputs[0], *axes)
    places = {"axes": [axis + 1 - lead for axis in axes], "keepdims": True}
    mean = writer.part(op, "reduce_mean", [name], places)
    centred = writer.part(op, "subtract", [name, mean.name])
    squares = writer.part(op, "square", [centred.name])
    variance = writer.part(op, "reduce_mean", [squares.name], places)
    raised = writer.part(op, "add", [variance.name], {}, {"constant": np.array(epsilon)})
    inverse = writer.part(op, "rsqrt", [raised.name])
    value = writer.part(op, "multiply", [centred.name, inverse.name], lead=lead)
    for kind, array in (("multiply", scale), ("add", shift)):
        if array is not None:
            kept = {"constant": array.reshape(array.shape[max(array.ndim - len(shape), 0) :])}
            value = writer.part(op, kind, [value.name], {}, kept, lead=lead)
    writer.give(op.outputs[0], value)
