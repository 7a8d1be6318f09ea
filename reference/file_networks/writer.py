"""Collects the nodes of a network while a file's ops are read.

Tensors of a file are those of one sample. Values of the network have any number of samples on the
first axis: it replaces the first axis of a tensor if that has size one, and is inserted before all
axes otherwise. Both contain the same elements in the same order, so a value can be read in any
shape with that order, and ops that only change the shape need no node.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ...artifacts.graphs.base import ArtifactGraph, GraphOp, GraphTensor
from ...artifacts.network import Network, Node
from ...artifacts.precisions import half_rounding
from ...errors import UserError
from ..integer.base import Values
from ..network import evaluate_node
from ..rounding.quantized import NotKnownError

Attributes = Mapping[str, Any]
Shape = tuple[int, ...]


# Exceptions of NumPy for files of an unexpected form.
_UNFORESEEN = (ValueError, IndexError, KeyError, TypeError, ArithmeticError, AssertionError)


# Numbers in a value of one sample. A damaged file can declare any size, and shapes are found by
# evaluating zeros; a convolution of this many takes seconds.
_LARGEST_SAMPLE = 1 << 25


class UnknownFormError(Exception):
    """An op in a form that has no counterpart among the operators of the checks."""


@dataclass(frozen=True)
class Value:
    """A tensor that depends on the inputs.

    Attributes:
        name: The network's value.
        shape: That value's shape without samples.
        filed: Shape of the file's tensor for one sample.
    """

    name: str
    shape: Shape
    filed: Shape


class Tensors(Values):
    """The inputs of an op that moves numbers: (1, …) for every tensor, in the file's own axes.

    Args:
        graph: The file without its quantization.
        arrays: Key to array.
    """

    def __init__(self, graph: ArtifactGraph, arrays: Mapping[str, np.ndarray]) -> None:
        super().__init__(graph, {})
        self._arrays = arrays

    def array(self, key: str) -> np.ndarray:
        """Return a tensor's numbers."""
        return self.constant(key)[None]

    def constant(self, key: str) -> np.ndarray:
        """Return a tensor's numbers in the shape that the file has it in."""
        if key not in self._arrays:
            raise NotKnownError(f"'{key}' is computed")
        return self._arrays[key]

    def has(self, key: str) -> bool:
        """Return whether a tensor's numbers are known."""
        return key in self._arrays


# Computes the outputs of an op from the tensors, (1, …) in the file's own axes.
Compute = Callable[[GraphOp, Tensors], list[np.ndarray]]


def rounding_error(constant: GraphTensor) -> np.ndarray | None:
    """Return the greatest error of each number of a constant; None if it is not rounded."""
    data, steps = constant.data, constant.quantization
    if data is not None and steps is not None and data.dtype.kind in "iu":
        return steps.step(data.ndim) / 2
    return half_rounding(np.abs(data)) if data is not None and data.dtype == np.float16 else None


def _numbers(constant: GraphTensor, rounding: float) -> np.ndarray:
    """Return a constant's real numbers, moved by a multiple of their rounding error."""
    data = constant.data
    assert data is not None
    error = rounding_error(constant)
    found = data if constant.quantization is None else constant.real(data)
    return found if error is None or not rounding else found.astype(np.float64) + rounding * error


def _unscaled(tensors: Mapping[str, GraphTensor]) -> dict[str, GraphTensor]:
    """Return tensors without their quantization."""
    return {key: replace(tensor, quantization=None) for key, tensor in tensors.items()}


