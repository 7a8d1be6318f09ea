"""Operators of .onnx files that a runtime computes in float32, between integers and integers.

Most only move numbers or are elementwise: then the result is known except for the last bit of a
function, which rounding to 8 bits hides unless it is next to a tie.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import numpy as np

from ...artifacts.graphs.base import GraphOp
from ..operators import OPERATORS
from ..operators.linear import same_padding
from ..operators.pooling import pooled_sums
from ..rounding.quantized import NotKnownError
from ..special_functions import erf
from .base import moved


class Reader(Protocol):
    """Returns the numbers of tensors."""

    def array(self, key: str) -> np.ndarray:
        """Return (P, …)."""
        ...


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


def _axis(axis: int, rank: int) -> int:
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
    return np.squeeze(x, tuple(_axis(axis, x.ndim) for axis in axes))


def _unsqueezed(op: GraphOp, values: Reader) -> np.ndarray:
    x, axes = values.array(op.inputs[0]), parameters(op, values, 1, "axes") or []
    rank = x.ndim + len(axes)
    return np.expand_dims(x, tuple(_axis(axis, rank) for axis in axes))


def _joined(op: GraphOp, values: Reader) -> np.ndarray:
    parts = [values.array(key) for key in op.inputs]
    count = max(len(part) for part in parts)
    parts = [np.broadcast_to(part, (count, *part.shape[1:])) for part in parts]
    return moved("concatenate", *parts, axis=_axis(int(op.attributes["axis"]), parts[0].ndim))


def _sliced(op: GraphOp, values: Reader) -> np.ndarray:
    x = values.array(op.inputs[0])
    starts, ends = (parameters(op, values, i, n) or [] for i, n in ((1, "starts"), (2, "ends")))
    axes = parameters(op, values, 3, "axes") or list(range(len(starts)))
    strides = parameters(op, values, 4) or [1] * len(starts)
    cut: list[Any] = [(None,)] * (x.ndim - 1)
    for axis, start, end, stride in zip(axes, starts, ends, strides):
        cut[_axis(axis, x.ndim) - 1] = (start, end, stride)
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
    axis, count = _axis(int(op.attributes.get("axis", 0)), x.ndim), len(op.outputs)
    cuts: Any = count if sizes is None else np.cumsum(sizes)[:-1]
    return np.split(x, cuts, axis=axis)


def _gathered(op: GraphOp, values: Reader) -> np.ndarray:
    x, index = values.array(op.inputs[0]), values.array(op.inputs[1])
    if len(index) != 1:
        raise NotKnownError("a Gather by computed places")
    axis = _axis(int(op.attributes.get("axis", 0)), x.ndim)
    return moved("take", x, indices=index[0].astype(int), axis=axis)


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


def average_pooled(op: GraphOp, values: Reader) -> np.ndarray:
    """Return means over windows, which are computed in floats, window by window.

    Source: ONNX Runtime, `qlinear_pool.cc`.
    """
    x = values.array(op.inputs[0])
    merged = np.moveaxis(x.reshape(-1, *x.shape[2:]), 1, -1)
    size = op.attributes["kernel_shape"]
    strides = op.attributes.get("strides", [1] * len(size))
    padding = pads(op, merged.shape[1:-1], size, strides)
    if op.attributes.get("ceil_mode") or op.attributes.get("count_include_pad"):
        raise NotKnownError("an AveragePool of another form")
    framing = {"pool_size": size, "padding": padding, "strides": strides}
    sums, count = pooled_sums(merged, framing)
    means = np.moveaxis((sums / count).astype(np.float32), -1, 1)
    return np.asarray(means.reshape(*x.shape[:2], *means.shape[1:]))


def _shape(op: GraphOp, values: Reader) -> np.ndarray:
    return np.array([values.array(op.inputs[0]).shape[1:]], np.int64)


def _cast(op: GraphOp, values: Reader) -> np.ndarray:
    types = {1: np.float32, 6: np.int32, 7: np.int64}
    return values.array(op.inputs[0]).astype(types[int(op.attributes["to"])])


def _spread(op: GraphOp, values: Reader) -> np.ndarray:
    x, size = values.array(op.inputs[0]), int(op.attributes["blocksize"])
    p, b, c, h, w = x.shape
    cut = x.reshape(p, b, size, size, c // size**2, h, w).transpose(0, 1, 4, 5, 2, 6, 3)
    if op.attributes.get("mode", "DCR") != "DCR":
        cut = x.reshape(p, b, c // size**2, size, size, h, w).transpose(0, 1, 2, 5, 3, 6, 4)
    return cut.reshape(p, b, -1, h * size, w * size)


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
    "Split": _split,
    "Gather": _gathered,
    "MaxPool": _max_pooled,
    "DepthToSpace": _spread,
    "Shape": _shape,
    "Cast": _cast,
}
"""Ops that do not change numbers."""


def _function(compute: Callable[[np.ndarray, Any], Any]) -> Evaluate:
    """Return an op of one number, in float32."""

    def evaluate(op: GraphOp, values: Reader) -> np.ndarray:
        return np.asarray(compute(values.array(op.inputs[0]), op.attributes.get), np.float32)

    return evaluate


def _operation(compute: Any) -> Evaluate:
    """Return an op of several numbers, in float32."""

    def evaluate(op: GraphOp, values: Reader) -> np.ndarray:
        arrays = [values.array(key) for key in op.inputs]
        rank = max(array.ndim for array in arrays)
        found, *others = (
            a.reshape(a.shape[0], *[1] * (rank - a.ndim), *a.shape[1:]) for a in arrays
        )
        for other in others:
            found = compute(found, other)
        return np.asarray(found)

    return evaluate


def _reduced(combine: Any) -> Evaluate:
    def evaluate(op: GraphOp, values: Reader) -> np.ndarray:
        x, axes = values.array(op.inputs[0]), parameters(op, values, 1, "axes")
        chosen = tuple(_axis(a, x.ndim) for a in axes) if axes else tuple(range(1, x.ndim))
        found = combine(x, axis=chosen, keepdims=bool(op.attributes.get("keepdims", 1)))
        return np.asarray(found, x.dtype)

    return evaluate


def _clipped(op: GraphOp, values: Reader) -> np.ndarray:
    x = values.array(op.inputs[0])
    limits = [op.attributes.get("min"), op.attributes.get("max")]
    for place in (1, 2):
        if len(op.inputs) > place and op.inputs[place]:
            limits[place - 1] = values.array(op.inputs[place]).reshape(-1)[0]
    return np.clip(x, *limits)


def _softplus(x: np.ndarray) -> np.ndarray:
    return np.logaddexp(0, x.astype(np.float64))


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x.astype(np.float64)))


def _selu(x: np.ndarray, get: Any) -> np.ndarray:
    alpha, gamma = get("alpha", 1.67326319), get("gamma", 1.05070102)
    return gamma * np.where(x > 0, x, alpha * np.expm1(np.minimum(x, 0)))


def _transposed_convolution(op: GraphOp, values: Reader) -> np.ndarray:
    """The exact sum, rounded once; the runtime's own depends on its order."""
    x, kernel = (values.array(key).astype(np.float64) for key in op.inputs[:2])
    get, kernel = op.attributes.get, kernel[0]
    rank = kernel.ndim - 2
    usual = int(get("group", 1)) == 1 and set(get("dilations", [1])) == {1}
    if not usual or "output_shape" in op.attributes or get("auto_pad", "NOTSET") != "NOTSET":
        raise NotKnownError("a ConvTranspose of another form")
    strides, given = get("strides", [1] * rank), get("pads", [0] * 2 * rank)
    merged = np.moveaxis(x.reshape(-1, *x.shape[2:]), 1, -1)
    sizes = zip(merged.shape[1:-1], strides, kernel.shape[2:], get("output_padding", [0] * rank))
    full = [(size - 1) * stride + span + extra for size, stride, span, extra in sizes]
    framing = {"strides": strides, "dilation": [1] * rank, "padding": "valid", "output_sizes": full}
    parts = {"kernel": np.transpose(kernel, (*range(2, rank + 2), 1, 0))}
    y = np.moveaxis(OPERATORS["conv_transpose"].evaluate([merged], parts, framing), -1, 1)
    cut = tuple(slice(a, size - b) for a, b, size in zip(given[:rank], given[rank:], full))
    y = y[(slice(None), slice(None), *cut)]
    if len(op.inputs) > 2 and op.inputs[2]:
        y = y + values.array(op.inputs[2]).astype(np.float64).reshape(-1, *[1] * rank)
    return y.reshape(*x.shape[:2], *y.shape[1:]).astype(np.float32)


