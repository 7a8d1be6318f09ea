"""Ops of .onnx files with windows, kernels and statistics."""

from __future__ import annotations

from typing import Any

import numpy as np

from ...artifacts.graphs.base import GraphOp
from . import forms
from .forms import Write
from .writer import UnknownFormError, Writer

_FIRST = {"data_format": "channels_first"}


def ints(op: GraphOp, name: str, default: list[int]) -> list[int]:
    """Return an integer-list attribute of an op."""
    return [int(value) for value in op.attributes.get(name, default)]


def parameter(writer: Writer, op: GraphOp, place: int, name: str) -> list[int] | None:
    """Return an integer-list attribute of an op, which is an input in newer opsets."""
    if name in op.attributes:
        return ints(op, name, [])
    key = writer.optional(op, place)
    return writer.ints(key) if key else None


def _framing(op: GraphOp, rank: int) -> dict[str, Any]:
    """Return strides, padding and dilation of a window."""
    automatic = op.attributes.get("auto_pad", "NOTSET")
    pads = ints(op, "pads", [0] * (2 * rank))
    padding: Any = [[pads[axis], pads[axis + rank]] for axis in range(rank)]
    if automatic not in ("NOTSET", ""):
        if automatic not in ("SAME_UPPER", "VALID"):
            raise UnknownFormError(str(automatic))
        padding = "same" if automatic == "SAME_UPPER" else "valid"
    return {
        "strides": ints(op, "strides", [1] * rank),
        "padding": padding,
        "dilation": ints(op, "dilations", [1] * rank),
        **_FIRST,
    }


def _conv(writer: Writer, op: GraphOp) -> None:
    kernel = writer.constant(op.inputs[1])
    rank = kernel.ndim - 2
    weights = {
        "kernel": np.transpose(kernel, (*range(2, kernel.ndim), 1, 0)),
        **forms.bias(writer, op, 2),
    }
    name, merged, lead = writer.images(op.inputs[0])
    groups = int(op.attributes.get("group", 1))
    attributes = {**_framing(op, rank), **merged, "groups": groups}
    writer.add(op, "conv", [name], attributes, weights, lead=lead)


