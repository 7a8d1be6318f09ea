"""The values of a trace during translation, and the nodes that compute them.

A graph is traced for one sample; values of the network have any number of samples on the first
axis. If the first axis of a traced tensor is the batch of one, it is replaced by the samples axis;
otherwise the samples axis is inserted before all others. Both contain the same elements in the same
order, so a value can be used in any shape with that order (`Builder.shaped`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ....artifacts.network import Node
from ....artifacts.precisions import UNIT_ROUNDOFF
from ....reference.operators import OPERATORS

Shape = tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Known:
    """A tensor that depends on no input.

    Attributes:
        array: Its value.
        weight: Whether its elements are those of a weight, bit for bit.
        rough: The same computed in float32; None if nothing was computed.
    """

    array: np.ndarray
    weight: bool = False
    rough: np.ndarray | None = None

    @property
    def in_float32(self) -> np.ndarray:
        """The value computed in float32, as a file has it."""
        return self.array if self.rough is None else self.rough

    @property
    def ints(self) -> list[int]:
        """Its elements as Python integers, for axes, sizes and indices."""
        return [int(x) for x in np.ravel(self.array)]


@dataclass(frozen=True)
class Computed:
    """A tensor that depends on the inputs.

    Attributes:
        name: Name of the value in the network.
        shape: Its shape without the samples axis.
    """

    name: str
    shape: Shape


Value = Known | Computed

# From (builder, op, inputs) to outputs.
Translation = Callable[["Builder", Any, list[Value]], "list[Value]"]


class UntranslatableError(Exception):
    """An operation cannot be translated to operators of the network; the message names it."""


def shape_of(tensor: Any) -> Shape:
    """Return a traced tensor's static shape."""
    shape: list[Any] = tensor.shape.as_list() if tensor.shape.rank is not None else [None]
    if None in shape:
        raise UntranslatableError(f"'{tensor.op.type}' has no static shape")
    return tuple(int(size) for size in shape)


def sample_shape(shape: Shape) -> Shape:
    """Return a traced shape without its batch of one."""
    return shape[1:] if shape[:1] == (1,) else shape


@dataclass
class Builder:
    """Collects the nodes of one layer.

    Attributes:
        layer: The Keras layer.
        needed_tensors: Names of the traced tensors that the outputs depend on.
        anchor: A value with a samples axis, along which constants are repeated.
        nodes: The nodes so far, producers first.
    """

    layer: str
    needed_tensors: frozenset[str]
    anchor: str
    nodes: list[Node] = field(default_factory=list)
    _shaped: dict[tuple[str, Shape], str] = field(default_factory=dict)

    def needed(self, tensor: Any) -> bool:
        """Return whether the outputs depend on a traced tensor."""
        return tensor.name in self.needed_tensors

    def emit(
        self,
        op: str,
        inputs: Sequence[str],
        shape: Shape,
        attributes: dict[str, Any] | None = None,
        *,
        weights: dict[str, np.ndarray] | None = None,
        constants: dict[str, np.ndarray] | None = None,
    ) -> Computed:
        """Append a node; its name is local to the layer."""
        if op not in OPERATORS:
            raise UntranslatableError(f"no operator computes '{op}'")
        name = f"/{op}#{len(self.nodes)}"
        self.nodes.append(
            Node(
                name,
                op,
                self.layer,
                tuple(inputs),
                (None, *shape),
                attributes or {},
                weights or {},
                constants or {},
            )
        )
        return Computed(name, shape)

    def shaped(self, value: Computed, shape: Shape) -> str:
        """Return the name of a value reshaped to the given shape."""
        if value.shape == shape:
            return value.name
        if math.prod(value.shape) != math.prod(shape):
            raise UntranslatableError("a tensor mixes samples")
        key = (value.name, shape)
        if key not in self._shaped:
            node = self.emit("reshape", [value.name], shape, {"target_shape": list(shape)})
            self._shaped[key] = node.name
        return self._shaped[key]

    def named(self, value: Value, shape: Shape) -> str:
        """Return the name of any value in a given shape; a node is appended for a constant."""
        if isinstance(value, Computed):
            return self.shaped(value, shape)
        return self.emit(
            "constant", [self.anchor], shape, constants={"constant": value.array.reshape(shape)}
        ).name

    def full(self, value: Value, tensor: Any) -> str:
        """Return the name of a value with all axes of its traced tensor after the samples axis."""
        return self.named(value, shape_of(tensor))

    def framed(self, value: Value, tensor: Any, *axes: int) -> tuple[str, Shape, int]:
        """Return a value in a shape that has the given axes of its traced tensor.

        Args:
            value: The value.
            tensor: Its traced tensor.
            *axes: The axes that an operation acts along.

        Returns:
            The value's name, its shape without samples, and the offset from an axis of the traced
            tensor to the axis of the value.
        """
        shape = shape_of(tensor)
        if shape[:1] == (1,) and 0 not in axes:
            return self.named(value, shape[1:]), shape[1:], 0
        return self.named(value, shape), shape, 1


def role_of(value: Known, role: str, array: np.ndarray) -> dict[str, dict[str, np.ndarray]]:
    """Return an array as keyword argument of `Builder.emit`, for weights or for constants."""
    return {"weights" if value.weight else "constants": {role: array}}


def error_of(value: Known) -> dict[str, float]:
    """Return, as an attribute, the greatest error of a constant that a converter computes."""
    if value.rough is None or not value.array.size or value.array.dtype.kind != "f":
        return {}
    with np.errstate(invalid="ignore"):
        seen = np.nan_to_num(np.abs(value.rough - value.array)).max()
        size = np.nan_to_num(np.abs(value.array), posinf=0.0).max()
    # This is one possible result; another computation may round differently.
    return {"constant_error": float(2 * seen + 2 * UNIT_ROUNDOFF["float32"] * size)}


def axis_of(axis: int, rank: int) -> int:
    """Return an axis counted from the front."""
    return axis + rank if axis < 0 else axis
