"""Rewrites the operators of a PReLU in an ONNX graph to one."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import numpy_helper

from .onnx_view import View, ints_of


def write_prelu(view: View) -> bool:
    """Replace relu(x) + c · relu(-x), as Keras computes PReLU, by one PRelu with slope -c."""
    for node in view.graph.node:
        found = _parts_of_prelu(view, node) if node.op_type == "Add" else None
        if found is None:
            continue
        x, factor, parts = found
        if x not in view.shapes or factor.ndim > len(view.shapes[x]):
            continue
        if any(view.only_reader(part) is None for part in parts):
            continue
        tensor = numpy_helper.from_array(np.ascontiguousarray(-factor), f"{node.name}/slope")
        view.graph.initializer.append(tensor)
        node.op_type = "PRelu"
        del node.input[:]
        node.input.extend([x, tensor.name])
        for part in parts:
            view.graph.node.remove(part)
        return True
    return False


def _parts_of_prelu(
    view: View, add: onnx.NodeProto
) -> tuple[str, np.ndarray, list[onnx.NodeProto]] | None:
    """Return x, the constant c and the nodes of relu(x) + c · relu(-x); None for other sums.

    The converter may multiply in another order of axes, between two Transposes.
    """
    terms = {t.op_type: t for name in add.input if (t := view.makers.get(name)) is not None}
    relu, back = terms.get("Relu"), terms.get("Transpose")
    product = terms.get("Mul") if back is None else view.makers.get(back.input[0])
    if relu is None or product is None or product.op_type != "Mul":
        return None
    factor = next((name for name in product.input if name in view.weights), None)
    mirrored = next((m for name in product.input if (m := view.makers.get(name))), None)
    moved = None
    if back is not None and mirrored is not None and mirrored.op_type == "Transpose":
        moved, mirrored = mirrored, view.makers.get(mirrored.input[0])
    if factor is None or mirrored is None or mirrored.op_type != "Relu":
        return None
    negative = view.makers.get(mirrored.input[0])
    if negative is None or negative.op_type != "Neg" or negative.input[0] != relu.input[0]:
        return None
    constant = numpy_helper.to_array(view.weights[factor])
    parts = [relu, product, mirrored, negative]
    if back is not None:
        order, first = ints_of(back, "perm"), ints_of(moved, "perm") if moved is not None else None
        if moved is None or order is None or first is None or len(order) < constant.ndim:
            return None
        if [first[axis] for axis in order] != list(range(len(order))):
            return None
        constant = constant.reshape((1,) * (len(order) - constant.ndim) + constant.shape)
        constant = constant.transpose(order)
        parts += [back, moved]
    return relu.input[0], constant, parts
