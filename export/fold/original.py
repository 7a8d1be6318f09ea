"""Runs the original network in float64, as the reference for folded networks.

A layer that cannot compute in float64, or that returns integers, could turn a rounding error into a
large difference. If no affine moves through such a layer, it is the same in both networks: its
inputs are compared, and the outputs of the original are used in both networks, so that the layers
after it can be compared as well.
"""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray

from ...errors import UserError
from .build import own_precision
from .evaluation import (
    NotComputableError,
    compute_call,
    describe,
    evaluate,
    relative_error,
    to_array,
)
from .float64_layers import OwnPrecision
from .graph import ActivationOp, Call, Graph, Kept, Value
from .keras_graph import kind_of
from .linear_layers import find
from .norms import kept_norm, read_constant
from .passes import RULES
from .probes import free_sizes, probes
from .rebuild import copy_state, is_float
from .rules.activations import stops_scales
from .rules.opaque import Opaque

# Relative difference above which a rebuilt custom layer is not the same; half precision, the
# coarsest arithmetic that a layer may have, stays well below.
_SAME_LAYER = 0.05

_SOFTMAX = {keras.activations.softmax, keras.activations.log_softmax}


class Original:
    """The original network with its values on all batches, for comparison with folded networks.

    Attributes:
        batches: The inputs, each batch with the kind of its samples.
        truth: For each batch, the outputs and the inputs of saturating output activations.
        call_inputs: For each batch, the inputs of the calls in `handed_over`, by call number.
        handed_over: Numbers and names of the calls whose outputs are used in every network.
        given: The outputs of those calls, one list per batch.
    """

    def __init__(self, graph: Graph, hidden: list[bool]) -> None:
        self._graph = graph
        self._hidden = hidden
        self.batches: list[tuple[str, list[NDArray[Any]]]] = []
        self.truth: list[list[NDArray[Any]]] = []
        self.handed_over: dict[int, str] = {}
        self.given: dict[int, list[list[Any]]] = {}
        self._own: dict[Any, keras.Layer] = {}
        self.call_inputs: list[dict[int, list[NDArray[Any]]]] = []

    def run(self, real: list[NDArray[Any]] | None) -> None:
        """Run every batch; free sizes are set to the first size that the network accepts.

        Raises:
            NotComputableError: A layer cannot be computed.
        """
        sizes: list[int | None] = [] if real else [*free_sizes(self._graph)]
        problem = None
        for size in sizes or [None]:
            self.batches = list(probes(self._graph, size, real))
            self.truth, self.handed_over, self.given = [], {}, {}
            self._own, self.call_inputs = {}, []
            try:
                return self._run()
            except NotComputableError as error:
                problem = problem or error
        assert problem is not None
        if not sizes:
            raise problem
        raise NotComputableError(
            f"the network accepts none of the sizes tried for the free axes of its inputs "
            f"({problem}); give real inputs (inputs=…), whose sizes are then used"
        )

    def _run(self) -> None:
        watch = watched(self._graph, self._hidden)
        self.call_inputs = [{} for _ in self.batches]
        batches = [inputs for _, inputs in self.batches]
        self.truth = evaluate(self._graph, batches, watch, compute=self._compute)

    def _compute(self, call: Call, layer: Any, inputs: list[Any], batch: int) -> list[Any]:
        """Compute a call; on the first batch, decide whether its outputs are handed over."""
        if batch or not _is_left_alone(call):
            outputs = compute_call(call, self._own.get(call.op, layer), inputs)
        else:
            outputs = self._judged(call, layer, inputs)
        if call.number in self.handed_over:
            self.given.setdefault(call.number, []).append(outputs)
            self.call_inputs[batch][call.number] = [to_array(tensor) for tensor in inputs]
        return outputs

    def _judged(self, call: Call, layer: Any, inputs: list[Any]) -> list[Any]:
        try:
            outputs = compute_call(call, layer, inputs)
        except NotComputableError:
            # TensorFlow has no float64 kernel, for instance.
            if isinstance(layer, OwnPrecision) or not isinstance(call.op.operation, keras.Layer):
                raise
            layer = self._own[call.op] = own_precision(call.op)
            compute_call(call, layer, inputs)  # builds it
            copy_state(call.op.operation, layer.inner)
            outputs = compute_call(call, layer, inputs)
        _require_same(call, inputs, outputs)
        exact = any(_exceeds_float32(tensor) for tensor in inputs)
        if exact and not all(_exceeds_float32(tensor) for tensor in outputs):
            self.handed_over[call.number] = call.name
        return outputs

    def nothing_finite(self) -> str:
        """Return a message if an output is not finite for any input; otherwise empty."""
        for i, name in enumerate(self._graph.output_names):
            if not any(_finite(values[i]).any() for values in self.truth):
                empty = not any(values[i].size for values in self.truth)
                what = "empty" if empty else "NaN or infinite"
                return (
                    f"the output {name!r} of the original is {what} for every input"
                    f"{_unfit_weights(self._graph)}"
                )
        return ""


