"""How ONNX Runtime rounds."""

from __future__ import annotations

import numpy as np

from .arithmetic import Arithmetic, Ints, Scales
from .xnnpack import Float32


class OnnxRuntime(Float32):
    """Products in float32, and sums as the kernels for x86 and ARM have them: fused.

        round( q_b (s_b/s_y) + ( q_a (s_a/s_y) + (z_y - (z_a s_a/s_y + z_b s_b/s_y)) ) )

    Source: ONNX Runtime, MLAS, `RequantizeOutput` and `qladd.cpp`.
    """

    kernels = "ONNX Runtime"

    def total(
        self,
        operands: list[Ints],
        ratios: list[Scales],
        points: list[np.float32],
        point: np.float32,
    ) -> np.ndarray:
        """Return the sum before it is rounded."""
        part = sum((r * p for r, p in zip(ratios, points)), np.zeros(1, np.float32))
        total = (point - part).astype(np.float64)
        for operand, ratio in zip(operands, ratios):
            # The product of 8 and 24 bits is exact in float64: rounded once, as a fused one is.
            total = self.joined(operand * ratio.astype(np.float64), total)
        return total

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
    """Nothing fused: every op in float32 between its DequantizeLinear and QuantizeLinear.

    Sums of floats depend on their order; the exact sum is taken, which rounds to the same integer
    unless it is next to a tie.
    """

    kernels = "ONNX Runtime with nothing fused"

    def rounded(self, sums: Ints, x: Scales, w: Scales, y: Scales) -> Ints:
        """Divide by the scale of the result."""
        real = sums * (x.astype(np.float64) * w.astype(np.float64))
        return self._divided(real.astype(np.float32), y)

    def scaled(self, values: Ints, ratio: float) -> Ints:
        """Rounded but once."""
        return np.rint(values * ratio).astype(np.int64)

    def averaged(self, sums: Ints, count: int, x: Scales, y: Scales) -> Ints:
        """Divide by the scale of the result."""
        return self._divided((sums * np.float64(x) / count).astype(np.float32), y)

    def _divided(self, real: np.ndarray, y: Scales) -> Ints:
        return np.rint(np.clip(real / y, -(2.0**20), 2.0**20)).astype(np.int64)

    def total(
        self,
        operands: list[Ints],
        ratios: list[Scales],
        points: list[np.float32],
        point: np.float32,
    ) -> np.ndarray:
        """Return the sum before it is rounded."""
        terms = [(q - int(p)) * r.astype(np.float64) for q, r, p in zip(operands, ratios, points)]
        return np.asarray(sum(terms) + float(point))


ONNX_RULES: tuple[Arithmetic, ...] = (OnnxRuntime(), OnnxRuntimeApart(), OnnxRuntimePlain())
