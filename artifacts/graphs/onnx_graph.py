"""Reads the graph of an .onnx file; the key of a tensor is its name."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ...extras import missing_package
from .base import ArtifactGraph, GraphOp, GraphTensor, Quantization
from .onnx_integer_forms import in_floats
from .onnx_weights import is_outside, value_of, weights_file
from .soundness import demand_bounded_tensors

# Limit on the size of shapes, axes and similar constants.
_SMALL = 1024


def read(path: Path, data: bytes, *, bounded: bool) -> ArtifactGraph:
    """Return the graph of an .onnx file; of a damaged one, any exception.

    Args:
        path: The file, for messages.
        data: Its bytes.
        bounded: Whether the sizes of its values are inferred and limited.

    Raises:
        MissingPackageError: onnx is not installed.
    """
    try:
        import onnx
    except ImportError as error:
        raise missing_package(error, f"Reading {path.name}") or error from error
    model = onnx.load_model_from_string(data)
    weights_file(path, model)  # refuses one outside of the folder
    graph, folder = model.graph, path.parent
    tensors = {
        entry.name: _constant(entry.name, value_of(entry, folder)) for entry in graph.initializer
    }
    filed = _nodes(graph, tensors, folder)
    ops, tensors = in_floats(filed, tensors)
    for key, quantization in _quantizations(ops, tensors).items():
        tensors[key] = replace(tensors[key], quantization=quantization)
    constants = {entry.name for entry in graph.initializer}
    inner = tuple(_inner_constants(graph, folder))
    if bounded:
        _demand_bounded(path, model, len(data), tensors)
    return ArtifactGraph(
        tensors=tensors,
        read_ops=lambda: tuple(ops),
        inputs=tuple(value.name for value in graph.input if value.name not in constants),
        outputs=tuple(value.name for value in graph.output),
        metadata={entry.key: entry.value for entry in model.metadata_props},
        inner_constants=inner,
        filed_ops=tuple(filed) if len(ops) > len(filed) else (),
    )


def _demand_bounded(path: Path, model: Any, size: int, tensors: Mapping[str, GraphTensor]) -> None:
    """Refuse a file that computes a tensor of gigabytes from little, before anything runs it.

    Args:
        path: The file.
        model: Its content, of which large constants are removed.
        size: Its bytes.
        tensors: Its tensors, with the constants.

    Raises:
        TooLargeError: The size of a tensor is out of proportion.
    """
    import onnx

    for entry in model.graph.initializer:
        if math.prod(entry.dims) > _SMALL:  # its shape is enough, and inference copies the model
            for field, _ in entry.ListFields():
                if field.name.endswith("_data"):
                    entry.ClearField(field.name)
    # Values are not followed into shapes: onnx writes down every number of a computed vector.
    # Operators that it lacks, and damaged graphs, leave sizes unknown.
    with contextlib.suppress(onnx.shape_inference.InferenceError, RuntimeError):
        model = onnx.shape_inference.infer_shapes(model)
    inputs = (value.name for value in model.graph.input)
    demand_bounded_tensors(path, size, tensors, inputs, map(_declared, _values(model.graph)))


def _values(graph: Any) -> Iterator[Any]:
    """Yield the described values of a graph and of the graphs inside of it."""
    yield from (*graph.value_info, *graph.output)
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from _values(attribute.g)


def _nodes(graph: Any, tensors: dict[str, GraphTensor], folder: Path) -> list[GraphOp]:
    """Return the ops of a graph; add their tensors, and its inputs and outputs, to the others."""
    import onnx

    ops = []
    for index, node in enumerate(graph.node):
        attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
        if node.op_type == "Constant" and "sparse_value" not in attributes:
            tensors[node.output[0]] = _constant(node.output[0], _held(attributes, folder))
            continue
        ops.append(
            GraphOp(
                index=index,
                kind=node.op_type,
                domain=node.domain,
                name=node.name,
                inputs=tuple(node.input),
                outputs=tuple(node.output),
                attributes={key: _plain(value) for key, value in attributes.items()},
            )
        )
    for value in (*graph.input, *graph.output):
        tensors.setdefault(value.name, _declared(value))
    for op in ops:
        for key in (*op.inputs, *op.outputs):
            if key and key not in tensors:
                tensors[key] = GraphTensor(key, key, (), np.dtype(np.float32))
    return ops


def _inner_graphs(
    graph: Any, outer: Mapping[str, GraphTensor], folder: Path
) -> dict[int, list[tuple[str, ArtifactGraph]]]:
    """Return the graphs that the loops and branches of a graph run, which read its tensors too."""
    import onnx

    found: dict[int, list[tuple[str, ArtifactGraph]]] = {}
    for index, node in enumerate(graph.node):
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                inner = _inner_graph(attribute.g, outer, folder)
                found.setdefault(index, []).append((attribute.name, inner))
    return found


def _inner_graph(graph: Any, outer: Mapping[str, GraphTensor], folder: Path) -> ArtifactGraph:
    """Return a graph inside of another one, with the shapes that inference found."""
    tensors = dict(outer)
    for entry in graph.initializer:
        tensors[entry.name] = _constant(entry.name, value_of(entry, folder))
    tensors.update((v.name, _declared(v)) for v in (*graph.input, *graph.value_info))
    ops = tuple(_nodes(graph, tensors, folder))
    return ArtifactGraph(
        tensors=tensors,
        read_ops=lambda: ops,
        inputs=tuple(value.name for value in graph.input),
        outputs=tuple(value.name for value in graph.output),
        read_inner=lambda: _inner_graphs(graph, tensors, folder),
    )


def _held(attributes: Mapping[str, Any], folder: Path) -> np.ndarray:
    """Return the value of a Constant: a tensor, a number, or a list of numbers or strings."""
    ((name, value),) = attributes.items()
    if name == "value":
        return value_of(value, folder)
    types = {"value_float": "f4", "value_floats": "f4", "value_int": "i8", "value_ints": "i8"}
    return np.asarray(value, types.get(name, object))


def _inner_constants(graph: Any, folder: Path) -> Iterator[GraphTensor]:
    """Yield the constants of the graphs inside a graph's loops and branches."""
    import onnx

    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type != onnx.AttributeProto.GRAPH:
                continue
            inner = attribute.g
            for entry in inner.initializer:
                key = f"{node.name}:{entry.name}"
                yield _constant(key, value_of(entry, folder))
            for other in inner.node:
                if other.op_type == "Constant" and other.attribute[0].name == "value":
                    value = value_of(other.attribute[0].t, folder)
                    yield _constant(f"{node.name}:{other.output[0]}", value)
            yield from _inner_constants(inner, folder)


