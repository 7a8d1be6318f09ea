"""Rewrites of a converted ONNX model, mainly the removal of layout changes.

Runtimes compute convolutions channels-first, but Keras flattens channels-last, so a converter
inserts a Transpose. If a dense layer follows, the rows of its kernel are permuted instead.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import onnx
from onnx import numpy_helper

from .onnx_external import Held

_SMALL = 1024  # numbers; constants for shapes and axes are small


@dataclasses.dataclass(frozen=True)
class _View:
    """A model's graph with the look-ups that the rewrites need.

    Attributes:
        graph: The graph, changed in place.
        shapes: Static shape of every value that has one.
        makers: Value to the node that computes it.
        readers: Value to the nodes that read it, with repetitions.
        weights: Name to initializer.
        held: The large weights, which the initializers do not contain.
    """

    graph: onnx.GraphProto
    shapes: dict[str, tuple[int, ...]]
    makers: dict[str, onnx.NodeProto]
    readers: dict[str, list[onnx.NodeProto]]
    weights: dict[str, onnx.TensorProto]
    held: Held

    @classmethod
    def of(cls, model: onnx.ModelProto, shapes: dict[str, tuple[int, ...]], held: Held) -> _View:
        readers: dict[str, list[onnx.NodeProto]] = {}
        for node in model.graph.node:
            for name in node.input:
                readers.setdefault(name, []).append(node)
        return cls(
            model.graph,
            shapes,
            {output: node for node in model.graph.node for output in node.output},
            readers,
            {tensor.name: tensor for tensor in model.graph.initializer},
            held,
        )

    def only_reader(self, node: onnx.NodeProto) -> onnx.NodeProto | None:
        """Return the only reader of a node's only output; None if there are several of either."""
        if len(node.output) != 1:
            return None
        (output,) = node.output
        readers = self.readers.get(output, [])
        returned = any(value.name == output for value in self.graph.output)
        return readers[0] if len(readers) == 1 and not returned else None


def simplify(model: onnx.ModelProto, held: Held) -> onnx.ModelProto:
    """Apply every rewrite until none applies.

    Args:
        model: The model; changed and returned.
        held: Large weights of matrix products and convolutions; changed with the model.
    """
    for node in model.graph.node:
        if node.op_type == "ConvTranspose":
            _without_negative_pads(node)
    shapes = _shapes(model)  # the rewrites remove values, but do not change the shapes of others
    _without_idle_transposes(model, shapes)
    static = {name: shape for name, shape in shapes.items() if -1 not in shape}
    while any(rewrite(_View.of(model, static, held)) for rewrite in _REWRITES):
        pass
    return model


def _without_negative_pads(node: onnx.NodeProto) -> None:
    """Replace negative pads of a transposed convolution by `output_padding`.

    If strides exceed the kernel, Keras appends zeros; tf2onnx distributes them to both ends as
    negative pads, which are invalid.
    """
    pads = _ints(node, "pads") or []
    half = len(pads) // 2
    totals = [begin + end for begin, end in zip(pads[:half], pads[half:], strict=True)]
    if not any(total < 0 for total in totals):
        return
    begin = [0 if total < 0 else pad for pad, total in zip(pads[:half], totals, strict=True)]
    end = [0 if total < 0 else pad for pad, total in zip(pads[half:], totals, strict=True)]
    attributes = [a for a in node.attribute if a.name not in ("pads", "output_padding")]
    del node.attribute[:]
    node.attribute.extend(attributes)
    node.attribute.append(onnx.helper.make_attribute("pads", begin + end))
    appended = [max(0, -total) for total in totals]
    node.attribute.append(onnx.helper.make_attribute("output_padding", appended))


def _without_idle_transposes(model: onnx.ModelProto, shapes: dict[str, tuple[int, ...]]) -> None:
    """Replace each Transpose that only moves axes of size 1 by a Reshape, which copies nothing."""
    for node in model.graph.node:
        if node.op_type != "Transpose":
            continue
        shape, perm = shapes.get(node.input[0]), _ints(node, "perm")
        if shape is None or perm is None or shape.count(-1) > 1:
            continue
        moved = [axis for axis in perm if shape[axis] != 1]
        if moved != sorted(moved):
            continue
        name = f"{node.output[0]}/sizes"
        sizes = np.array([shape[axis] for axis in perm], np.int64)
        model.graph.initializer.append(numpy_helper.from_array(sizes, name))
        node.op_type = "Reshape"
        del node.attribute[:]
        node.input.append(name)


