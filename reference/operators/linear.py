"""Convolutions and dense layers: one shift-and-multiply loop for every rank, kind and padding.

A sum of K products and a bias, computed in any order with unit roundoff u, is within
γ_{K+1} (|W|·|x| + |b|) of its exact value; errors of the inputs pass through |W|.
"""

from __future__ import annotations

import abc
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ..rounding.arithmetic import Arithmetic, Finish
from ..rounding.quantized import Ints, Scales
from .base import (
    ROUNDING,
    Arrays,
    Attributes,
    Evaluated,
    Integers,
    Operator,
    Weights,
    as_given,
    channels_last,
    gamma,
)

Rescaling = Callable[[Ints, Scales, Scales, Scales], Ints]


def same_padding(size: int, kernel: int, stride: int) -> tuple[int, int]:
    """Return TensorFlow's padding of one axis: an odd element goes to the end.

    Args:
        size: Input size.
        kernel: Kernel size, dilation included.
        stride: Stride.
    """
    total = max((math.ceil(size / stride) - 1) * stride + kernel - size, 0)
    return total // 2, total - total // 2


def paddings(
    sizes: Sequence[int], kernel: Sequence[int], attributes: Attributes
) -> list[tuple[int, int]]:
    """Return the zero padding of every spatial axis, from its name or from explicit pairs."""
    padding = attributes["padding"]
    spans = [(k - 1) * d + 1 for k, d in zip(kernel, attributes["dilation"])]
    if not isinstance(padding, str):
        return [(before, after) for before, after in padding]
    if padding == "valid":
        return [(0, 0)] * len(sizes)
    if padding == "causal":
        return [(span - 1, 0) for span in spans]
    return [same_padding(*axis) for axis in zip(sizes, spans, attributes["strides"])]


def windows(
    x: np.ndarray, kernel: Sequence[int], strides: Sequence[int], dilation: Sequence[int]
) -> list[tuple[tuple[int, ...], np.ndarray]]:
    """Return, for each kernel offset, the strided view of x that it multiplies."""
    spatial = x.shape[1 : 1 + len(kernel)]
    outs = [
        (size - (k - 1) * d - 1) // s + 1
        for size, k, s, d in zip(spatial, kernel, strides, dilation)
    ]
    found = []
    for offset in itertools.product(*(range(k) for k in kernel)):
        cut = tuple(
            slice(o * d, o * d + (n - 1) * s + 1, s)
            for o, d, s, n in zip(offset, dilation, strides, outs)
        )
        found.append((offset, x[(slice(None), *cut)]))
    return found


def scattered(
    x: np.ndarray,
    sizes: Any,
    attributes: Attributes,
    add: Callable[[tuple[int, ...], np.ndarray], np.ndarray],
) -> np.ndarray:
    """Add the contribution of each window offset to the positions that it read in (M, *S, C)."""
    dilation = attributes["dilation"]
    pads = paddings(x.shape[1:-1], sizes, attributes)
    padded = [n + before + after for n, (before, after) in zip(x.shape[1:-1], pads)]
    whole = np.zeros((len(x), *padded, x.shape[-1]))
    for offset, part in windows(whole, sizes, attributes["strides"], dilation):
        part += add(offset, part)
    crop = tuple(slice(before, before + n) for n, (before, _) in zip(x.shape[1:-1], pads))
    return whole[(slice(None), *crop)]


# Rows of a matrix from which on a product takes longer than copying it.
_MANY_ROWS = 16