def _transposed_conv(writer: Writer, op: GraphOp) -> None:
    """Append a transposed convolution; the kernel of a grouped one is expanded with zeros."""
    kernel = writer.constant(op.inputs[1])  # (C, F / groups, …)
    rank, a = kernel.ndim - 2, op.attributes
    if "output_shape" in a or a.get("auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
        raise UnknownFormError("another form")
    strides, dilation = ints(op, "strides", [1] * rank), ints(op, "dilations", [1] * rank)
    pads, extra = ints(op, "pads", [0] * 2 * rank), ints(op, "output_padding", [0] * rank)
    groups = int(a.get("group", 1))
    if groups > 1:
        each, out = kernel.shape[0] // groups, kernel.shape[1]
        whole = np.zeros((kernel.shape[0], out * groups, *kernel.shape[2:]))
        for group in range(groups):
            rows = slice(group * each, (group + 1) * each)
            whole[rows, group * out : (group + 1) * out] = kernel[rows]
        kernel = whole
    name, merged, lead = writer.images(op.inputs[0])
    spatial = writer.filed(op.inputs[0])[2:]
    spans = [(k - 1) * d + 1 for k, d in zip(kernel.shape[2:], dilation)]
    full = [(n - 1) * s + k + e for n, s, k, e in zip(spatial, strides, spans, extra)]
    attributes = {
        "strides": strides,
        "dilation": dilation,
        "padding": "valid",
        "output_sizes": full,
        **_FIRST,
        **merged,
    }
    weights = {
        "kernel": np.transpose(kernel, (*range(2, rank + 2), 1, 0)),
        **forms.bias(writer, op, 2),
    }
    if not any(pads):
        writer.add(op, "conv_transpose", [name], attributes, weights, lead=lead)
        return
    whole_value = writer.part(op, "conv_transpose", [name], attributes, weights, lead=lead)
    cuts = [[a, n - b, 1] for a, b, n in zip(pads[:rank], pads[rank:], full)]
    kept = [[None, None, 1]] * (2 - lead)
    writer.add(op, "slice", [whole_value.name], {"slices": [*kept, *cuts]}, lead=lead)


def _gemm(writer: Writer, op: GraphOp) -> None:
    a = op.attributes
    if a.get("transA"):
        raise UnknownFormError("a transposed first operand")
    kernel = writer.constant(op.inputs[1]) * float(a.get("alpha", 1.0))
    weights = {"kernel": kernel.T if a.get("transB") else kernel}
    key = writer.optional(op, 2)
    if key:
        bias = writer.constant(key) * float(a.get("beta", 1.0))
        if bias.size not in (1, weights["kernel"].shape[1]):
            raise UnknownFormError("a bias for each row")
        weights["bias"] = np.broadcast_to(bias.reshape(-1), (weights["kernel"].shape[1],))
    forms.dense(writer, op, op.inputs[0], weights, writer.framed(op.inputs[0])[2])


def _global_pool(kind: str) -> Write:
    def write(writer: Writer, op: GraphOp) -> None:
        name, merged, lead = writer.images(op.inputs[0])
        if merged:
            raise UnknownFormError("a stack of batches")
        writer.add(op, kind, [name], {"keepdims": True, **_FIRST}, lead=lead)

    return write


def _pool(kind: str) -> Write:
    def write(writer: Writer, op: GraphOp) -> None:
        size = ints(op, "kernel_shape", [])
        framing = _framing(op, len(size))
        odd = op.attributes.get("ceil_mode") or set(framing["dilation"]) != {1}
        counted = op.attributes.get("count_include_pad") and framing["padding"] != "valid"
        if odd or (counted and np.any(framing["padding"])):
            raise UnknownFormError("another way of pooling")
        name, merged, lead = writer.images(op.inputs[0])
        writer.add(op, kind, [name], {**framing, **merged, "pool_size": size}, lead=lead)

    return write


def _resize(writer: Writer, op: GraphOp) -> None:
    """Append a linear interpolation; for nearest interpolation, positions are rounded."""
    a, filed = op.attributes, writer.filed(op.inputs[0])
    key = writer.optional(op, 3)
    sizes = (
        writer.ints(key)
        if key
        else [int(n * s) for n, s in zip(filed, writer.constant(op.inputs[-1]).reshape(-1))]
    )
    transform = a.get("coordinate_transformation_mode", "half_pixel")
    if a.get("mode", "nearest") == "nearest":
        writer.moved(op, op.inputs[0])
        return
    if a.get("mode") != "linear" or a.get("antialias") or a.get("axes"):
        raise UnknownFormError(f"by {a.get('mode')}")
    matrices = {
        axis: forms.interpolation(n, _places(n, size, transform))
        for axis, (n, size) in enumerate(zip(filed, sizes))
        if n != size
    }
    forms.resized(writer, op, matrices)


def _places(size: int, wanted: int, transform: str) -> np.ndarray:
    """Return the input positions of the elements of a resized axis."""
    index, scale = np.arange(wanted), wanted / size
    if transform == "half_pixel" or (transform == "pytorch_half_pixel" and wanted > 1):
        return (index + 0.5) / scale - 0.5
    if transform == "asymmetric":
        return index / scale
    if transform == "align_corners":
        return index * (size - 1) / max(wanted - 1, 1)
    raise UnknownFormError(transform)


def _batch_norm(writer: Writer, op: GraphOp) -> None:
    gamma, beta, mean, variance = (writer.constant(key) for key in op.inputs[1:5])
    scale = gamma / np.sqrt(variance + float(op.attributes.get("epsilon", 1e-5)))
    name, _, lead = writer.framed(op.inputs[0])
    weights = {"scale": scale, "shift": beta - mean * scale}
    writer.add(op, "affine", [name], {"axis": 2 - lead}, weights, lead=lead)


def _layer_norm(writer: Writer, op: GraphOp) -> None:
    rank = len(writer.filed(op.inputs[0]))
    axes = list(range(int(op.attributes.get("axis", -1)) % rank, rank))
    shift = writer.optional(op, 2)
    forms.normalized(
        writer,
        op,
        axes,
        float(op.attributes.get("epsilon", 1e-5)),
        writer.constant(op.inputs[1]),
        writer.constant(shift) if shift else None,
    )


def _instance_norm(writer: Writer, op: GraphOp) -> None:
    rank = len(writer.filed(op.inputs[0]))
    scale, shift = (writer.constant(key).reshape(-1, *[1] * (rank - 2)) for key in op.inputs[1:3])
    epsilon = float(op.attributes.get("epsilon", 1e-5))
    forms.normalized(writer, op, list(range(2, rank)), epsilon, scale, shift)


LINEAR: dict[str, Write] = {
    "Conv": _conv,
    "ConvTranspose": _transposed_conv,
    "Gemm": _gemm,
    "MatMul": forms.product,
    "GlobalAveragePool": _global_pool("global_average_pool"),
    "GlobalMaxPool": _global_pool("global_max_pool"),
    "AveragePool": _pool("average_pool"),
    "MaxPool": _pool("max_pool"),
    "Resize": _resize,
    "Upsample": _resize,
    "BatchNormalization": _batch_norm,
    "LayerNormalization": _layer_norm,
    "InstanceNormalization": _instance_norm,
}
