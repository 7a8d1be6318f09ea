"""Handlers of tf2onnx for operations that it lacks, or converts to other values."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..quantization.finish_onnx import fake_quantization
from ..quantization.quantizer_choices import JUMPS

_LOGICAL = frozenset({"Less", "Equal", "Not", "Xor", "And"})

_BOOL = 9  # ONNX's number of the element type bool


def _erfc(ctx: Any, node: Any, name: str, args: list[Any]) -> None:
    """Convert erfc, which occurs in exact GELU and which ONNX lacks: erfc(x) = 1 - erf(x)."""
    shapes, dtypes = [ctx.get_shape(node.output[0])], [ctx.get_dtype(node.output[0])]
    erf = ctx.make_node("Erf", list(node.input), name=f"{name}/erf", shapes=shapes, dtypes=dtypes)
    one = ctx.make_const(f"{name}/one", np.array(1, np.float32))
    outputs = list(node.output)
    ctx.remove_node(name)
    terms = [one.output[0], erf.output[0]]
    ctx.make_node("Sub", terms, name=name, outputs=outputs, shapes=shapes, dtypes=dtypes)


def _where(ctx: Any, node: Any, name: str, args: list[Any]) -> None:
    """Convert Select to Where; tf2onnx uses a sum of products, in which 0 · NaN is NaN."""
    shapes, dtypes = [ctx.get_shape(node.output[0])], [ctx.get_dtype(node.output[0])]
    condition, *values = node.input
    rank = len(ctx.get_shape(condition) or ())
    if node.type == "Select" and rank == 1 and len(shapes[0] or ()) > 1:  # one condition per row
        rows = ctx.make_const(f"{name}/rows", np.array([-1] + [1] * (len(shapes[0]) - 1)))
        condition = ctx.make_node("Reshape", [condition, rows.output[0]]).output[0]
    outputs = list(node.output)
    ctx.remove_node(name)
    inputs = [condition, *values]
    ctx.make_node("Where", inputs, name=name, outputs=outputs, shapes=shapes, dtypes=dtypes)


def _floor_division(ctx: Any, node: Any, name: str, args: list[Any]) -> None:
    """Convert a floor division or its remainder; tf2onnx rounds integers towards zero.

    ONNX rounds the quotient of integers towards zero, and its integer Mod has the sign of the
    divisor. For floats, Mod is exact and has the sign of the dividend; as in TensorFlow, the
    divisor is added where these differ. The error of x - floor(x/y)·y would be relative to x.
    """
    import onnx

    shapes, dtypes = [ctx.get_shape(node.output[0])], [ctx.get_dtype(node.output[0])]
    remainder, (x, y), outputs = node.type == "FloorMod", node.input, list(node.output)
    floats = {onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.DOUBLE}
    numbers = itertools.count()
    ctx.remove_node(name)

    def make(kind: str, *inputs: str, last: bool = False, **attributes: int) -> str:
        # An integer file must not round what jumps.
        named = f"{name}/{JUMPS}/{next(numbers)}" if dtypes[0] in floats else None
        which: dict[str, Any] = {"outputs": outputs, "name": named or name} if last else {}
        made = ctx.make_node(
            kind,
            list(inputs),
            attr=attributes,
            shapes=shapes,
            dtypes=[onnx.TensorProto.BOOL] if kind in _LOGICAL else dtypes,
            **{"name": named} | which,
        )
        result: str = made.output[0]
        return result

    if dtypes[0] in floats and remainder:
        rest = make("Mod", x, y, fmod=1)
        zero = ctx.make_const(f"{name}/zero", np.array(0, np.float32)).output[0]
        differ = make("Xor", make("Less", rest, zero), make("Less", y, zero))
        wrong = make("And", differ, make("Not", make("Equal", rest, zero)))
        make("Where", wrong, make("Add", rest, y), rest, last=True)
    elif dtypes[0] in floats:
        make("Floor", make("Div", x, y), last=True)
    elif remainder:
        make("Mod", x, y, last=True)
    else:
        make("Div", make("Sub", x, make("Mod", x, y)), y, last=True)


def _angle(ctx: Any, node: Any, name: str, args: list[Any]) -> None:
    """Convert atan2, which ONNX lacks, to the arctangent of a quotient between 0 and 1.

    tf2onnx divides y by x if the sign of x is not 0. OpenVINO computes with denormal numbers as
    with 0, but they have a sign, so that 0 / 0 would give NaN.
    """
    (y, x), outputs = node.input, list(node.output)
    shape, dtype = ctx.get_shape(node.output[0]), ctx.get_dtype(node.output[0])
    kind = np.float32 if dtype == 1 else np.float64
    ctx.remove_node(name)

    def constant(part: str, value: float) -> str:
        made: str = ctx.make_const(f"{name}/{part}", np.array(value, kind)).output[0]
        return made

    count = itertools.count()

    def make(operator: str, *inputs: str, to: int = dtype, **last: Any) -> str:
        named = {"name": f"{name}/{operator}_{next(count)}", **last}
        made = ctx.make_node(operator, list(inputs), shapes=[shape], dtypes=[to], **named)
        result: str = made.output[0]
        return result

    def chosen(condition: tuple[str, str], then: str, otherwise: str, **last: Any) -> str:
        return make("Where", make("Less", *condition, to=_BOOL), then, otherwise, **last)

    zero, least = constant("zero", 0), constant("least", float(np.finfo(np.float32).tiny))
    width, height = make("Abs", x), make("Abs", y)
    larger = make("Max", make("Max", width, height), least)
    angle = make("Atan", make("Div", make("Min", width, height), larger))
    angle = chosen((width, height), make("Sub", constant("quarter", np.pi / 2), angle), angle)
    angle = chosen((x, zero), make("Sub", constant("half", np.pi), angle), angle)
    chosen((y, zero), make("Neg", angle), angle, name=name, outputs=outputs)


def _resize(ctx: Any, node: Any, name: str, args: list[Any]) -> None:
    """Convert a resizing with scales that result in its sizes; tf2onnx rounds them to float32.

    5/12 in float32, times 12, is below 5, so runtimes would compute the size 4; the next larger
    scale is used. Sizes instead of scales would be lost in the conversion to half precision.
    """
    from tf2onnx.onnx_opset.nn import Resize

    before, after = ctx.get_shape(node.input[0]), ctx.get_shape(node.output[0])
    Resize.version_11(ctx, node)
    scales = ctx.get_node_by_output(ctx.get_node_by_name(name).input[0]).inputs[2]
    if not scales.is_const() or not scales.get_tensor_value(as_list=False).size:
        return
    factors = scales.get_tensor_value(as_list=False).copy()
    short = factors[2:].astype(np.float64) * before[1:3] < after[1:3]
    factors[2:] = np.where(short, np.nextafter(factors[2:], np.float32(np.inf)), factors[2:])
    scales.set_tensor_value(factors)


def _resize_to_nearest(ctx: Any, node: Any, name: str, args: list[Any]) -> None:
    """Convert a resizing to the nearest pixel; to a Gather if a scale is not exact in float32.

    A runtime divides by the scale. If the scale is rounded, the quotient may be on the other side
    of an integer, which selects another pixel: from 12 to 5, for instance that of 2.5 · 12/5.
    """
    before, after = (np.array(ctx.get_shape(key)[1:3]) for key in (node.input[0], node.output[0]))
    known = (before > 0).all() and (after > 0).all()
    if not known or (np.float32(after / before).astype(np.float64) * before == after).all():
        _resize(ctx, node, name, args)
        return
    corners, centers = (
        bool(node.get_attr_value(key)) for key in ("align_corners", "half_pixel_centers")
    )
    shape, dtype = ctx.get_shape(node.output[0]), ctx.get_dtype(node.output[0])
    value, outputs = node.input[0], list(node.output)
    ctx.remove_node(name)
    for axis in (1, 2):
        size, new = int(before[axis - 1]), int(after[axis - 1])
        chosen = _nearest_pixels(size, new, corners=corners, centers=centers)
        indices = ctx.make_const(f"{name}/pixels_{axis}", chosen)
        last = {"name": name, "outputs": outputs} if axis == 2 else {}
        sizes = [*shape[:axis], new, *ctx.get_shape(value)[axis + 1 :]]
        made = ctx.make_node(
            "Gather",
            [value, indices.output[0]],
            attr={"axis": axis},
            shapes=[sizes],
            dtypes=[dtype],
            **last,
        )
        value = made.output[0]


def _nearest_pixels(size: int, new: int, *, corners: bool, centers: bool) -> NDArray[np.int64]:
    """Return the pixel that TensorFlow's kernel chooses for each of ``new`` ones, in float32."""
    spans = (size - 1, new - 1) if corners and new > 1 else (size, new)
    scale = np.float32(spans[0]) / np.float32(spans[1])
    places = (np.arange(new, dtype=np.float32) + np.float32(0.5 if centers else 0)) * scale
    nearest = np.floor(places + np.float32(0.5)) if corners else np.floor(places)
    return np.clip(nearest, 0, size - 1).astype(np.int64)


#: Type of a TensorFlow op to the handler that converts it.
HANDLERS = {
    "Atan2": _angle,
    "Erfc": _erfc,
    "FloorDiv": _floor_division,
    "FloorMod": _floor_division,
    "FakeQuantWithMinMaxVars": fake_quantization,
    "ResizeBilinear": _resize,
    "ResizeNearestNeighbor": _resize_to_nearest,
    "Select": _where,
    "SelectV2": _where,
}
