"""The operators of .tflite files of integers."""

from __future__ import annotations

from collections.abc import Iterator

from ...artifacts.graphs.base import ArtifactGraph, GraphOp
from ..rounding.arithmetic import Finish
from ..rounding.quantized import FloatsError, NotKnownError
from .base import IntegerOp, Values, known, one_of
from .tflite_arithmetic import ARITHMETIC_OPS
from .tflite_functions import FUNCTION_OPS
from .tflite_moving import MOVING_OPS
from .tflite_plain import CHOOSING_OPS, with_plain

# Operators with kernels of integers; all that are predicted.
INTEGER_OPS = {**ARITHMETIC_OPS, **FUNCTION_OPS, **CHOOSING_OPS, **MOVING_OPS}
TFLITE_OPS = with_plain(INTEGER_OPS)


def prepared(op: GraphOp, values: Values) -> Finish:
    """Return the results of an op as a function of the rule.

    Raises:
        NotKnownError: Its kind or its form is not known here.
    """
    if op.kind not in TFLITE_OPS:
        raise NotKnownError(f"{op.kind} is not known")
    try:
        finish = known(op, lambda: TFLITE_OPS[op.kind].prepare(op, values))
    except FloatsError as error:
        raise NotKnownError(f"{op.kind} in float32") from error
    bits = bits_of(values.graph, op)
    return lambda rule: known(op, lambda: finish(rule.of_bits(bits)))


def _has_steps(graph: ArtifactGraph, op: GraphOp) -> bool:
    """Return whether an op reads or writes quantized numbers.

    Others compute in float32. Their inputs as a runtime shows them may be those of another op,
    since runtimes fuse float operators and reuse their memory.
    """
    keys = [*graph.activations(op), *op.outputs]
    return any(graph.tensors[key].quantization is not None for key in keys)


def bits_of(graph: ArtifactGraph, op: GraphOp) -> int:
    """Return the size of the integers that an op reads and writes."""
    keys = [*graph.activations(op), *op.outputs]
    steps = [graph.tensors[key].quantization for key in keys]
    return 8 * max((entry.dtype.itemsize for entry in steps if entry is not None), default=1)


def integer_ops(values: Values) -> Iterator[IntegerOp]:
    """Yield every op of integers whose results can be computed exactly from its known inputs."""
    for op in values.graph.ops:
        if not _has_steps(values.graph, op):
            continue
        try:
            finish = prepared(op, values)
        except NotKnownError:
            continue
        for place, key in enumerate(op.outputs):
            if values.has(key) and any(values.graph.activations(op)):
                got = values.array(key)
                yield IntegerOp(op, op, got, one_of(finish, place), TFLITE_OPS[op.kind].ruled)
