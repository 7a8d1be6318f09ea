"""Convolutions, plain and transposed, and the effect of their padding on a shift."""

# ruff: noqa: D102 - the base class documents the methods
from __future__ import annotations

import math
from typing import Any

import numpy as np

from ..graph import Function, Shape
from ..linear import Array, Linear, needs_bias
from .base import ChannelKind, finish, kernel_of, wide_bias


class ConvKind(ChannelKind):
    """``Conv1D/2D/3D``, grouped or dilated: kernel (\\*window, in / groups, out)."""

    def sizes(self, layer: Any) -> tuple[int, int]:
        return layer.kernel.shape[-2] * layer.groups, layer.kernel.shape[-1]

    def borders(self, layer: Any, shape: Shape) -> str:
        return zero_padding(layer, shape)

    def groups(self, layer: Any) -> int:
        return int(layer.groups)

    def adapt(self, config: dict[str, Any], op: Linear, activation: Function | None) -> None:
        super().adapt(config, op, activation)
        config["filters"] += op.gives.blocks if op.gives else 0

    def arrays(self, op: Linear) -> list[Array]:
        layer: Any = op.layer
        kernel = kernel_of(layer)
        shift: Array | None = None
        fan_in, out = kernel.shape[-2:]
        if op.before is not None:
            # Output channel g*(out/groups) + o reads the input channels g*fan_in + i.
            grouped = kernel.reshape(-1, fan_in, layer.groups, out // layer.groups)
            scale, t = (v.reshape(layer.groups, fan_in) for v in (op.before.scale, op.before.shift))
            shift = np.einsum("kigo,gi->go", grouped, t).reshape(-1)
            kernel = (grouped * scale.T[:, :, None]).reshape(kernel.shape)
        kernel = finish(op, kernel, fan_in=-2, out=-1)
        if not (layer.use_bias or needs_bias(op)):
            return [kernel]
        return [kernel, wide_bias(op, shift)]


class ConvTransposeKind(ChannelKind):
    """``Conv1D/2D/3DTranspose``: kernel (\\*window, out, in)."""

    def sizes(self, layer: Any) -> tuple[int, int]:
        return layer.kernel.shape[-1], layer.kernel.shape[-2]

    def channels_last(self, kernel: Array) -> Array:
        return super().channels_last(np.moveaxis(kernel, -2, -1))

    def groups(self, layer: Any) -> int:
        return 1

    def adapt(self, config: dict[str, Any], op: Linear, activation: Function | None) -> None:
        super().adapt(config, op, activation)
        config["filters"] += op.gives.blocks if op.gives else 0

    def borders(self, layer: Any, shape: Shape) -> str:
        if math.prod(layer.kernel_size) * math.prod(layer.strides) == 1:
            return ""
        return "a transposed convolution adds a different part of its kernel to each position"

    def arrays(self, op: Linear) -> list[Array]:
        kernel = kernel_of(op.layer)
        shift: Array | None = None
        if op.before is not None:
            shift = np.einsum("koi,i->o", kernel.reshape(-1, *kernel.shape[-2:]), op.before.shift)
            kernel = kernel * op.before.scale
        kernel = finish(op, kernel, fan_in=-1, out=-2)
        if not (op.layer.use_bias or needs_bias(op)):
            return [kernel]
        return [kernel, wide_bias(op, shift)]


def zero_padding(layer: Any, shape: Shape) -> str:
    """Return a clause if a convolution pads an input of this shape with zeros; otherwise empty."""
    if layer.padding == "valid":
        return ""
    spatial = shape[2:] if layer.data_format == "channels_first" else shape[1:-1]
    windows = zip(spatial, layer.kernel_size, layer.strides, layer.dilation_rate, strict=True)
    for size, kernel, stride, dilation in windows:
        reach = (kernel - 1) * dilation + 1
        if reach == 1:
            continue
        if layer.padding == "causal" or size is None:
            break
        if (math.ceil(size / stride) - 1) * stride + reach > size:
            break
    else:
        return ""
    return f"it pads with zeros (padding='{layer.padding}'), which a shift would change"
