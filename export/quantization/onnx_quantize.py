"""Converts ONNX models to lower precisions with onnxruntime's tools.

- float16: weights and computation in half precision; inputs and outputs stay float32.
- dynamic: int8 weights per channel, activations quantized at run time (`DynamicQuantizeLinear`).
- int8: QuantizeLinear/DequantizeLinear pairs with int8 weights per channel and uint8 activations.
  On x86, unsigned activations run twice as fast as float; signed ones do not.
"""

from __future__ import annotations

import contextlib
import copy
import logging
import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import onnx
from onnxruntime.quantization import (
    CalibrationDataReader,
    QuantFormat,
    QuantType,
    quantize_dynamic,
    quantize_static,
)
from onnxruntime.quantization.shape_inference import quant_pre_process
from onnxruntime.transformers.float16 import DEFAULT_OP_BLOCK_LIST, convert_float_to_float16

from ...artifacts.graphs.base import GraphOp
from ...artifacts.graphs.norms import norms_of
from ..formats.onnx_external import read_light
from ..formats.stand_ins import LARGE
from .onnx_choices import arguments_for, prevent_requantizing
from .onnx_integer_pads import pad_integers
from .onnx_products import keep_activations
from .pixel_inputs import give_onnx_pixels, onnx_pixels
from .quantizer_choices import IN_FLOATS, QuantizerChoices

Batch = dict[str, np.ndarray]

# Attributes of a Gemm that is no more than a product and a sum.
_PLAIN_PRODUCT = {"alpha": 1.0, "beta": 1.0, "transA": 0, "transB": 0}
# Operators whose results may be as small as a number that they read, or as its inverse is large.
_KEEPING = {"Max", "Min", "Sqrt", "Reciprocal", "Transpose", "Reshape", "Squeeze", "Unsqueeze"}
_HALF_OF_LEAST = 2.0**-25  # half precision's smallest positive number is 2^-24


def quantize(
    model: Path,
    precision: str,
    samples: Sequence[Batch] | None,
    choices: QuantizerChoices | None = None,
    exact: Sequence[str] = (),
) -> bytes:
    """Convert a float32 model to another precision.

    It does not need Keras and takes and returns plain data, so that it can run in a child process.

    Args:
        model: The file of the model, in canonical form.
        precision: `float16`, `dynamic` or `int8`.
        samples: Calibration batches by input name, for `int8`.
        choices: Settings of single layers and ranges in an `int8` file; None for the defaults of
            the quantizer.
        exact: Names of nodes that compute in float32 in a `float16` file.

    Returns:
        A new serialized model, whose inputs and outputs have the names, shapes and types of
        `model`.
    """
    with _no_advice():
        # onnxruntime's tools modify a model in memory; they do not modify a file.
        if precision == "float16":
            result = _float16(model, exact)
        elif precision == "dynamic":
            result = _dynamic(model)
        else:
            result = _int8(model, samples, choices or QuantizerChoices())
    return result.SerializeToString()


@contextlib.contextmanager
def _no_advice() -> Iterator[None]:
    """Suppress onnxruntime's advice to run `quant_pre_process`, which it logs even after that."""
    root = logging.getLogger()
    before = root.level
    root.setLevel(logging.ERROR)
    try:
        yield
    finally:
        root.setLevel(before)


def _float16(path: Path, exact: Sequence[str]) -> onnx.ModelProto:
    model = _with_shapes(path)
    outputs = copy.deepcopy(list(model.graph.output))
    constants = _take_constant_outputs(model.graph)
    exact = [*exact, *_nodes_of_norms(model.graph), *_nodes_of_small_numbers(model.graph)]
    in_floats = _read_in_floats(model.graph, exact)
    for weight in model.graph.initializer:
        if weight.name not in in_floats:
            _flush_below_half_precision(weight)
    converted: onnx.ModelProto = convert_float_to_float16(
        model, keep_io_types=True, disable_shape_infer=True, node_block_list=list(exact)
    )
    result = _without_casts_between(converted, exact)
    written = {value.name: value for value in result.graph.output}
    result.graph.initializer.extend(constants)
    del result.graph.output[:]
    result.graph.output.extend(written.get(value.name, value) for value in outputs)
    return result


