"""Linear layers: which axes they mix, and their weights with affines absorbed.

A linear layer is ``L(x) = W·x + b``. The fold keeps the layer as it was and remembers one affine
before it and one after it, ``after(L(before(x)))``; only when the network is rebuilt are they
multiplied into the weights, in float64 and once:

    W' = after.scale · W · before.scale
    b' = after.scale · (b + W·before.shift) + after.shift

``W·before.shift`` is one number per output channel only where every output sees the whole kernel;
whether padding or striding break that is for the rules to ask (`Kind.borders`).
"""

from __future__ import annotations

import abc
import math
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray

from .affine import Affine, Vector
from .graph import Shape

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Constants:
    """Output channels that carry a constant.

    Attributes:
        value: What they carry.
        blocks: How many there are, one behind each of so many equal blocks of the channels.
    """

    value: float
    blocks: int


@dataclass(frozen=True, eq=False)
class Linear:
    """A call of a linear layer without its activation, with the affines it has absorbed.

    Attributes:
        layer: The layer of the original network; only read.
        kind: What is known about layers of its type.
        name: Name of the layer that is built.
        before: Affine absorbed from its input, exact at every position.
        after: Affine absorbed from its output.
        widened: How many more input channels it is given, each behind one of so many equal blocks
            of its channels; they carry a constant.
        border: The shift, in units of that constant, that it takes from those channels; where they
            are padded with zeros, the shift is too. None where they mean nothing to it.
        gives: More output channels that carry a constant; None where there are none.
    """

    layer: keras.Layer
    kind: Kind
    name: str
    before: Affine | None = None
    after: Affine | None = None
    widened: int = 0
    border: Vector | None = None
    gives: Constants | None = None

    @property
    def size(self) -> int:
        """Number of parameters."""
        return sum(math.prod(w.shape) for w in self.layer.weights)

    @property
    def touched(self) -> bool:
        """Whether the weights must be computed, because anything was absorbed, or can be copied."""
        if getattr(self.layer, "lora_enabled", False):
            return True  # the update must be added to the kernel
        affine = self.before is not None or self.after is not None
        return affine or bool(self.widened) or self.gives is not None


class Kind(abc.ABC):
    """What the fold must know about one type of linear layer. Stateless.

    ``channels`` below is ``{axis: size}``, axes counted from 0 with the batch included.
    """

    @abc.abstractmethod
    def inputs(self, layer: Any, rank: int) -> dict[int, int]:
        """Return the input axes whose affine the weights can take, with their sizes."""

    @abc.abstractmethod
    def outputs(self, layer: Any, rank: int) -> dict[int, int]:
        """Return the output axes whose affine the weights can take, with their sizes."""

    @abc.abstractmethod
    def arrays(self, op: Linear) -> list[Array]:
        """Return the weights in float64, kernels first, the bias last if there is one."""

    @abc.abstractmethod
    def variables(self, layer: Any) -> list[keras.Variable]:
        """Return the variables of a rebuilt layer in the order of `arrays`."""

    def channels_last(self, kernel: Array) -> Array:
        """Return the first kernel as (weights, output channels)."""
        return kernel.reshape(-1, kernel.shape[-1])

    def borders(self, layer: Any, shape: Shape) -> str:
        """Say why a constant input would not give a constant output; empty where it does."""
        return ""

    def groups(self, layer: Any) -> int:
        """Return in how many groups the layer reads its channels; more channels go to each.

        Zero where the layer can take and give no more channels.
        """
        return 0

    def activation(self, layer: Any) -> Any:
        """Return the layer's own activation function, None where it is linear."""
        return None if layer.activation is keras.activations.linear else layer.activation

    def config(self, op: Linear, activation: bool) -> dict[str, Any]:
        """Return the config of the layer to build, with or without the layer's activation."""
        config: dict[str, Any] = op.layer.get_config()
        config["name"] = op.name
        self.adapt(config, op, activation)
        return config

    def adapt(self, config: dict[str, Any], op: Linear, activation: bool) -> None:
        """Write into a config what the absorbed affines change."""
        config["use_bias"] = config["use_bias"] or needs_bias(op)
        if not activation:
            config["activation"] = "linear"
        elif not isinstance(op.layer.activation, keras.Layer):
            # The function itself: a config cannot carry every one, a lambda for instance.
            config["activation"] = op.layer.activation
        # Low-rank updates are already in `layer.kernel`; the layer built has plain weights.
        for key in ("lora_rank", "lora_alpha"):
            config.pop(key, None)


def needs_bias(op: Linear) -> bool:
    """Whether the absorbed affines add something that is not zero."""
    affines = [a for a in (op.before, op.after) if a is not None]
    return bool(op.gives and op.gives.value) or any(a.shifts for a in affines)
