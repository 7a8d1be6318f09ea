"""Expands a layer without an operator of its own into primitives, from a trace of its code.

The layer is traced for one sample, and each TensorFlow operation is translated (`graph_ops`).
Values that do not depend on the inputs are computed immediately: an epsilon, a mask, a reshaped
weight. A weight whose elements are only moved stays a weight with the same bits; values computed
from weights are constants in float64. The result is compared with the layer on random inputs before
it is used.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ...artifacts.network import Node
from ...reference.network import evaluate_node
from ..fold.graph import Call
from .graph_ops import TRANSLATIONS
from .graph_ops.running import run_outputs
from .graph_ops.values import (
    Builder,
    Computed,
    Known,
    Shape,
    UntranslatableError,
    Value,
    sample_shape,
    shape_of,
)
from .tracing import NotTraceableError, Trace, trace_call

# Operations that only move the elements of a weight.
_MOVING = frozenset(
    [
        "Identity",
        "Reshape",
        "Transpose",
        "ExpandDims",
        "Squeeze",
        "Split",
        "SplitV",
        "Slice",
        "StridedSlice",
        "Unpack",
    ]
)

# Operators that may have a bias along the last axis.
_LINEAR = ("conv", "depthwise_conv", "conv_transpose", "dense")

# Greatest difference between the layer's float32 result and the primitives' float64 result,
# relative to the greatest value. A wrong translation differs by the order of the values.
_AGREES = 1e-3

# Greatest number of nodes per layer, which limits the evaluation time of the network.
_MOST_NODES = 6000


@dataclass(frozen=True)
class Mask:
    """The mask of a value, as in Keras.

    Attributes:
        name: Name of the mask in the network.
        shape: Its shape without the samples.
    """

    name: str
    shape: Shape


@dataclass(frozen=True)
class Expansion:
    """A call expanded into primitives.

    Attributes:
        nodes: Its nodes; local names begin with "/".
        outputs: The names of its outputs.
        masks: The mask of each output; None if it has none.
    """

    nodes: list[Node]
    outputs: list[str]
    masks: list[Mask | None]

    def of_masks(self) -> Expansion:
        """Return the part of the expansion that computes the masks."""
        nodes = without_unread(self.nodes, [mask.name for mask in self.masks if mask])
        return Expansion(nodes, [], self.masks)


def expand(call: Call, inputs: Sequence[str], masks: Sequence[Mask | None] = ()) -> Expansion:
    """Expand a call into primitives.

    Args:
        call: A call of a Keras layer or operation.
        inputs: Names of its inputs in the network.
        masks: The mask of each input; empty if none has one.

    Raises:
        NotTraceableError: The call cannot be expanded.
    """
    trace = trace_call(call, [None if mask is None else mask.shape for mask in masks], TRANSLATIONS)
    inputs = [*inputs, *(mask.name for mask in masks if mask)]
    try:
        nodes, outputs = _translated(trace, call.name, inputs)
        if len(nodes) > _MOST_NODES:
            raise NotTraceableError(f"it has {len(nodes)} operations")
        nodes = without_unread(_with_biases(nodes, outputs), outputs)
        _demand_agreement(trace, nodes, inputs, outputs)
    except (UntranslatableError, NotTraceableError) as error:
        raise NotTraceableError(str(error)) from error
    except Exception as error:  # No unusual use of an operation may end an export.
        raise NotTraceableError(f"{type(error).__name__}: {error}") from error
    count = len(trace.masks)
    behind = iter(zip(outputs[count:], trace.outputs[count:], strict=True))
    found: list[Mask | None] = []
    for has_mask in trace.masks:
        name, tensor = next(behind) if has_mask else ("", None)
        found.append(Mask(name, shape_of(tensor)[1:]) if has_mask else None)
    return Expansion(nodes, outputs[:count], found)


def _translated(trace: Trace, layer: str, inputs: Sequence[str]) -> tuple[list[Node], list[str]]:
    """Translate the operations that the outputs of a trace depend on."""
    needed = _needed(trace)
    builder = Builder(layer, frozenset(needed), inputs[0])
    values: dict[str, Value] = {
        tensor.name: Computed(name, sample_shape(shape_of(tensor)))
        for tensor, name in zip(trace.inputs, inputs, strict=True)
    }
    constants = _Constants(trace)
    for op in _in_order(trace):
        if all(output.name in values for output in op.outputs):
            continue
        read = [values[trace.read(x).name] for x in op.inputs if trace.read(x).name in values]
        known = constants.of(op, read)
        if known is None:
            if op.type not in TRANSLATIONS:
                raise UntranslatableError(f"no primitive computes '{op.type}'")
            known = TRANSLATIONS[op.type](builder, op, read)
        values.update(zip((output.name for output in op.outputs), known, strict=False))
    outputs = []
    for tensor in trace.outputs:
        shape = shape_of(tensor)
        if shape[:1] != (1,):
            raise UntranslatableError("an output has no batch axis")
        outputs.append(builder.named(values[trace.read(tensor).name], shape[1:]))
    return builder.nodes, outputs


def _needed(trace: Trace) -> set[str]:
    """Return the names of the tensors that the outputs depend on."""
    found: set[str] = set()
    waiting = [trace.read(tensor) for tensor in trace.outputs]
    while waiting:
        tensor = waiting.pop()
        if tensor.name not in found:
            found.add(tensor.name)
            waiting.extend(_inputs_of(tensor.op, trace))
    return found


def _inputs_of(op: Any, trace: Trace) -> list[Any]:
    """Return the inputs of an operation, or their replacements."""
    return [] if op.name in trace.arrays else [trace.read(tensor) for tensor in op.inputs]


def _in_order(trace: Trace) -> list[Any]:
    """Return the operations that the outputs depend on, producers first.

    Replacements were added at the end of the graph, so its order cannot be used.
    """
    order: dict[str, Any] = {}
    entered: set[str] = set()
    waiting = [trace.read(tensor).op for tensor in reversed(trace.outputs)]
    while waiting:
        op = waiting[-1]
        before = [] if op.name in entered else [t.op for t in _inputs_of(op, trace)]
        entered.add(op.name)
        before = [each for each in before if each.name not in entered]
        if before:
            waiting.extend(reversed(before))
            continue
        waiting.pop()
        order.setdefault(op.name, op)
    return list(order.values())


class _Constants:
    """Computes values that depend on no input, and shares equal arrays."""

    def __init__(self, trace: Trace) -> None:
        self._trace = trace
        self._unique: dict[tuple[Any, ...], np.ndarray] = {}

    def of(self, op: Any, read: Sequence[Value]) -> list[Value] | None:
        """Return an operation's outputs if they depend on no input, else None."""
        import tensorflow as tf

        if op.name in self._trace.arrays:
            weight = op.name in self._trace.weights
            return [Known(self._trace.arrays[op.name], weight)]
        if op.type == "Const":
            return [Known(tf.make_ndarray(op.get_attr("value")))]
        known = [value for value in read if isinstance(value, Known)]
        if len(known) != len(op.inputs) or not op.outputs:
            return None
        weights = [value.weight for value in known]
        moved = op.type in _MOVING and sum(weights) == 1
        arrays = [value.array for value in known]
        try:
            found = run_outputs(op, arrays, exact=not moved)
        except Exception as error:  # TensorFlow's own, of many classes.
            raise UntranslatableError(f"'{op.type}' cannot be computed: {error}") from error
        if moved or not any(array.dtype == np.float64 for array in found):
            return [Known(self._shared(array), moved) for array in found]
        rough = run_outputs(op, [value.in_float32 for value in known])
        return [
            Known(self._shared(array), rough=other)
            for array, other in zip(found, rough, strict=True)
        ]

    def _shared(self, array: np.ndarray) -> np.ndarray:
        """Return an equal array that exists already, if there is one."""
        key = (array.shape, array.dtype.str, array.tobytes())
        return self._unique.setdefault(key, array)


