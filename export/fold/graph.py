"""The network as a graph: calls joined by values, and what each call computes.

A `Call` is one call of one operation; a `Value` is one tensor, with its producer and its uses. What
a call computes is its `op`, an immutable object: calls that share a layer share the op object, and
a rewrite replaces the op of a call, never changes one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray

from .affine import Affine

Shape = tuple[int | None, ...]


@dataclass(frozen=True)
class Source:
    """A model input: an op without inputs.

    Attributes:
        tensor: The symbolic input it stands for; gives name, shape and dtype.
    """

    tensor: keras.KerasTensor
    name: str


@dataclass(frozen=True, eq=False)
class Kept:
    """An operation that is rebuilt as it is, with its weights."""

    operation: Any
    name: str


@dataclass(frozen=True, eq=False)
class AffineOp:
    """An affine that sits in the network: a norm not yet folded, or the rest of one.

    Attributes:
        affine: What it computes.
        name: Name of the layer it becomes if it stays.
        norms: Names of the norms whose work it does.
        origin: The norm's layer; calls of one norm have the same.
        stays: Whether it is not to be folded.
    """

    affine: Affine
    name: str
    norms: tuple[str, ...]
    origin: Any = None
    stays: bool = False


@dataclass(frozen=True, eq=False)
class ActivationOp:
    """The activation of a linear layer, cut off it so that an affine can come between.

    It is built back into its layer where nothing did.

    Attributes:
        function: The element-wise function, as ``layer.activation`` holds it.
        owner: Name of the layer it was cut from.
        name: Name of the layer it becomes where it cannot be built back.
    """

    function: Callable[..., Any]
    owner: str
    name: str


@dataclass(frozen=True, eq=False)
class MapOp:
    """The addition of a constant to every position: a bias that differs at the borders.

    Attributes:
        constant: float64, the shape of one sample.
    """

    constant: NDArray[np.float64]
    name: str
    norms: tuple[str, ...]


@dataclass(frozen=True)
class Slot:
    """Marks the place of the i-th input value in a call's arguments."""

    index: int


@dataclass(eq=False)
class Value:
    """One tensor of the network.

    Attributes:
        shape: Static shape, the batch included, None where unknown.
        dtype: Name of its dtype in the original network.
        producer: The call that computes it.
        uses: The calls that read it, each with the slot it fills; a call that reads it twice is
            here twice.
        is_output: Whether the network returns it.
        extra: The constant channels that the fold gave it beyond its shape, if it did.
    """

    shape: Shape
    dtype: str
    producer: Call
    uses: list[tuple[Call, int]] = field(default_factory=list)
    is_output: bool = False
    extra: Extra | None = None

    @property
    def rank(self) -> int:
        """Number of axes, the batch included."""
        return len(self.shape)


@dataclass(frozen=True)
class Extra:
    """More channels of a value that carry a constant at every position.

    Attributes:
        axis: The channel axis.
        constant: What they carry.
        blocks: How many there are: one behind each of so many equal blocks of the channels, so
            that every group of a grouped convolution reads one.
        padded: Whether zero padding has been put around them, so that they carry 0 there.
    """

    axis: int
    constant: float
    blocks: int = 1
    padded: bool = False


@dataclass(eq=False)
class Call:
    """One call of one operation.

    Attributes:
        op: What is computed.
        inputs: The values read.
        args: Positional arguments, `Slot` marking where an input goes; None means the one input is
            the one argument.
        kwargs: Keyword arguments, marked likewise.
        outputs: The values computed, flattened.
        number: Its place in the order of reading, the same whenever a network is read; -1 for calls
            that the fold made.
    """

    op: Any
    inputs: list[Value]
    args: Any = None
    kwargs: Any = None
    outputs: list[Value] = field(default_factory=list)
    number: int = -1

    @property
    def output(self) -> Value:
        """The one value it computes."""
        (value,) = self.outputs
        return value

    @property
    def name(self) -> str:
        """Name of the layer called."""
        name: str = self.op.name
        return name


class Graph:
    """A network: its inputs, outputs and every call between.

    Attributes:
        name: Name of the Keras model.
        inputs: Values the user feeds, flattened.
        outputs: Values the user gets, flattened.
        input_structure: The structure of the inputs, `Slot` at each leaf.
        output_structure: The same for the outputs.
        output_names: The Keras names of the outputs.
        opaque: For every layer whose inside could not be read, the sentence that says why.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.inputs: list[Value] = []
        self.outputs: list[Value] = []
        self.input_structure: Any = None
        self.output_structure: Any = None
        self.output_names: list[str] = []
        self.opaque: dict[int, str] = {}
        self._calls_added = 0
        self._names: set[str] = set()

    def add(self, call: Call, shapes: list[tuple[Shape, str]]) -> Call:
        """Enter a call that computes values of the given shapes and dtypes."""
        call.outputs = [Value(shape, dtype, call) for shape, dtype in shapes]
        call.number = self._calls_added
        self._calls_added += 1
        for slot, value in enumerate(call.inputs):
            value.uses.append((call, slot))
        return call

    def unique_name(self, name: str, prefix: str = "") -> str:
        """Reserve a layer name; where it is taken, put the prefix or a number to it."""
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

    def calls(self) -> list[Call]:
        """Return the inputs and every call that the outputs depend on, producers first."""
        return self.calls_before(self.inputs + self.outputs)

    @staticmethod
    def calls_before(values: list[Value]) -> list[Call]:
        """Return every call that values depend on, producers first."""
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
        """Let everything that reads ``old``, the outputs included, read ``new``."""
        for call, slot in old.uses:
            call.inputs[slot] = new
            new.uses.append((call, slot))
        old.uses = []
        if old.is_output:
            self.outputs = [new if value is old else value for value in self.outputs]
            old.is_output, new.is_output = False, True

    def insert_after(self, value: Value, op: Any) -> Call:
        """Put a call of ``op`` between ``value`` and everything that reads it."""
        call = Call(op, [value])
        call.outputs = [Value(value.shape, value.dtype, call)]
        self.replace_value(value, call.output)
        value.uses.append((call, 0))
        return call

    def remove(self, call: Call) -> None:
        """Take out a call of one input and one output that does nothing any more."""
        (value,) = call.inputs
        value.uses.remove((call, 0))
        self.replace_value(call.output, value)
