"""Arguments of onnxruntime's quantizer for layers in float or 16 bits and for chosen ranges."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from onnxruntime.quantization import QuantType

from ...errors import UserError
from .quantizer_choices import JUMPS, WIDE_OPSET, QuantizerChoices
from .range_choice import Histogram

# Activations that are computed together with the node before them.
_FUSED = ("Relu", "Clip")
_REQUANTIZED = ("Conv", "ConvTranspose", "Gemm")

# Nodes whose constant operands are values like activations, not weights of sums.
_OF_VALUES = ("Add", "Sub", "Mul", "Div", "PRelu", "Max", "Min", "Pow")


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Arguments of the quantizer.

    Attributes:
        excluded: Names of the nodes that compute in float.
        overrides: Tensor name to the type and range of its integers, for `TensorQuantOverrides`.
    """

    excluded: list[str]
    overrides: dict[str, list[dict[str, Any]]]


def arguments_for(
    model: onnx.ModelProto, choices: QuantizerChoices, samples: Sequence[dict[str, np.ndarray]]
) -> Arguments:
    """Return the arguments for the given choices.

    Args:
        model: The float model, prepared for the quantizer; names of nodes contain those of layers.
        choices: The choices.
        samples: The calibration samples.

    Raises:
        UserError: No node belongs to a selected layer, or 16 bits need another opset.
    """
    floats = _nodes(model, [n for n in model.graph.node if choices.kept_float(_name(n))])
    # Some nodes of the converter, such as those of an Einsum, are not named after their layer.
    named = [n for n in model.graph.node if choices.only_int16 or choices.kept_int16(_name(n))]
    wide = [node for node in _nodes(model, named) if node not in floats]
    for kept, found, option in (
        (choices.keep_float, floats, "keep_float"),
        (choices.keep_int16, wide, "keep_int16"),
    ):
        if kept and not found:
            raise UserError(
                f"{option}: no node of the ONNX file belongs to {', '.join(kept)}; the converter "
                "removed or merged it. Name the layer after it."
            )
    overrides: dict[str, list[dict[str, Any]]] = {}
    if choices.ranges != "min-max":
        overrides = _chosen_ranges(model, choices.ranges, samples)
    if wide:
        overrides = _widened(model, wide, overrides)
    jumps = [node for node in model.graph.node if JUMPS in node.name and node not in floats]
    return Arguments([node.name for node in [*floats, *jumps]], overrides)


def _name(node: onnx.NodeProto) -> str:
    return ";".join([node.name, *node.output])


def _nodes(model: onnx.ModelProto, chosen: list[onnx.NodeProto]) -> list[onnx.NodeProto]:
    """Return nodes together with the activations that are fused with them."""
    readers = _readers(model)
    makers = {name: node for node in model.graph.node for name in node.output}
    found = list(chosen)
    for node in chosen:
        after = readers.get(node.output[0], [])
        if len(after) == 1 and after[0].op_type in _FUSED and after[0] not in found:
            found.append(after[0])
        before = makers.get(node.input[0]) if node.input else None
        if before is None or node.op_type not in _FUSED or before in found:
            continue
        if len(readers.get(before.output[0], ())) == 1:
            found.append(before)
    return found