def _shapes(model: onnx.ModelProto) -> dict[str, tuple[int, ...]]:
    """Return the shape of every value of known rank; free sizes are -1.

    Large weights are passed to the inference by shape only, since it copies data several times.
    """
    light = onnx.ModelProto(ir_version=model.ir_version, opset_import=model.opset_import)
    light.graph.name = "shapes"
    light.graph.node.extend(model.graph.node)
    light.graph.input.extend(model.graph.input)
    light.graph.output.extend(model.graph.output)
    for weight in model.graph.initializer:
        if np.prod(weight.dims) <= _SMALL:
            light.graph.initializer.append(weight)
        else:
            info = onnx.helper.make_tensor_value_info(weight.name, weight.data_type, weight.dims)
            light.graph.input.append(info)
    inferred = onnx.shape_inference.infer_shapes(light).graph
    values = [*inferred.value_info, *model.graph.input, *model.graph.output]
    return {v.name: shape for v in values if (shape := _shape(v)) is not None}


def _drop_idle_reshape(view: _View) -> bool:
    """Remove a Reshape to the shape that its input has."""
    for node in view.graph.node:
        if node.op_type != "Reshape":
            continue
        before, after = view.shapes.get(node.input[0]), view.shapes.get(node.output[0])
        if before is None or before != after:
            continue
        if any(value.name == node.output[0] for value in view.graph.output):
            continue
        for reader in view.readers.get(node.output[0], []):
            _replace_input(reader, node.output[0], node.input[0])
        view.graph.node.remove(node)
        return True
    return False


def _merge_reshapes(view: _View) -> bool:
    """Connect the second of two consecutive Reshapes to the input of the first."""
    for node in view.graph.node:
        if node.op_type != "Reshape":
            continue
        first = view.makers.get(node.input[0])
        if first is None or first.op_type != "Reshape" or view.only_reader(first) is None:
            continue
        shape = view.shapes.get(node.output[0])
        if shape is None:  # the second may copy sizes from its input
            continue
        target = numpy_helper.from_array(np.array(shape, np.int64), f"{node.output[0]}/shape")
        view.graph.initializer.append(target)
        node.input[0], node.input[1] = first.input[0], target.name
        view.graph.node.remove(first)
        return True
    return False


def _permute_rows(view: _View) -> bool:
    """Replace Transpose -> flatten -> dense by flatten -> dense with permuted kernel rows."""
    for node in view.graph.node:
        if node.op_type != "Transpose":
            continue
        flatten = view.only_reader(node)
        if flatten is None or flatten.op_type != "Reshape":
            continue
        dense = view.only_reader(flatten)
        shape = view.shapes.get(node.input[0])
        flat = view.shapes.get(flatten.output[0])
        perm = _ints(node, "perm")
        if dense is None or shape is None or perm is None or perm[0] != 0:
            continue
        if flat != (shape[0], int(np.prod(shape[1:]))):
            continue
        kernel = _kernel(view, dense, flatten.output[0])
        if kernel is None:
            continue
        rows_axis = 1 if _int(dense, "transB") else 0
        # Row r of the kernel multiplies the r-th number of the transposed tensor.
        order = np.arange(flat[1]).reshape(shape[1:]).transpose([i - 1 for i in perm[1:]]).ravel()
        weights = np.take(view.held.array(kernel), np.argsort(order), axis=rows_axis)
        _set_weight(view, dense, kernel, weights)
        flatten.input[0] = node.input[0]
        view.graph.node.remove(node)
        return True
    return False


def _drop_zero(view: _View) -> bool:
    """Remove an Add of zeros."""
    for node in view.graph.node:
        found = _with_constant(view, node)
        if found is None or np.any(found[1]):
            continue
        maker = view.makers.get(found[0])
        if maker is None or id(view.only_reader(maker)) != id(node):
            continue
        maker.output[:] = node.output
        view.graph.node.remove(node)
        return True
    return False


def _put_bias_into_product(view: _View) -> bool:
    """Fuse an added bias into the convolution or matrix product before it.

    Layout changes may lie between them: a 1-D convolution is a 2-D one followed by a Squeeze, a
    dense layer on sequences a matrix product between Reshapes. The fused operator is quantized
    once instead of twice.
    """
    for node in view.graph.node:
        found = _with_constant(view, node)
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
    view: _View, reader: onnx.NodeProto, node: onnx.NodeProto, constant: np.ndarray
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


def _settle_third_operand(view: _View) -> bool:
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
        if values.ndim == 2 and len(values) == 1:
            _set_weight(view, node, weight, values[0])
            return True
    return False


