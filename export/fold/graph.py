"""The graph representation of a network: calls connected by values.

A `Call` is one call of one operation; a `Value` is one tensor, with its producer and its uses. The
`op` of a call is an immutable object that describes what it computes. Calls that share a layer
share the op, and a rewrite replaces the op of a call instead of changing it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import keras
import numpy as np
from keras import tree
from numpy.typing import NDArray

from .affine import Affine

Shape = tuple[int | None, ...]
Function = Callable[..., Any]


@dataclass(frozen=True)
class Source:
    """A model input: an op without inputs.

    Attributes:
        tensor: The symbolic input, with its shape and dtype.
        name: Its name.
    """

    tensor: keras.KerasTensor
    name: str


@dataclass(frozen=True, eq=False)
class Kept:
    """An operation that is rebuilt unchanged, with its weights."""

    operation: Any
    name: str


@dataclass(frozen=True, eq=False)
class AffineOp:
    """An affine in the network: a norm that is not yet folded, or the residual of one.

    Attributes:
        affine: The map.
        name: Name of the layer that it becomes if it is not folded.
        norms: Names of the norms that it represents.
        origin: The layer of the norm, the same for all calls of one norm.
        stays: Whether it must not be folded.
    """

    affine: Affine
    name: str
    norms: tuple[str, ...]
    origin: Any = None
    stays: bool = False


@dataclass(frozen=True, eq=False)
class ActivationOp:
    """The activation of a linear layer, separated so that an affine can be placed between them.

    It is merged back into its layer if nothing lies between them in the end.

    Attributes:
        function: The elementwise function, as in ``layer.activation``.
        owner: Name of the layer that it belongs to.
        name: Name of the layer that it becomes if it cannot be merged back.
    """

    function: Function
    owner: str
    name: str


@dataclass(frozen=True, eq=False)
class MapOp:
    """The addition of a constant tensor: a bias that differs at the borders.

    Attributes:
        constant: float64, with the shape of one sample.
        name: Name of the layer that it becomes.
        norms: Names of the norms that it represents.
    """

    constant: NDArray[np.float64]
    name: str
    norms: tuple[str, ...]


@dataclass(frozen=True)
class Slot:
    """The position of the i-th input value in the arguments of a call."""

    index: int


@dataclass(eq=False)
class Value:
    """One tensor of the network.

    Attributes:
        shape: Static shape including the batch axis; unknown sizes are None.
        dtype: Name of its dtype in the original network.
        producer: The call that computes it.
        uses: The calls that read it, each with the index of the input; a call that reads it twice
            occurs twice.
        is_output: Whether the network returns it.
        extra: Constant channels that the fold added to it, which `shape` does not count.
    """

    shape: Shape
    dtype: str
    producer: Call
    uses: list[tuple[Call, int]] = field(default_factory=list)
    is_output: bool = False
    extra: Extra | None = None

    @property
    def rank(self) -> int:
        """Number of axes, including the batch axis."""
        return len(self.shape)


@dataclass(frozen=True)
class Extra:
    """Additional channels of a value with a constant at every position.

    Attributes:
        axis: The channel axis.
        constant: The constant.
        blocks: Number of additional channels. The channels are divided into this many equal blocks,
            and one is appended to each, so that every group of a grouped convolution reads one.
        padded: Whether the value was padded with zeros, so that they are 0 in the padding.
    """

    axis: int
    constant: float
    blocks: int
    padded: bool = False


@dataclass(eq=False)
class Call:
    """One call of one operation.

    Attributes:
        op: The operation.
        inputs: The values that it reads.
        args: Positional arguments with a `Slot` in place of each input; None if the only argument
            is the only input.
        kwargs: Keyword arguments with a `Slot` in place of each input.
        outputs: The values that it computes, flattened.
        number: Index in the order of reading, the same whenever a network is read; -1 for calls
            that the fold inserted.
    """

    op: Any
    inputs: list[Value]
    args: Any = None
    kwargs: Any = None
    outputs: list[Value] = field(default_factory=list)
    number: int = -1

    @property
    def output(self) -> Value:
        """The only value that it computes."""
        (value,) = self.outputs
        return value

    @property
    def name(self) -> str:
        """Name of the layer."""
        name: str = self.op.name
        return name

    def arguments(self, given: Sequence[Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return positional and keyword arguments with given tensors in place of the inputs."""
        if self.args is None:
            return (given[0],), {}
        args, kwargs = tree.map_structure(
            lambda x: given[x.index] if isinstance(x, Slot) else x, (self.args, self.kwargs)
        )
        return args, kwargs