def _widened(
    model: onnx.ModelProto,
    nodes: list[onnx.NodeProto],
    overrides: dict[str, list[dict[str, Any]]],
) -> dict[str, list[dict[str, Any]]]:
    """Return overrides that give nodes 16 bits, with conversions from and to 8 bits."""
    opset = next(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx"))
    if opset < WIDE_OPSET:
        raise UserError(
            f"keep_int16 in ONNX files needs opset {WIDE_OPSET}. Received: {opset}. Use "
            "opset=21 (--opset 21), or keep the layers in float."
        )
    readers = _readers(model)
    constants = {weight.name for weight in model.graph.initializer}
    inputs = {value.name for value in model.graph.input}
    names = {node.name for node in nodes}
    made = {name for node in nodes for name in node.output}
    found = {name: [dict(entry) for entry in entries] for name, entries in overrides.items()}
    for name in made:
        found.pop(name, None)  # 16 bits need no narrower range, so nothing is clipped
        narrow = {node.name for node in readers.get(name, ()) if node.name not in names}
        _convert(found, name, QuantType.QUInt16, QuantType.QUInt8, narrow)
    for name in {name for node in nodes for name in node.input if name} - constants - made:
        wide = {node.name for node in readers[name] if node.name in names}
        if name in inputs and len(wide) == len(readers[name]):
            _convert(found, name, QuantType.QUInt16, QuantType.QUInt8, set())
        else:
            _convert(found, name, QuantType.QUInt8, QuantType.QUInt16, wide)
    for name in {name for node in nodes if node.op_type in _OF_VALUES for name in node.input}:
        if name in constants and all(node.name in names for node in readers[name]):
            _convert(found, name, QuantType.QUInt16, QuantType.QUInt8, set())
    return found


def _convert(
    overrides: dict[str, list[dict[str, Any]]],
    name: str,
    own: QuantType,
    other: QuantType,
    readers: set[str],
) -> None:
    """Give a tensor integers of one type, converted to another type for some readers."""
    entry = overrides.setdefault(name, [{}])[0]
    entry["quant_type"] = own
    if readers:
        entry["convert"] = {"quant_type": other, "recv_nodes": readers}


def prevent_requantizing(model: onnx.ModelProto, excluded: Sequence[str]) -> None:
    """Prevent onnxruntime from quantizing nodes that were left in float.

    Its optimizer `WeightBiasQuantization` quantizes the weights of a Conv, ConvTranspose or Gemm
    between a DequantizeLinear and a QuantizeLinear, also if a Relu or Clip lies before the latter.
    A Max in the same place has the same result and does not match its pattern.

    Args:
        model: The quantized model; changed in place.
        excluded: Names of the nodes that were left in float.
    """
    readers, graph = _readers(model), model.graph
    names = set(excluded)
    for node in list(graph.node):
        if node.name not in names or node.op_type not in _REQUANTIZED:
            continue
        after = readers.get(node.output[0], [])
        if len(after) == 1 and after[0].op_type == "Relu":
            after[0].op_type = "Max"
            after[0].input.append(_number(graph, f"{after[0].name}/zero", 0.0))
        elif len(after) == 1 and after[0].op_type in ("Clip", "QuantizeLinear"):
            least = _number(graph, f"{node.name}/least", float(np.finfo(np.float32).min))
            own, name = node.output[0], f"{node.output[0]}/sum"
            node.output[0] = name
            place = list(graph.node).index(node)
            last = onnx.helper.make_node("Max", [name, least], [own], f"{node.name}/Max")
            graph.node.insert(place + 1, last)


def _number(graph: onnx.GraphProto, name: str, value: float) -> str:
    """Add a constant number; return its name."""
    graph.initializer.append(onnx.numpy_helper.from_array(np.array(value, np.float32), name))
    return name


def _readers(model: onnx.ModelProto) -> dict[str, list[onnx.NodeProto]]:
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in model.graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    return readers


def _chosen_ranges(
    model: onnx.ModelProto, method: str, samples: Sequence[dict[str, np.ndarray]]
) -> dict[str, list[dict[str, Any]]]:
    """Return the ranges of all computed tensors, chosen by a method of `range_choice`."""
    names = [name for node in model.graph.node for name in node.output if name]
    ends: dict[str, tuple[float, float]] = {}
    runs = _Session(model, names)
    for batch in samples:
        for name, values in runs(batch).items():
            low, high = ends.get(name, (0.0, 0.0))
            ends[name] = min(low, float(values.min())), max(high, float(values.max()))
    histograms = {name: Histogram(*pair) for name, pair in ends.items()}
    for batch in samples:
        for name, values in runs(batch).items():
            histograms[name].add(values)
    found = {}
    for name, histogram in histograms.items():
        low, high = histogram.range(method)
        if high > low:
            found[name] = [{"rmin": np.float32(low), "rmax": np.float32(high)}]
    return found


class _Session:
    """Runs a float model and returns the values of its intermediate tensors."""

    def __init__(self, model: onnx.ModelProto, names: list[str]) -> None:
        import onnxruntime

        watched = onnx.ModelProto()
        watched.CopyFrom(model)
        shown = {value.name for value in watched.graph.output}
        watched.graph.output.extend(
            onnx.ValueInfoProto(name=name) for name in names if name not in shown
        )
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        self._session = onnxruntime.InferenceSession(
            watched.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        self._names = [output.name for output in self._session.get_outputs()]

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        results = self._session.run(self._names, batch)
        return {
            name: values
            for name, values in zip(self._names, results, strict=True)
            if values.dtype == np.float32 and values.size
        }
