"""Depthwise convolutions, and separable ones, which combine a depthwise and a pointwise one."""

# ruff: noqa: D102 - the base class documents the methods
from __future__ import annotations

from typing import Any

import keras

from ..graph import Shape
from ..linear import Array, Linear, needs_bias
from .base import ChannelKind, bias_of, kernel_of, read
from .conv import zero_padding


class DepthwiseKind(ChannelKind):
    """``DepthwiseConv1D/2D``, any multiplier: kernel (\\*window, in, multiplier)."""

    def sizes(self, layer: Any) -> tuple[int, int]:
        fan_in, multiplier = layer.kernel.shape[-2:]
        return fan_in, fan_in * multiplier

    def channels_last(self, kernel: Array) -> Array:
        return kernel.reshape(-1, kernel.shape[-2] * kernel.shape[-1])

    def borders(self, layer: Any, shape: Shape) -> str:
        return zero_padding(layer, shape)

    def arrays(self, op: Linear) -> list[Array]:
        kernel = kernel_of(op.layer)
        shift: Array | None = None
        if op.before is not None:
            shift = (window_sum(kernel) * op.before.shift[:, None]).reshape(-1)
            kernel = kernel * op.before.scale[:, None]
        if op.after is not None:
            kernel = kernel * op.after.scale.reshape(kernel.shape[-2:])
        if not (op.layer.use_bias or needs_bias(op)):
            return [kernel]
        return [kernel, bias_of(op.layer, self.sizes(op.layer)[1], shift, op.after)]


class SeparableKind(ChannelKind):
    """``SeparableConv1D/2D``: the depthwise kernel absorbs `before`, the pointwise `after`."""

    def sizes(self, layer: Any) -> tuple[int, int]:
        return layer.depthwise_kernel.shape[-2], layer.pointwise_kernel.shape[-1]

    def channels_last(self, kernel: Array) -> Array:
        return kernel.reshape(-1, kernel.shape[-2] * kernel.shape[-1])

    def borders(self, layer: Any, shape: Shape) -> str:
        return zero_padding(layer, shape)

    def variables(self, layer: Any) -> list[keras.Variable]:
        kernels = [layer.depthwise_kernel, layer.pointwise_kernel]
        return [*kernels, layer.bias] if layer.use_bias else kernels

    def arrays(self, op: Linear) -> list[Array]:
        layer: Any = op.layer
        depthwise, pointwise = read(layer.depthwise_kernel), read(layer.pointwise_kernel)
        out = pointwise.shape[-1]
        shift: Array | None = None
        if op.before is not None:
            middle = (window_sum(depthwise) * op.before.shift[:, None]).reshape(-1)
            shift = middle @ pointwise.reshape(-1, out)
            depthwise = depthwise * op.before.scale[:, None]
        if op.after is not None:
            pointwise = pointwise * op.after.scale
        if not (layer.use_bias or needs_bias(op)):
            return [depthwise, pointwise]
        return [depthwise, pointwise, bias_of(layer, out, shift, op.after)]


def window_sum(kernel: Array) -> Array:
    """Sum a kernel over its window, which is its response to a constant input."""
    return kernel.reshape(-1, *kernel.shape[-2:]).sum(axis=0)
