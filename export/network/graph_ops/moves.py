"""Operations that rearrange elements."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from .running import run_op
from .values import (
    Builder,
    Computed,
    Known,
    Shape,
    Translation,
    UntranslatableError,
    Value,
    axis_of,
    shape_of,
)


def known_ints(value: Value, op: Any) -> list[int]:
    """Return sizes, axes or indices, which must not depend on the inputs."""
    if not isinstance(value, Known):
        raise UntranslatableError(f"{op.type} by a computed number")
    return value.ints


def _same(builder: Builder, op: Any, inputs: list[Value]) -> list[Value]:
    """Return the value unchanged, since its readers reshape it as needed."""
    return inputs[: len(op.outputs)]


def transposed(builder: Builder, value: Value, shape: Shape, order: Sequence[int]) -> Computed:
    """Append a permutation of a traced tensor's axes."""
    after = tuple(shape[axis] for axis in order)
    moving = [axis for axis in order if shape[axis] != 1]
    if moving == sorted(moving):  # Only axes of size one move: the elements stay in order.
        return Computed(builder.named(value, after), after)
    if order[0] == 0 and shape[0] == 1:
        return builder.emit(
            "permute", [builder.named(value, shape[1:])], after[1:], {"axes": list(order)}
        )
    axes = [0, *(axis + 1 for axis in order)]
    return builder.emit("permute", [builder.named(value, shape)], after, {"axes": axes})


def _transpose(builder: Builder, op: Any, inputs: list[Value]) -> list[Value]:
    shape = shape_of(op.inputs[0])
    order = [axis_of(axis, len(shape)) for axis in known_ints(inputs[1], op)]
    return [transposed(builder, inputs[0], shape, order)]


Cut = tuple[int | None, int | None, int]


def cut(builder: Builder, value: Value, tensor: Any, cuts: Sequence[Cut]) -> Computed:
    """Append a slice: start, stop and step for each axis of a traced tensor."""
    shape = shape_of(tensor)
    sizes = tuple(
        len(range(*slice(*each).indices(size))) for each, size in zip(cuts, shape, strict=True)
    )
    changed = [
        axis
        for axis, each in enumerate(cuts)
        if sizes[axis] != shape[axis] or (each[2] != 1 and shape[axis] > 1)
    ]
    if not changed and isinstance(value, Computed):
        return value
    name, _, extra = builder.framed(value, tensor, *changed)
    drop = 1 - extra
    slices = [list(each) for each in cuts[drop:]]
    return builder.emit("slice", [name], sizes[drop:], {"slices": slices})


def _whole(rank: int) -> list[Cut]:
    return [(None, None, 1)] * rank


def _slice(builder: Builder, op: Any, inputs: list[Value]) -> list[Value]:
    starts, sizes = known_ints(inputs[1], op), known_ints(inputs[2], op)
    cuts = [(s, None if n == -1 else s + n, 1) for s, n in zip(starts, sizes, strict=True)]
    return [cut(builder, inputs[0], op.inputs[0], cuts)]


def _strided_slice(builder: Builder, op: Any, inputs: list[Value]) -> list[Value]:
    """Translate a slice; removed and new axes need no separate operation."""
    starts, stops, steps = (known_ints(value, op) for value in inputs[1:])
    masks = {
        name: int(op.get_attr(f"{name}_mask"))
        for name in ("begin", "end", "ellipsis", "new_axis", "shrink_axis")
    }
    shape = shape_of(op.inputs[0])

    def has(mask: str, place: int) -> bool:
        return bool(masks[mask] >> place & 1)

    entries = range(len(starts))
    used = sum(not has("new_axis", i) and not has("ellipsis", i) for i in entries)
    cuts: list[Cut] = []
    for i in entries:
        if has("ellipsis", i):
            cuts += _whole(len(shape) - used)
        elif has("new_axis", i):
            continue
        elif has("shrink_axis", i):
            place = axis_of(starts[i], shape[len(cuts)])
            cuts.append((place, place + 1, 1))
        else:
            start = None if has("begin", i) else starts[i]
            stop = None if has("end", i) else stops[i]
            cuts.append((start, stop, steps[i]))
    cuts += _whole(len(shape) - len(cuts))
    return [cut(builder, inputs[0], op.inputs[0], cuts)]


def _pieces(
    builder: Builder, op: Any, value: Value, tensor: Any, axis: int, sizes: Sequence[int]
) -> list[Value]:
    """Append a slice for each part along an axis that is needed."""
    ends = [int(end) for end in np.cumsum([0, *sizes])]
    found: list[Value] = []
    for output, start, end in zip(op.outputs, ends[:-1], ends[1:], strict=True):
        cuts = _whole(tensor.shape.rank)
        cuts[axis] = (start, end, 1)
        read = builder.needed(output)
        found.append(cut(builder, value, tensor, cuts) if read else value)
    return found