def multiplied(x: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """Return the product of the last axis of (…, in) with (in, out).

    NumPy multiplies a stack of matrices one by one. Those of few rows are merged into one matrix,
    which costs a copy.
    """
    if x.ndim < 3 or x.shape[-2] >= _MANY_ROWS:
        return np.asarray(x @ matrix)
    return np.asarray(x.reshape(-1, x.shape[-1]) @ matrix).reshape(*x.shape[:-1], matrix.shape[-1])


def multiplied_by_group(x: np.ndarray, matrices: np.ndarray) -> np.ndarray:
    """Return the product of (…, G·in) with (G, in, out), group by group, as (…, G·out)."""
    split = x.reshape(-1, len(matrices), matrices.shape[1])
    product = np.moveaxis(split, 1, 0) @ matrices
    return np.moveaxis(product, 0, 1).reshape(*x.shape[:-1], -1)


class Linear(Operator):
    """A linear map by a kernel, with an optional bias."""

    @abc.abstractmethod
    def apply(self, x: np.ndarray, kernel: np.ndarray, attributes: Attributes) -> np.ndarray:
        """Return the product of (M, *S, C) with a kernel."""

    @abc.abstractmethod
    def transposed(
        self, x: np.ndarray, kernel: np.ndarray, attributes: Attributes, gradient: np.ndarray
    ) -> np.ndarray:
        """Return the gradient with respect to (M, *S, C), given that of the product."""

    @abc.abstractmethod
    def terms(self, kernel: np.ndarray, attributes: Attributes) -> int:
        """Return the number of products in the sum of one output element."""

    def rescaling(self, rule: Arithmetic, bits: int, wide: bool = True) -> Rescaling:
        """Return the function of a rule that rescales this operator's exact sums.

        Args:
            rule: The rule.
            bits: Size of the output's integers.
            wide: Whether the bias has 64 bits; used only for 16-bit integers.
        """
        return rule.rounded if bits == 8 else rule.rounded_wide

    def _product(
        self, x: np.ndarray, kernel: np.ndarray, bias: Any, attributes: Attributes
    ) -> np.ndarray:
        y = self.apply(channels_last(x, attributes), kernel, attributes)
        return as_given(y if bias is None else y + bias, attributes, x.shape)

    def evaluate(self, inputs: Arrays, weights: Weights, attributes: Attributes) -> np.ndarray:
        """See the base class."""
        return self._product(inputs[0], weights["kernel"], weights.get("bias"), attributes)

    def error_bound(self, at: Evaluated, errors: Arrays, unit: float) -> np.ndarray:
        """See the base class."""
        kernel, bias = np.abs(at.weights["kernel"]), at.weights.get("bias")
        size = np.abs(at.inputs[0]) + errors[0]
        bias = None if bias is None else np.abs(bias)
        rounding = gamma(self.terms(kernel, at.attributes) + 1, unit) * self._product(
            size, kernel, bias, at.attributes
        )
        if not errors[0].any():
            return rounding
        return rounding + self._product(errors[0], kernel, None, at.attributes)

    def variance(self, at: Evaluated, variances: Arrays, unit: float) -> np.ndarray:
        """See the base class.

        Adding K products one by one rounds K partial sums. Modelled as a random walk from the bias
        b to y, the k-th partial sum has at t = k/K the expected square ((1-t) b + t y)² + t Σ(wx)²;
        the mean over t is (b² + b y + y²)/3 + Σ(wx)²/2.
        """
        kernel, output = at.weights["kernel"], at.output
        terms = self.terms(kernel, at.attributes)
        squares = variances[0] + ROUNDING * terms / 2 * np.square(at.inputs[0])
        walked = self._product(squares, np.square(kernel), None, at.attributes)
        ends = np.square(output)
        if "bias" in at.weights:
            start = self._bias(at)
            ends = ends + start * (start + output)
        return walked + ROUNDING * (terms / 3 * ends + np.square(output))

    def _bias(self, at: Evaluated) -> np.ndarray:
        """Return the bias in the shape that broadcasts against the output."""
        bias = at.weights["bias"]
        if at.attributes.get("data_format") != "channels_first":
            return bias
        axis = 2 if at.attributes.get("time_distributed", False) else 1
        return bias.reshape([-1 if i == axis else 1 for i in range(at.output.ndim)])

    def gradient(self, at: Evaluated, gradient: np.ndarray) -> Arrays:
        """See the base class."""
        x, attributes = at.inputs[0], at.attributes
        found = self.transposed(
            channels_last(x, attributes),
            at.weights["kernel"],
            attributes,
            channels_last(gradient, attributes),
        )
        return [as_given(found, attributes, x.shape)]

    def integer(self, at: Integers) -> Finish:
        """See the base class; two axes of samples, (P, B, …), are merged for the sums."""
        x, kernel = at.operands[0], at.weights["kernel"]
        given = at.weights.get("bias")
        bias = np.zeros(1) if given is None else given.integers
        wide = given is not None and given.bits == 64
        samples, rest = x.integers.shape[:2], x.integers.shape[2:]
        merged = x.centred.reshape(-1, *rest)
        sums = self._exact_sums(merged, kernel.integers, bias, at.attributes)
        sums = sums.reshape(*samples, *sums.shape[1:])

        def finish(rule: Arithmetic) -> Ints:
            rescaled = self.rescaling(rule, at.output.bits, wide)
            return at.output.saturated(rescaled(sums, x.scale, kernel.scale, at.output.scale))

        return finish

    def _exact_sums(
        self, x: Ints, kernel: np.ndarray, bias: np.ndarray, attributes: Attributes
    ) -> Ints:
        """Return exact sums of integers.

        Integers below 2^53 are exact in float64 in any order of summation, those below 2^24 in
        float32, which is faster.
        """
        # No result sums more of a kernel than its places times the longer of the last two axes.
        most = np.abs(kernel).sum(axis=tuple(range(kernel.ndim - 2))).max(initial=0.0)
        most *= max(kernel.shape[-2:]) * float(np.abs(x).max(initial=0))
        small = most + float(np.abs(bias).max(initial=0.0)) < 2**24
        dtype = np.float32 if small else np.float64
        found = self._product(x.astype(dtype), kernel.astype(dtype), bias.astype(dtype), attributes)
        return np.asarray(found).astype(np.int64)


class Convolution(Linear):
    """Cross-correlation of (M, *S, C) with (*K, C/groups, F)."""

    def apply(self, x: np.ndarray, kernel: np.ndarray, attributes: Attributes) -> np.ndarray:
        """See the base class."""
        sizes = kernel.shape[:-2]
        x = np.pad(x, [(0, 0), *paddings(x.shape[1:-1], sizes, attributes), (0, 0)])
        groups = attributes.get("groups", 1)
        total: np.ndarray | None = None
        for offset, part in windows(x, sizes, attributes["strides"], attributes["dilation"]):
            weight = kernel[offset]
            if groups == 1:
                term = multiplied(part, weight)
            else:
                by_group = np.moveaxis(weight.reshape(weight.shape[0], groups, -1), 1, 0)
                term = multiplied_by_group(part, by_group)
            # In place: the first term is an array of its own.
            total = term if total is None else np.add(total, term, out=total)
        assert total is not None
        return total

    def transposed(
        self, x: np.ndarray, kernel: np.ndarray, attributes: Attributes, gradient: np.ndarray
    ) -> np.ndarray:
        """See the base class."""
        groups = attributes.get("groups", 1)

        def sent(offset: tuple[int, ...], part: np.ndarray) -> np.ndarray:
            weight = kernel[offset]
            if groups == 1:
                return multiplied(gradient, weight.T)
            by_group = np.transpose(weight.reshape(weight.shape[0], groups, -1), (1, 2, 0))
            return multiplied_by_group(gradient, by_group)

        return scattered(x, kernel.shape[:-2], attributes, sent)

    def terms(self, kernel: np.ndarray, attributes: Attributes) -> int:
        """See the base class."""
        return int(np.prod(kernel.shape[:-1]))


class DepthwiseConvolution(Linear):
    """Cross-correlation of (M, *S, C) with (*K, C, multiplier), channel by channel."""

    def rescaling(self, rule: Arithmetic, bits: int, wide: bool = True) -> Rescaling:
        """See the base class."""
        return rule.depthwise if bits == 8 else rule.rounded_wide

    def apply(self, x: np.ndarray, kernel: np.ndarray, attributes: Attributes) -> np.ndarray:
        """See the base class."""
        sizes = kernel.shape[:-2]
        x = np.pad(x, [(0, 0), *paddings(x.shape[1:-1], sizes, attributes), (0, 0)])
        total: np.ndarray | None = None
        for offset, part in windows(x, sizes, attributes["strides"], attributes["dilation"]):
            term = part[..., None] * kernel[offset]
            total = term if total is None else np.add(total, term, out=total)
        assert total is not None
        return total.reshape(*total.shape[:-2], -1)

    def transposed(
        self, x: np.ndarray, kernel: np.ndarray, attributes: Attributes, gradient: np.ndarray
    ) -> np.ndarray:
        """See the base class."""
        split = gradient.reshape(*gradient.shape[:-1], *kernel.shape[-2:])
        return scattered(
            x,
            kernel.shape[:-2],
            attributes,
            lambda offset, _: np.sum(split * kernel[offset], axis=-1),
        )

    def terms(self, kernel: np.ndarray, attributes: Attributes) -> int:
        """See the base class."""
        return int(np.prod(kernel.shape[:-2]))


class TransposedConvolution(Linear):
    """Scatters (M, *S, C) through (*K, F, C): the gradient of a convolution for its input."""

    def rescaling(self, rule: Arithmetic, bits: int, wide: bool = True) -> Rescaling:
        """See the base class."""
        return rule.transposed if bits == 8 else rule.rounded_wide

    def apply(self, x: np.ndarray, kernel: np.ndarray, attributes: Attributes) -> np.ndarray:
        """See the base class."""
        rank = kernel.ndim - 2
        strides, dilation = attributes["strides"], attributes["dilation"]
        spans = [(k - 1) * d + 1 for k, d in zip(kernel.shape, dilation)]
        sizes = x.shape[1 : 1 + rank]
        full = [(n - 1) * s + k for n, s, k in zip(sizes, strides, spans)]
        # In TensorFlow the full transposed convolution may be longer than the output.
        room = [max(f, n * s) + s for f, n, s in zip(full, sizes, strides)]
        out = np.zeros((len(x), *room, kernel.shape[-2]), x.dtype)
        for offset in itertools.product(*(range(k) for k in kernel.shape[:rank])):
            cut = tuple(
                slice(o * d, o * d + (n - 1) * s + 1, s)
                for o, d, s, n in zip(offset, dilation, strides, sizes)
            )
            out[(slice(None), *cut)] += multiplied(x, kernel[offset].T)
        wanted = attributes["output_sizes"]
        same = attributes["padding"] == "same"
        starts = [max(f - w, 0) // 2 if same else 0 for f, w in zip(full, wanted)]
        crop = tuple(slice(start, start + w) for start, w in zip(starts, wanted))
        return out[(slice(None), *crop)]

    def transposed(
        self, x: np.ndarray, kernel: np.ndarray, attributes: Attributes, gradient: np.ndarray
    ) -> np.ndarray:
        """Gather the scattered values: the convolution of which this is the transpose."""
        rank = kernel.ndim - 2
        strides, dilation = attributes["strides"], attributes["dilation"]
        spans = [(k - 1) * d + 1 for k, d in zip(kernel.shape, dilation)]
        sizes, wanted = x.shape[1 : 1 + rank], attributes["output_sizes"]
        full = [(n - 1) * s + k for n, s, k in zip(sizes, strides, spans)]
        same = attributes["padding"] == "same"
        pads = []
        for f, w, n, s in zip(full, wanted, sizes, strides):
            start = max(f - w, 0) // 2 if same else 0
            pads.append((start, max(f, n * s) + s - start - w))
        padded = np.pad(gradient, [(0, 0), *pads, (0, 0)])
        total = np.zeros_like(x, dtype=np.float64)
        for offset in np.ndindex(*kernel.shape[:rank]):
            cut = tuple(
                slice(o * d, o * d + (n - 1) * s + 1, s)
                for o, d, s, n in zip(offset, dilation, strides, sizes)
            )
            total += multiplied(padded[(slice(None), *cut)], kernel[offset])
        return total

    def terms(self, kernel: np.ndarray, attributes: Attributes) -> int:
        """See the base class."""
        return int(np.prod(kernel.shape[:-2])) * kernel.shape[-1]


class Dense(Linear):
    """Product of the last axis with (in, out)."""

    def rescaling(self, rule: Arithmetic, bits: int, wide: bool = True) -> Rescaling:
        """See the base class."""
        if bits == 8:
            return rule.dense
        return rule.dense_wide if wide else rule.dense_narrow

    def apply(self, x: np.ndarray, kernel: np.ndarray, attributes: Attributes) -> np.ndarray:
        """See the base class."""
        return multiplied(x, kernel)

    def transposed(
        self, x: np.ndarray, kernel: np.ndarray, attributes: Attributes, gradient: np.ndarray
    ) -> np.ndarray:
        """See the base class."""
        return multiplied(gradient, kernel.T)

    def terms(self, kernel: np.ndarray, attributes: Attributes) -> int:
        """See the base class."""
        return int(kernel.shape[0])


class Einsum(Linear):
    """Contraction of a value and a kernel by an equation."""

    def apply(self, x: np.ndarray, kernel: np.ndarray, attributes: Attributes) -> np.ndarray:
        """See the base class."""
        return np.einsum(attributes["equation"], x, kernel, optimize=True)

    def transposed(
        self, x: np.ndarray, kernel: np.ndarray, attributes: Attributes, gradient: np.ndarray
    ) -> np.ndarray:
        """See the base class."""
        operands, result = attributes["equation"].split("->")
        first, second = operands.split(",")
        return np.einsum(f"{result},{second}->{first}", gradient, kernel, optimize=True)

    def terms(self, kernel: np.ndarray, attributes: Attributes) -> int:
        """Return the size of the contracted axes."""
        operands, result = attributes["equation"].replace("...", "").split("->")
        labels = operands.split(",")[1]
        return int(np.prod([n for n, label in zip(kernel.shape, labels) if label not in result]))


LINEAR: dict[str, Operator] = {
    "conv": Convolution(),
    "depthwise_conv": DepthwiseConvolution(),
    "conv_transpose": TransposedConvolution(),
    "dense": Dense(),
    "einsum": Einsum(),
}
