"""Traces one call of a Keras layer or operation as a TensorFlow graph of batch size one."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import keras
import numpy as np

from ..fold.graph import Call
from ..fold.scope_names import accepted_names
from ..fold.traced_functions import decided_conditions, inlined_functions
from ..formats.expansions import expand
from ..formats.unroll import Loops, unrolled

if TYPE_CHECKING:
    import tensorflow as tf

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Trace:
    """The trace of one call for one sample.

    Attributes:
        inputs: The tensors of the call's inputs in the graph.
        outputs: The outputs of the call, flattened, followed by their masks.
        arrays: Name of each op that reads a weight or a captured constant to its value.
        weights: Names of those that are weights of the layer.
        function: The traced function.
        masks: For each output of the layer, whether `outputs` contains its mask.
        replaced: Name of each replaced op to the name of its replacement.
    """

    inputs: tuple[tf.Tensor, ...]
    outputs: tuple[tf.Tensor, ...]
    arrays: dict[str, np.ndarray]
    weights: frozenset[str]
    function: Any
    masks: tuple[bool, ...]
    replaced: Mapping[str, str]

    def read(self, tensor: tf.Tensor) -> tf.Tensor:
        """Return the tensor to read instead of one of the graph, or the tensor itself."""
        name = self.replaced.get(tensor.op.name)
        return tensor if name is None else self.graph.get_operation_by_name(name).outputs[0]

    @property
    def graph(self) -> tf.Graph:
        """The traced graph."""
        return self.function.graph

    def run(self, inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Return the outputs of the layer itself."""
        import tensorflow as tf

        outputs = self.function(*(tf.constant(array) for array in inputs))
        return [np.asarray(output) for output in keras.tree.flatten(outputs)]


class NotTraceableError(Exception):
    """A call cannot be expanded into primitives; the message gives the reason."""


def trace_call(call: Call, masks: Sequence[Shape | None] = (), known: Container[str] = ()) -> Trace:
    """Trace a call with a batch of one.

    Args:
        call: A call of a Keras layer or operation.
        masks: For each input, the shape of its mask without the batch; None if it has none. In the
            graph, the masks follow the inputs of the call.
        known: Types of operations that need no replacement.

    Raises:
        NotTraceableError: Its shapes are unknown, or its code does not run on such a batch.
    """
    import tensorflow as tf

    if any(None in value.shape[1:] or not value.shape for value in call.inputs):
        raise NotTraceableError("its inputs have no static shape")
    specs = [tf.TensorSpec((1, *value.shape[1:]), value.dtype) for value in call.inputs]
    masks = masks or [None] * len(specs)
    specs += [tf.TensorSpec((1, *shape), tf.bool) for shape in masks if shape is not None]
    operation = call.op.operation
    made: list[bool] = []

    def run(*values: Any) -> list[Any]:
        outputs = keras.tree.flatten(_called(call, _masked(values, masks)))
        found = [getattr(output, "_keras_mask", None) for output in outputs]
        made[:] = [mask is not None for mask in found]
        return [*outputs, *(mask for mask in found if mask is not None)]

    with (
        accepted_names(operation),
        _without_loops(operation),
        inlined_functions(),
        decided_conditions(),
    ):
        try:
            function = tf.function(run, autograph=False)
            concrete = function.get_concrete_function(*specs)
        except Exception as error:  # Whatever the layer's own code raises.
            first_line = str(error).strip().partition("\n")[0]
            raise NotTraceableError(f"{type(error).__name__}: {first_line}") from error
    inputs = tuple(concrete.inputs[: len(specs)])
    outputs = tuple(concrete.outputs)
    arrays, weights = _arrays(concrete, len(specs))
    replaced = expand(concrete, known)
    return Trace(inputs, outputs, arrays, weights, concrete, tuple(made), replaced)


def _masked(values: Sequence[Any], masks: Sequence[Shape | None]) -> tuple[Any, ...]:
    """Return the inputs of a call with their masks attached as Keras does."""
    inputs, rest = values[: len(masks)], iter(values[len(masks) :])
    for value, shape in zip(inputs, masks, strict=True):
        if shape is not None:
            value._keras_mask = next(rest)
    return tuple(inputs)


def _called(call: Call, values: tuple[Any, ...]) -> Any:
    """Call the layer in inference mode on the given inputs."""
    operation = call.op.operation
    args, kwargs = call.arguments(values)
    if getattr(operation, "_call_has_training_arg", False):
        # `predict` and exporters override the recorded value of `training`.
        kwargs = {**kwargs, "training": False}
    return operation(*args, **kwargs)


def _arrays(concrete: Any, count: int) -> tuple[dict[str, np.ndarray], frozenset[str]]:
    """Return the values that a function captures, by the op that reads them."""
    arrays: dict[str, np.ndarray] = {}
    weights = set()
    held: dict[int, np.ndarray] = {}
    used = _before(concrete.outputs)
    for outside, inside in zip(concrete.captured_inputs, concrete.inputs[count:], strict=True):
        if inside.dtype.name != "resource":
            arrays[inside.op.name] = outside.numpy()
            continue
        variable = next((v for v in concrete.variables if v.handle is outside), None)
        if variable is None:  # A table, which is expanded.
            continue
        readers = inside.consumers()
        if used.isdisjoint(reader.name for reader in readers):
            continue  # Such as the seed of a dropout, whose mask only training uses.
        for reader in readers:
            if reader.type != "ReadVariableOp":
                raise NotTraceableError(f"it changes its variable {variable.name!r}")
            # One object per variable, so that all nodes that use it share it.
            if id(variable) not in held:
                held[id(variable)] = variable.numpy()
            arrays[reader.name] = held[id(variable)]
            weights.add(reader.name)
    return arrays, frozenset(weights)


def _before(outputs: Sequence[Any]) -> set[str]:
    """Return the names of the ops that outputs depend on."""
    found: set[str] = set()
    waiting = [output.op for output in outputs]
    while waiting:
        op = waiting.pop()
        if op.name not in found:
            found.add(op.name)
            waiting.extend(tensor.op for tensor in op.inputs)
    return found


def _without_loops(operation: Any) -> AbstractContextManager[Any]:
    """Unroll the recurrent layers inside an operation."""
    if not isinstance(operation, keras.Layer):
        return nullcontext()
    return unrolled(operation, Loops.SHORT_UNROLLED)
