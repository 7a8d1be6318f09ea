"""Rewrites of a converted ONNX model: layout changes that the weights can absorb are taken out.

Runtimes compute convolutions channels first, Keras flattens channels last, so a converter puts a
Transpose between. Where a dense layer follows, its rows can be put in the other order once, here.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import onnx
from onnx import numpy_helper

_SMALL = 1024  # numbers; shapes and axes are given as constants of a few


@dataclasses.dataclass(frozen=True)
class _View:
    """A model's graph with what the rewrites ask of it.

    Attributes:
        graph: The graph, changed in place.
        shapes: Static shape of every value that has one.
        makers: Value to the node that computes it.
        readers: Value to the nodes that read it, once for each time.
        weights: Name to initializer.
    """

    graph: onnx.GraphProto
    shapes: dict[str, tuple[int, ...]]
    makers: dict[str, onnx.NodeProto]
    readers: dict[str, list[onnx.NodeProto]]
    weights: dict[str, onnx.TensorProto]

    @classmethod
    def of(cls, model: onnx.ModelProto, shapes: dict[str, tuple[int, ...]]) -> _View:
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
        )

    def only_reader(self, node: onnx.NodeProto) -> onnx.NodeProto | None:
        """Return the node that alone reads a node's output; None if there are others or none."""
        (output,) = node.output
        readers = self.readers.get(output, [])
        returned = any(value.name == output for value in self.graph.output)
        return readers[0] if len(readers) == 1 and not returned else None


def simplify(model: onnx.ModelProto) -> onnx.ModelProto:
    """Apply every rewrite until none applies; `model` is changed and returned."""
    shapes = _shapes(model)  # the rewrites take values out and change none that stays
    while any(rewrite(_View.of(model, shapes)) for rewrite in _REWRITES):
        pass
    return model


def _shapes(model: onnx.ModelProto) -> dict[str, tuple[int, ...]]:
    """Return the static shape of every value that has one.

    Large weights are shown to the inference by shape alone: it would copy them several times.
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
    return {v.name: shape for v in values if (shape := _static_shape(v)) is not None}


def _drop_idle_reshape(view: _View) -> bool:
    """Take out a Reshape to the shape its input has already."""
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
    """Let the second of two Reshapes in a row read what the first reads."""
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
    """Turn Transpose -> flatten -> dense into flatten -> dense with its rows in another order."""
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
        # Row r of the kernel belongs to the r-th number of the transposed tensor.
        order = np.arange(flat[1]).reshape(shape[1:]).transpose([i - 1 for i in perm[1:]]).ravel()
        weights = np.take(numpy_helper.to_array(kernel), np.argsort(order), axis=rows_axis)
        _set_weight(view, dense, kernel, weights)
        flatten.input[0] = node.input[0]
        view.graph.node.remove(node)
        return True
    return False


_REWRITES: tuple[Callable[[_View], bool], ...] = (
    _permute_rows,
    _merge_reshapes,
    _drop_idle_reshape,
)


def _kernel(view: _View, dense: onnx.NodeProto, data: str) -> onnx.TensorProto | None:
    """Return the constant matrix a dense layer multiplies `data` with; None if it is no such."""
    if dense.op_type not in ("Gemm", "MatMul") or dense.input[0] != data:
        return None
    if _int(dense, "transA"):
        return None
    kernel = view.weights.get(dense.input[1])
    return kernel if kernel is not None and len(kernel.dims) == 2 else None


def _set_weight(
    view: _View, node: onnx.NodeProto, old: onnx.TensorProto, values: np.ndarray
) -> None:
    """Give a node weights of its own; others may read the old ones."""
    new = numpy_helper.from_array(np.ascontiguousarray(values), f"{old.name}/rows")
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


def _static_shape(value: onnx.ValueInfoProto) -> tuple[int, ...] | None:
    tensor = value.type.tensor_type
    if not tensor.HasField("shape"):
        return None
    sizes = [d.dim_value if d.HasField("dim_value") else -1 for d in tensor.shape.dim]
    return tuple(sizes) if all(size >= 0 for size in sizes) else None
