"""Every type of linear layer that absorbs affines, and how each does.

The formulas are those of `linear.py`; here is only which axis of which kernel is which.
"""

# ruff: noqa: D102 - the base class documents the methods
from __future__ import annotations

import abc
import dataclasses
import math
from typing import Any

import keras
import numpy as np
from keras import layers as kl

from .affine import Affine, Vector
from .graph import Shape
from .linear import Array, Kind, Linear, needs_bias


def _read(variable: Any) -> Array:
    return np.asarray(keras.ops.convert_to_numpy(variable), np.float64)


def _kernel(layer: Any) -> Array:
    """Return the kernel in float64, a low-rank update added to it as Keras does."""
    if not getattr(layer, "lora_enabled", False):
        return _read(layer.kernel)
    base = next(weight for weight in layer.weights if weight.name == "kernel")
    # Keras keeps the update in float32, whatever the layer computes in.
    update = keras.ops.matmul(layer.lora_kernel_a, layer.lora_kernel_b)
    return _read(base) + _read(layer.lora_alpha / layer.lora_rank * update)


def _along(vector: Vector, axis: int, rank: int) -> Array:
    """Shape a vector so that it multiplies one axis of an array."""
    shape = [1] * rank
    shape[axis] = -1
    return vector.reshape(shape)


def _bias(layer: Any, size: int, shift: Array | None, after: Affine | None) -> Array:
    bias = _read(layer.bias) if layer.use_bias else np.zeros(size)
    if shift is not None:
        bias = bias + shift
    return bias if after is None else after.scale * bias + after.shift


def _finish(op: Linear, kernel: Array, fan_in: int, out: int) -> Array:
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
            original = _kernel(op.layer)
            shifted = original * _along(op.border, fan_in, kernel.ndim)
            row = shifted.sum(axis=fan_in, keepdims=True)
        kernel = np.concatenate([kernel, row], axis=fan_in)
    if op.after is not None:
        kernel = kernel * _along(op.after.scale, out, kernel.ndim)
    if op.gives is not None:
        kernel = np.concatenate([kernel, np.zeros_like(np.take(kernel, [0], axis=out))], axis=out)
    return kernel


def _wide_bias(op: Linear, shift: Array | None) -> Array:
    """Return the bias, with the constant of the channel that the layer gives in addition."""
    layer: Any = op.layer
    size = op.kind.sizes(layer)[1]  # type: ignore[attr-defined]
    bias = _bias(layer, size, shift, op.after)
    return bias if op.gives is None else np.append(bias, op.gives)


class _ChannelKind(Kind):
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


class DenseKind(_ChannelKind):
    """``Dense``: kernel (in, out), on the last axis of any rank."""

    def axis(self, layer: Any, rank: int) -> int:
        return rank - 1

    def sizes(self, layer: Any) -> tuple[int, int]:
        fan_in, units = layer.kernel.shape
        return fan_in, units

    def widens(self, layer: Any) -> bool:
        return True

    def adapt(self, config: dict[str, Any], op: Linear, activation: bool) -> None:
        super().adapt(config, op, activation)
        config["units"] += op.gives is not None

    def arrays(self, op: Linear) -> list[Array]:
        kernel = _kernel(op.layer)
        shift: Array | None = None
        if op.before is not None:
            shift = op.before.shift @ kernel
            kernel = kernel * op.before.scale[:, None]
        kernel = _finish(op, kernel, fan_in=0, out=1)
        if not (op.layer.use_bias or needs_bias(op)):
            return [kernel]
        return [kernel, _wide_bias(op, shift)]


