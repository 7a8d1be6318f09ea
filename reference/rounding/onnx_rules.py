"""ONNX Runtime's rounding rules."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..special_functions import softmax
from .arithmetic import Arithmetic, nearest
from .quantized import Ints, Output, Quantized, Scales
from .xnnpack import Float32


class OnnxRuntime(Float32):
    """Products in float32; sums with fused multiply-add, as in the kernels for x86 and ARM.

        round( q_b (s_b/s_y) + ( q_a (s_a/s_y) + (z_y - (z_a s_a/s_y + z_b s_b/s_y)) ) )

    Source: ONNX Runtime, MLAS, `RequantizeOutput` and `qladd.cpp`.
    """

    kernels = "ONNX Runtime"

    def dense(self, sums: Ints, x: Scales, w: Scales, y: Scales) -> Ints:
        """Round as any other sum: one kernel computes all matrix products."""
        return self.rounded(sums, x, w, y)

    depthwise = transposed = matrices = matrices_wide = rounded_wide = dense_wide = dense_narrow = (
        dense
    )

    def total(self, operands: Sequence[Quantized], output: Output) -> Ints:
        """Add the zero point before rounding."""
        limits = np.iinfo(output.steps.dtype)
        total = self.unrounded(operands, output.scale, output.point)
        return np.clip(np.rint(total), limits.min, limits.max).astype(np.int64)

    def unrounded(self, operands: Sequence[Quantized], y: Scales, point: int) -> np.ndarray:
        """Return the sum of two operands before it is rounded, zero point included."""
        ratios = [operand.scale / y for operand in operands]
        points = [np.float32(operand.point) for operand in operands]
        part = sum((r * p for r, p in zip(ratios, points)), np.zeros(1, np.float32))
        total = (np.float32(point) - part).astype(np.float64)
        for operand, ratio in zip(operands, ratios):
            # The product of 8 and 24 bits is exact in float64, so it is rounded once, as if fused.
            total = self.joined(operand.integers * ratio.astype(np.float64), total)
        return total

    def shares(self, x: Ints, scale: Any, beta: Any, y: Scales) -> Ints:
        """Round the shares of a fused softmax."""
        return np.rint(self.moved(self.unrounded_shares(x, scale, y))).astype(np.int64)

    @staticmethod
    def unrounded_shares(x: Ints, scale: Any, y: Scales) -> np.ndarray:
        """Use a table of float32 exponentials, and scale by floor(1/y) instead of 1/y.

        If y is the float32 number nearest to 1/255, results are 254/255 of the exact ones. The
        exponentials are scaled up by a factor that cancels but affects their rounding. Their
        product with floor(1/y) could exceed float32 where all shares are small; the kernel does
        not overflow there. Source: ONNX Runtime, `qlinear_softmax.cc`; the overflow measured of
        version 1.32.
        """
        scale = float(scale)
        room = max(0.0, math.log(float(np.finfo(np.float32).max) / x.shape[-1]) - 5) / scale
        table = np.exp((np.arange(256) - 255 + room) * scale).astype(np.float32)
        raised = table[x + 255 - x.max(axis=-1, keepdims=True)].astype(np.float64)
        sums = raised.sum(axis=-1, keepdims=True)
        return np.asarray(raised * np.floor(np.float32(1) / y) / sums)

    def joined(self, product: np.ndarray, total: np.ndarray) -> np.ndarray:
        """Return product + total in float32."""
        return (product + total).astype(np.float32).astype(np.float64)


class OnnxRuntimeApart(OnnxRuntime):
    """The same on processors without fused multiply-add."""

    kernels = "ONNX Runtime without fused multiply-add"

    def joined(self, product: np.ndarray, total: np.ndarray) -> np.ndarray:
        """Round the product first."""
        return super().joined(product.astype(np.float32).astype(np.float64), total)


class OnnxRuntimePlain(OnnxRuntime):
    """Without fusion: every op in float32 between its DequantizeLinear and QuantizeLinear.

    Sums of floats depend on their order. The exact sum is used, which rounds to the same integer
    unless it is close to a tie.
    """

    kernels = "ONNX Runtime with nothing fused"

    def rounded(self, sums: Ints, x: Scales, w: Scales, y: Scales) -> Ints:
        """Divide by the scale of the result."""
        real = sums * (x.astype(np.float64) * w.astype(np.float64))
        return self._divided(real.astype(np.float32), y)

    def scaled(self, values: Ints, ratio: float) -> Ints:
        """Round once."""
        return np.rint(self.moved(values * ratio)).astype(np.int64)

    def averaged(self, sums: Ints, count: int, x: Scales, y: Scales) -> Ints:
        """Divide by the scale of the result."""
        return self._divided((sums * np.float64(x) / count).astype(np.float32), y)

    def _divided(self, real: np.ndarray, y: Scales) -> Ints:
        return nearest(self.moved(real / y))

    def unrounded(self, operands: Sequence[Quantized], y: Scales, point: int) -> np.ndarray:
        """Return the exact sum of the real numbers, in steps of the output."""
        terms = [o.centred * (o.scale / y).astype(np.float64) for o in operands]
        return self.moved(np.asarray(sum(terms))) + float(point)

    def shares(self, x: Ints, scale: Any, beta: Any, y: Scales) -> Ints:
        """Return the softmax of the real numbers, rounded to float32 and then to steps."""
        real = x.astype(np.float32) * np.float32(scale)
        exact = softmax(real.astype(np.float64), axis=-1).astype(np.float32)
        return np.rint(self.moved(exact / y)).astype(np.int64)


ONNX_RULES: tuple[Arithmetic, ...] = (OnnxRuntime(), OnnxRuntimeApart(), OnnxRuntimePlain())
