"""Int8 TFLite files with chosen ranges and with layers in float or 16 bits.

TensorFlow quantizes in two steps: calibration writes the range of every tensor into a float file,
and the quantizer converts that to an int8 file. In between, the ranges are measured, and can be
changed. The quantizer takes a list of operators to leave in float.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ...artifacts.flatbuffer import operator_name, pack, parse, text
from ...errors import UserError
from .float_operators import float_operators, of_inputs
from .measured_ranges import values_of, with_measured_ranges
from .pixel_inputs import demand_tflite_steps, tflite_pixels
from .quantizer_choices import QuantizerChoices
from .range_choice import Histogram
from .shared_ranges import set_range, share_ranges
from .tflite_int16 import with_int16
from .unrounded_inputs import leave_inputs_unrounded


def quantized(
    calibrated: bytes,
    choices: QuantizerChoices,
    samples: Sequence[Sequence[np.ndarray]],
    *,
    integer_io: bool,
) -> bytes:
    """Quantize a calibrated file to int8.

    Args:
        calibrated: A float file with a range for each of its tensors.
        choices: Settings of layers and ranges that differ from the converter's defaults.
        samples: The calibration samples, which determine the ranges.
        integer_io: Whether inputs and outputs of the file are integers.

    Raises:
        UserError: No operator of the file belongs to a selected layer.
    """
    import tensorflow as tf

    # `tf.lite.experimental.QuantizationDebugger` is the public way to leave operators in float, but
    # it first writes and loads a file with a verifier after every operator, which fails for some
    # networks.
    from tensorflow.lite.python.convert import mlir_quantize

    model = with_measured_ranges(calibrated, samples)
    floats, wide = _operators(model, choices)
    ranges = _ranges(model.subgraphs[0])
    if choices.ranges != "min-max":
        # `ranges` keeps the full ranges for 16-bit tensors, which need no clipping.
        _choose(calibrated, model, choices.ranges, samples, ranges)
    pixels = tflite_pixels(model) if choices.pixels else None
    if pixels is None and not integer_io:
        floats |= of_inputs(model)
    share_ranges(model, floats)
    floats |= float_operators(model)
    io = tf.int8 if integer_io else tf.float32
    data: bytes = mlir_quantize(
        pack(model),
        input_data_type=io if pixels is None else tf.uint8,
        output_data_type=io,
        denylisted_nodes=sorted(floats | wide),
    )
    if pixels is not None:
        demand_tflite_steps(data, pixels)
    result = parse(data)
    changed = leave_inputs_unrounded(result)
    if wide:
        return with_int16(result, wide, ranges)
    return pack(result) if changed else data


def wherever_possible(calibrated: bytes, samples: Sequence[Sequence[np.ndarray]]) -> bytes:
    """Quantize a calibrated file to int16x8; operators without such a form stay in float.

    Args:
        calibrated: A float file with a range for each of its tensors.
        samples: The calibration samples, which determine the ranges.
    """
    model = with_measured_ranges(calibrated, samples, wide=True)
    graph = model.subgraphs[0]
    ranges = _ranges(graph)
    for tensor in graph.tensors:
        tensor.quantization = None
    names = {text(graph.tensors[operator.outputs[0]].name) for operator in graph.operators}
    return with_int16(model, names, ranges, required=False)


def _operators(model: Any, choices: QuantizerChoices) -> tuple[set[str], set[str]]:
    """Return the names of the operators that stay in float, and of those that get 16 bits."""
    graph = model.subgraphs[0]
    floats, wide = set(), set()
    for operator in graph.operators:
        name = text(graph.tensors[operator.outputs[0]].name)
        if choices.kept_float(name):
            floats.add(name)
        elif choices.kept_int16(name):
            wide.add(name)
    for kept, found, option in (
        (choices.keep_float, floats, "keep_float"),
        (choices.keep_int16, wide, "keep_int16"),
    ):
        if kept and not found:
            kinds = sorted({operator_name(code) for code in model.operatorCodes})
            raise UserError(
                f"{option}: no operator of the TFLite file belongs to {', '.join(kept)}; the "
                f"converter removed or merged it. Name the layer after it. (The file has "
                f"{', '.join(kinds)}.)"
            )
    return floats, wide


def _ranges(graph: Any) -> dict[str, tuple[float, float]]:
    return {
        text(tensor.name): (float(tensor.quantization.min[0]), float(tensor.quantization.max[0]))
        for tensor in graph.tensors
        if tensor.quantization is not None and tensor.quantization.min is not None
    }


def _choose(
    calibrated: bytes,
    model: Any,
    method: str,
    samples: Sequence[Sequence[np.ndarray]],
    ranges: dict[str, tuple[float, float]],
) -> None:
    """Give every computed tensor the range that a method chooses."""
    graph = model.subgraphs[0]
    ranged = [i for i, tensor in enumerate(graph.tensors) if text(tensor.name) in ranges]
    histograms = {index: Histogram(*ranges[text(graph.tensors[index].name)]) for index in ranged}
    for values in values_of(calibrated, samples, ranged):
        for index, array in values.items():
            histograms[index].add(array)
    fixed = {int(index) for index in graph.inputs}  # clipping an input would affect every layer
    for index in ranged:
        if index not in fixed:
            set_range(graph.tensors[index], *histograms[index].range(method))
