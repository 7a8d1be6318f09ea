"""Convolutions, products of matrices, pooling and interpolation."""

from __future__ import annotations

import functools
import string
from typing import Any

import numpy as np

from ...equations import is_dense, spelled_out
from .moves import transposed
from .running import run_op
from .values import (
    Builder,
    Computed,
    Known,
    Shape,
    Translation,
    UntranslatableError,
    Value,
    error_of,
    role_of,
    shape_of,
)


def _spatial(op: Any, name: str) -> list[int]:
    """Return an attribute such as strides without batch and channels."""
    values = [int(value) for value in op.get_attr(name)]
    return values[2:] if _first(op) else values[1:-1]


def _first(op: Any) -> bool:
    data_format: bytes = op.get_attr("data_format")
    return data_format in (b"NCHW", b"NCDHW")


def _framing(op: Any) -> dict[str, Any]:
    padding = op.get_attr("padding").decode().lower()
    if padding not in ("same", "valid"):
        raise UntranslatableError(f"{op.type} with {padding} padding")
    dilation = _spatial(op, "dilations")
    return {
        "strides": _spatial(op, "strides"),
        "padding": padding,
        "dilation": dilation,
        "data_format": "channels_first" if _first(op) else "channels_last",
    }


def _known(value: Value, op: Any) -> Known:
    if not isinstance(value, Known):
        raise UntranslatableError(f"{op.type} with a computed kernel")
    return value


def _images(builder: Builder, value: Value, tensor: Any) -> tuple[str, dict[str, Any]]:
    """Return a batch of images as a value, and the attribute that describes its samples axis."""
    name, _, extra = builder.framed(value, tensor)
    return name, {"time_distributed": True} if extra else {}


def _output(tensor: Any, merged: dict[str, Any]) -> Shape:
    shape = shape_of(tensor)
    return shape if merged else shape[1:]


def _conv(builder: Builder, op: Any, inputs: list[Value]) -> list[Value]:
    kernel = _known(inputs[1], op)
    name, merged = _images(builder, inputs[0], op.inputs[0])
    attributes = {**_framing(op), **merged}
    if op.type == "DepthwiseConv2dNative":
        operator = "depthwise_conv"
    else:
        operator = "conv"
        channels = shape_of(op.inputs[0])[1 if _first(op) else -1]
        attributes["groups"] = channels // kernel.array.shape[-2]
    kept = role_of(kernel, "kernel", kernel.in_float32)
    return [builder.emit(operator, [name], _output(op.outputs[0], merged), attributes, **kept)]


def _conv_transpose(builder: Builder, op: Any, inputs: list[Value]) -> list[Value]:
    kernel = _known(inputs[1], op)
    name, merged = _images(builder, inputs[2], op.inputs[2])
    sizes = shape_of(op.outputs[0])
    spatial = sizes[2:] if _first(op) else sizes[1:-1]
    attributes = {**_framing(op), **merged, "output_sizes": list(spatial)}
    kept = role_of(kernel, "kernel", kernel.in_float32)
    shape = _output(op.outputs[0], merged)
    return [builder.emit("conv_transpose", [name], shape, attributes, **kept)]


def _matmul(builder: Builder, op: Any, inputs: list[Value]) -> list[Value]:
    names = {"MatMul": ("transpose_a", "transpose_b")}.get(op.type, ("adj_x", "adj_y"))
    turned = tuple(bool(op.get_attr(name)) for name in names)
    first, second = inputs
    if isinstance(second, Known) and second.array.ndim == 2 and not turned[0]:
        name, shape, _ = builder.framed(first, op.inputs[0], len(op.inputs[0].shape) - 1)
        kernel = second.in_float32.T if turned[1] else second.in_float32
        kept = role_of(second, "kernel", kernel)
        return [builder.emit("dense", [name], (*shape[:-1], kernel.shape[-1]), **kept)]
    return [_product(builder, op, inputs, turned)]


def _product(builder: Builder, op: Any, inputs: list[Value], turned: tuple[bool, ...]) -> Computed:
    """Append a product of stacks of matrices, whose leading axes broadcast."""
    out = shape_of(op.outputs[0])
    drop = 1 if out[:1] == (1,) and len(out) > 2 else 0
    attributes: dict[str, Any] = {"transpose_first": turned[0], "transpose_second": turned[1]}
    names, constants = [], {}
    for place, (value, tensor) in enumerate(zip(inputs, op.inputs, strict=True)):
        shape = ((1,) * (len(out) - tensor.shape.rank) + shape_of(tensor))[drop:]
        if isinstance(value, Known):
            attributes |= {"constant_first": place == 0, **error_of(value)}
            constants = role_of(value, "constant", value.array.reshape(shape))
        else:
            names.append(builder.named(value, shape))
    return builder.emit("matmul", names, out[drop:], attributes, **constants)


