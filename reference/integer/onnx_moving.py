"""Operators of .onnx files that move numbers, integers or floats, without changing them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import numpy as np

from ...artifacts.graphs.base import GraphOp
from ..operators.linear import same_padding
from ..rounding.quantized import NotKnownError
from .base import at_places, moved, picked


class Reader(Protocol):
    """Returns the numbers of tensors."""

    def array(self, key: str) -> np.ndarray:
        """Return (P, …)."""
        ...


# The axes of a ReverseSequence, and where they are unless it says so.
_SEQUENCES = (("time", 0), ("batch", 1))

Evaluate = Callable[[GraphOp, Reader], "np.ndarray | list[np.ndarray]"]


def parameters(op: GraphOp, values: Reader, place: int, name: str = "") -> list[int] | None:
    """Return integers that an op has as an input or, in older files, as an attribute."""
    if len(op.inputs) > place and op.inputs[place]:
        array = values.array(op.inputs[place])
        return [int(value) for value in array[0].reshape(-1)]
    found = op.attributes.get(name) if name else None
    return None if found is None else [int(value) for value in found]


def pads(op: GraphOp, sizes: Any, kernel: Any, strides: Any) -> list[tuple[int, int]]:
    """Return the padding of every spatial axis, as an ONNX node has it."""
    automatic = op.attributes.get("auto_pad", "NOTSET")
    if automatic == "SAME_UPPER":
        return [same_padding(*axis) for axis in zip(sizes, kernel, strides)]
    if automatic not in ("NOTSET", "VALID"):
        raise NotKnownError(f"auto_pad {automatic}")
    given = op.attributes.get("pads", [0] * 2 * len(sizes))
    return list(zip(given[: len(sizes)], given[len(sizes) :]))


def axis_of(axis: int, rank: int) -> int:
    """Return an axis of the file's tensor, counted with the added axis of samples."""
    return axis + 1 if axis >= 0 else axis + rank


def _transposed(op: GraphOp, values: Reader) -> np.ndarray:
    x = values.array(op.inputs[0])
    order = op.attributes.get("perm") or list(range(x.ndim - 1))[::-1]
    return moved("permute", x, axes=(0, *(axis + 1 for axis in order)))


def _reshaped(op: GraphOp, values: Reader) -> np.ndarray:
    x, shape = values.array(op.inputs[0]), parameters(op, values, 1, "shape") or []
    kept = [x.shape[i + 1] if size == 0 else size for i, size in enumerate(shape)]
    return moved("reshape", x, target_shape=kept)


def _flattened(op: GraphOp, values: Reader) -> np.ndarray:
    x, axis = values.array(op.inputs[0]), int(op.attributes.get("axis", 1))
    return x.reshape(len(x), int(np.prod(x.shape[1 : axis + 1])), -1)


def _squeezed(op: GraphOp, values: Reader) -> np.ndarray:
    x, axes = values.array(op.inputs[0]), parameters(op, values, 1, "axes")
    if axes is None:
        axes = [i for i, size in enumerate(x.shape[1:]) if size == 1]
    return np.squeeze(x, tuple(axis_of(axis, x.ndim) for axis in axes))


def _unsqueezed(op: GraphOp, values: Reader) -> np.ndarray:
    x, axes = values.array(op.inputs[0]), parameters(op, values, 1, "axes") or []
    rank = x.ndim + len(axes)
    return np.expand_dims(x, tuple(axis_of(axis, rank) for axis in axes))


def _joined(op: GraphOp, values: Reader) -> np.ndarray:
    parts = [values.array(key) for key in op.inputs]
    count = max(len(part) for part in parts)
    parts = [np.broadcast_to(part, (count, *part.shape[1:])) for part in parts]
    return moved("concatenate", *parts, axis=axis_of(int(op.attributes["axis"]), parts[0].ndim))