def _with_biases(nodes: list[Node], outputs: Sequence[str]) -> list[Node]:
    """Fuse a vector added after a linear node into the node as a bias, as converters do."""
    readers: dict[str, int] = {}
    for name in [name for node in nodes for name in node.inputs] + list(outputs):
        readers[name] = readers.get(name, 0) + 1
    by_name = {node.name: node for node in nodes}
    renamed: dict[str, str] = {}
    for node in nodes:
        role = next((r for r in ("weights", "constants") if "constant" in getattr(node, r)), None)
        if node.op != "add" or role is None or "constant_error" in node.attributes:
            continue
        vector = getattr(node, role)["constant"]
        source = by_name.get(node.inputs[0])
        while source is not None and source.op == "reshape" and readers[source.name] == 1:
            source = by_name.get(source.inputs[0])
        if source is None or source.op not in _LINEAR or readers[source.name] != 1:
            continue
        channels = source.shape[
            1 if source.attributes.get("data_format") == "channels_first" else -1
        ]
        if "bias" in source.arrays or vector.shape != (channels,):
            continue
        if node.shape[-1] != channels:
            continue
        bias = {**getattr(source, role), "bias": vector}
        by_name[source.name] = replace(source, **{role: bias})  # type: ignore[arg-type]
        renamed[node.name] = node.inputs[0]
    kept = [by_name[node.name] for node in nodes if node.name not in renamed]
    return [_reading(node, renamed) for node in kept] if not set(outputs) & set(renamed) else nodes


def _reading(node: Node, renamed: dict[str, str]) -> Node:
    """Return a node with its inputs renamed."""
    return replace(node, inputs=tuple(renamed.get(name, name) for name in node.inputs))


def without_unread(nodes: Sequence[Node], outputs: Iterable[str]) -> list[Node]:
    """Return the nodes that the outputs depend on."""
    read = set(outputs)
    kept = []
    for node in reversed(nodes):
        if node.name in read:
            read.update(node.inputs)
            kept.append(node)
    return kept[::-1]


def _demand_agreement(
    trace: Trace, nodes: Sequence[Node], inputs: Sequence[str], outputs: Sequence[str]
) -> None:
    """Compare the primitives with the layer on two random samples.

    Raises:
        NotTraceableError: The results differ.
    """
    rng = np.random.default_rng(0)
    samples: dict[str, np.ndarray] = {}  # A layer may read one value twice.
    for name, tensor in zip(inputs, trace.inputs, strict=True):
        shape = (2, *shape_of(tensor)[1:])
        drawn = rng.normal(size=shape) if tensor.dtype.is_floating else rng.integers(0, 2, shape)
        samples.setdefault(name, drawn.astype(tensor.dtype.as_numpy_dtype))
    expected = [trace.run([samples[name][i : i + 1] for name in inputs]) for i in range(2)]
    values = {name: array.astype(np.float64) for name, array in samples.items()}
    with np.errstate(all="ignore"):
        for node in nodes:
            values[node.name] = evaluate_node(node, [values[name] for name in node.inputs])
    for name, parts in zip(outputs, zip(*expected, strict=True), strict=True):
        right, got = np.concatenate(parts).astype(np.float64), values[name]
        finite = np.isfinite(right)
        size = np.abs(right[finite]).max(initial=0.0)
        if got.shape != right.shape or not np.array_equal(finite, np.isfinite(got)):
            raise NotTraceableError("its primitives have another shape or other infinities")
        if np.any(np.abs(got - right)[finite] > _AGREES * size):
            raise NotTraceableError("its primitives compute something else")
