"""What the kinds share: reading weights in float64, and multiplying affines into them."""

# ruff: noqa: D102 - the base class documents the methods
from __future__ import annotations

import abc
from typing import Any

import keras
import numpy as np

from ..affine import Affine, Vector
from ..linear import Array, Kind, Linear


def read(variable: Any) -> Array:
    """Return a variable in float64."""
    return np.asarray(keras.ops.convert_to_numpy(variable), np.float64)


def kernel_of(layer: Any) -> Array:
    """Return the kernel in float64, a low-rank update added to it as Keras does."""
    if not getattr(layer, "lora_enabled", False):
        return read(layer.kernel)
    base = next(weight for weight in layer.weights if weight.name == "kernel")
    # Keras keeps the update in float32, whatever the layer computes in.
    update = keras.ops.matmul(layer.lora_kernel_a, layer.lora_kernel_b)
    return read(base) + read(layer.lora_alpha / layer.lora_rank * update)


def along(vector: Vector, axis: int, rank: int) -> Array:
    """Shape a vector so that it multiplies one axis of an array."""
    shape = [1] * rank
    shape[axis] = -1
    return vector.reshape(shape)


def bias_of(layer: Any, size: int, shift: Array | None, after: Affine | None) -> Array:
    """Return ``after.scale · (b + shift) + after.shift``; b = 0 where the layer has no bias."""
    bias = read(layer.bias) if layer.use_bias else np.zeros(size)
    if shift is not None:
        bias = bias + shift
    return bias if after is None else after.scale * bias + after.shift


def finish(op: Linear, kernel: Array, fan_in: int, out: int) -> Array:
    """Scale a kernel's output channels and put the channels to it that carry a constant.

    Args:
        op: What the kernel is of.
        kernel: The kernel with the affine before it absorbed.
        fan_in: Axis of its input channels.
        out: Axis of its output channels.
    """
    if op.widened:
        row = np.zeros_like(np.take(kernel, [0], axis=fan_in))
        if op.border is not None:
            original = kernel_of(op.layer)
            shifted = original * along(op.border, fan_in, kernel.ndim)
            row = shifted.sum(axis=fan_in, keepdims=True)
        kernel = np.concatenate([kernel, row], axis=fan_in)
    if op.after is not None:
        kernel = kernel * along(op.after.scale, out, kernel.ndim)
    if op.gives is not None:
        kernel = np.concatenate([kernel, np.zeros_like(np.take(kernel, [0], axis=out))], axis=out)
    return kernel


def wide_bias(op: Linear, shift: Array | None) -> Array:
    """Return the bias, with the constant of the channel that the layer gives in addition."""
    layer: Any = op.layer
    size = op.kind.sizes(layer)[1]  # type: ignore[attr-defined]
    bias = bias_of(layer, size, shift, op.after)
    return bias if op.gives is None else np.append(bias, op.gives)


class ChannelKind(Kind):
    """A layer with one channel axis in and out."""

    def axis(self, layer: Any, rank: int) -> int:
        return 1 if layer.data_format == "channels_first" else rank - 1

    @abc.abstractmethod
    def sizes(self, layer: Any) -> tuple[int, int]:
        """Return the numbers of input and output channels."""

    def inputs(self, layer: Any, rank: int) -> dict[int, int]:
        return {self.axis(layer, rank): self.sizes(layer)[0]}

    def outputs(self, layer: Any, rank: int) -> dict[int, int]:
        return {self.axis(layer, rank): self.sizes(layer)[1]}

    def variables(self, layer: Any) -> list[keras.Variable]:
        return [layer.kernel, layer.bias] if layer.use_bias else [layer.kernel]