class Graph:
    """A network: its inputs, its outputs and the calls between them.

    Attributes:
        name: Name of the Keras model.
        inputs: The inputs, flattened.
        outputs: The outputs, flattened.
        input_structure: The structure of the inputs, with a `Slot` at each leaf.
        output_structure: The structure of the outputs, with a `Slot` at each leaf.
        output_names: The Keras names of the outputs.
        opaque: For each layer whose inner layers could not be read, by id, the reason.
        paths: Name of each layer that was read to its path in the model, such as `block/conv`.
        misdeclared: Name of a layer that computes another shape than Keras declares, so that the
            shapes of all values behind it may be wrong; empty for none.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.inputs: list[Value] = []
        self.outputs: list[Value] = []
        self.input_structure: Any = None
        self.output_structure: Any = None
        self.output_names: list[str] = []
        self.opaque: dict[int, str] = {}
        self.paths: dict[str, str] = {}
        self.misdeclared = ""
        self._calls_added = 0
        self._names: set[str] = set()
        self._owners: dict[str, Call | None] = {}

    def add(self, call: Call, shapes: list[tuple[Shape, str]]) -> Call:
        """Add a call that computes values of the given shapes and dtypes."""
        call.outputs = [Value(shape, dtype, call) for shape, dtype in shapes]
        call.number = self._calls_added
        self._calls_added += 1
        for slot, value in enumerate(call.inputs):
            value.uses.append((call, slot))
        return call

    def unique_name(self, name: str, prefix: str = "") -> str:
        """Reserve a layer name; if it is taken, add the prefix or a number."""
        candidates = [name, f"{prefix}_{name}"] if prefix else [name]
        for candidate in candidates:
            if candidate not in self._names:
                break
        else:
            number = 1
            while f"{candidates[-1]}_{number}" in self._names:
                number += 1
            candidate = f"{candidates[-1]}_{number}"
        self._names.add(candidate)
        return candidate

    def own_name(self, call: Call | None, name: str) -> str:
        """Return a name for one call alone: of several calls of a layer, the first gets its name.

        With None instead of a call, no call gets it.
        """
        self._names.add(name)
        return name if self._owners.setdefault(name, call) is call else self.unique_name(name)

    def calls(self) -> list[Call]:
        """Return the inputs and all calls that the outputs depend on, producers first."""
        return self.calls_before(self.inputs + self.outputs)

    @staticmethod
    def calls_before(values: list[Value]) -> list[Call]:
        """Return all calls that the values depend on, producers first."""
        order: list[Call] = []
        done: set[int] = set()
        stack = [value.producer for value in reversed(values)]
        while stack:
            call = stack[-1]
            if id(call) in done:
                stack.pop()
                continue
            waiting = [v.producer for v in call.inputs if id(v.producer) not in done]
            if waiting:
                stack.extend(reversed(waiting))
                continue
            stack.pop()
            done.add(id(call))
            order.append(call)
        return order

    def replace_value(self, old: Value, new: Value) -> None:
        """Replace ``old`` by ``new`` in all calls that read it and in the outputs."""
        for call, slot in old.uses:
            call.inputs[slot] = new
            new.uses.append((call, slot))
        old.uses = []
        if old.is_output:
            self.outputs = [new if value is old else value for value in self.outputs]
            old.is_output, new.is_output = False, True

    def insert_after(self, value: Value, op: Any) -> Call:
        """Insert a call of ``op`` between ``value`` and all calls that read it."""
        call = Call(op, [value])
        call.outputs = [Value(value.shape, value.dtype, call)]
        self.replace_value(value, call.output)
        value.uses.append((call, 0))
        return call

    def remove(self, call: Call) -> None:
        """Remove a call with one input and one output; its readers read the input instead."""
        (value,) = call.inputs
        value.uses.remove((call, 0))
        self.replace_value(call.output, value)
