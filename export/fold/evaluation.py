"""Runs a network in float64, layer by layer, so that values and errors belong to a layer."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import keras
import numpy as np
from keras import tree
from numpy.typing import NDArray

from ...errors import UserError
from .build import arguments_in, build_layers
from .graph import ActivationOp, Call, Graph, Source, Value
from .rebuild import is_float

Compute = Callable[[Call, Any, list[Any], int], list[Any]]


class NotComputableError(Exception):
    """A layer cannot be computed; the message names it."""


def evaluate(
    graph: Graph,
    batches: Sequence[Sequence[NDArray[Any]]],
    watch: Sequence[Value],
    *,
    given: Mapping[int, Sequence[list[Any]]] | None = None,
    compute: Compute | None = None,
    change: Callable[[Any], None] | None = None,
) -> list[list[NDArray[Any]]]:
    """Run a network in float64.

    Each layer is built, computes every batch, and is freed, so that no second copy of all weights
    is in memory.

    Args:
        graph: The network.
        batches: One array per input, for every batch.
        watch: The values to return.
        given: Number of a call to its outputs for every batch; such calls are not computed.
        compute: Function that computes a call from its layer, its inputs and the number of the
            batch; `compute_call` by default.
        change: Called once with every layer, to change its weights.

    Returns:
        The arrays of the watched values for every batch.

    Raises:
        NotComputableError: A layer cannot be built or raised an exception.
        UserError: A layer cannot be rebuilt from its config.
    """
    given, compute = given or {}, compute or compute_call
    values: list[dict[Value, Any]] = [
        {
            value: tensor_of(array, value.dtype)
            for value, array in zip(graph.inputs, batch, strict=True)
        }
        for batch in batches
    ]
    waiting = {value: len(value.uses) for call in graph.calls() for value in call.outputs}
    kept = set(watch)
    changed: set[int] = set()
    for call, layer in _layers(graph, frozenset(given)):
        if change is not None and layer is not None and id(layer) not in changed:
            changed.add(id(layer))
            change(layer)
        if isinstance(call.op, Source) and call.number not in given:
            continue
        for number, known in enumerate(values):
            if call.number in given:
                results = given[call.number][number]
            else:
                results = compute(call, layer, [known[value] for value in call.inputs], number)
            known.update(zip(call.outputs, results, strict=True))
        for value in call.inputs:
            waiting[value] -= 1
            if not waiting[value] and value not in kept:
                for known in values:
                    known.pop(value, None)
    return [[to_array(known[value]) for value in watch] for known in values]


def _layers(graph: Graph, given: frozenset[int]) -> Iterator[tuple[Call, Any]]:
    """Yield the calls of a network with their layers; see `build_layers`.

    Raises:
        NotComputableError: A layer cannot be called.
        UserError: A layer cannot be rebuilt from its config.
    """
    layers = build_layers(graph, given)
    while True:
        try:
            step = next(layers, None)
        except UserError:
            raise
        except Exception as error:  # whatever TensorFlow or the user's own code raises
            raise NotComputableError(
                f"the network cannot be built in float64 ({first_line(error)})"
            ) from error
        if step is None:
            return
        yield step


def compute_call(call: Call, layer: Any, inputs: list[Any], batch: int = 0) -> list[Any]:
    """Compute one call in inference mode (``training=False``).

    Raises:
        NotComputableError: The layer raised an exception.
    """
    args, kwargs = arguments_in("float64", call, inputs)
    if "training" in kwargs:
        kwargs = {**kwargs, "training": False}
    try:
        return list(tree.flatten(layer(*args, **kwargs)))
    except Exception as error:  # whatever TensorFlow or the user's own code raises
        raise NotComputableError(f"{describe(call)}: {first_line(error)}") from error


def describe(call: Call) -> str:
    """Return the name of a layer with its class."""
    op = call.op
    if isinstance(op, ActivationOp):
        return f"the activation of {op.owner!r}"
    layer = getattr(op, "operation", getattr(op, "layer", op))
    return f"{call.name!r} ({type(layer).__name__})"


def first_line(error: Exception) -> str:
    """Return the first line of an exception's message, without the prefix that Keras adds."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    lines = [line for line in lines if not line.startswith("Exception encountered when calling")]
    text = lines[0] if lines else type(error).__name__
    for colour in ("\x1b[1m", "\x1b[0m"):
        text = text.replace(colour, "")
    return text.partition("}} ")[2] or text


def tensor_of(array: Any, dtype: str) -> Any:
    """Convert an array to a tensor; floating-point types become float64."""
    if dtype == "string":
        return keras.ops.convert_to_tensor(np.asarray(array, object), dtype="string")
    return keras.ops.convert_to_tensor(array, dtype="float64" if is_float(dtype) else dtype)


def to_array(tensor: Any) -> NDArray[Any]:
    """Convert a tensor to an array."""
    return np.asarray(keras.ops.convert_to_numpy(tensor))


def relative_error(expected: NDArray[Any], got: NDArray[Any]) -> float:
    """Return the greatest absolute difference divided by the greatest expected magnitude.

    It is infinite if NaN or infinity occur in different places, or if non-numeric arrays differ.
    """
    if expected.shape != got.shape or expected.dtype.kind not in "biuf":
        return 0.0 if np.array_equal(expected, got) else float("inf")
    expected, got = expected.astype(np.float64), got.astype(np.float64)
    finite = np.isfinite(expected)
    if not np.array_equal(expected[~finite], got[~finite], equal_nan=True):
        return float("inf")
    if not finite.any():
        return 0.0
    difference = np.abs(expected[finite] - got[finite]).max()
    if not np.isfinite(difference):
        return float("inf")
    return float(difference / max(np.abs(expected[finite]).max(), np.finfo(np.float64).tiny))