class ConvKind(_ChannelKind):
    """``Conv1D/2D/3D``, grouped or dilated: kernel (\\*window, in / groups, out)."""

    def sizes(self, layer: Any) -> tuple[int, int]:
        return layer.kernel.shape[-2] * layer.groups, layer.kernel.shape[-1]

    def borders(self, layer: Any, shape: Shape) -> str:
        return _zero_padding(layer, shape)

    def widens(self, layer: Any) -> bool:
        return bool(layer.groups == 1)

    def adapt(self, config: dict[str, Any], op: Linear, activation: bool) -> None:
        super().adapt(config, op, activation)
        config["filters"] += op.gives is not None

    def arrays(self, op: Linear) -> list[Array]:
        layer: Any = op.layer
        kernel = _kernel(layer)
        shift: Array | None = None
        fan_in, out = kernel.shape[-2:]
        if op.before is not None:
            # Output channel g*(out/groups) + o reads the input channels g*fan_in + i.
            grouped = kernel.reshape(-1, fan_in, layer.groups, out // layer.groups)
            scale, t = (v.reshape(layer.groups, fan_in) for v in (op.before.scale, op.before.shift))
            shift = np.einsum("kigo,gi->go", grouped, t).reshape(-1)
            kernel = (grouped * scale.T[:, :, None]).reshape(kernel.shape)
        kernel = _finish(op, kernel, fan_in=-2, out=-1)
        if not (layer.use_bias or needs_bias(op)):
            return [kernel]
        return [kernel, _wide_bias(op, shift)]


class ConvTransposeKind(_ChannelKind):
    """``Conv1D/2D/3DTranspose``: kernel (\\*window, out, in)."""

    def sizes(self, layer: Any) -> tuple[int, int]:
        return layer.kernel.shape[-1], layer.kernel.shape[-2]

    def channels_last(self, kernel: Array) -> Array:
        return super().channels_last(np.moveaxis(kernel, -2, -1))

    def widens(self, layer: Any) -> bool:
        return True

    def adapt(self, config: dict[str, Any], op: Linear, activation: bool) -> None:
        super().adapt(config, op, activation)
        config["filters"] += op.gives is not None

    def borders(self, layer: Any, shape: Shape) -> str:
        if math.prod(layer.kernel_size) * math.prod(layer.strides) == 1:
            return ""
        return "a transposed convolution adds a different part of its kernel to each position"

    def arrays(self, op: Linear) -> list[Array]:
        kernel = _kernel(op.layer)
        shift: Array | None = None
        if op.before is not None:
            shift = np.einsum("koi,i->o", kernel.reshape(-1, *kernel.shape[-2:]), op.before.shift)
            kernel = kernel * op.before.scale
        kernel = _finish(op, kernel, fan_in=-1, out=-2)
        if not (op.layer.use_bias or needs_bias(op)):
            return [kernel]
        return [kernel, _wide_bias(op, shift)]


class DepthwiseKind(_ChannelKind):
    """``DepthwiseConv1D/2D``, any multiplier: kernel (\\*window, in, multiplier)."""

    def sizes(self, layer: Any) -> tuple[int, int]:
        fan_in, multiplier = layer.kernel.shape[-2:]
        return fan_in, fan_in * multiplier

    def channels_last(self, kernel: Array) -> Array:
        return kernel.reshape(-1, kernel.shape[-2] * kernel.shape[-1])

    def borders(self, layer: Any, shape: Shape) -> str:
        return _zero_padding(layer, shape)

    def arrays(self, op: Linear) -> list[Array]:
        kernel = _kernel(op.layer)
        shift: Array | None = None
        if op.before is not None:
            shift = (_window_sum(kernel) * op.before.shift[:, None]).reshape(-1)
            kernel = kernel * op.before.scale[:, None]
        if op.after is not None:
            kernel = kernel * op.after.scale.reshape(kernel.shape[-2:])
        if not (op.layer.use_bias or needs_bias(op)):
            return [kernel]
        return [kernel, _bias(op.layer, self.sizes(op.layer)[1], shift, op.after)]


class SeparableKind(_ChannelKind):
    """``SeparableConv1D/2D``: a depthwise kernel takes what comes before, a pointwise the rest."""

    def sizes(self, layer: Any) -> tuple[int, int]:
        return layer.depthwise_kernel.shape[-2], layer.pointwise_kernel.shape[-1]

    def channels_last(self, kernel: Array) -> Array:
        return kernel.reshape(-1, kernel.shape[-2] * kernel.shape[-1])

    def borders(self, layer: Any, shape: Shape) -> str:
        return _zero_padding(layer, shape)

    def variables(self, layer: Any) -> list[keras.Variable]:
        kernels = [layer.depthwise_kernel, layer.pointwise_kernel]
        return [*kernels, layer.bias] if layer.use_bias else kernels

    def arrays(self, op: Linear) -> list[Array]:
        layer: Any = op.layer
        depthwise, pointwise = _read(layer.depthwise_kernel), _read(layer.pointwise_kernel)
        out = pointwise.shape[-1]
        shift: Array | None = None
        if op.before is not None:
            middle = (_window_sum(depthwise) * op.before.shift[:, None]).reshape(-1)
            shift = middle @ pointwise.reshape(-1, out)
            depthwise = depthwise * op.before.scale[:, None]
        if op.after is not None:
            pointwise = pointwise * op.after.scale
        if not (layer.use_bias or needs_bias(op)):
            return [depthwise, pointwise]
        return [depthwise, pointwise, _bias(layer, out, shift, op.after)]


class EinsumKind(Kind):
    """``EinsumDense``: the axes are the letters of its equation."""

    def letters(self, layer: Any) -> tuple[str, str, str]:
        """Return the letters of input, kernel and output, a leading ellipsis spelled out."""
        left, output = layer.equation.replace(" ", "").split("->")
        data, kernel = left.split(",")
        free = layer.input_spec.ndim - len(data.replace("...", ""))
        dots = "".join(chr(ord("A") + i) for i in range(free))
        return data.replace("...", dots), kernel, output.replace("...", dots)

    def inputs(self, layer: Any, rank: int) -> dict[int, int]:
        data, kernel, _ = self.letters(layer)
        return self._axes(layer, data, kernel)

    def outputs(self, layer: Any, rank: int) -> dict[int, int]:
        _, kernel, output = self.letters(layer)
        return self._axes(layer, output, kernel)

    @staticmethod
    def _axes(layer: Any, letters: str, kernel: str) -> dict[int, int]:
        if layer.equation.strip().endswith("..."):
            return {}  # Keras gives such a layer's bias an alignment of its own
        return {
            axis: layer.kernel.shape[kernel.index(letter)]
            for axis, letter in enumerate(letters)
            if letter in kernel
        }

    def borders(self, layer: Any, shape: Shape) -> str:
        data, kernel, output = self.letters(layer)
        if set(data) <= set(kernel) | set(output):
            return ""
        return "its equation sums over an axis that its kernel does not have"

    def variables(self, layer: Any) -> list[keras.Variable]:
        return [layer.kernel] if layer.bias is None else [layer.kernel, layer.bias]

    def adapt(self, config: dict[str, Any], op: Linear, activation: bool) -> None:
        config["use_bias"] = False  # not an option of this layer: its bias is its `bias_axes`
        super().adapt(config, op, activation)
        del config["use_bias"]
        config["bias_axes"] = self._bias_letters(op) or None

    def arrays(self, op: Linear) -> list[Array]:
        layer: Any = op.layer
        data, letters, output = self.letters(layer)
        kernel = _kernel(layer)
        size = dict(zip(letters, kernel.shape, strict=True))
        bias = np.zeros([1] * len(output))
        if layer.bias is not None:
            bias = bias + _read(layer.bias)
        if op.before is not None:
            letter = data[op.before.axis]
            kept = "".join(c for c in output if c in letters)
            part = np.einsum(f"{letters},{letter}->{kept}", kernel, op.before.shift)
            bias = bias + part.reshape([size[c] if c in kept else 1 for c in output])
            kernel = kernel * _along(op.before.scale, letters.index(letter), kernel.ndim)
        if op.after is not None:
            axis, letter = op.after.axis, output[op.after.axis]
            bias = bias * _along(op.after.scale, axis, bias.ndim)
            bias = bias + _along(op.after.shift, axis, bias.ndim)
            kernel = kernel * _along(op.after.scale, letters.index(letter), kernel.ndim)
        wanted = self._bias_letters(op)
        if not wanted:
            return [kernel]
        # Where no shift made it so, an axis outside `bias_axes` is still 1 long here.
        shape = [bias.shape[i] if c in wanted else 1 for i, c in enumerate(output)]
        return [kernel, bias.reshape(shape[output.index(wanted[0]) :])]

    def _bias_letters(self, op: Linear) -> str:
        """Return the axes along which the bias differs once the affines are absorbed."""
        layer: Any = op.layer
        _, kernel, output = self.letters(layer)
        wanted = set(layer.bias_axes or "")
        if op.before is not None and op.before.shifts:
            wanted |= set(kernel) & set(output)
        if op.after is not None and (wanted or op.after.shifts):
            wanted.add(output[op.after.axis])
        return "".join(c for c in output if c in wanted)


class TimeDistributedKind(Kind):
    """``TimeDistributed`` of another linear layer: the same, one axis further on."""

    def inputs(self, layer: Any, rank: int) -> dict[int, int]:
        inner = KINDS[type(layer.layer)].inputs(layer.layer, rank - 1)
        return {axis + 1: size for axis, size in inner.items()}

    def outputs(self, layer: Any, rank: int) -> dict[int, int]:
        inner = KINDS[type(layer.layer)].outputs(layer.layer, rank - 1)
        return {axis + 1: size for axis, size in inner.items()}

    def borders(self, layer: Any, shape: Shape) -> str:
        return KINDS[type(layer.layer)].borders(layer.layer, (shape[0], *shape[2:]))

    def activation(self, layer: Any) -> Any:
        return super().activation(layer.layer)

    def variables(self, layer: Any) -> list[keras.Variable]:
        return KINDS[type(layer.layer)].variables(layer.layer)

    def arrays(self, op: Linear) -> list[Array]:
        inner = self._inner(op)
        return inner.kind.arrays(inner)

    def adapt(self, config: dict[str, Any], op: Linear, activation: bool) -> None:
        inner = self._inner(op)
        inner.kind.adapt(config["layer"]["config"], inner, activation)

    @staticmethod
    def _inner(op: Linear) -> Linear:
        def back(affine: Affine | None) -> Affine | None:
            return affine and dataclasses.replace(affine, axis=affine.axis - 1)

        layer: Any = op.layer
        inner = layer.layer
        return Linear(inner, KINDS[type(inner)], inner.name, back(op.before), back(op.after))


def _window_sum(kernel: Array) -> Array:
    """Sum a kernel over its window: what a constant input sees of it."""
    return kernel.reshape(-1, *kernel.shape[-2:]).sum(axis=0)


def _zero_padding(layer: Any, shape: Shape) -> str:
    """Say that a convolution pads its input with zeros, unless it does not for this shape."""
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
    return f"it pads with zeros (padding='{layer.padding}'), which no shift may reach"


# By exact type: a subclass may compute anything.
KINDS: dict[type[keras.Layer], Kind] = {
    kl.Dense: DenseKind(),
    kl.EinsumDense: EinsumKind(),
    kl.Conv1D: ConvKind(),
    kl.Conv2D: ConvKind(),
    kl.Conv3D: ConvKind(),
    kl.DepthwiseConv1D: DepthwiseKind(),
    kl.DepthwiseConv2D: DepthwiseKind(),
    kl.SeparableConv1D: SeparableKind(),
    kl.SeparableConv2D: SeparableKind(),
    kl.Conv1DTranspose: ConvTransposeKind(),
    kl.Conv2DTranspose: ConvTransposeKind(),
    kl.Conv3DTranspose: ConvTransposeKind(),
}


def find(layer: Any) -> Kind | None:
    """Return what is known about a layer, or None where it is no linear layer that can absorb."""
    if type(layer) is kl.TimeDistributed:
        return TimeDistributedKind() if find(layer.layer) and type(layer.layer) in KINDS else None
    kind = KINDS.get(type(layer))
    if kind is None or layer.quantization_mode is not None:
        return None
    return kind
