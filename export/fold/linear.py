"""Linear layers: their channel axes, and their weights with absorbed affines.

A linear layer is ``L(x) = W·x + b``. During the fold the layer is not changed; one affine before it
and one after it are recorded, ``after(L(before(x)))``. When the network is rebuilt, they are
multiplied into the weights once, in float64:

    W' = after.scale · W · before.scale
    b' = after.scale · (b + W·before.shift) + after.shift

``W·before.shift`` is one number per output channel only if every output position reads the whole
kernel. `Kind.borders` tells whether padding or strides violate that.
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
from .graph import Function, Shape

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Constants:
    """Additional output channels with a constant.

    Attributes:
        value: The constant.
        blocks: Number of them: one is appended to each of this many equal blocks of the channels.
    """

    value: float
    blocks: int


@dataclass(frozen=True, eq=False)
class Linear:
    """A linear layer without its activation, with the affines that it has absorbed.

    Attributes:
        layer: The layer of the original network; not changed.
        kind: Description of its type.
        name: Name of the layer to build.
        before: Affine absorbed at its input, exact at every position.
        after: Affine absorbed at its output.
        widened: Number of additional input channels with a constant, one appended to each of this
            many equal blocks of its channels.
        border: The shift of each input channel that is read from those channels, in units of their
            constant; it is zero where they are padded with zeros. None if they are ignored.
        gives: Additional output channels with a constant; None if there are none.
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
        """Whether the weights differ from the original ones, because something was absorbed."""
        if getattr(self.layer, "lora_enabled", False):
            return True  # the update must be added to the kernel
        affine = self.before is not None or self.after is not None
        return affine or bool(self.widened) or self.gives is not None


class Kind(abc.ABC):
    """Description of one type of linear layer. Stateless.

    Channel axes are given as ``{axis: size}``, counted from 0 with the batch axis included.
    """

    @abc.abstractmethod
    def inputs(self, layer: Any, rank: int) -> dict[int, int]:
        """Return the input axes on which the weights can absorb an affine, with their sizes."""

    @abc.abstractmethod
    def outputs(self, layer: Any, rank: int) -> dict[int, int]:
        """Return the output axes on which the weights can absorb an affine, with their sizes."""

    @abc.abstractmethod
    def arrays(self, op: Linear) -> list[Array]:
        """Return the new weights in float64: the kernels, then the bias if there is one."""

    @abc.abstractmethod
    def variables(self, layer: Any) -> list[keras.Variable]:
        """Return the variables of a rebuilt layer in the order of `arrays`."""

    def channels_last(self, kernel: Array) -> Array:
        """Return the first kernel as (weights, output channels)."""
        return kernel.reshape(-1, kernel.shape[-1])

    def borders(self, layer: Any, shape: Shape) -> str:
        """Return why a constant input does not give a constant output; empty if it does."""
        return ""

    def groups(self, layer: Any) -> int:
        """Return the number of channel groups; 0 if the layer supports no additional channels."""
        return 0

    def activation(self, layer: Any) -> Any:
        """Return the activation function of the layer; None if it is linear."""
        return None if layer.activation is keras.activations.linear else layer.activation

    def config(self, op: Linear, activation: Function | None) -> dict[str, Any]:
        """Return the config of the layer to build, with an activation function or none."""
        config: dict[str, Any] = op.layer.get_config()
        config["name"] = op.name
        self.adapt(config, op, activation)
        return config

    def adapt(self, config: dict[str, Any], op: Linear, activation: Function | None) -> None:
        """Apply the changes due to absorbed affines to a config."""
        config["use_bias"] = config["use_bias"] or needs_bias(op)
        # The function itself, since a config cannot represent every function, such as a lambda.
        config["activation"] = activation or "linear"
        # Low-rank updates are already in `layer.kernel`; the layer built has plain weights.
        for key in ("lora_rank", "lora_alpha"):
            config.pop(key, None)


def needs_bias(op: Linear) -> bool:
    """Return whether the absorbed affines need a bias."""
    affines = [a for a in (op.before, op.after) if a is not None]
    return bool(op.gives and op.gives.value) or any(a.shifts for a in affines)