def _swap_third_operand(view: _View, node: onnx.NodeProto) -> bool:
    add = view.only_reader(node)
    found = None if add is None else _with_constant(view, add)
    if add is None or found is None or view.shapes.get(node.input[2]) != view.shapes.get(found[0]):
        return False
    summand = node.input[2]
    del node.input[2:]
    if not _take_bias(view, node, found[1]):
        node.input.append(summand)
        return False
    add.input[:] = [found[0], summand]
    return True


def _with_constant(view: _View, node: onnx.NodeProto) -> tuple[str, np.ndarray] | None:
    """Return the other operand of an Add of a constant, and the constant with as many axes."""
    if node.op_type != "Add":
        return None
    for value, other in (node.input, reversed(node.input)):
        weight, shape = view.weights.get(other), view.shapes.get(value)
        if weight is None or shape is None or view.shapes.get(node.output[0]) != shape:
            continue
        constant = numpy_helper.to_array(weight)
        return value, constant.reshape((1,) * (len(shape) - constant.ndim) + constant.shape)
    return None


def _before(view: _View, node: onnx.NodeProto, constant: np.ndarray) -> np.ndarray | None:
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
        perm = _ints(node, "perm")
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


def _axes(view: _View, node: onnx.NodeProto, rank: int) -> set[int]:
    """Return the axes that a Squeeze or Unsqueeze removes or inserts."""
    weight = view.weights.get(node.input[1]) if len(node.input) > 1 else None
    if weight is None:
        sizes = view.shapes[node.input[0]]
        return {axis for axis, size in enumerate(sizes) if size == 1}
    return {int(axis) % rank for axis in numpy_helper.to_array(weight)}


def _take_bias(view: _View, product: onnx.NodeProto, constant: np.ndarray) -> bool:
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
    return True


def _write_prelu(view: _View) -> bool:
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
    view: _View, add: onnx.NodeProto
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
        order, first = _ints(back, "perm"), _ints(moved, "perm") if moved is not None else None
        if moved is None or order is None or first is None or len(order) < constant.ndim:
            return None
        if [first[axis] for axis in order] != list(range(len(order))):
            return None
        constant = constant.reshape((1,) * (len(order) - constant.ndim) + constant.shape)
        constant = constant.transpose(order)
        parts += [back, moved]
    return relu.input[0], constant, parts


_PRODUCTS = ("Conv", "ConvTranspose", "MatMul", "Gemm")

_REWRITES: tuple[Callable[[_View], bool], ...] = (
    _permute_rows,
    _merge_reshapes,
    _drop_idle_reshape,
    _write_prelu,
    _drop_zero,
    _settle_third_operand,
    _put_bias_into_product,
)


def _kernel(view: _View, dense: onnx.NodeProto, data: str) -> onnx.TensorProto | None:
    """Return the constant matrix of a dense layer that reads `data`; None for other nodes."""
    if dense.op_type not in ("Gemm", "MatMul") or dense.input[0] != data:
        return None
    if _int(dense, "transA"):
        return None
    kernel = view.weights.get(dense.input[1])
    return kernel if kernel is not None and len(kernel.dims) == 2 else None


def _set_weight(
    view: _View, node: onnx.NodeProto, old: onnx.TensorProto, values: np.ndarray
) -> None:
    """Replace the weights of a node; others may read the old ones."""
    name, values = f"{old.name}/arranged", np.ascontiguousarray(values)
    held = view.held.holds(old)
    new = view.held.tensor(values, name) if held else numpy_helper.from_array(values, name)
    view.graph.initializer.append(new)
    _replace_input(node, old.name, new.name)
    if len(view.readers[old.name]) == 1:
        view.graph.initializer.remove(old)


def _replace_input(node: onnx.NodeProto, old: str, new: str) -> None:
    for index, name in enumerate(node.input):
        if name == old:
            node.input[index] = new


def _ints(node: onnx.NodeProto, name: str) -> list[int] | None:
    return next((list(a.ints) for a in node.attribute if a.name == name), None)


def _int(node: onnx.NodeProto, name: str) -> int:
    return next((a.i for a in node.attribute if a.name == name), 0)


def _shape(value: onnx.ValueInfoProto) -> tuple[int, ...] | None:
    tensor = value.type.tensor_type
    if not tensor.HasField("shape"):
        return None
    return tuple(d.dim_value if d.HasField("dim_value") else -1 for d in tensor.shape.dim)
