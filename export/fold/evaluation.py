"""Runs a network in float64, call by call, so that values and errors belong to a layer."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import keras
import numpy as np
from keras import tree
from numpy.typing import NDArray

from ...errors import UserError
from .build import arguments_in, build_layers
from .graph import ActivationOp, Call, Graph, Source, Value
from .rebuild import is_float

Compute = Callable[[Call, Any, list[Any]], list[Any]]


class NotComputableError(Exception):
    """A layer cannot be computed; the message names it."""


class Evaluation:
    """A network with layers built in float64, which can be run repeatedly.

    Args:
        graph: The network.
        given: Numbers of the calls whose outputs are given in every run.

    Raises:
        NotComputableError: A layer cannot be called.
        UserError: A layer cannot be rebuilt from its config.
    """

    def __init__(self, graph: Graph, given: Iterable[int] = ()) -> None:
        self._graph = graph
        try:
            self._steps = list(build_layers(graph, frozenset(given)))
        except UserError:
            raise
        except Exception as error:  # whatever TensorFlow or the user's own code raises
            raise NotComputableError(
                f"the network cannot be built in float64 ({first_line(error)})"
            ) from error

    def layers(self) -> list[Any]:
        """Return every layer once."""
        return list({id(layer): layer for _, layer in self._steps if layer is not None}.values())

    def run(
        self,
        inputs: list[NDArray[Any]],
        watch: Sequence[Value],
        given: Mapping[int, list[Any]] | None = None,
        compute: Compute | None = None,
    ) -> list[NDArray[Any]]:
        """Run the network on one batch.

        Args:
            inputs: One array per input.
            watch: The values to return.
            given: Number of a call to its outputs; such calls are not computed.
            compute: Function that computes a call from its layer and inputs; `compute_call` by
                default.

        Returns:
            The arrays of the watched values.

        Raises:
            NotComputableError: A layer raised an exception.
        """
        given, compute = given or {}, compute or compute_call
        values: dict[Value, Any] = {
            value: tensor_of(array, value.dtype)
            for value, array in zip(self._graph.inputs, inputs, strict=True)
        }
        waiting = {value: len(value.uses) for call, _ in self._steps for value in call.outputs}
        kept = set(watch)
        for call, layer in self._steps:
            if call.number in given:
                results = given[call.number]
            elif isinstance(call.op, Source):
                continue
            else:
                results = compute(call, layer, [values[value] for value in call.inputs])
            values.update(zip(call.outputs, results, strict=True))
            for value in call.inputs:
                waiting[value] -= 1
                if not waiting[value] and value not in kept:
                    values.pop(value, None)
        return [to_array(values[value]) for value in watch]


def compute_call(call: Call, layer: Any, inputs: list[Any]) -> list[Any]:
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