def _sliced(op: GraphOp, values: Reader) -> np.ndarray:
    x = values.array(op.inputs[0])
    starts, ends = (parameters(op, values, i, n) or [] for i, n in ((1, "starts"), (2, "ends")))
    axes = parameters(op, values, 3, "axes") or list(range(len(starts)))
    strides = parameters(op, values, 4) or [1] * len(starts)
    cut: list[Any] = [(None,)] * (x.ndim - 1)
    for axis, start, end, stride in zip(axes, starts, ends, strides):
        cut[axis_of(axis, x.ndim) - 1] = (start, end, stride)
    return moved("slice", x, slices=cut)


def _padded(op: GraphOp, values: Reader) -> np.ndarray:
    x, amounts = values.array(op.inputs[0]), parameters(op, values, 1, "pads") or []
    if len(op.inputs) > 3 and op.inputs[3]:
        raise NotKnownError("a Pad of chosen axes")
    half = len(amounts) // 2
    widths = list(zip(amounts[:half], amounts[half:]))
    mode = op.attributes.get("mode", "constant")
    if mode != "constant":
        return moved("pad", x, padding=widths, mode={"reflect": "reflect", "edge": "edge"}[mode])
    filled = len(op.inputs) > 2 and op.inputs[2]
    fill = values.array(op.inputs[2]).reshape(-1)[0] if filled else 0
    return moved("pad", x, padding=widths, value=fill)


def _tiled(op: GraphOp, values: Reader) -> np.ndarray:
    return moved("tile", values.array(op.inputs[0]), multiples=parameters(op, values, 1) or [])


def _split(op: GraphOp, values: Reader) -> list[np.ndarray]:
    x, sizes = values.array(op.inputs[0]), parameters(op, values, 1, "split")
    axis, count = axis_of(int(op.attributes.get("axis", 0)), x.ndim), len(op.outputs)
    cuts: Any = count if sizes is None else np.cumsum(sizes)[:-1]
    return np.split(x, cuts, axis=axis)


def _expanded(op: GraphOp, values: Reader) -> np.ndarray:
    x, sizes = values.array(op.inputs[0]), parameters(op, values, 1) or []
    x = x.reshape(len(x), *[1] * (len(sizes) + 1 - x.ndim), *x.shape[1:])
    return np.broadcast_to(x, (len(x), *np.broadcast_shapes(x.shape[1:], tuple(sizes))))


def _gathered(op: GraphOp, values: Reader) -> np.ndarray:
    x, index = values.array(op.inputs[0]), values.array(op.inputs[1]).astype(int)
    axis = axis_of(int(op.attributes.get("axis", 0)), x.ndim)
    if len(index) == 1:
        return moved("take", x, indices=index[0], axis=axis)
    return picked(x, index, 1, lambda part, at: np.take(part, at, axis - 1))


def _gathered_elements(op: GraphOp, values: Reader) -> np.ndarray:
    x, index = values.array(op.inputs[0]), values.array(op.inputs[1]).astype(int)
    axis, count = axis_of(int(op.attributes.get("axis", 0)), x.ndim), max(len(x), len(index))
    x, index = (np.broadcast_to(side, (count, *side.shape[1:])) for side in (x, index))
    return np.take_along_axis(x, index % x.shape[axis], axis)


def _gathered_parts(op: GraphOp, values: Reader) -> np.ndarray:
    x, index = values.array(op.inputs[0]), values.array(op.inputs[1]).astype(int)
    return picked(x, index, int(op.attributes.get("batch_dims", 0)) + 1, at_places)


def _turned(op: GraphOp, values: Reader) -> np.ndarray:
    """Reverse the first numbers of each sequence, as many as the op says."""
    x, lengths = values.array(op.inputs[0]), parameters(op, values, 1) or []
    time, batch = (int(op.attributes.get(f"{name}_axis", usual)) + 1 for name, usual in _SEQUENCES)
    place = np.arange(x.shape[time])
    index = np.array([np.where(place < n, n - 1 - place, place) for n in lengths])
    shape = [1] * x.ndim
    shape[batch], shape[time] = index.shape
    return np.take_along_axis(x, (index if batch < time else index.T).reshape(shape), time)