def _with_shapes(path: Path) -> onnx.ModelProto:
    """Return the model in a file with the shapes of all values.

    To infer them, ONNX copies a model four times, so that it gets one without large weights.
    """
    model = onnx.shape_inference.infer_shapes(read_light(path, LARGE))
    weights = {tensor.name: tensor for tensor in onnx.load(path).graph.initializer}
    for tensor in model.graph.initializer:
        tensor.CopyFrom(weights[tensor.name])
    return model


def _take_constant_outputs(graph: onnx.GraphProto) -> list[onnx.TensorProto]:
    """Remove the outputs that are constants; the converter's casts of them are not sorted."""
    read = {name for node in graph.node for name in node.input}
    alone = {value.name for value in graph.output} - read
    found = [copy.deepcopy(t) for t in graph.initializer if t.name in alone]
    for parts, names in ((graph.initializer, alone), (graph.output, {t.name for t in found})):
        kept = [copy.deepcopy(part) for part in parts if part.name not in names]
        del parts[:]
        parts.extend(kept)
    return found


def _nodes_of_norms(graph: onnx.GraphProto) -> list[str]:
    ops = [
        GraphOp(index, node.op_type, node.name, tuple(node.input), tuple(node.output))
        for index, node in enumerate(graph.node)
    ]
    found = (op.name for norm in norms_of(ops) for op in (*norm.inside, *norm.divisions))
    return list(dict.fromkeys(found))


def _nodes_of_small_numbers(graph: onnx.GraphProto) -> list[str]:
    """Return the nodes that read a number such as 1e-10, up to those that need it.

    Half precision makes it zero, and the logarithm of max(x, 1e-10) infinite.
    """
    constants = {tensor.name for tensor in graph.initializer if _is_small(tensor)}
    computed, found = set[str](), []
    for node in graph.node:  # in topological order
        reads = not constants.isdisjoint(node.input)
        if reads or not computed.isdisjoint(node.input):
            found.append(node.name)
            if node.op_type in _KEEPING or (reads and node.op_type == "Add"):
                computed.update(node.output)
    return found


def _is_small(tensor: onnx.TensorProto) -> bool:
    """Return whether a tensor is one positive number that half precision rounds to zero."""
    if math.prod(tensor.dims) != 1 or tensor.data_type != onnx.TensorProto.FLOAT:
        return False
    return bool(0 < onnx.numpy_helper.to_array(tensor).item() <= _HALF_OF_LEAST)


def _read_in_floats(graph: onnx.GraphProto, exact: Sequence[str]) -> set[str]:
    """Return the values that only nodes read which compute in float32."""
    read: dict[bool, set[str]] = {True: set(), False: set()}
    for node in graph.node:
        read[node.name in exact or node.op_type in DEFAULT_OP_BLOCK_LIST].update(node.input)
    return read[True] - read[False]


def _without_casts_between(model: onnx.ModelProto, exact: Sequence[str]) -> onnx.ModelProto:
    """Connect nodes that compute in float32 directly to inputs and to each other.

    The converter rounds every value to half precision, and casts it back for a float32 node.
    """
    nodes = model.graph.node
    full = {tensor.name for tensor in model.graph.input}
    full.update(name for node in nodes if node.name in exact for name in node.output)
    casts = {node.output[0]: node.input[0] for node in nodes if node.op_type == "Cast"}
    # The converter renames the output of such a node and gives the old name to the cast.
    for node in nodes:
        if node.name in exact:
            node.input[:] = [
                casts[casts[name]] if casts.get(casts.get(name, "")) in full else name
                for name in node.input
            ]
    while unread := _unread_casts(model.graph):
        for node in unread:
            nodes.remove(node)
    return model