def _resized(op: GraphOp, values: Reader) -> np.ndarray:
    """Stretch the axes of places: nearest, or the last two linearly.

    Source: ONNX Runtime, `upsample.cc`.
    """
    x, get = values.array(op.inputs[0]), op.attributes.get
    sizes = parameters(op, values, 3)
    if sizes is None:
        scales = values.array(op.inputs[2]).reshape(-1).astype(np.float32)
        sizes = [int(np.floor(size * scale)) for size, scale in zip(x.shape[1:], scales)]
    else:
        scales = np.divide(sizes, x.shape[1:], dtype=np.float32)
    mode = get("coordinate_transformation_mode", "half_pixel")
    places = [_places(*given, mode) for given in zip(x.shape[1:], sizes, scales)]
    if get("mode", "nearest") == "nearest":
        for axis, at in enumerate(places, start=1):
            if sizes[axis - 1] != x.shape[axis]:
                x = _nearest(x, axis, at, get("nearest_mode", "round_prefer_floor"))
        return x
    if get("mode") != "linear" or x.ndim != 5 or tuple(sizes[:2]) != x.shape[1:3]:
        raise NotKnownError(f"a Resize by {get('mode')}")
    (top, bottom, far_y, near_y), (left, right, far_x, near_x) = (
        _between(n, at) for n, at in zip(x.shape[3:], places[2:])
    )
    far_y, near_y = far_y[:, None], near_y[:, None]
    upper, lower = x[..., top, :], x[..., bottom, :]
    total = (near_x * near_y) * upper[..., left]
    total = total + (far_x * near_y) * upper[..., right]
    total = total + (near_x * far_y) * lower[..., left]
    return np.asarray(total + (far_x * far_y) * lower[..., right])


