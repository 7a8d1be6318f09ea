"""Rewrites of a converted ONNX model, mainly the removal of layout changes.

Runtimes compute convolutions channels-first, but Keras flattens channels-last, so a converter
inserts a Transpose. If a dense layer follows, the rows of its kernel are permuted instead.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import numpy as np
import onnx
from onnx import numpy_helper

from .onnx_biases import put_bias_into_product, settle_third_operand
from .onnx_external import Held
from .onnx_pads import put_pads_into_convolutions
from .onnx_prelu import write_prelu
from .onnx_view import View, int_of, ints_of, replace_input, set_weight, with_constant

_SMALL = 1024  # numbers; constants for shapes and axes are small


def simplify(model: onnx.ModelProto, held: Held) -> onnx.ModelProto:
    """Apply every rewrite until none applies.

    Args:
        model: The model; changed and returned.
        held: Large weights of matrix products and convolutions; changed with the model.
    """
    for node in model.graph.node:
        if node.op_type == "ConvTranspose":
            _without_negative_pads(node)
    put_pads_into_convolutions(model)
    _with_scalar_depths(model)
    _with_constant_sizes(model)
    shapes = _shapes(model)  # the rewrites remove values, but do not change the shapes of others
    _without_idle_transposes(model, shapes)
    static = {name: shape for name, shape in shapes.items() if -1 not in shape}
    while any(rewrite(View.of(model, static, held)) for rewrite in _REWRITES):
        pass
    return model


def _with_scalar_depths(model: onnx.ModelProto) -> None:
    """Give each OneHot its depth as a scalar: ONNX's reference refuses a vector of one number."""
    vectors = {t.name: t for t in model.graph.initializer if list(t.dims) == [1]}
    scalars: dict[str, onnx.TensorProto] = {}
    for node in model.graph.node:
        depth = vectors.get(node.input[1]) if node.op_type == "OneHot" else None
        if depth is not None:
            name = f"{depth.name}/scalar"
            number = numpy_helper.to_array(depth).reshape(())
            scalars[name] = numpy_helper.from_array(number, name)
            node.input[1] = name
    read = {name for node in model.graph.node for name in node.input}
    kept = [t for t in model.graph.initializer if t.name not in vectors or t.name in read]
    del model.graph.initializer[:]
    model.graph.initializer.extend([*kept, *scalars.values()])


def _with_constant_sizes(model: onnx.ModelProto) -> None:
    """Replace sizes that are computed from known shapes by constants.

    tf2onnx writes an einsum as products between Reshapes, whose sizes it computes in the file.
    """
    if all(node.op_type != "Shape" for node in model.graph.node):
        return
    graph = model.graph
    constants = {t.name: numpy_helper.to_array(t) for t in graph.initializer if _is_size(t)}
    weights = {t.name: tuple(t.dims) for t in graph.initializer}
    computed: dict[str, np.ndarray] = {}
    shapes, count = _shapes(model) | weights, -1
    while count != len(computed):
        count, kept = len(computed), []
        for node in graph.node:
            known = {**constants, **computed}
            found = _size(node, shapes, known)
            if found is None:
                kept.append(node)
                continue
            computed[node.output[0]] = found
            graph.initializer.append(numpy_helper.from_array(found, node.output[0]))
        del graph.node[:]
        graph.node.extend(kept)
        if count != len(computed):
            shapes = _shapes(model) | weights  # behind a Reshape to a constant shape
    read = {name for node in graph.node for name in node.input} | {v.name for v in graph.output}
    unread = [t for t in graph.initializer if t.name in computed and t.name not in read]
    for tensor in unread:
        graph.initializer.remove(tensor)


def _size(
    node: onnx.NodeProto,
    shapes: dict[str, tuple[int, ...]],
    known: dict[str, np.ndarray],
) -> np.ndarray | None:
    """Return the sizes that a node computes from a known shape; None for other nodes."""
    if node.op_type == "Shape" and not node.attribute:
        shape = shapes.get(node.input[0], (-1,))
        return None if -1 in shape else np.array(shape, np.int64)
    if node.op_type not in ("Gather", "Concat", "Max") or not node.input:
        return None
    values = [known.get(name) for name in node.input]
    if any(value is None or value.dtype != np.int64 for value in values):
        return None
    sizes = [value for value in values if value is not None]
    if node.op_type == "Max":
        return functools.reduce(np.maximum, sizes)
    axis = int_of(node, "axis") or 0
    if node.op_type == "Concat":
        return np.concatenate(sizes, axis)
    data, places = sizes
    return np.asarray(np.take(data, places, axis))


def _is_size(tensor: onnx.TensorProto) -> bool:
    whole = tensor.data_type == onnx.TensorProto.INT64
    return whole and 0 < math.prod(tensor.dims) <= _SMALL


def _without_negative_pads(node: onnx.NodeProto) -> None:
    """Replace negative pads of a transposed convolution by `output_padding`.

    If strides exceed the kernel, Keras appends zeros; tf2onnx distributes them to both ends as
    negative pads, which are invalid.
    """
    pads = ints_of(node, "pads") or []
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
        shape, perm = shapes.get(node.input[0]), ints_of(node, "perm")
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


def _drop_idle_reshape(view: View) -> bool:
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
            replace_input(reader, node.output[0], node.input[0])
        view.graph.node.remove(node)
        return True
    return False


def _merge_reshapes(view: View) -> bool:
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


def _permute_rows(view: View) -> bool:
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
        perm = ints_of(node, "perm")
        if dense is None or shape is None or perm is None or perm[0] != 0:
            continue
        if flat != (shape[0], int(np.prod(shape[1:]))):
            continue
        kernel = _kernel(view, dense, flatten.output[0])
        if kernel is None:
            continue
        rows_axis = 1 if int_of(dense, "transB") else 0
        # Row r of the kernel multiplies the r-th number of the transposed tensor.
        order = np.arange(flat[1]).reshape(shape[1:]).transpose([i - 1 for i in perm[1:]]).ravel()
        weights = np.take(view.held.array(kernel), np.argsort(order), axis=rows_axis)
        set_weight(view, dense, kernel, weights)
        flatten.input[0] = node.input[0]
        view.graph.node.remove(node)
        return True
    return False


def _drop_zero(view: View) -> bool:
    """Remove an Add of zeros."""
    for node in view.graph.node:
        found = with_constant(view, node)
        if found is None or np.any(found[1]):
            continue
        maker = view.makers.get(found[0])
        if maker is None or id(view.only_reader(maker)) != id(node):
            continue
        maker.output[:] = node.output
        view.graph.node.remove(node)
        return True
    return False


_REWRITES: tuple[Callable[[View], bool], ...] = (
    _permute_rows,
    _merge_reshapes,
    _drop_idle_reshape,
    write_prelu,
    _drop_zero,
    settle_third_operand,
    put_bias_into_product,
)


def _kernel(view: View, dense: onnx.NodeProto, data: str) -> onnx.TensorProto | None:
    """Return the constant matrix of a dense layer that reads `data`; None for other nodes."""
    if dense.op_type not in ("Gemm", "MatMul") or dense.input[0] != data:
        return None
    if int_of(dense, "transA"):
        return None
    kernel = view.weights.get(dense.input[1])
    return kernel if kernel is not None and len(kernel.dims) == 2 else None


def _shape(value: onnx.ValueInfoProto) -> tuple[int, ...] | None:
    tensor = value.type.tensor_type
    if not tensor.HasField("shape"):
        return None
    return tuple(d.dim_value if d.HasField("dim_value") else -1 for d in tensor.shape.dim)