def _is_left_alone(call: Call) -> bool:
    """Return whether a fold cannot change a call: no affine is absorbed by it or moves through."""
    op = call.op
    if not isinstance(op, Kept) or find(op.operation) is not None or kept_norm(call):
        return False
    is_constant = kind_of(op.operation) and read_constant(call) is not None
    rule = next(rule for rule in RULES if rule.matches(op))
    return isinstance(rule, Opaque) and not is_constant


def _require_same(call: Call, inputs: list[Any], outputs: list[Any]) -> None:
    """Refuse a custom layer that computes something else after it is rebuilt.

    Raises:
        UserError: The outputs of the original layer differ.
    """
    layer = call.op.operation
    if kind_of(layer) or not isinstance(layer, keras.Layer):
        return
    state = [keras.ops.convert_to_numpy(variable) for variable in layer.non_trainable_variables]
    lowered = [_in_precision(tensor, layer.compute_dtype) for tensor in inputs]
    try:
        expected, again = (compute_call(call, layer, lowered) for _ in range(2))
    except NotComputableError:
        return  # the layer cannot be run separately, so nothing is known
    finally:
        for variable, value in zip(layer.non_trainable_variables, state, strict=True):
            variable.assign(value)
    for one, two, other in zip(expected, again, outputs, strict=True):
        one, two, other = to_array(one), to_array(two), to_array(other)
        if np.array_equal(one, two) and relative_error(one, other) > _SAME_LAYER:
            raise UserError(
                f"The layer {describe(call)} computes something else after it is rebuilt from its "
                "config and weights. Give it a `get_config` that returns every argument of "
                "`__init__`, and store its state in weights."
            )


def _in_precision(tensor: Any, dtype: str) -> Any:
    floating = is_float(keras.backend.standardize_dtype(tensor.dtype))
    return keras.ops.cast(tensor, dtype) if floating else tensor


def _unfit_weights(graph: Graph) -> str:
    """Return a clause that names the first layer with weights that are not finite."""
    for call in graph.calls():
        layer = getattr(call.op, "operation", getattr(call.op, "layer", None))
        for weight in getattr(layer, "weights", ()):
            values = to_array(weight)
            if not _finite(values).all():
                return f": {weight.name!r} of {call.name!r} contains NaN or infinity"
    return ""


def _finite(values: NDArray[Any]) -> NDArray[np.bool_]:
    if values.dtype.kind not in "fc":
        return np.ones(values.shape, np.bool_)
    finite: NDArray[np.bool_] = np.isfinite(values)
    return finite


def _exceeds_float32(tensor: Any) -> bool:
    """Return whether a tensor has values that float32 cannot represent."""
    values = to_array(tensor)
    if values.dtype != np.float64:
        return False
    with np.errstate(over="ignore"):
        return not np.array_equal(values.astype(np.float32), values, equal_nan=True)


def saturates(value: Value) -> bool:
    """Return whether a value is the output of an activation that may hide a wrong input.

    If one logit is large, a softmax is 1 whatever the others are; a tanh is 1 for all large inputs,
    and a relu6 is 6. So their inputs are compared as well. No affine moves through these functions,
    so the input is the same in both networks.
    """
    op = value.producer.op
    if isinstance(op, ActivationOp):
        return op.function in _SOFTMAX or stops_scales(op)
    if not isinstance(op, Kept):
        return False
    layer = op.operation
    if isinstance(layer, keras.layers.Activation):
        return layer.activation in _SOFTMAX or stops_scales(op)
    return isinstance(layer, keras.layers.Softmax) or stops_scales(op)


def watched(graph: Graph, hidden: list[bool]) -> list[Value]:
    """Return the outputs, and the inputs of saturating activations among them."""
    inputs = [
        value.producer.inputs[0]
        for value, hides in zip(graph.outputs, hidden, strict=True)
        if hides and saturates(value)
    ]
    return [*graph.outputs, *inputs]
