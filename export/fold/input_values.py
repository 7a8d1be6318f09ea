"""The allowed values of each input of a network, inferred from the layers that read it.

An Embedding with 30 rows takes integers from 0 to 29, whatever the dtype of its input (Keras'
default is float32). All code that generates samples uses this module to respect such limits.

Each input element gets a number. Operations that only move elements (casts, reshapes, slices,
concatenations, …) are run on these numbers; if a lookup reads them, its limits apply to the
elements. Each Keras call is traced separately, and only as long as elements are passed on
unchanged, so that a network that begins with a convolution costs the trace of one layer.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import keras
import numpy as np
from numpy.typing import NDArray

from ...artifacts.sample_checks import refuse_large_samples
from ...errors import UserError
from .graph import Call, Graph, Kept, Value
from .keras_graph import read_graph
from .scope_names import accepted_names
from .traced_functions import bincount_size, captured, inlined_functions, run_eagerly, table_of

if TYPE_CHECKING:
    import tensorflow as tf

_ELSEWHERE = -1  # number of an element that is not from an input

# Greatest value of an integer input without limits; 1 for other types.
_HIGHEST = {"uint8": 255}

# Operations that move elements without changing them.
_MOVES = {
    "BatchToSpaceND", "BroadcastTo", "Cast", "ConcatV2", "DepthToSpace", "ExpandDims", "GatherV2",
    "Identity", "MirrorPad", "Pack", "Pad", "Reshape", "ReverseV2", "SelectV2", "Slice",
    "SpaceToDepth", "Split", "SplitV", "Squeeze", "StopGradient", "StridedSlice", "Tile",
    "Transpose", "Unpack",
}  # fmt: skip


@dataclass(frozen=True)
class InputValues:
    """The allowed values of one sample of an input.

    Attributes:
        low: Least value of each element, with the shape of one sample; -inf if unlimited.
        high: Greatest value of each element; inf if unlimited.
        whole: Whether an element must be an integer.
        readers: The layers that impose the limits.
        choices: The keys of a lookup, sorted; empty if none reads the input.
        others: Whether the lookup also takes integers outside its vocabulary; one such integer is
            among the choices.
        unlimited: The elements that none of the readers limits; None if they limit all integers.
    """

    low: NDArray[np.float64]
    high: NDArray[np.float64]
    whole: NDArray[np.bool_]
    readers: tuple[str, ...] = ()
    choices: tuple[int, ...] = ()
    others: bool = False
    unlimited: NDArray[np.bool_] | None = None

    @classmethod
    def free(cls, shape: Sequence[int], dtype: str) -> InputValues:
        """Return the allowed values of an input that no layer limits.

        Args:
            shape: Shape of one sample.
            dtype: NumPy name of its dtype.
        """
        whole = np.full(tuple(shape), "float" not in dtype)
        low, high = np.where(whole, 0.0, -np.inf), np.where(whole, _HIGHEST.get(dtype, 1), np.inf)
        return cls(low, high, whole)

    def random(self, generator: np.random.Generator, count: int) -> NDArray[np.float64]:
        """Return (count, …) samples: standard normal numbers, or uniformly distributed integers.

        Args:
            generator: Random number generator.
            count: Number of samples.
        """
        samples: NDArray[np.float64] = generator.standard_normal((count, *self.low.shape))
        if not self.whole.any():
            return samples
        return self._among(samples, generator.random(samples.shape))

    def fit(self, samples: NDArray[Any]) -> NDArray[Any]:
        """Return (N, …) samples with integers where they are required.

        There, 0 is mapped to the least value, and numbers of magnitude 1 or more to the greatest.
        """
        if not self.whole.any():
            return samples
        return self._among(samples, np.clip(np.abs(np.nan_to_num(samples)), 0, 1))

    def _among(self, free: NDArray[Any], share: NDArray[Any]) -> NDArray[np.float64]:
        low, high = (np.where(self.whole, limit, 0) for limit in (self.low, self.high))
        steps = low + np.floor(share * (high - low + 1)).clip(0, high - low)
        if self.choices:
            steps = np.asarray(self.choices, np.float64)[steps.astype(int)]
        return np.where(self.whole, steps, free)

    def within(self, real: NDArray[Any]) -> InputValues:
        """Return the same, with integers that no layer limits restricted to the range of `real`."""
        free = np.ones_like(self.whole) if not self.readers else self.unlimited
        if free is None or not (free & self.whole).any():
            return self
        given = real[:, free]
        low, high = (
            np.where(free, limit, old)
            for limit, old in ((given.min(), self.low), (given.max(), self.high))
        )
        return dataclasses.replace(self, low=low, high=high)

    def refusal(self, name: str, samples: NDArray[Any]) -> str | None:
        """Return an error message for samples with invalid values; None if they are valid."""
        if not self.readers:
            return None
        if self.choices and self.others:
            wrong = (samples != np.rint(samples)) & self.whole
        elif self.choices:
            wrong = ~np.isin(samples, self.choices) & self.whole
        else:
            outside = (samples < self.low) | (samples > self.high)
            if self.unlimited is not None:
                outside &= ~self.unlimited
            wrong = (outside | (samples != np.rint(samples))) & self.whole
        if not wrong.any():
            return None
        place = tuple(np.argwhere(wrong)[0, 1:])
        if self.choices and self.others:
            allowed = "integers"
        elif self.choices:
            allowed = f"one of {len(self.choices)} known integers"
        else:
            allowed = f"integers from {self.low[place]:.0f} to {self.high[place]:.0f}"
        readers = ", ".join(repr(reader) for reader in self.readers)
        return (
            f"Input {name!r} feeds {readers}, which takes {allowed}. "
            f"Received: {samples[wrong][0]:g}. Give samples like those the model was trained on."
        )


def values_of_inputs(model: keras.Model) -> list[InputValues]:
    """Return the allowed values of each input of a model, in order."""
    return input_values(read_graph(model))


def check_values(
    samples: Mapping[str, NDArray[Any]], inputs: Sequence[Any], values: Sequence[InputValues]
) -> None:
    """Refuse samples with values that an input does not allow.

    Args:
        samples: Input name to (N, …) array.
        inputs: The inputs, with their names.
        values: The allowed values of each input.

    Raises:
        UserError: A sample contains an invalid value.
    """
    for tensor, allowed in zip(inputs, values, strict=True):
        refusal = allowed.refusal(tensor.name, np.asarray(samples[tensor.name]))
        if refusal:
            raise UserError(refusal)


def input_values(graph: Graph) -> list[InputValues]:
    """Return the allowed values of each input of a network, in order.

    Args:
        graph: The network as it was read. Apart from the batch, the sizes of inputs are known.
    """
    tracker = _Tracker(graph)
    with inlined_functions():
        for call in graph.calls():
            if isinstance(call.op, Kept):
                tracker.follow(call)
    return [tracker.values_of(value) for value in graph.inputs]


@dataclass
class _Limits:
    """Limits of all input elements, by element number."""

    low: NDArray[np.float64]
    high: NDArray[np.float64]
    readers: list[tuple[str, NDArray[np.int64]]] = field(default_factory=list)
    choices: list[tuple[tuple[int, ...], bool, NDArray[np.int64]]] = field(default_factory=list)


class _Tracker:
    """Follows the elements of the inputs through the calls of a graph."""

    def __init__(self, graph: Graph) -> None:
        self.numbers: dict[int, NDArray[np.int64]] = {}
        count = 0
        for value in graph.inputs:
            shape = _one_sample(value)
            refuse_large_samples(value.producer.name, shape[1:])
            size = math.prod(shape)
            self.numbers[id(value)] = np.arange(count, count + size).reshape(shape)
            count += size
        self.limits = _Limits(np.full(count, -np.inf), np.full(count, np.inf))

    def follow(self, call: Call) -> None:
        """Trace one call that elements of an input reach, and record its limits and outputs."""
        if not any(id(value) in self.numbers for value in call.inputs):
            return
        shapes = [_one_sample(value) for value in call.inputs]
        if any(None in shape for shape in shapes):
            return
        function = _traced(call, shapes)
        if function is None:
            return
        walk = _Walk(function, call, self.limits)
        for value, tensor, shape in zip(call.inputs, walk.arguments, shapes, strict=True):
            numbers = self.numbers.get(id(value))
            walk.put(tensor, np.full(shape, _ELSEWHERE) if numbers is None else numbers)
        walk.run()
        for value, tensor in zip(call.outputs, walk.results, strict=True):
            passed = walk.numbers.get(tensor.name)
            if passed is not None and (passed != _ELSEWHERE).any():
                self.numbers[id(value)] = passed

    def values_of(self, value: Value) -> InputValues:
        """Return the allowed values of one input."""
        numbers = self.numbers[id(value)][0]
        limits = self.limits
        low, high = limits.low[numbers], limits.high[numbers]
        whole = np.isfinite(low) | ("float" not in value.dtype)
        usual = InputValues.free(low.shape, value.dtype)
        low = np.where(np.isfinite(low), low, usual.low)
        high = np.where(np.isfinite(high), high, usual.high)
        readers = dict.fromkeys(n for n, ids in limits.readers if np.isin(numbers, ids).any())
        choices, others = next(
            ((known, open_) for known, open_, ids in limits.choices if np.isin(numbers, ids).any()),
            ((), False),
        )
        if choices:
            low, high = np.zeros_like(low), np.full_like(high, len(choices) - 1)
        unlimited = ~np.isfinite(limits.low[numbers])
        partly = bool(readers) and not choices and bool((unlimited & whole).any())
        return InputValues(
            low, high, whole, tuple(readers), choices, others, unlimited if partly else None
        )


class _Walk:
    """Runs the operations of one traced call that move elements, on element numbers."""

    def __init__(self, function: Any, call: Call, limits: _Limits) -> None:
        self.function = function
        self.arguments = function.inputs[: len(call.inputs)]
        self.results = function.outputs
        self.numbers: dict[str, NDArray[np.int64]] = {}
        self._call = call
        self._limits = limits

    def put(self, tensor: tf.Tensor, numbers: NDArray[np.int64]) -> None:
        self.numbers[tensor.name] = numbers

    def run(self) -> None:
        """Process the operations in order."""
        for op in self.function.graph.get_operations():
            known = [self.numbers.get(tensor.name) for tensor in op.inputs]
            if not any(ids is not None and (ids != _ELSEWHERE).any() for ids in known):
                continue
            reads = _LOOKUPS.get(op.type)
            if reads is not None and known[reads[0]] is not None:
                self._limit(op, known[reads[0]], *reads[1](op, self.function))
            elif op.type in _MOVES:
                self._move(op, known)

    def _move(self, op: tf.Operation, known: list[NDArray[np.int64] | None]) -> None:
        results = _rerun(op, known)
        for tensor, numbers in zip(op.outputs, results, strict=False):
            self.numbers[tensor.name] = np.asarray(numbers)

    def _limit(self, op: tf.Operation, ids: Any, high: int | None, choices: Any = ()) -> None:
        ids = np.unique(ids[ids != _ELSEWHERE])
        limits = self._limits
        layer = self._call.op.operation
        others = bool(choices and getattr(layer, "num_oov_indices", 0))
        if others:
            choices = (*choices, choices[-1] + 1)
        if choices:
            limits.choices.append((tuple(choices), others, ids))
        elif high is None:
            return
        limits.low[ids] = np.maximum(limits.low[ids], 0)
        limits.high[ids] = np.minimum(limits.high[ids], np.inf if high is None else high)
        limits.readers.append((self._call.name, ids))


def _rows(op: tf.Operation, function: Any) -> tuple[int | None, tuple[int, ...]]:
    """Return the last index of a gather."""
    import tensorflow as tf

    shape = op.inputs[0].shape
    if op.inputs[0].dtype == tf.resource:
        handle = captured(op.inputs[0], function)
        shape = next(v.shape for v in function.variables if v.handle is handle)
        axis = 0
    else:
        axis = int(tf.get_static_value(op.inputs[2]))
    size = shape[axis]
    return (None if size is None else size - 1), ()


def _depth(op: tf.Operation, function: Any) -> tuple[int | None, tuple[int, ...]]:
    """Return the last index of a OneHot."""
    import tensorflow as tf

    depth = tf.get_static_value(op.inputs[1])
    return (None if depth is None else int(depth) - 1), ()


def _classes(op: tf.Operation, function: Any) -> tuple[int | None, tuple[int, ...]]:
    """Return the last class that a DenseBincount counts."""
    size = bincount_size(op)
    return (None if size is None else size - 1), ()


def _vocabulary(op: tf.Operation, function: Any) -> tuple[int | None, tuple[int, ...]]:
    """Return the keys of a table of integers."""
    keys = table_of(op.inputs[0], function)[0]
    if keys.dtype.kind not in "iu":
        return None, ()
    return None, tuple(sorted(int(key) for key in keys))


# For each lookup operation: the position of the index among its inputs, and a function that returns
# its limits.
_LOOKUPS: dict[str, tuple[int, Any]] = {
    "GatherV2": (1, _rows),
    "ResourceGather": (1, _rows),
    "OneHot": (0, _depth),
    "DenseBincount": (0, _classes),
    "LookupTableFindV2": (1, _vocabulary),
}


def _one_sample(value: Value) -> tuple[Any, ...]:
    """Return the shape of a batch of one, or of the batch size that the model is built for."""
    return (value.shape[0] or 1, *value.shape[1:]) if value.shape else ()


def _traced(call: Call, shapes: Sequence[tuple[int, ...]]) -> Any:
    """Trace one call separately; return None if Keras cannot."""
    import tensorflow as tf

    def run(*tensors: tf.Tensor) -> Any:
        args, kwargs = call.arguments(tensors)
        return call.op.operation(*args, **kwargs)

    specs = [
        tf.TensorSpec(shape, value.dtype) for shape, value in zip(shapes, call.inputs, strict=True)
    ]
    try:
        with accepted_names(call.op.operation):
            return tf.function(run, autograph=False).get_concrete_function(*specs)
    except Exception:  # a layer that this backend cannot compute raises its error when it is run
        return None


def _rerun(op: tf.Operation, known: list[Any]) -> list[Any]:
    """Run one operation on element numbers instead of its data."""
    import tensorflow as tf

    shape = op.outputs[0].shape
    if op.type == "Cast":
        return [known[0]]
    if op.type == "SelectV2":  # such as x where x >= 0 else x + size
        chosen = [ids for ids in (known[2], known[1]) if ids is not None]
        return [np.broadcast_to(chosen[0], shape)] if chosen else []  # [] if only the test is known
    if op.type in ("Reshape", "ExpandDims", "Squeeze") and shape.is_fully_defined():
        return [np.reshape(known[0], shape)]
    if op.type == "BroadcastTo" and shape.is_fully_defined():
        return [np.broadcast_to(known[0], shape)]
    operands: list[Any] = []
    for tensor, ids in zip(op.inputs, known, strict=True):
        if ids is not None:
            operands.append(tf.constant(ids, tf.int64))
            continue
        constant = tf.get_static_value(tensor)
        if tensor.dtype.is_integer and constant is not None and tensor.dtype != tf.resource:
            operands.append(tf.constant(constant))
        elif tensor.shape.is_fully_defined():
            operands.append(tf.fill(tensor.shape, tf.constant(_ELSEWHERE, tf.int64)))
        else:
            return []
    try:
        return run_eagerly(op, operands)
    except (TypeError, ValueError, tf.errors.OpError):
        return []
