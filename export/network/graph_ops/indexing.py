"""Operations with computed indices: gathering, sorting, one-hot vectors."""

from __future__ import annotations

from typing import Any

from .arithmetic import apply
from .moves import cut, known_ints, taken
from .values import (
    Builder,
    Computed,
    Known,
    Translation,
    UntranslatableError,
    Value,
    axis_of,
    role_of,
    shape_of,
)


def _gather(builder: Builder, op: Any, inputs: list[Value]) -> list[Value]:
    table, indices = inputs[0], inputs[1]
    axis = axis_of(known_ints(inputs[2], op)[0], op.inputs[0].shape.rank)
    batch = int(op.get_attr("batch_dims")) if "batch_dims" in op.node_def.attr else 0
    if batch or (isinstance(table, Computed) and isinstance(indices, Computed) and axis == 0):
        if axis != batch:
            raise UntranslatableError("Gather along an axis after the batch axes")
        names = [builder.full(value, x) for value, x in zip(inputs[:2], op.inputs[:2], strict=True)]
        return [builder.emit("pick", names, shape_of(op.outputs[0]), {"axis": axis + 1})]
    if isinstance(indices, Known) and isinstance(table, Computed):
        return [taken(builder, table, op.inputs[0], axis, indices.ints)]
    if not isinstance(table, Known) or axis != 0:
        raise UntranslatableError("Gather from a computed table")
    name, shape, _ = builder.framed(indices, op.inputs[1])
    kept = role_of(table, "kernel", table.array)
    return [builder.emit("gather", [name], (*shape, *table.array.shape[1:]), **kept)]


def _top_k(builder: Builder, op: Any, inputs: list[Value]) -> list[Value]:
    count = known_ints(inputs[1], op)[0]
    last = op.inputs[0].shape.rank - 1
    name, shape, _ = builder.framed(inputs[0], op.inputs[0], last)
    found: list[Value] = []
    for output, operator in zip(op.outputs, ("sort", "argsort"), strict=True):
        if not builder.needed(output):
            found.append(inputs[0])
            continue
        ordered = builder.emit(operator, [name], shape)
        cuts = [(None, None, 1)] * last
        found.append(cut(builder, ordered, op.inputs[0], [*cuts, (0, count, 1)]))
    return found


def _one_hot(builder: Builder, op: Any, inputs: list[Value]) -> list[Value]:
    depth = known_ints(inputs[1], op)[0]
    on, off = (float(v.array) for v in inputs[2:] if isinstance(v, Known))
    axis = int(op.get_attr("axis"))
    if axis not in (-1, op.inputs[0].shape.rank):
        raise UntranslatableError("OneHot on an inner axis")
    name, shape, _ = builder.framed(inputs[0], op.inputs[0])
    attributes = {"depth": depth, "on": on, "off": off}
    return [builder.emit("one_hot", [name], (*shape, depth), attributes)]


def _bucketize(builder: Builder, op: Any, inputs: list[Value]) -> list[Value]:
    boundaries = [float(x) for x in op.get_attr("boundaries")]
    return [apply(builder, "bucketize", inputs[0], {"boundaries": boundaries})]


INDEXING: dict[str, Translation] = {
    "Gather": _gather,
    "GatherV2": _gather,
    "TopK": _top_k,
    "TopKV2": _top_k,
    "OneHot": _one_hot,
    "Bucketize": _bucketize,
}
