"""Gives an int8 file inputs of raw pixels: the input's quantization contains mean and step.

A network for raw pixels begins with a cast from uint8 and, if the next layer pads with zeros, the
subtraction of a mean m. Integers with step 1 and zero point m represent exactly `pixel - m`, so
neither needs an operator, and padding with zero is padding with a pixel equal to the mean. This
requires the same mean for all channels, and a whole number.

`tflite_pixels` and `onnx_pixels` change the float model before it is quantized. The input then
holds `pixel - m`, and its range from -m to 255 - m gives it that step and zero point.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx

from ...artifacts.flatbuffer import operator_kind, parse, text
from ...errors import UserError
from ...reference.pixel_inputs import MEAN_TOLERANCE

HIGHEST = 255


@dataclasses.dataclass(frozen=True)
class Pixels:
    """An input of pixels.

    Attributes:
        name: Its name in the file.
        mean: The pixel that represents 0.
        moved: Names of the values that hold the same numbers with permuted axes.
    """

    name: str
    mean: int = 0
    moved: tuple[str, ...] = ()

    @property
    def range(self) -> tuple[float, float]:
        """The numbers that the smallest and the largest pixel represent."""
        return float(-self.mean), float(HIGHEST - self.mean)


def whole_mean(shift: np.ndarray) -> int | None:
    """Return the mean that a shift subtracts; None if it is not the same whole pixel everywhere."""
    mean = -float(shift.flat[0])
    same = bool(np.all(np.abs(shift + mean) < MEAN_TOLERANCE))
    whole = abs(mean - round(mean)) < MEAN_TOLERANCE and 0 <= round(mean) <= HIGHEST
    return round(mean) if same and whole else None


def tflite_pixels(model: Any) -> Pixels | None:
    """Remove the cast of the only input, and the subtraction of a mean, from a calibrated file.

    Args:
        model: A float file with ranges, as objects; changed in place.

    Returns:
        The input; None if the file begins differently. It is then unchanged.
    """
    graph = model.subgraphs[0]
    if len(graph.inputs) != 1:
        return None
    index = int(graph.inputs[0])

    def only_reader(tensor: int, kinds: Sequence[str]) -> Any:
        found = [op for op in graph.operators if tensor in list(op.inputs)]
        if len(found) != 1 or tensor in list(graph.outputs):
            return None
        return found[0] if operator_kind(model, found[0]) in kinds else None

    cast = only_reader(index, ("CAST",))
    if cast is None:
        return None
    mean, gone, last = 0, [cast], int(cast.outputs[0])
    add = only_reader(last, ("ADD", "SUB"))
    if add is not None and not add.builtinOptions.fusedActivationFunction:
        shift = _constant(model, [int(i) for i in add.inputs if i != last])
        found = None if shift is None else whole_mean(shift * _sign(model, add))
        if found is not None and int(add.inputs[0]) == last:
            mean, last = found, int(add.outputs[0])
            gone.append(add)
    if last in list(graph.outputs) or graph.tensors[last].quantization is None:
        return None
    tensor = graph.tensors[index]
    pixels = Pixels(text(tensor.name), mean)
    tensor.type, tensor.quantization = graph.tensors[last].type, graph.tensors[last].quantization
    tensor.quantization.min, tensor.quantization.max = ([end] for end in pixels.range)
    graph.operators = [op for op in graph.operators if not any(op is other for other in gone)]
    for op in graph.operators:
        op.inputs = np.array([index if i == last else i for i in op.inputs], np.int32)
    return pixels


def demand_tflite_steps(data: bytes, pixels: Pixels) -> None:
    """Refuse a file whose input has another step or zero point.

    Raises:
        UserError: The quantizer changed the range.
    """
    graph = parse(data).subgraphs[0]
    given = graph.tensors[int(graph.inputs[0])].quantization
    if list(given.scale) != [1.0] or list(given.zeroPoint) != [pixels.mean]:
        raise UserError(
            f"TFLite's quantizer gave the input {pixels.name!r} the step {list(given.scale)} "
            f"and zero point {list(given.zeroPoint)}, not 1 and {pixels.mean}. Export without "
            "preprocessing_in_model."
        )


def _sign(model: Any, operator: Any) -> float:
    return -1.0 if operator_kind(model, operator) == "SUB" else 1.0


def _constant(model: Any, indices: Sequence[int]) -> np.ndarray | None:
    """Return the values of a constant tensor of floats."""
    if len(indices) != 1:
        return None
    data = model.buffers[model.subgraphs[0].tensors[indices[0]].buffer].data
    if data is None or len(data) == 0:
        return None
    return np.frombuffer(np.asarray(data, np.uint8).tobytes(), np.float32).astype(np.float64)


def onnx_pixels(model: onnx.ModelProto) -> Pixels | None:
    """Remove the cast of the only input, and the subtraction of a mean, from a float model.

    A Transpose between the two stays.

    Args:
        model: The float model; changed in place so that its input holds floats.

    Returns:
        The input; None if the model begins differently. It is then unchanged.
    """
    graph = model.graph
    constants = {t.name: t for t in graph.initializer}
    inputs = [value for value in graph.input if value.name not in constants]
    outputs = {value.name for value in graph.output}
    if len(inputs) != 1:
        return None
    name = inputs[0].name

    def only_reader(tensor: str) -> onnx.NodeProto | None:
        found = [node for node in graph.node if tensor in node.input]
        return found[0] if len(found) == 1 and tensor not in outputs else None

    cast = only_reader(name)
    if cast is None or cast.op_type != "Cast" or cast.output[0] in outputs:
        return None
    mean, gone, last = 0, {cast.output[0]: name}, cast.output[0]
    while (node := only_reader(last)) is not None and node.op_type == "Transpose":
        last = node.output[0]
    if node is not None and node.op_type == "Add" and node.output[0] not in outputs:
        shifts = [constants[other] for other in node.input if other in constants]
        shift = onnx.numpy_helper.to_array(shifts[0]) if len(shifts) == 1 else None
        found = None if shift is None else whole_mean(shift.astype(np.float64))
        if found is not None:
            mean = found
            gone[node.output[0]] = gone.get(last, last)
    kept = [node for node in graph.node if node.output[0] not in gone]
    del graph.node[:]
    graph.node.extend(kept)
    for node in graph.node:
        node.input[:] = [gone.get(other, other) for other in node.input]
    inputs[0].type.tensor_type.elem_type = onnx.TensorProto.FLOAT
    return Pixels(name, mean, tuple(_moved(graph, name)[1:]))


def _moved(graph: onnx.GraphProto, name: str) -> list[str]:
    """Return a value and the values that hold the same numbers with permuted axes."""
    found = [name]
    for node in graph.node:  # producers come first
        if node.op_type == "Transpose" and node.input[0] in found:
            found.append(node.output[0])
    return found


def give_onnx_pixels(model: onnx.ModelProto, pixels: Pixels) -> None:
    """Change the input of a quantized model to pixels, in place.

    A QuantizeLinear of the input is replaced by the pixels; operators that read the input in float
    get a DequantizeLinear.
    """
    graph = model.graph
    constants = {t.name: onnx.numpy_helper.to_array(t) for t in graph.initializer}
    (given,) = (value for value in graph.input if value.name == pixels.name)
    given.type.tensor_type.elem_type = onnx.TensorProto.UINT8
    moved = _moved(graph, pixels.name)
    step, mean = f"{pixels.name}/step", f"{pixels.name}/mean"
    kept: list[onnx.NodeProto] = []
    same: dict[str, str] = {}
    real: dict[str, str] = {}
    for node in graph.node:
        node.input[:] = [same.get(name, name) for name in node.input]
        if node.op_type == "QuantizeLinear" and node.input[0] in moved:
            numbers = [constants[name] for name in node.input[1:3]]
            if numbers[0] == 1 and numbers[1] == pixels.mean and numbers[1].dtype == np.uint8:
                same[node.output[0]] = node.input[0]
                continue
        if node.op_type != "DequantizeLinear" and node.output[0] not in moved:
            for name in set(node.input) & set(moved) - set(real):
                real[name] = f"{name}/real"
                kept.append(
                    onnx.helper.make_node(
                        "DequantizeLinear", [name, step, mean], [real[name]], real[name]
                    )
                )
            node.input[:] = [real.get(name, name) for name in node.input]
        kept.append(node)
    if real:
        added = [(step, np.float32(1)), (mean, np.uint8(pixels.mean))]
        graph.initializer.extend(onnx.numpy_helper.from_array(np.array(n), k) for k, n in added)
    del graph.node[:]
    graph.node.extend(kept)
    del graph.value_info[:]  # they include outdated types of permuted pixels
