"""Common code of linear layers: reads weights in float64 and multiplies affines into them."""

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
    """Return the kernel in float64, with the low-rank update (LoRA) added."""
    if not getattr(layer, "lora_enabled", False):
        return read(layer.kernel)
    base = next(weight for weight in layer.weights if weight.name == "kernel")
    # Keras keeps the update in float32, whatever the layer computes in.
    update = keras.ops.matmul(layer.lora_kernel_a, layer.lora_kernel_b)
    return read(base) + read(layer.lora_alpha / layer.lora_rank * update)


def along(vector: Vector, axis: int, rank: int) -> Array:
    """Reshape a vector so that it broadcasts along one axis of an array."""
    shape = [1] * rank
    shape[axis] = -1
    return vector.reshape(shape)


def bias_of(layer: Any, size: int, shift: Array | None, after: Affine | None) -> Array:
    """Return ``after.scale · (b + shift) + after.shift``; b = 0 if the layer has no bias."""
    bias = read(layer.bias) if layer.use_bias else np.zeros(size)
    if shift is not None:
        bias = bias + shift
    return bias if after is None else after.scale * bias + after.shift


def finish(op: Linear, kernel: Array, fan_in: int, out: int) -> Array:
    """Scale the output channels of a kernel and add its constant channels.

    Args:
        op: The linear op that the kernel belongs to.
        kernel: The kernel, which has absorbed `op.before`.
        fan_in: Axis of its input channels within a group.
        out: Axis of its output channels.
    """
    if op.widened:
        kernel = _with_rows(op, kernel, fan_in, out)
    if op.after is not None:
        kernel = kernel * along(op.after.scale, out, kernel.ndim)
    if op.gives is not None:
        columns = _in_blocks(kernel, out, op.gives.blocks)
        zeros = np.zeros_like(columns[..., :1])
        kernel = _out_of_blocks(np.concatenate([columns, zeros], axis=-1), out)
    return kernel


def _with_rows(op: Linear, kernel: Array, fan_in: int, out: int) -> Array:
    """Add the rows to a kernel that read constant channels."""
    layer: Any = op.layer
    groups = op.kind.groups(layer)
    blocks = op.widened // groups
    rows = _in_blocks(kernel, fan_in, blocks)
    read_there = np.zeros_like(rows[..., :1])
    if op.border is not None:
        # Input channel i of group g has index g*fan_in + i; outputs of a group are contiguous.
        shift = op.border.reshape(groups, -1)
        shift = np.repeat(shift, kernel.shape[out] // groups, axis=0)
        shift = shift if out % kernel.ndim < fan_in % kernel.ndim else shift.T
        read_there = _in_blocks(kernel_of(layer) * shift, fan_in, blocks).sum(-1, keepdims=True)
    return _out_of_blocks(np.concatenate([rows, read_there], axis=-1), fan_in)


def _in_blocks(array: Array, axis: int, blocks: int) -> Array:
    """Split an axis into equal blocks; a new last axis indexes the entries of a block."""
    moved = np.moveaxis(array, axis, -1)
    split = moved.reshape(*moved.shape[:-1], blocks, -1)
    return np.moveaxis(split, -2, axis - 1 if axis < 0 else axis)


def _out_of_blocks(array: Array, axis: int) -> Array:
    """Undo `_in_blocks`."""
    split = np.moveaxis(array, axis - 1 if axis < 0 else axis, -2)
    return np.moveaxis(split.reshape(*split.shape[:-2], -1), -1, axis)


def wide_bias(op: Linear, shift: Array | None) -> Array:
    """Return the bias, including the constants of additional output channels."""
    layer: Any = op.layer
    size = op.kind.sizes(layer)[1]  # type: ignore[attr-defined]
    bias = bias_of(layer, size, shift, op.after)
    if op.gives is None:
        return bias
    blocks = bias.reshape(op.gives.blocks, -1)
    return np.pad(blocks, ((0, 0), (0, 1)), constant_values=op.gives.value).reshape(-1)


class ChannelKind(Kind):
    """A layer with one channel axis in its input and output."""

    def axis(self, layer: Any, rank: int) -> int:
        return 1 if layer.data_format == "channels_first" else rank - 1

    @abc.abstractmethod
    def sizes(self, layer: Any) -> tuple[int, int]:
        """Return the number of input and of output channels."""

    def inputs(self, layer: Any, rank: int) -> dict[int, int]:
        return {self.axis(layer, rank): self.sizes(layer)[0]}

    def outputs(self, layer: Any, rank: int) -> dict[int, int]:
        return {self.axis(layer, rank): self.sizes(layer)[1]}

    def variables(self, layer: Any) -> list[keras.Variable]:
        return [layer.kernel, layer.bias] if layer.use_bias else [layer.kernel]