def _unread_casts(graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    read = {name for node in graph.node for name in node.input}
    read.update(tensor.name for tensor in graph.output)
    return [node for node in graph.node if node.op_type == "Cast" and node.output[0] not in read]


def _flush_below_half_precision(weight: onnx.TensorProto) -> None:
    """Flush numbers to zero that are closer to zero than to half precision's smallest number.

    The converter would round them away from zero, to that number.
    """
    values = onnx.numpy_helper.to_array(weight)
    if values.dtype != np.float32:
        return
    lost = (values != 0) & (np.abs(values) <= _HALF_OF_LEAST)
    if lost.any():
        flushed = np.where(lost, np.float32(0), values)
        weight.CopyFrom(onnx.numpy_helper.from_array(flushed, weight.name))


def _dynamic(path: Path) -> onnx.ModelProto:
    quantized = path.with_name("dynamic.onnx")
    nodes = onnx.load(path, load_external_data=False).graph.node
    quantize_dynamic(
        path,
        quantized,
        per_channel=True,
        weight_type=QuantType.QInt8,
        nodes_to_exclude=[node.name for node in nodes if IN_FLOATS in node.name],
    )
    return onnx.load(quantized)


def _int8(
    path: Path, samples: Sequence[Batch] | None, choices: QuantizerChoices
) -> onnx.ModelProto:
    if samples is None:
        raise ValueError("int8 needs calibration samples")
    prepared, quantized = path.with_name("prepared.onnx"), path.with_name("int8.onnx")
    # Symbolic shape inference would need sympy, and infers nothing more for a network without
    # control flow.
    quant_pre_process(str(path), str(prepared), skip_symbolic_shape=True)
    ready = _with_plain_sums(onnx.load(prepared))
    pixels = onnx_pixels(ready) if choices.pixels else None
    if pixels is not None:
        mean = np.float32(pixels.mean)
        samples = [{pixels.name: batch[pixels.name] - mean} for batch in samples]
    onnx.save(ready, prepared)
    arguments = arguments_for(ready, choices, samples)
    if pixels is not None:
        low, high = map(np.float32, pixels.range)
        for name in (pixels.name, *pixels.moved):
            arguments.overrides.setdefault(name, [{}])[0].update(rmin=low, rmax=high)
    quantize_static(
        prepared,
        quantized,
        _Reader(samples),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        nodes_to_exclude=arguments.excluded,
        extra_options={"TensorQuantOverrides": arguments.overrides},
    )
    result = onnx.load(quantized)
    prevent_requantizing(result, arguments.excluded)
    keep_activations(result)
    pad_integers(result)
    if pixels is not None:
        give_onnx_pixels(result, pixels)
    return result


def _with_plain_sums(model: onnx.ModelProto) -> onnx.ModelProto:
    """Split Gemm nodes with a computed third operand into MatMul and Add.

    The preparation fuses such operands. A quantized Gemm adds its third operand as an int32 bias;
    for an operand that is not constant, the rounding would differ between runtimes.
    """
    constants = {weight.name for weight in model.graph.initializer}
    for index, node in reversed(list(enumerate(model.graph.node))):
        if node.op_type != "Gemm" or len(node.input) < 3 or node.input[2] in constants:
            continue
        settings = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
        if not settings.items() <= _PLAIN_PRODUCT.items():
            continue
        product, summand = f"{node.output[0]}/product", node.input[2]
        add = onnx.helper.make_node(
            "Add", [product, summand], list(node.output), f"{node.name}/Add"
        )
        add.output[0], node.output[0] = node.output[0], product
        node.op_type = "MatMul"
        del node.attribute[:]
        del node.input[2:]
        model.graph.node.insert(index + 1, add)
    return model


class _Reader(CalibrationDataReader):
    """Provides calibration samples to onnxruntime, batch by batch."""

    def __init__(self, samples: Sequence[Batch]) -> None:
        self._batches = iter(samples)

    def get_next(self) -> dict[str, np.ndarray] | None:
        """Return the next batch by input name; None after the last."""
        return next(self._batches, None)