class Writer:
    """Writes nodes, named by the tensors that they compute.

    Args:
        graph: The file.
        compute: Computes ops that move numbers, and those that constants alone go into.
        sizes: Shapes of inputs whose sizes are free, by name, the samples' axis left out.
        rounding: Multiple of its rounding error by which each constant is moved.

    Attributes:
        constants: Key to numbers, of what does not depend on the inputs: integers that have no
            scale as they are, all others as the real numbers that they stand for.
        scales: Name of a value to the scale that a later op of the file multiplies it by, if the
            value contains it already.
    """

    def __init__(
        self,
        graph: ArtifactGraph,
        compute: Compute,
        sizes: Mapping[str, Shape] | None = None,
        rounding: float = 0.0,
    ) -> None:
        self.graph, self._compute, self._rounding = graph, compute, rounding
        self._plain = replace(graph, tensors=_unscaled(graph.tensors))
        self.constants = self._constants_of(graph, graph.tensors)
        self.scales: dict[str, np.ndarray] = {}
        self._inputs: dict[str, Shape] = {}
        self._values: dict[str, Value] = {}
        for key in graph.inputs:
            name, shape = graph.tensors[key].name, graph.tensors[key].shape
            known = (sizes or {}).get(name, tuple(max(size, 1) for size in shape[1:]))
            self._inputs[name] = known
            self._values[key] = Value(name, known, (1, *known))
        self._nodes: list[Node] = []
        self._shapes = dict(self._inputs)
        self._reshaped: dict[tuple[str, Shape], str] = {}

    def _constants_of(
        self, graph: ArtifactGraph, tensors: Mapping[str, GraphTensor]
    ) -> dict[str, np.ndarray]:
        return {
            key: _numbers(tensor, self._rounding)
            for key, tensor in tensors.items()
            if tensor.data is not None and key not in graph.inputs
        }

    def enter(self, graph: ArtifactGraph) -> None:
        """Prepare to write the ops of a graph inside a loop or a branch, possibly once more."""
        new = {key: t for key, t in graph.tensors.items() if key not in self.graph.tensors}
        if new:
            self.graph = replace(self.graph, tensors={**self.graph.tensors, **new})
            tensors = {**self._plain.tensors, **_unscaled(new)}
            self._plain = replace(self._plain, tensors=tensors)
            self.constants.update(self._constants_of(graph, new))
        for op in graph.ops:
            for key in op.outputs:
                self.constants.pop(key, None)
                self._values.pop(key, None)

    def item(self, key: str) -> np.ndarray | Value:
        """Return any tensor: its numbers, or the value of the network that it is."""
        return self.constants[key] if key in self.constants else self.value(key)

    def put(self, key: str, item: np.ndarray | Value) -> None:
        """Set a tensor to constant numbers or to a value of the network."""
        if isinstance(item, np.ndarray):
            self._values.pop(key, None)
            self.constants[key] = item
        else:
            self.constants.pop(key, None)
            self._values[key] = item

    def constant(self, key: str) -> np.ndarray:
        """Return the numbers of a constant.

        Raises:
            UnknownFormError: It is computed.
        """
        if key not in self.constants:
            raise UnknownFormError(f"'{key}' is computed where a constant is expected")
        found = self.constants[key]
        return found if found.dtype.kind == "f" else found.astype(np.float64)

    def ints(self, key: str) -> list[int]:
        """Return the numbers of a constant as integers: sizes, axes."""
        return [int(number) for number in self.constant(key).reshape(-1)]

    def optional(self, op: GraphOp, place: int) -> str:
        """Return the key of an optional input; empty if it is missing."""
        return op.inputs[place] if len(op.inputs) > place else ""

    def value(self, key: str) -> Value:
        """Return a tensor that depends on the inputs."""
        if key not in self._values:
            raise UnknownFormError(f"'{key}' is known to no node")
        return self._values[key]

    def filed(self, key: str) -> Shape:
        """Return the shape of any tensor in the file, for one sample."""
        return self.constants[key].shape if key in self.constants else self.value(key).filed

    def read(self, key: str, shape: Shape) -> str:
        """Return the name of a tensor as a value of a given shape, samples left out."""
        if key in self.constants:
            anchor = next(iter(self._inputs))
            constants = {"constant": self.constant(key).reshape(shape)}
            return self._emit(f"{key}/constant", "constant", key, [anchor], {}, constants)
        return self._shaped(self.value(key), shape)

    def _shaped(self, value: Value, shape: Shape) -> str:
        if value.shape == shape:
            return value.name
        if math.prod(value.shape) != math.prod(shape):
            raise UnknownFormError("mixes samples")
        place = value.name, shape
        if place not in self._reshaped:
            name = f"{value.name}/reshaped"
            attributes = {"target_shape": list(shape)}
            self._reshaped[place] = self._emit(name, "reshape", name, [value.name], attributes, {})
        return self._reshaped[place]

    def framed(self, key: str, *axes: int) -> tuple[str, Shape, int]:
        """Return a tensor as a value that has the given axes of the file's tensor.

        Returns:
            Its name, its shape without samples, and `lead`: 1 where samples replace the first axis,
            else 0. Axis k of the file's tensor is axis k + 1 - lead of the value.
        """
        filed = self.filed(key)
        lead = 1 if filed[:1] == (1,) and 0 not in axes else 0
        return self.read(key, filed[lead:]), filed[lead:], lead

    def images(self, key: str) -> tuple[str, Attributes, int]:
        """Return a batch of images as a value, and the attributes of its samples axis."""
        name, _, lead = self.framed(key)
        return name, {} if lead else {"time_distributed": True}, lead

    def add(
        self,
        op: GraphOp,
        kind: str,
        inputs: Sequence[str],
        attributes: Attributes | None = None,
        weights: Mapping[str, np.ndarray] | None = None,
        *,
        lead: int = 1,
        output: str = "",
    ) -> None:
        """Append the node that computes an op's output.

        Args:
            op: The op.
            kind: Operator of the checks, or "opaque".
            inputs: Names of the values that it reads.
            attributes: Attributes of the operator.
            weights: Weights of the operator.
            lead: 1 if samples replace the first axis of the file's tensor, else 0.
            output: Key of the output; the op's first by default.
        """
        key = output or op.outputs[0]
        self._values[key] = self.part(
            op, kind, inputs, attributes, weights, lead=lead, name=self.graph.tensors[key].name
        )

    def part(
        self,
        op: GraphOp,
        kind: str,
        inputs: Sequence[str],
        attributes: Attributes | None = None,
        weights: Mapping[str, np.ndarray] | None = None,
        *,
        lead: int = 1,
        name: str = "",
    ) -> Value:
        """Append one node of an op that needs several, and return its value; see `add`."""
        tensor = self.graph.tensors[op.outputs[0]]
        layer = readable(op.name or tensor.name, op)
        name = name or f"{tensor.name}/{kind}"
        name = self._emit(name, kind, layer, inputs, attributes or {}, weights or {})
        shape = self._shapes[name]
        return Value(name, shape, (1,) * lead + shape)

    def named(self, name: str, filed: Shape) -> Value:
        """Return a value by its name, as a tensor of a given shape."""
        return Value(name, self._shapes[name], filed)

    def give(self, key: str, value: Value, filed: Shape | None = None) -> None:
        """Set an output of an op to a value, reshaped if necessary."""
        self._values[key] = value
        if filed is not None:
            self.same(key, key, filed)

    def _emit(
        self,
        name: str,
        kind: str,
        layer: str,
        inputs: Sequence[str],
        attributes: Attributes,
        weights: Mapping[str, np.ndarray],
    ) -> str:
        """Append a node and return its name."""
        if name in self._shapes:
            name = f"{name}#{len(self._nodes)}"
        held = {role: np.asarray(array) for role, array in weights.items()}
        for read in inputs:
            if math.prod(self._shapes[read]) > _LARGEST_SAMPLE:
                raise UnknownFormError(f"'{read}' is too large to be evaluated")
        zeros = [np.zeros((1, *self._shapes[name]), np.float32) for name in inputs]
        node = Node(name, kind, layer, tuple(inputs), (), dict(attributes), held)
        shape = evaluate_node(node, zeros).shape[1:]
        self._append(replace(node, shape=(None, *shape)), shape)
        return name

    def _append(self, node: Node, shape: Shape) -> None:
        self._nodes.append(node)
        self._shapes[node.name] = shape

    def same(self, key: str, output: str, filed: Shape | None = None) -> None:
        """Set a tensor to the value of another one, such as after a conversion or a reshape."""
        if key in self.constants:
            found = self.constants[key]
            self.constants[output] = found if filed is None else found.reshape(filed)
            return
        value = self.value(key)
        filed = value.filed if filed is None else filed
        if math.prod(filed) != math.prod(value.shape):
            raise UnknownFormError("mixes samples")
        self._values[output] = Value(value.name, value.shape, filed)

    def computed(self, op: GraphOp) -> bool:
        """Compute an op if all its inputs are constant and it can be; return whether that is so."""
        if not op.inputs or any(key and key not in self.constants for key in op.inputs):
            return False
        try:
            self._settle(op, self._results(op, {}))
        except UnknownFormError:
            return False
        return True

    def known(self, op: GraphOp, results: Sequence[np.ndarray]) -> None:
        """Set the outputs of an op to constants."""
        self._settle(op, [np.asarray(result)[None] for result in results])

    def _settle(self, op: GraphOp, results: Sequence[np.ndarray]) -> None:
        for key, array in zip(op.outputs, results):
            self.constants[key] = np.asarray(array[0])

    def moved(self, op: GraphOp, key: str) -> None:
        """Append an op that copies each element from one position of an input.

        The positions are found by running the op on indices.
        """
        value = self.value(key)
        places = np.arange(1, math.prod(value.filed) + 1, dtype=np.int64).reshape(value.filed)
        for output, array in zip(op.outputs, self._results(op, {key: places})):
            found = array[0]
            if not found.size:
                self.constants[output] = np.zeros(found.shape)
                continue
            if found.size == places.size and np.array_equal(found.ravel(), places.ravel()):
                self.same(key, output, found.shape)
                continue
            lead = 1 if found.shape[:1] == (1,) else 0
            kept = {"places": found.reshape(found.shape[lead:])}
            self.add(op, "rearrange", [value.name], {}, kept, lead=lead, output=output)

    def _results(self, op: GraphOp, more: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        try:
            with np.errstate(all="ignore"):
                return self._compute(op, Tensors(self._plain, {**self.constants, **more}))
        except NotKnownError as error:
            raise UnknownFormError(str(error)) from error

    def broadcast(
        self,
        op: GraphOp,
        kind: str,
        keys: Sequence[str],
        more: Attributes | None = None,
        *,
        own_axes: int = 0,
    ) -> None:
        """Append an operator whose operands broadcast; one of two may be constant.

        Args:
            op: The op.
            kind: Operator of the checks.
            keys: Keys of the operands.
            more: Attributes of the operator.
            own_axes: Number of last axes that the operator combines, which follow the samples.
        """
        rank = max(own_axes, *(len(self.filed(key)) for key in keys))
        shapes = [(1,) * (rank - len(self.filed(key))) + self.filed(key) for key in keys]
        lead = 1 if rank > own_axes and all(shape[0] == 1 for shape in shapes) else 0
        attributes: dict[str, Any] = dict(more or {})
        weights: dict[str, np.ndarray] = {}
        names = []
        for place, (key, shape) in enumerate(zip(keys, shapes)):
            if key in self.constants and len(keys) == 2 and not weights:
                weights["constant"] = self.constant(key).reshape(shape[lead:])
                attributes["constant_first"] = place == 0
            else:
                names.append(self.read(key, shape[lead:]))
        self.add(op, kind, names, attributes, weights, lead=lead)

    def write(self, op: GraphOp, write: Callable[[Writer, GraphOp], None]) -> None:
        """Append the nodes of an op by a function, or an opaque node if it is not supported."""
        try:
            write(self, op)
        except UnknownFormError as error:
            self._opaque(op, str(error))
        except _UNFORESEEN:
            self._opaque(op, "an unexpected form")

    def _opaque(self, op: GraphOp, why: str) -> None:
        known = tuple(self._values[key].name for key in op.inputs if key in self._values)
        for key in filter(None, op.outputs):
            tensor = self.graph.tensors[key]
            filed = tuple(max(size, 1) for size in tensor.shape)
            lead = 1 if filed[:1] == (1,) else 0
            name, shape = tensor.name or key, filed[lead:]
            name = f"{name}#{len(self._nodes)}" if name in self._shapes else name
            layer = readable(op.name or tensor.name, op)
            says = {"kind": op.kind, "why": why}
            node = Node(name, "opaque", layer, known, (None, *shape), says, {})
            self._append(node, shape)
            self._values[key] = Value(name, shape, filed)

    def network(self) -> Network:
        """Return the network, without nodes that no output needs.

        Raises:
            UserError: An output does not depend on the inputs.
        """
        tensors = self.graph.tensors
        outputs = {}
        for key in self.graph.outputs:
            if key not in self._values:
                raise UserError(f"The output '{tensors[key].name}' does not depend on the inputs.")
            filed = self._values[key].filed
            lead = 1 if filed[:1] == (1,) else 0
            outputs[tensors[key].name] = self._shaped(self._values[key], filed[lead:])
        needed = set(outputs.values())
        nodes = []
        for node in reversed(self._nodes):
            if node.name in needed:
                needed.update(node.inputs)
                nodes.append(node)
        return Network(
            inputs={name: (None, *shape) for name, shape in self._inputs.items()},
            outputs=outputs,
            nodes=tuple(reversed(nodes)),
        )


_CONVERTERS = re.compile(r"^(StatefulPartitionedCall|PartitionedCall|serving_default|jit_\w+)$")
_COUNTER = re.compile(r"(__\d+|:\d+)$")


def readable(name: str, op: GraphOp) -> str:
    """Return a readable name of an op: the name of its layer if the converter kept it.

    Args:
        name: Of the op or its output in the file, such as
            "StatefulPartitionedCall/net/first/convolution;…".
        op: The op.
    """
    parts = [part for part in name.split(";")[0].split("/") if not _CONVERTERS.match(part)]
    plain = _COUNTER.sub("", "/".join(parts))
    return plain if re.search(r"[A-Za-z]", plain) else f"{op.kind} {plain or op.index}".strip()