def _compressed(op: GraphOp, values: Reader) -> np.ndarray:
    x, kept = values.array(op.inputs[0]), parameters(op, values, 1) or []
    if "axis" not in op.attributes:
        x = x.reshape(len(x), -1)
    axis = axis_of(int(op.attributes.get("axis", 0)), x.ndim)
    return np.compress(np.array(kept, bool), x, axis)


def _max_pooled(op: GraphOp, values: Reader) -> np.ndarray:
    x = values.array(op.inputs[0])
    if op.attributes.get("ceil_mode") or set(op.attributes.get("dilations", [1])) != {1}:
        raise NotKnownError("a MaxPool with dilation or ceil_mode")
    merged = np.moveaxis(x.reshape(-1, *x.shape[2:]), 1, -1)
    size = op.attributes["kernel_shape"]
    strides = op.attributes.get("strides", [1] * len(size))
    framing = {"pool_size": size, "strides": strides}
    framing["padding"] = pads(op, merged.shape[1:-1], size, strides)
    found = np.moveaxis(moved("max_pool", merged, **framing), -1, 1)
    return found.reshape(*x.shape[:2], *found.shape[1:]).astype(x.dtype)


def _greatest_places(op: GraphOp, values: Reader) -> np.ndarray:
    x = values.array(op.inputs[0])
    return np.asarray(x.max(axis=tuple(range(3, x.ndim)), keepdims=True))


def _shape(op: GraphOp, values: Reader) -> np.ndarray:
    return np.array([values.array(op.inputs[0]).shape[1:]], np.int64)


def _cast(op: GraphOp, values: Reader) -> np.ndarray:
    types = {1: np.float32, 6: np.int32, 7: np.int64, 9: np.bool_}
    return values.array(op.inputs[0]).astype(types[int(op.attributes["to"])])


def _spread(op: GraphOp, values: Reader) -> np.ndarray:
    x, size = values.array(op.inputs[0]), int(op.attributes["blocksize"])
    p, b, c, h, w = x.shape
    cut = x.reshape(p, b, size, size, c // size**2, h, w).transpose(0, 1, 4, 5, 2, 6, 3)
    if op.attributes.get("mode", "DCR") != "DCR":
        cut = x.reshape(p, b, c // size**2, size, size, h, w).transpose(0, 1, 2, 5, 3, 6, 4)
    return cut.reshape(p, b, -1, h * size, w * size)


def _gathered_blocks(op: GraphOp, values: Reader) -> np.ndarray:
    x, size = values.array(op.inputs[0]), int(op.attributes["blocksize"])
    p, b, c, h, w = x.shape
    cut = x.reshape(p, b, c, h // size, size, w // size, size).transpose(0, 1, 4, 6, 2, 3, 5)
    return cut.reshape(p, b, -1, h // size, w // size)


MOVING: dict[str, Evaluate] = {
    "Identity": lambda op, values: values.array(op.inputs[0]),
    "Transpose": _transposed,
    "Reshape": _reshaped,
    "Flatten": _flattened,
    "Squeeze": _squeezed,
    "Unsqueeze": _unsqueezed,
    "Concat": _joined,
    "Slice": _sliced,
    "Pad": _padded,
    "Tile": _tiled,
    "Expand": _expanded,
    "Split": _split,
    "Gather": _gathered,
    "GatherElements": _gathered_elements,
    "GatherND": _gathered_parts,
    "ReverseSequence": _turned,
    "Compress": _compressed,
    "MaxPool": _max_pooled,
    "GlobalMaxPool": _greatest_places,
    "DepthToSpace": _spread,
    "SpaceToDepth": _gathered_blocks,
    "Shape": _shape,
    "Cast": _cast,
}