def with_inferred_shapes(
    graph: ArtifactGraph, path: Path, *, one_sample: bool = False
) -> ArtifactGraph:
    """Return a graph with the shapes and types of computed tensors, where they can be inferred.

    Args:
        graph: The graph.
        path: The file.
        one_sample: Whether a free batch size is set to one, so that shapes computed from it are
            known as well.
    """
    import onnx

    model = onnx.load(path, load_external_data=False)
    for entry in model.graph.initializer:  # shapes among them
        if is_outside(entry) and math.prod(entry.dims) <= _SMALL:
            value = value_of(entry, path.parent)
            entry.CopyFrom(onnx.numpy_helper.from_array(value, entry.name))
    if one_sample:
        for value in model.graph.input:
            sizes = value.type.tensor_type.shape.dim
            if sizes and not sizes[0].dim_value:
                sizes[0].dim_value = 1
        for value in model.graph.output:
            value.type.tensor_type.ClearField("shape")
        del model.graph.value_info[:]
    with contextlib.suppress(onnx.shape_inference.InferenceError):  # of an operator it lacks
        model = onnx.shape_inference.infer_shapes(model, data_prop=one_sample)
    tensors = dict(graph.tensors)
    for value in (*model.graph.value_info, *model.graph.output):
        if value.name in tensors and value.type.tensor_type.elem_type:
            known = _declared(value)
            tensors[value.name] = replace(tensors[value.name], shape=known.shape, dtype=known.dtype)
    folder = path.parent
    return replace(
        graph,
        tensors=tensors,
        read_inner=lambda: _inner_graphs(model.graph, tensors, folder),
    )


