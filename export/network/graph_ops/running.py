"""Runs one operation of a trace on arrays."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import numpy as np

# Attributes that name the type of a result.
_TYPES = ("DstT", "dtype", "out_type")


def run_op(op: Any, arrays: Sequence[np.ndarray]) -> np.ndarray:
    """Return the first output of an operation."""
    return run_outputs(op, arrays)[0]


def run_outputs(op: Any, arrays: Sequence[np.ndarray], *, exact: bool = False) -> list[np.ndarray]:
    """Return the outputs of an operation for the given inputs.

    Args:
        op: The traced operation.
        arrays: Its inputs.
        exact: Whether to compute float32 operations in float64.

    Raises:
        Exception: TensorFlow cannot run the operation.
    """
    import tensorflow as tf

    function = getattr(tf.raw_ops, op.type)
    accepted = list(inspect.signature(function).parameters)
    values = [_as_double(array) for array in arrays] if exact else list(arrays)
    arguments: dict[str, Any] = {}
    for place, argument in enumerate(op.op_def.input_arg):
        # Some arguments have another name in Python, but the same position.
        name = argument.name if argument.name in accepted else accepted[place]
        if argument.number_attr or argument.type_list_attr:
            count = _length(op, argument)
            arguments[name] = [tf.constant(value) for value in values[:count]]
            values = values[count:]
        else:
            arguments[name] = tf.constant(values.pop(0))
    for attribute in op.op_def.attr:
        if attribute.name in accepted and attribute.name not in arguments:
            value = op.get_attr(attribute.name)
            if exact and attribute.name in _TYPES and value == tf.float32:
                value = tf.float64
            arguments[attribute.name] = value
    found = function(**arguments)
    outputs = found if isinstance(found, (list, tuple)) else [found]
    return [output.numpy() for output in outputs]


def _length(op: Any, argument: Any) -> int:
    """Return the number of tensors of an argument."""
    if argument.number_attr:
        return int(op.get_attr(argument.number_attr))
    return len(op.get_attr(argument.type_list_attr))


def _as_double(array: np.ndarray) -> np.ndarray:
    return array.astype(np.float64) if array.dtype == np.float32 else array
