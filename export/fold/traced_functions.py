"""Reads and runs operations of functions that TensorFlow has traced."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import tensorflow as tf

#: Operations whose constant results TensorFlow's converter does not compute.
DIAGONALS = ("MatrixDiag", "MatrixDiagV2", "MatrixDiagV3", "MatrixSetDiag", "MatrixSetDiagV2",
             "MatrixSetDiagV3")  # fmt: skip

# Operations that are computed from constants before the conversion.
_COMPUTED = ("AddV2", "Cast", "Complex", "Exp", "Fill", "Greater", "GreaterEqual", "Identity",
             "Less", "LessEqual", "Maximum", "Minimum", "Mul", "Neg", "Pack", "Range", "RealDiv",
             "Reshape", "StridedSlice", "Sub", *DIAGONALS)  # fmt: skip


def bincount_size(op: tf.Operation) -> int | None:
    """Return the number of classes of a DenseBincount; None if it depends on the data.

    Keras passes the number as the minimum and as the maximum.
    """
    import tensorflow as tf

    size = op.inputs[1]
    bounds = [size, *size.op.inputs] if size.op.type == "Minimum" else [size]
    known = (tf.get_static_value(tensor) for tensor in bounds)
    return next((int(value) for value in known if value is not None), None)


def table_of(handle: tf.Tensor, function: Any) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return the keys and values of a lookup table in a traced function, sorted by key.

    Args:
        handle: The table inside the function.
        function: The concrete function.
    """
    import tensorflow as tf

    (reader, *_) = handle.consumers()
    with tf.init_scope():
        keys, values = tf.raw_ops.LookupTableExportV2(
            table_handle=captured(handle, function),
            Tkeys=reader.get_attr("Tin"),
            Tvalues=reader.get_attr("Tout"),
        )
        order = np.argsort(keys.numpy())
        return keys.numpy()[order], values.numpy()[order]


def captured(tensor: tf.Tensor, function: Any) -> Any:
    """Return the object that a traced function captured as one of its tensors."""
    given = function.captured_inputs
    inside = function.inputs[-len(given) :]
    return next(o for o, i in zip(given, inside, strict=True) if i is tensor)


def constant_of(tensor: tf.Tensor) -> Any:
    """Return the value of a tensor computed from constants and static sizes, else None."""
    import tensorflow as tf

    value = tf.get_static_value(tensor)
    op = tensor.op
    if value is not None or op.type == "Placeholder":
        return value
    if op.type == "Shape":
        shape = op.inputs[0].shape
        return None if shape.rank is None else np.array([-1 if s is None else s for s in shape])
    if op.type not in _COMPUTED:
        return None
    operands = [constant_of(operand) for operand in op.inputs]
    if any(operand is None for operand in operands):
        return None
    types = [operand.dtype.as_numpy_dtype for operand in op.inputs]
    arrays = [np.asarray(o, t) for o, t in zip(operands, types, strict=True)]
    result = run_eagerly(op, arrays)[tensor.value_index].numpy()
    sizes = op.type == "StridedSlice" and op.inputs[0].op.type == "Shape"
    return None if sizes and (result < 0).any() else result


def run_eagerly(op: tf.Operation, operands: list[Any]) -> list[Any]:
    """Run the operation of a graph on other operands, with the same attributes.

    Args:
        op: The operation.
        operands: The operands that replace its inputs.
    """
    import tensorflow as tf

    with tf.init_scope():
        return run_in_graph(op, operands)


def run_in_graph(op: tf.Operation, operands: list[Any]) -> list[Any]:
    """Add the operation once more to the present graph, see `run_eagerly`."""
    import tensorflow as tf

    left, arguments = list(operands), {}
    for argument in op.op_def.input_arg:
        if argument.number_attr:
            count = op.get_attr(argument.number_attr)
            arguments[argument.name], left = left[:count], left[count:]
        else:
            arguments[argument.name] = left.pop(0)
    inferred = {a.type_attr for a in op.op_def.input_arg} | {
        a.number_attr for a in op.op_def.input_arg
    }
    for attribute in op.op_def.attr:
        if attribute.name not in inferred:
            arguments[attribute.name] = op.get_attr(attribute.name)
    run = getattr(tf.raw_ops, op.type)
    # Some arguments have other names in Python, such as `axis` for `reduction_indices`.
    names = list(inspect.signature(run).parameters)
    renamed = (name for name in names if name not in arguments and name != "name")
    result = run(**{n if n in names else next(renamed): v for n, v in arguments.items()})
    return list(result) if isinstance(result, (list, tuple)) else [result]


@contextlib.contextmanager
def inlined_functions() -> Iterator[None]:
    """Run tf.functions inside layers as plain Python, so that their operations are visible."""
    import tensorflow as tf

    before = tf.config.functions_run_eagerly()
    tf.config.run_functions_eagerly(True)
    try:
        yield
    finally:
        tf.config.run_functions_eagerly(before)


@contextlib.contextmanager
def decided_conditions() -> Iterator[None]:
    """Trace only the branch of a `tf.cond` that is taken, where static sizes decide it."""
    import tensorflow as tf

    general = tf.cond

    def cond(pred: Any, true_fn: Any = None, false_fn: Any = None, name: str | None = None) -> Any:
        symbolic = tf.is_tensor(pred) and not hasattr(pred, "numpy")
        value = constant_of(pred) if symbolic else None
        if value is None:
            return general(pred, true_fn, false_fn, name)
        return true_fn() if value else false_fn()

    tf.cond = cond
    try:
        yield
    finally:
        tf.cond = general
