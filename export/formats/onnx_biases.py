"""Rewrites of an ONNX graph that put added constants into convolutions and matrix products."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import numpy_helper

from .onnx_view import View, ints_of, set_weight, with_constant

_PRODUCTS = ("Conv", "ConvTranspose", "MatMul", "Gemm")


def put_bias_into_product(view: View) -> bool:
    """Fuse an added bias into the convolution or matrix product before it.

    Layout changes may lie between them: a 1-D convolution is a 2-D one followed by a Squeeze, a
    dense layer on sequences a matrix product between Reshapes. The fused operator is quantized
    once instead of twice.
    """
    for node in view.graph.node:
        found = with_constant(view, node)
        last = view.makers.get(found[0]) if found else None
        if found is None or last is None:
            continue
        reached = _product_behind(view, node, last, found[1])
        if reached is not None and _take_bias(view, *reached):
            last.output[0] = node.output[0]
            view.graph.node.remove(node)
            return True
    return False


def _product_behind(
    view: View, reader: onnx.NodeProto, node: onnx.NodeProto, constant: np.ndarray
) -> tuple[onnx.NodeProto, np.ndarray] | None:
    """Return the product at or before `node`, and the constant in the layout of its output."""
    while view.only_reader(node) is reader:
        if node.op_type in _PRODUCTS:
            return node, constant
        moved = _before(view, node, constant)
        maker = view.makers.get(node.input[0])
        if moved is None or maker is None:
            return None
        reader, node, constant = node, maker, moved
    return None


def settle_third_operand(view: View) -> bool:
    """Make the third operand of a Gemm a constant vector, or remove it.

    If it is computed and a constant is added after the Gemm, the two are exchanged. Zeros, which
    result from the initial state of a recurrent layer, are removed.
    """
    for node in view.graph.node:
        if node.op_type != "Gemm" or len(node.input) < 3:
            continue
        weight = view.weights.get(node.input[2])
        if weight is None:
            if _swap_third_operand(view, node):
                return True
            continue
        values = numpy_helper.to_array(weight)
        if not np.any(values):
            del node.input[2:]
            return True
        sizes = view.shapes.get(node.output[0], values.shape)
        if values.size in (1, *values.shape[-1:]):  # one number, or one row
            vector = np.broadcast_to(values.reshape(-1), sizes[-1:] or (1,))
            if vector.shape != values.shape:
                set_weight(view, node, weight, vector)
                return True
    return False


def _swap_third_operand(view: View, node: onnx.NodeProto) -> bool:
    add = view.only_reader(node)
    found = None if add is None else with_constant(view, add)
    if add is None or found is None or view.shapes.get(node.input[2]) != view.shapes.get(found[0]):
        return False
    if any(a.name == "beta" and a.f != 1 for a in node.attribute):
        return False
    summand = node.input[2]
    del node.input[2:]
    if not _take_bias(view, node, found[1]):
        node.input.append(summand)
        return False
    add.input[:] = [found[0], summand]
    return True


def _before(view: View, node: onnx.NodeProto, constant: np.ndarray) -> np.ndarray | None:
    """Return the constant to add before a layout change instead of after it; None if impossible.

    Args:
        view: The model.
        node: Any node.
        constant: The constant, with as many axes as the node's output.
    """
    before, after = view.shapes.get(node.input[0]), view.shapes.get(node.output[0])
    if before is None or after is None:
        return None
    if node.op_type == "Transpose":
        perm = ints_of(node, "perm")
        return None if perm is None else constant.transpose(np.argsort(perm))
    if node.op_type not in ("Squeeze", "Unsqueeze", "Reshape"):
        return None
    # Values may vary along the last axes only, which must be the last axes before as well.
    varying = [axis for axis, size in enumerate(constant.shape) if size > 1]
    first = varying[0] if varying else len(after)
    if node.op_type == "Reshape":
        tail = np.broadcast_to(constant, (*[1] * first, *after[first:])).ravel()
        axis = len(before)
        while axis > 0 and np.prod(before[axis:]) < tail.size:
            axis -= 1
        fits = np.prod(before[axis:]) == tail.size
        return tail.reshape((*[1] * axis, *before[axis:])) if fits else None
    kept = iter(constant.shape)
    if node.op_type == "Squeeze":
        axes = _axes(view, node, len(before))
        return constant.reshape([1 if axis in axes else next(kept) for axis in range(len(before))])
    axes = _axes(view, node, len(after))
    return constant.reshape([size for axis, size in enumerate(constant.shape) if axis not in axes])


def _axes(view: View, node: onnx.NodeProto, rank: int) -> set[int]:
    """Return the axes that a Squeeze or Unsqueeze removes or inserts."""
    weight = view.weights.get(node.input[1]) if len(node.input) > 1 else None
    if weight is None:
        sizes = view.shapes[node.input[0]]
        return {axis for axis, size in enumerate(sizes) if size == 1}
    return {int(axis) % rank for axis in numpy_helper.to_array(weight)}


def _take_bias(view: View, product: onnx.NodeProto, constant: np.ndarray) -> bool:
    """Set the bias of a product without one, if the constant has one number per output channel."""
    shape = view.shapes.get(product.output[0])
    if shape is None or len(product.input) != 2 or product.input[1] not in view.weights:
        return False
    channel = len(shape) - 1 if product.op_type in ("MatMul", "Gemm") else 1
    if any(size > 1 for axis, size in enumerate(constant.shape) if axis != channel):
        return False
    if product.op_type == "MatMul":
        if len(shape) != 2 or len(view.weights[product.input[1]].dims) != 2:
            return False
        product.op_type = "Gemm"
    bias = np.broadcast_to(constant.ravel(), (shape[channel],)).astype(constant.dtype)
    name = f"{product.output[0]}/bias"
    view.graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(bias), name))
    product.input.append(name)
    factors = [a for a in product.attribute if a.name == "beta"]  # of a bias that it did not have
    for factor in factors:
        product.attribute.remove(factor)
    return True
