"""The run of the original network in float64, with which every fold is compared.

A layer that cannot compute in float64, or returns whole numbers, would turn a rounding into a
difference. Where no affine passes such a layer, both networks give it the same: what goes into it
is compared, and what it returns is handed to both, so that the layers behind it are compared too.
"""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray

from ...errors import UserError
from .build import own_precision
from .evaluation import (
    Evaluation,
    NotComputableError,
    compute_call,
    describe,
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
from .rules.opaque import Opaque

# A layer of the user's own that is made again and computes something else differs by far more than
# arithmetic in half precision does, which is the coarsest that it may have.
_SAME_LAYER = 0.05

# A softmax of one large logit is 1 whatever the others are, so what goes in is compared too. No
# affine passes these, so it is the same in both networks.
_SATURATING = {
    keras.activations.softmax,
    keras.activations.log_softmax,
    keras.activations.sigmoid,
}


class Original:
    """The run of the original network that folded ones are compared with.

    Attributes:
        batches: The inputs, each batch with the kind of its samples.
        truth: For each batch the outputs, and what is behind those that can hide a difference.
        fed: For each batch what goes into the calls that are handed over, by their numbers.
        handed_over: Numbers and names of the calls whose outputs are handed to every network.
        given: The outputs of those calls, one list for each batch.
    """

    def __init__(self, graph: Graph, hidden: list[bool]) -> None:
        self._graph = graph
        self._hidden = hidden
        self.batches: list[tuple[str, list[NDArray[Any]]]] = []
        self.truth: list[list[NDArray[Any]]] = []
        self.handed_over: dict[int, str] = {}
        self.given: dict[int, list[list[Any]]] = {}
        self._own: dict[Any, keras.Layer] = {}
        self.fed: list[dict[int, list[NDArray[Any]]]] = []

    def run(self, real: list[NDArray[Any]] | None) -> None:
        """Compute every batch; where sizes are free, with the first size that is accepted.

        Raises:
            NotComputableError: A layer cannot be computed.
        """
        sizes: list[int | None] = [] if real else [*free_sizes(self._graph)]
        problem = None
        for size in sizes or [None]:
            self.batches = list(probes(self._graph, size, real))
            self.truth, self.handed_over, self.given = [], {}, {}
            self._own, self.fed = {}, []
            try:
                return self._run()
            except NotComputableError as error:
                problem = problem or error
        assert problem is not None
        if not sizes:
            raise problem
        raise NotComputableError(
            f"no size that was tried for the free axes of the inputs is accepted ({problem}); give "
            "real inputs (inputs=…), whose sizes are then used"
        )

    def _run(self) -> None:
        evaluation = Evaluation(self._graph)
        watch = watched(self._graph, self._hidden)
        for _, inputs in self.batches:
            self.fed.append({})
            self.truth.append(evaluation.run(inputs, watch, compute=self._compute))

    def _compute(self, call: Call, layer: Any, inputs: list[Any]) -> list[Any]:
        """Compute a call; decide at the first batch whether its outputs are handed over."""
        if self.truth or not _is_left_alone(call):
            outputs = compute_call(call, self._own.get(call.op, layer), inputs)
        else:
            outputs = self._judged(call, layer, inputs)
        if call.number in self.handed_over:
            self.given.setdefault(call.number, []).append(outputs)
            self.fed[-1][call.number] = [to_array(tensor) for tensor in inputs]
        return outputs

    def _judged(self, call: Call, layer: Any, inputs: list[Any]) -> list[Any]:
        try:
            outputs = compute_call(call, layer, inputs)
        except NotComputableError:
            # No kernel for float64, say.
            if isinstance(layer, OwnPrecision) or not isinstance(call.op.operation, keras.Layer):
                raise
            layer = self._own[call.op] = own_precision(call.op)
            compute_call(call, layer, inputs)  # builds it
            copy_state(call.op.operation, layer.inner)
            outputs = compute_call(call, layer, inputs)
        _demand_same(call, inputs, outputs)
        exact = any(_exceeds_float32(tensor) for tensor in inputs)
        if exact and not all(_exceeds_float32(tensor) for tensor in outputs):
            self.handed_over[call.number] = call.name
        return outputs

    def nothing_finite(self) -> str:
        """Say which output holds no finite number for any input; empty where all do."""
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
    """Whether no affine is absorbed by a call or passes it, so that a fold cannot change it."""
    op = call.op
    if not isinstance(op, Kept) or find(op.operation) is not None or kept_norm(call):
        return False
    is_constant = kind_of(op.operation) and read_constant(call) is not None
    rule = next(rule for rule in RULES if rule.matches(op))
    return isinstance(rule, Opaque) and not is_constant


def _demand_same(call: Call, inputs: list[Any], outputs: list[Any]) -> None:
    """Refuse a layer of the user's own that computes something else when it is made again.

    Raises:
        UserError: What the original layer returns differs.
    """
    layer = call.op.operation
    if kind_of(layer) or not isinstance(layer, keras.Layer):
        return
    state = [keras.ops.convert_to_numpy(variable) for variable in layer.non_trainable_variables]
    lowered = [_in_precision(tensor, layer.compute_dtype) for tensor in inputs]
    try:
        expected, again = (compute_call(call, layer, lowered) for _ in range(2))
    except NotComputableError:
        return  # it cannot run by itself, so nothing can be said
    finally:
        for variable, value in zip(layer.non_trainable_variables, state, strict=True):
            variable.assign(value)
    for one, two, other in zip(expected, again, outputs, strict=True):
        one, two, other = to_array(one), to_array(two), to_array(other)
        if np.array_equal(one, two) and relative_error(one, other) > _SAME_LAYER:
            raise UserError(
                f"The layer {describe(call)} computes something else once it is made again from "
                "its config and weights. Give it a `get_config` that returns every argument of "
                "`__init__`, and keep what it computes with in weights."
            )


def _in_precision(tensor: Any, dtype: str) -> Any:
    floating = is_float(keras.backend.standardize_dtype(tensor.dtype))
    return keras.ops.cast(tensor, dtype) if floating else tensor


def _unfit_weights(graph: Graph) -> str:
    """Name the first layer whose weights are not finite."""
    for call in graph.calls():
        layer = getattr(call.op, "operation", getattr(call.op, "layer", None))
        for weight in getattr(layer, "weights", ()):
            values = to_array(weight)
            if not _finite(values).all():
                return f": {weight.name!r} of {call.name!r} holds NaN or infinity"
    return ""


def _finite(values: NDArray[Any]) -> NDArray[np.bool_]:
    if values.dtype.kind not in "fc":
        return np.ones(values.shape, np.bool_)
    finite: NDArray[np.bool_] = np.isfinite(values)
    return finite


def _exceeds_float32(tensor: Any) -> bool:
    """Whether a tensor holds numbers that float32 does not have."""
    values = to_array(tensor)
    if values.dtype != np.float64:
        return False
    with np.errstate(over="ignore"):
        return not np.array_equal(values.astype(np.float32), values, equal_nan=True)


def saturates(value: Value) -> bool:
    """Whether a value comes out of an activation that can hide a difference, such as softmax."""
    op = value.producer.op
    if isinstance(op, ActivationOp):
        return op.function in _SATURATING
    if not isinstance(op, Kept):
        return False
    layer = op.operation
    if isinstance(layer, keras.layers.Activation):
        return layer.activation in _SATURATING
    return isinstance(layer, keras.layers.Softmax)


def watched(graph: Graph, hidden: list[bool]) -> list[Value]:
    """Return the outputs, and what is behind those that can hide a difference."""
    behind = [
        value.producer.inputs[0]
        for value, hides in zip(graph.outputs, hidden, strict=True)
        if hides and saturates(value)
    ]
    return [*graph.outputs, *behind]
