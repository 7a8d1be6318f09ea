"""Measures the ranges of the tensors of a float TFLite file on samples.

TensorFlow's calibrator reads the result of an operator after the next one has run, which may have
overwritten it in place: a relu that is added to another value gets the range of the sum. Here, no
value is overwritten.

Integers represent zero even if no sample is zero. Some functions of such an integer are beyond
those of the samples, and their ranges are extended.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from ...artifacts.flatbuffer import operator_kind, parse
from .shared_ranges import range_of, set_range

# Values that the range of a function's result includes, for the range of its operand.
Ends = Mapping[str, Callable[[float, float], tuple[float, ...]]]
_ENDS: Ends = {
    "ABS": lambda low, high: (0.0,),
    "LOGISTIC": lambda low, high: (_sigmoid(min(low, 0.0)), _sigmoid(max(high, 0.0))),
    "LOG": lambda low, high: (math.log(low), math.log(high)) if low > 0 else (),
}
# Ranges of 16 bits are symmetric. The kernel interpolates between the results for the whole range.
_WIDE_ENDS: Ends = {**_ENDS, "GELU": lambda low, high: (max(-low, high),)}

# Kernels shift the operands of a 16-bit sum by 15 bits and abort if the result needs more: its
# range is at least this part of an operand's. Such a sum is below the steps of the operand.
LEAST_SUM = 1.001 * 2.0**-14


def _sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-max(x, -700.0)))


def with_measured_ranges(
    calibrated: bytes, samples: Sequence[Sequence[np.ndarray]], *, wide: bool = False
) -> Any:
    """Return a parsed file in which every computed tensor has its range on the samples.

    Args:
        calibrated: A float file with some range for each of its computed tensors.
        samples: Batches of samples, one array per input each.
        wide: Whether all tensors will be integers of 16 bits.
    """
    model = parse(calibrated)
    graph = model.subgraphs[0]
    graph.operators = graph.operators or []  # all outputs are constants
    ranged = [i for i, tensor in enumerate(graph.tensors) if range_of(tensor) is not None]
    ends: dict[int, tuple[float, float]] = {}
    for values in values_of(calibrated, samples, ranged):
        for index, array in values.items():
            least, greatest = ends.get(index, (np.inf, -np.inf))
            low, high = array.min(initial=least), array.max(initial=greatest)
            if not np.isfinite(low) or not np.isfinite(high):
                finite = array[np.isfinite(array)]
                low, high = finite.min(initial=least), finite.max(initial=greatest)
            ends[index] = low, high
    for index, (low, high) in ends.items():
        if low <= high:  # otherwise, no value is finite
            set_range(graph.tensors[index], low, high)
    for operator in graph.operators:
        if wide and operator_kind(model, operator) in ("ADD", "SUB"):
            _extend_sum(model, operator)
        include = (_WIDE_ENDS if wide else _ENDS).get(operator_kind(model, operator))
        operand, result = (graph.tensors[i[0]] for i in (operator.inputs, operator.outputs))
        read, made = range_of(operand), range_of(result)
        if include is not None and read is not None and made is not None:
            further = include(*read)
            set_range(result, min(*made, *further), max(*made, *further))
    return model


def _extend_sum(model: Any, operator: Any) -> None:
    """Extend the range of a sum that is much less than its operands to what 16 bits can hold."""
    result = model.subgraphs[0].tensors[operator.outputs[0]]
    made = range_of(result)
    if made is not None:
        least = LEAST_SUM * max(_greatest(model, int(index)) for index in operator.inputs)
        set_range(result, min(made[0], -least), max(made[1], least))


def _greatest(model: Any, index: int) -> float:
    """Return the greatest magnitude that the integers of an operand will represent."""
    tensor = model.subgraphs[0].tensors[index]
    ends, data = range_of(tensor), model.buffers[tensor.buffer].data
    if ends is None and data is not None:
        values = np.frombuffer(bytes(bytearray(data)), np.float32)
        ends = (float(values.min(initial=0.0)), float(values.max(initial=0.0)))
    # The quantizer gives numbers that are all zero the range up to 1.
    return max(map(abs, ends or (0.0,))) or 1.0


def values_of(
    data: bytes, samples: Sequence[Sequence[np.ndarray]], indices: Sequence[int]
) -> Iterator[dict[int, np.ndarray]]:
    """Yield the values of tensors of a float file, one dictionary per batch."""
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    interpreter = Interpreter(
        model_content=data,
        experimental_preserve_all_tensors=True,
        experimental_op_resolver_type=OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
    )
    details = interpreter.get_input_details()

    def run(batch: Sequence[np.ndarray]) -> dict[int, np.ndarray]:
        for detail, array in zip(details, batch, strict=True):
            if tuple(detail["shape"]) != array.shape:
                interpreter.resize_tensor_input(detail["index"], array.shape)
        interpreter.allocate_tensors()
        for detail, array in zip(details, batch, strict=True):
            interpreter.set_tensor(detail["index"], array)
        interpreter.invoke()
        return {index: interpreter.get_tensor(index) for index in indices}

    return map(run, samples)
