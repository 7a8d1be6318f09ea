"""The linear operators of integer files: how a Keras layer applies a kernel, and its axes.

Unlike the layer's own ``call``, each takes the kernel as an argument, to apply integers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import keras
from keras import layers as kl
from keras import ops

from ..renorm import Tensor


@dataclass(frozen=True)
class Kernel:
    """Properties of the kernel of one type of layer.

    Attributes:
        apply: Apply a kernel to inputs as the layer does: ``apply(layer, inputs, kernel)``.
        channels: Axes of the kernel that the output channels run along, in their order.
        per_channel: Whether each output channel has a step of its own; integer files have one step
            for a whole dense kernel.
    """

    apply: Callable[[Any, Tensor, Tensor], Tensor]
    channels: tuple[int, ...]
    per_channel: bool = True

    def along(self, vector: Tensor, kernel_shape: tuple[int, ...]) -> Tensor:
        """Lay a vector of output channels along the kernel's axes."""
        rank = len(kernel_shape)
        chosen = {axis % rank for axis in self.channels}
        return ops.reshape(vector, [n if i in chosen else 1 for i, n in enumerate(kernel_shape)])

    def shared(self, rank: int) -> tuple[int, ...]:
        """Return the axes of the kernel that share a step."""
        if not self.per_channel:
            return tuple(range(rank))
        chosen = {axis % rank for axis in self.channels}
        return tuple(axis for axis in range(rank) if axis not in chosen)


def _dense(layer: Any, x: Tensor, kernel: Tensor) -> Tensor:
    return ops.matmul(x, kernel)


def _conv(layer: Any, x: Tensor, kernel: Tensor) -> Tensor:
    padding = layer.padding
    if padding == "causal":
        reach = layer.dilation_rate[0] * (layer.kernel_size[0] - 1)
        x, padding = ops.pad(x, [[0, 0], [reach, 0], [0, 0]]), "valid"
    return ops.conv(
        x,
        kernel,
        strides=tuple(layer.strides),
        padding=padding,
        dilation_rate=tuple(layer.dilation_rate),
        data_format=layer.data_format,
    )


def _depthwise(layer: Any, x: Tensor, kernel: Tensor) -> Tensor:
    return ops.depthwise_conv(
        x,
        kernel,
        strides=tuple(layer.strides),
        padding=layer.padding,
        dilation_rate=tuple(layer.dilation_rate),
        data_format=layer.data_format,
    )


def _transposed(layer: Any, x: Tensor, kernel: Tensor) -> Tensor:
    return ops.conv_transpose(
        x,
        kernel,
        strides=tuple(layer.strides),
        padding=layer.padding,
        output_padding=layer.output_padding,
        dilation_rate=tuple(layer.dilation_rate),
        data_format=layer.data_format,
    )


KERNELS: dict[type[keras.layers.Layer], Kernel] = {
    kl.Dense: Kernel(_dense, (-1,), per_channel=False),
    kl.Conv1D: Kernel(_conv, (-1,)),
    kl.Conv2D: Kernel(_conv, (-1,)),
    kl.DepthwiseConv1D: Kernel(_depthwise, (-2, -1)),
    kl.DepthwiseConv2D: Kernel(_depthwise, (-2, -1)),
    kl.Conv1DTranspose: Kernel(_transposed, (-2,)),
    kl.Conv2DTranspose: Kernel(_transposed, (-2,)),
}