def _split(builder: Builder, op: Any, inputs: list[Value]) -> list[Value]:
    axis = axis_of(known_ints(inputs[0], op)[0], op.inputs[1].shape.rank)
    count = len(op.outputs)
    sizes = [shape_of(op.inputs[1])[axis] // count] * count
    return _pieces(builder, op, inputs[1], op.inputs[1], axis, sizes)


def _split_sizes(builder: Builder, op: Any, inputs: list[Value]) -> list[Value]:
    axis = axis_of(known_ints(inputs[2], op)[0], op.inputs[0].shape.rank)
    sizes = [shape_of(output)[axis] for output in op.outputs]
    return _pieces(builder, op, inputs[0], op.inputs[0], axis, sizes)


def _unpack(builder: Builder, op: Any, inputs: list[Value]) -> list[Value]:
    axis = axis_of(int(op.get_attr("axis")), op.inputs[0].shape.rank)
    return _pieces(builder, op, inputs[0], op.inputs[0], axis, [1] * len(op.outputs))


def joined(builder: Builder, values: Sequence[Value], shapes: Sequence[Shape], axis: int) -> Value:
    """Append a concatenation of traced tensors of given shapes."""
    drop = 1 if axis > 0 and all(shape[:1] == (1,) for shape in shapes) else 0
    names = [
        builder.named(value, shape[drop:]) for value, shape in zip(values, shapes, strict=True)
    ]
    after = list(shapes[0])
    after[axis] = sum(shape[axis] for shape in shapes)
    place = axis + 1 - drop
    return builder.emit("concatenate", names, tuple(after[drop:]), {"axis": place})


def _concat(builder: Builder, op: Any, inputs: list[Value]) -> list[Value]:
    shapes = [shape_of(tensor) for tensor in op.inputs[:-1]]
    axis = axis_of(known_ints(inputs[-1], op)[0], len(shapes[0]))
    return [joined(builder, inputs[:-1], shapes, axis)]


def _pack(builder: Builder, op: Any, inputs: list[Value]) -> list[Value]:
    axis = axis_of(int(op.get_attr("axis")), op.outputs[0].shape.rank)
    shapes = []
    for tensor in op.inputs:
        shape = shape_of(tensor)
        shapes.append((*shape[:axis], 1, *shape[axis:]))
    return [joined(builder, inputs, shapes, axis)]


def _pad(builder: Builder, op: Any, inputs: list[Value]) -> list[Value]:
    pairs = np.reshape(known_ints(inputs[1], op), (-1, 2)).tolist()
    attributes: dict[str, Any] = {}
    if op.type == "MirrorPad":
        attributes["mode"] = op.get_attr("mode").decode().lower()
    elif len(inputs) == 3:
        if not isinstance(inputs[2], Known):
            raise UntranslatableError("padding with a computed number")
        attributes["value"] = float(inputs[2].array)
    axes = [axis for axis, pair in enumerate(pairs) if any(pair)]
    name, _, extra = builder.framed(inputs[0], op.inputs[0], *axes)
    after, drop = shape_of(op.outputs[0]), 1 - extra
    attributes["padding"] = pairs[drop:]
    return [builder.emit("pad", [name], after[drop:], attributes)]


def _space_to_batch(builder: Builder, op: Any, inputs: list[Value]) -> list[Value]:
    """Translate the first of three operations that compute a dilated convolution."""
    blocks = known_ints(inputs[1], op)
    pairs = np.reshape(known_ints(inputs[2], op), (-1, 2)).tolist()
    shape, count, value = shape_of(op.inputs[0]), len(blocks), inputs[0]
    if shape[0] != 1:
        raise UntranslatableError("a dilated convolution of stacked samples")
    spatial, rest = shape[1 : count + 1], shape[count + 1 :]
    if np.any(pairs):
        name = builder.named(value, shape[1:])
        spatial = tuple(n + sum(pair) for n, pair in zip(spatial, pairs, strict=True))
        padding = [*pairs, *([0, 0] for _ in rest)]
        value = builder.emit("pad", [name], (*spatial, *rest), {"padding": padding})
    apart = [1]
    for size, block in zip(spatial, blocks, strict=True):
        apart += [size // block, block]
    order = [*range(2, 2 * count + 1, 2), 0, *range(1, 2 * count, 2)]
    order += range(2 * count + 1, 2 * count + 1 + len(rest))
    return [transposed(builder, value, (*apart, *rest), order)]


def _batch_to_space(builder: Builder, op: Any, inputs: list[Value]) -> list[Value]:
    """Translate the last of three operations that compute a dilated convolution."""
    blocks = known_ints(inputs[1], op)
    crops = np.reshape(known_ints(inputs[2], op), (-1, 2)).tolist()
    shape, count = shape_of(op.inputs[0]), len(blocks)
    if shape[0] != math.prod(blocks):
        raise UntranslatableError("a dilated convolution of stacked samples")
    spatial, rest = shape[1 : count + 1], shape[count + 1 :]
    order = [count]
    for axis in range(count):
        order += [count + 1 + axis, axis]
    order += range(2 * count + 1, 2 * count + 1 + len(rest))
    value = transposed(builder, inputs[0], (*blocks, 1, *shape[1:]), order)
    whole = tuple(n * block for n, block in zip(spatial, blocks, strict=True))
    ends = [(start, n - end) for (start, end), n in zip(crops, whole, strict=True)]
    sizes = tuple(stop - start for start, stop in ends)
    if sizes == whole:
        return [value]
    slices = [*([start, stop, 1] for start, stop in ends), *([None, None, 1] for _ in rest)]
    name = builder.named(value, (*whole, *rest))
    return [builder.emit("slice", [name], (*sizes, *rest), {"slices": slices})]


def _tile(builder: Builder, op: Any, inputs: list[Value]) -> list[Value]:
    times = known_ints(inputs[1], op)
    axes = [axis for axis, count in enumerate(times) if count != 1]
    name, _, extra = builder.framed(inputs[0], op.inputs[0], *axes)
    after, drop = shape_of(op.outputs[0]), 1 - extra
    return [builder.emit("tile", [name], after[drop:], {"multiples": times[drop:]})]


def _broadcast_to(builder: Builder, op: Any, inputs: list[Value]) -> list[Value]:
    after, before = shape_of(op.outputs[0]), shape_of(op.inputs[0])
    before = (1,) * (len(after) - len(before)) + before
    if before == after:
        return [inputs[0]]
    drop = 1 if after[:1] == (1,) else 0
    name = builder.named(inputs[0], before[drop:])
    return [builder.emit("broadcast", [name], after[drop:], {"target_shape": list(after[drop:])})]


def _reverse(builder: Builder, op: Any, inputs: list[Value]) -> list[Value]:
    shape = shape_of(op.inputs[0])
    turned = [axis_of(axis, len(shape)) for axis in known_ints(inputs[1], op)]
    cuts: list[Cut] = [(None, None, -1 if axis in turned else 1) for axis in range(len(shape))]
    return [cut(builder, inputs[0], op.inputs[0], cuts)]


def taken(
    builder: Builder, value: Value, tensor: Any, axis: int, indices: Sequence[int]
) -> Computed:
    """Append a selection of constant positions along an axis of a traced tensor."""
    name, shape, extra = builder.framed(value, tensor, axis)
    place = axis + extra
    after = (*shape[: place - 1], len(indices), *shape[place:])
    return builder.emit("take", [name], after, {"axis": place, "indices": list(indices)})


def _roll(builder: Builder, op: Any, inputs: list[Value]) -> list[Value]:
    shape, value = shape_of(op.inputs[0]), inputs[0]
    for shift, each in zip(known_ints(inputs[1], op), known_ints(inputs[2], op), strict=True):
        axis = axis_of(each, len(shape))
        indices = np.roll(np.arange(shape[axis]), shift).tolist()
        value = taken(builder, value, op.inputs[0], axis, indices)
    return [value]


def _band(builder: Builder, op: Any, inputs: list[Value]) -> list[Value]:
    """Translate MatrixBandPart to a selection, since multiplying infinity by zero gives NaN."""
    shape = shape_of(op.inputs[0])
    mask = run_op(op, [np.ones(shape, np.float32), *(_array(v, op) for v in inputs[1:])])
    kept, own, _ = builder.framed(inputs[0], op.inputs[0])
    names = [
        builder.named(Known(mask), own),
        kept,
        builder.named(Known(np.zeros(shape)), own),
    ]
    return [builder.emit("select", names, own)]


def _array(value: Value, op: Any) -> np.ndarray:
    if not isinstance(value, Known):
        raise UntranslatableError(f"{op.type} by a computed number")
    return value.array


def _shape(builder: Builder, op: Any, inputs: list[Value]) -> list[Value]:
    sizes = shape_of(op.inputs[0])
    numbers = {"Shape": sizes, "Size": math.prod(sizes), "Rank": len(sizes)}
    return [Known(np.array(numbers[op.type], op.outputs[0].dtype.as_numpy_dtype))]


MOVES: dict[str, Translation] = {
    **dict.fromkeys(
        (
            "Identity",
            "IdentityN",
            "StopGradient",
            "PreventGradient",
            "CheckNumerics",
            "EnsureShape",
            "Reshape",
            "ExpandDims",
            "Squeeze",
            "Bitcast",
        ),
        _same,
    ),
    "Shape": _shape,
    "Size": _shape,
    "Rank": _shape,
    "Transpose": _transpose,
    "Slice": _slice,
    "StridedSlice": _strided_slice,
    "Split": _split,
    "SplitV": _split_sizes,
    "Unpack": _unpack,
    "Concat": _concat,
    "ConcatV2": _concat,
    "Pack": _pack,
    "Pad": _pad,
    "PadV2": _pad,
    "MirrorPad": _pad,
    "SpaceToBatchND": _space_to_batch,
    "BatchToSpaceND": _batch_to_space,
    "Tile": _tile,
    "BroadcastTo": _broadcast_to,
    "ReverseV2": _reverse,
    "Roll": _roll,
    "MatrixBandPart": _band,
}