def _einsum(builder: Builder, op: Any, inputs: list[Value]) -> list[Value]:
    equation = op.get_attr("equation").decode()
    if len(inputs) != 2 or "->" not in equation:
        raise UntranslatableError(f"einsum {equation}")
    equation = spelled_out(equation, [len(tensor.shape) for tensor in op.inputs])
    if isinstance(inputs[1], Known) and is_dense(equation):
        name, shape, _ = builder.framed(inputs[0], op.inputs[0], len(op.inputs[0].shape) - 1)
        kernel = inputs[1].in_float32
        kept = role_of(inputs[1], "kernel", kernel)
        return [builder.emit("dense", [name], (*shape[:-1], kernel.shape[-1]), **kept)]
    operands, result = equation.split("->")
    labels = operands.split(",")
    tensors = list(op.inputs)
    if isinstance(inputs[0], Known):
        inputs, labels, tensors = inputs[::-1], labels[::-1], tensors[::-1]
    sample = next(letter for letter in string.ascii_letters if letter not in equation)
    name, shape = builder.full(inputs[0], tensors[0]), shape_of(op.outputs[0])
    second = inputs[1]
    if isinstance(second, Known):
        plain = f"{sample}{labels[0]},{labels[1]}->{sample}{result}"
        kept = role_of(second, "kernel", second.in_float32)
        return [builder.emit("einsum", [name], shape, {"equation": plain}, **kept)]
    plain = f"{sample}{labels[0]},{sample}{labels[1]}->{sample}{result}"
    names = [name, builder.full(second, tensors[1])]
    return [builder.emit("contract", names, shape, {"equation": plain})]


def _pool(operator: str, builder: Builder, op: Any, inputs: list[Value]) -> list[Value]:
    name, merged = _images(builder, inputs[0], op.inputs[0])
    attributes = {
        "pool_size": _spatial(op, "ksize"),
        "strides": _spatial(op, "strides"),
        "padding": op.get_attr("padding").decode().lower(),
        "data_format": "channels_first" if _first(op) else "channels_last",
        **merged,
    }
    attributes["dilation"] = [1] * len(attributes["pool_size"])
    return [builder.emit(operator, [name], _output(op.outputs[0], merged), attributes)]


def _resize(builder: Builder, op: Any, inputs: list[Value]) -> list[Value]:
    """Translate an interpolation to a product with one matrix per axis, read from unit vectors."""
    shape, wanted = shape_of(op.inputs[0]), shape_of(op.outputs[0])
    if shape[0] != 1:
        raise UntranslatableError("a resized stack of images")
    constants = {}
    for axis in (1, 2):
        size = shape[axis]
        places = [1, 1, 1, size]
        places[axis] = size
        image = np.eye(size, dtype=np.float32).reshape(places)
        target = [1, 1]
        target[axis - 1] = wanted[axis]
        resized = run_op(op, [image, np.array(target, np.int32)])
        constants[f"matrix_{axis}"] = resized.reshape(wanted[axis], size)
    kept = builder.named(inputs[0], shape[1:])
    return [builder.emit("resize", [kept], wanted[1:], {"axes": [1, 2]}, constants=constants)]


def _batch_norm(builder: Builder, op: Any, inputs: list[Value]) -> list[Value]:
    if op.get_attr("is_training") or not all(isinstance(value, Known) for value in inputs[1:]):
        raise UntranslatableError("FusedBatchNorm of a batch's own statistics")
    gain, shift, mean, variance = (np.float64(v.array) for v in inputs[1:] if isinstance(v, Known))
    scale = gain / np.sqrt(variance + op.get_attr("epsilon"))
    name, shape, extra = builder.framed(inputs[0], op.inputs[0])
    axis = 1 if _first(op) else len(op.inputs[0].shape) - 1
    constants = {"scale": scale, "shift": shift - mean * scale}
    return [builder.emit("affine", [name], shape, {"axis": axis + extra}, constants=constants)]


def _depth_to_space(builder: Builder, op: Any, inputs: list[Value]) -> list[Value]:
    n, high, wide, channels = shape_of(op.outputs[0])
    block = int(op.get_attr("block_size"))
    apart = (n, high // block, wide // block, block, block, channels)
    value = Computed(builder.named(inputs[0], apart), apart)
    return [transposed(builder, value, apart, (0, 1, 3, 2, 4, 5))]


def _space_to_depth(builder: Builder, op: Any, inputs: list[Value]) -> list[Value]:
    n, high, wide, channels = shape_of(op.inputs[0])
    block = int(op.get_attr("block_size"))
    apart = (n, high // block, block, wide // block, block, channels)
    value = Computed(builder.named(inputs[0], apart), apart)
    return [transposed(builder, value, apart, (0, 1, 3, 2, 4, 5))]


LINEAR: dict[str, Translation] = {
    "Conv2D": _conv,
    "Conv3D": _conv,
    "DepthwiseConv2dNative": _conv,
    "Conv2DBackpropInput": _conv_transpose,
    "Conv3DBackpropInputV2": _conv_transpose,
    "MatMul": _matmul,
    "BatchMatMul": _matmul,
    "BatchMatMulV2": _matmul,
    "BatchMatMulV3": _matmul,
    "Einsum": _einsum,
    "AvgPool": functools.partial(_pool, "average_pool"),
    "AvgPool3D": functools.partial(_pool, "average_pool"),
    "MaxPool": functools.partial(_pool, "max_pool"),
    "MaxPool3D": functools.partial(_pool, "max_pool"),
    "ResizeBilinear": _resize,
    "ResizeNearestNeighbor": _resize,
    "ResizeBicubic": _resize,
    "ResizeArea": _resize,
    "FusedBatchNorm": _batch_norm,
    "FusedBatchNormV2": _batch_norm,
    "FusedBatchNormV3": _batch_norm,
    "DepthToSpace": _depth_to_space,
    "SpaceToDepth": _space_to_depth,
}