def _quantizations(
    ops: list[GraphOp], tensors: Mapping[str, GraphTensor]
) -> dict[str, Quantization]:
    """Return the quantization of tensors, from QuantizeLinear and DequantizeLinear.

    A tensor has the scale of the QuantizeLinear that makes it or of the DequantizeLinear that reads
    it; the output of the latter is float and holds multiples of that scale. The rows of a table may
    be dequantized after they are gathered. The weights of an integer product have the constant
    scale that its result is multiplied by.
    """
    found: dict[str, Quantization] = {}
    tables = {op.outputs[0]: op.inputs[0] for op in ops if op.kind == "Gather"}
    for op in ops:
        if op.kind not in ("QuantizeLinear", "DequantizeLinear"):
            continue
        scales = tensors[op.inputs[1]].data
        points = tensors[op.inputs[2]].data if len(op.inputs) > 2 else None
        if scales is None:
            continue
        integers = op.outputs[0] if op.kind == "QuantizeLinear" else op.inputs[0]
        if points is None:
            known = tensors[integers].data
            points = np.zeros_like(scales, np.int8 if known is None else known.dtype)
        quantization = Quantization(
            np.atleast_1d(scales).astype(np.float64),
            np.atleast_1d(points).astype(np.int64),
            points.dtype,
            int(op.attributes.get("axis", 1)),
        )
        found[integers] = quantization
        table = tables.get(integers, "")
        if table in tensors and tensors[table].data is not None and quantization.scales.size == 1:
            found[table] = quantization
        if op.kind == "DequantizeLinear" and tensors[op.inputs[0]].data is None:
            found[op.outputs[0]] = quantization
    found.update(_integer_products(ops, tensors))
    return found


def _integer_products(
    ops: list[GraphOp], tensors: Mapping[str, GraphTensor]
) -> dict[str, Quantization]:
    """Return the quantization of the operands of ConvInteger and MatMulInteger that are constant.

    The first operand is not, but its scale is, if it consists of rows of a table.
    """
    producer = {key: op for op in ops for key in op.outputs}
    found: dict[str, Quantization] = {}
    for op in ops:
        if op.kind not in ("ConvInteger", "MatMulInteger"):
            continue
        weight = tensors[op.inputs[1]].data
        following = op.outputs[0]
        scale: Any = None
        for after in ops[ops.index(op) + 1 :]:
            if following not in after.inputs:
                continue
            following = after.outputs[0]
            if after.kind == "Mul":
                others = [producer.get(key) for key in after.inputs]
                keys = [
                    k for other in others if other and other.kind == "Mul" for k in other.inputs
                ]
                # The scale of the activation comes first; behind a table it is constant, too.
                known = [data for k in keys if (data := tensors[k].data) is not None]
                scale = known[-1] if known else None
                if len(known) > 1 and len(op.inputs) > 2:
                    steps = _steps_of(known[0], tensors[op.inputs[2]].data)
                    found.update(dict.fromkeys(_rows_of(op.inputs[0], producer), steps))
                break
            if after.kind != "Cast":
                break
        if weight is None or scale is None:
            continue
        point = tensors[op.inputs[3]].data if len(op.inputs) > 3 and op.inputs[3] else None
        points = np.zeros(1, np.int64) if point is None else np.atleast_1d(point).astype(np.int64)
        axis = 0 if op.kind == "ConvInteger" else weight.ndim - 1
        scales = np.atleast_1d(scale).astype(np.float64).reshape(-1)
        points = np.broadcast_to(points.reshape(-1), scales.shape)
        found[op.inputs[1]] = Quantization(scales, points, weight.dtype, axis)
    return found


# Operators that pass integers on as they are.
_PASS = ("Flatten", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze")


def _rows_of(key: str, producer: Mapping[str, GraphOp]) -> Iterator[str]:
    """Yield the key of some rows of a table, those before it was moved, and the table."""
    while key:
        yield key
        op = producer.get(key)
        key = op.inputs[0] if op is not None and op.kind in (*_PASS, "Gather") else ""


def _steps_of(scale: np.ndarray, point: np.ndarray | None) -> Quantization:
    """Return the quantization by one scale, and a zero point that is a constant."""
    points = np.zeros(1, np.uint8) if point is None else np.atleast_1d(point)
    scales = np.atleast_1d(scale).astype(np.float64)
    return Quantization(scales, points.astype(np.int64), points.dtype)


def _constant(name: str, value: np.ndarray) -> GraphTensor:
    return GraphTensor(name, name, value.shape, value.dtype, data=value)


def _declared(value: Any) -> GraphTensor:
    import onnx

    kind = value.type.tensor_type
    if not kind.elem_type:  # a sequence of tensors, or a type that was not inferred
        return GraphTensor(value.name, value.name, (), np.dtype(np.float32))
    shape = tuple(size.dim_value or -1 for size in kind.shape.dim)
    dtype = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type))
    return GraphTensor(value.name, value.name, shape, dtype)


def _plain(value: Any) -> Any:
    """Return an attribute as plain Python: bytes as text, lists as lists."""
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    if isinstance(value, (int, float, str)):
        return value
    if hasattr(value, "data_type"):  # a tensor
        import onnx

        return np.atleast_1d(onnx.numpy_helper.to_array(value)).tolist()
    if isinstance(value, (list, tuple)) or hasattr(value, "__iter__"):
        return [_plain(entry) for entry in value]
    return str(value)