def _between(size: int, at: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return the two numbers on either side, and the shares of the second and the first."""
    at = np.clip(at, np.float32(0), np.float32(size - 1))
    low = at.astype(int)
    high = np.minimum(low + 1, size - 1)
    same = low == high
    far, near = np.abs(at - low.astype(np.float32)), np.abs(at - high.astype(np.float32))
    half = np.float32(0.5)
    return low, high, np.where(same, half, far), np.where(same, half, near)


def _places(size: int, wanted: int, scale: np.float32, mode: str) -> np.ndarray:
    """Return where on an axis the numbers of the stretched one are read, in float32."""
    index = np.arange(wanted, dtype=np.float32)
    if mode == "half_pixel":
        return np.asarray((index + np.float32(0.5)) / scale - np.float32(0.5))
    if mode == "asymmetric":
        return np.asarray(index / scale)
    if mode == "align_corners" and wanted > 1:
        return np.asarray(index * np.float32(size - 1) / np.float32(wanted - 1))
    raise NotKnownError(f"a Resize with {mode}")


def _nearest(x: np.ndarray, axis: int, at: np.ndarray, mode: str) -> np.ndarray:
    rounded = {
        "round_prefer_floor": np.ceil(at - 0.5),
        "round_prefer_ceil": np.floor(at + 0.5),
        "floor": np.floor(at),
        "ceil": np.ceil(at),
    }[mode]
    return np.take(x, np.clip(rounded, 0, x.shape[axis] - 1).astype(int), axis)


FLOATS: dict[str, Evaluate] = {
    "AveragePool": average_pooled,
    "ConvTranspose": _transposed_convolution,
    "Resize": _resized,
    "Relu": _function(lambda x, get: np.maximum(x, 0)),
    "LeakyRelu": _function(lambda x, get: np.where(x >= 0, x, np.float32(get("alpha", 0.01)) * x)),
    "Elu": _function(
        lambda x, get: np.where(x > 0, x, get("alpha", 1.0) * np.expm1(np.minimum(x, 0)))
    ),
    "Selu": _function(_selu),
    "Sigmoid": _function(lambda x, get: _sigmoid(x)),
    "HardSigmoid": _function(
        lambda x, get: np.clip(
            np.float32(get("alpha", 0.2)) * x + np.float32(get("beta", 0.5)), 0, 1
        )
    ),
    "HardSwish": _function(lambda x, get: x * np.clip(x / np.float32(6) + np.float32(0.5), 0, 1)),
    "Tanh": _function(lambda x, get: np.tanh(x.astype(np.float64))),
    "Erf": _function(lambda x, get: erf(x.astype(np.float64))),
    "Exp": _function(lambda x, get: np.exp(x.astype(np.float64))),
    "Log": _function(lambda x, get: np.log(x.astype(np.float64))),
    "Sqrt": _function(lambda x, get: np.sqrt(x)),
    "Reciprocal": _function(lambda x, get: np.float32(1) / x),
    "Abs": _function(lambda x, get: np.abs(x)),
    "Sign": _function(lambda x, get: np.sign(x)),
    "Neg": _function(lambda x, get: -x),
    "Softplus": _function(lambda x, get: _softplus(x)),
    "Softsign": _function(lambda x, get: x / (1 + np.abs(x))),
    "Mish": _function(lambda x, get: x * np.tanh(_softplus(x))),
    "Clip": _clipped,
    "Add": _operation(np.add),
    "Sub": _operation(np.subtract),
    "Mul": _operation(np.multiply),
    "Div": _operation(np.divide),
    "Pow": _operation(np.power),
    "Max": _operation(np.maximum),
    "Min": _operation(np.minimum),
    "PRelu": _operation(lambda x, slope: np.where(x >= 0, x, x * slope)),
    "ReduceMax": _reduced(np.max),
    "ReduceMin": _reduced(np.min),
    "ReduceMean": _reduced(lambda x, **how: np.mean(x.astype(np.float64), **how)),
    "ReduceSum": _reduced(lambda x, **how: np.sum(x.astype(np.float64), **how)),
}
"""Ops that compute numbers."""
