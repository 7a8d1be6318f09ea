"""Ops of .onnx files whose inputs are quantized at run time.

DynamicQuantizeLinear chooses the scale of its input, an integer product follows, and a Mul by both
scales turns its sums into real numbers. In real numbers the first does nothing, and the product has
the kernel that its integers represent; the Mul then does nothing either.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from ...artifacts.graphs.base import GraphOp
from .forms import Write
from .onnx_linear import LINEAR
from .writer import UnknownFormError, Writer


def multiply(writer: Writer, op: GraphOp) -> None:
    """Append a product, unless it turns the sums of an integer product into real numbers."""
    for key, other in (op.inputs, op.inputs[::-1]):
        scale = None if key in writer.constants else writer.scales.get(writer.value(key).name)
        if scale is None:
            continue
        if other not in writer.constants or not np.array_equal(
            writer.constant(other).reshape(-1), scale.reshape(-1)
        ):
            raise UnknownFormError("an integer product with another scale")
        writer.same(key, op.outputs[0])
        return
    writer.broadcast(op, "multiply", op.inputs)


def _quantize(writer: Writer, op: GraphOp) -> None:
    """Pass the input on, in steps of one."""
    writer.same(op.inputs[0], op.outputs[0])
    writer.known(replace(op, outputs=op.outputs[1:]), [np.ones((), np.float32), np.zeros((), int)])


def _product(kind: str) -> Write:
    """Append a product with the kernel that its integers represent."""

    def write(writer: Writer, op: GraphOp) -> None:
        steps = writer.graph.tensors[op.inputs[1]].quantization
        if steps is None:
            raise UnknownFormError("a kernel without a constant scale")
        if writer.optional(op, 2) and writer.ints(op.inputs[2]) != [0]:
            raise UnknownFormError("an input that is not quantized at run time")
        LINEAR[kind](writer, replace(op, kind=kind, inputs=op.inputs[:2]))
        writer.scales[writer.value(op.outputs[0]).name] = steps.scales

    return write


DYNAMIC: dict[str, Write] = {
    "DynamicQuantizeLinear": _quantize,
    "ConvInteger": _product("Conv"),
    "MatMulInteger": _product("MatMul"),
}
