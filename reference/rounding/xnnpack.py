"""XNNPACK's rounding rule, and the rules of all known runtimes for .tflite files."""

from __future__ import annotations

import numpy as np

from ...artifacts.graphs.base import ArtifactGraph
from .arithmetic import Arithmetic, nearest
from .quantized import Ints, Scales
from .tflite_rules import AwayFromZero, Micro, SingleRounding, Upward


class Float32(Arithmetic):
    """Multiply in float32 and round to the nearest integer, ties to even.

    Source: XNNPACK, `qs8-qc8w` kernels with `fp32` requantization; ONNX Runtime, MLAS
    `RequantizeOutput`.
    """

    name = "float"
    kernels = "XNNPACK"
    says = "fp32 multiply, round to nearest even (as XNNPACK and ONNX Runtime)"

    def of_bits(self, bits: int) -> Arithmetic:
        """Return TFLite's rule for 16-bit integers, which XNNPACK does not compute."""
        return self if bits == 8 else _BEHIND

    def matrices(self, sums: Ints, x: Scales, w: Scales, y: Scales) -> Ints:
        """As TFLite's kernels, since XNNPACK does not compute these products."""
        return _BEHIND.matrices(sums, x, w, y)

    def rounded(self, sums: Ints, x: Scales, w: Scales, y: Scales) -> Ints:
        """M = (s_x s_w) / s_y, each operation in float32; the sum is rounded to float32 first."""
        return nearest(sums.astype(np.float32) * (x * w / y))

    def times(self, values: Ints, m: Ints, e: Ints) -> Ints:
        """As TFLite's kernels, since XNNPACK has no such ops."""
        return _BEHIND.times(values, m, e)

    def scaled(self, values: Ints, ratio: float) -> Ints:
        """Multiply in float32."""
        return nearest(values.astype(np.float32) * np.float32(ratio))

    def added(self, a: Ints, b: Ints, scales: tuple[Scales, Scales, Scales], bits: int = 8) -> Ints:
        """In fixed point: both ratios in 21 bits, one shift, half up.

        Source: XNNPACK, `xnn_init_qs8_add_minmax_scalar_params`.
        """
        left, right, out = scales
        ratios = np.float32(left / out), np.float32(right / out)
        shift = 20 - (int(np.frexp(max(ratios))[1]) - 1)
        first, second = (int(np.rint(np.float64(ratio) * 2.0**shift)) for ratio in ratios)
        return (a * first + b * second + (1 << (shift - 1))) >> shift

    def quantized(self, values: np.ndarray, y: Scales) -> Ints:
        """Multiply by the reciprocal of the scale, both in float32."""
        return nearest(values * (np.float32(1) / y))

    def requantized(self, values: Ints, x: Scales, y: Scales) -> Ints:
        """In fixed point: the ratio in steps of 1/256, one shift, half up.

        Source: XNNPACK, `xnn_init_qs8_cvt_scalar_params`.
        """
        ratio = np.rint(np.float32(256) * (x / y)).astype(np.int64)
        return (values * ratio + (1 << 7)) >> 8

    def leaky(self, values: Ints, positive: float, negative: float) -> Ints:
        """In fixed point: both ratios in steps of 1/256, one shift, half up.

        Source: XNNPACK, `xnn_init_qs8_lrelu_scalar_params`.
        """
        ratios = (np.int64(np.rint(np.float32(256) * np.float32(r))) for r in (positive, negative))
        return np.asarray((np.where(values >= 0, *(values * ratio for ratio in ratios)) + 128) >> 8)

    def resized(self, x: Ints, sizes: list[int], corners: bool, centres: bool) -> Ints:
        """Weights in 1/2048 from positions in float32, one shift, half up.

        Source: XNNPACK, `xnn_indirection_init_resize_bilinear2d_hwc_q11`, `s8-ibilinear`.
        """
        for axis, size in zip((2, 3), sizes):
            low, high, share = _places_in_2048ths(x.shape[axis], size, corners, centres)
            share = share.reshape(-1, *[1] * (x.ndim - axis - 1))
            x = np.take(x, low, axis) * (2048 - share) + np.take(x, high, axis) * share
        return (x + (1 << 21)) >> 22

    def averaged(self, sums: Ints, count: int, x: Scales, y: Scales) -> Ints:
        """As any other sum, with the count included in the scale."""
        return nearest(sums.astype(np.float32) * (x / (y * np.float32(count))))


def _places_in_2048ths(
    size: int, wanted: int, corners: bool, centres: bool
) -> tuple[Ints, Ints, Ints]:
    """Return `places_in_1024ths` by XNNPACK's rule, with weights in 1/2048."""
    less = int(corners and wanted != 1)
    step = np.float32(size - less) / np.float32(wanted - less)
    at = np.arange(wanted, dtype=np.float32) * step
    if centres and not corners:
        at = np.clip(at + (np.float32(0.5) * step - np.float32(0.5)), 0, np.float32(size - 1))
    low = at.astype(np.int64)
    share = np.rint((at - low.astype(np.float32)) * np.float32(2048)).astype(np.int64)
    return low, np.minimum(low + 1, size - 1), share


class _BehindXnnpack(Upward):
    """LiteRT's optimized kernels: all 16-bit dense layers in double precision (LiteRT 2.3)."""

    def dense_narrow(self, sums: Ints, x: Scales, w: Scales, y: Scales) -> Ints:
        """See above."""
        return self.dense_wide(sums, x, w, y)


class Earlier(Upward):
    """The optimized kernels with 16-bit dense layers as convolutions (tflite-runtime 2.14).

    Its averages over both spatial axes have no groups of another rounding (measured).
    """

    name = "double, half up, earlier"
    kernels = "TFLite's optimized kernels before 2.17"
    says = (
        "16-bit dense layers and averages that round as earlier (as TFLite's optimized kernels "
        "before 2.17)"
    )

    def dense_wide(self, sums: Ints, x: Scales, w: Scales, y: Scales) -> Ints:
        """As for a convolution."""
        return self.rounded_wide(sums, x, w, y)

    def sixteens(self, values: Ints, m: Ints, e: Ints) -> Ints:
        """As in the portable kernels."""
        return self.times(values, m, e)


_BEHIND = _BehindXnnpack()

TFLITE_RULES: tuple[Arithmetic, ...] = (
    Float32(),
    AwayFromZero(),
    Upward(),
    Micro(),
    SingleRounding(),
)

_ALL_TFLITE_RULES = (*TFLITE_RULES, Earlier())


def tflite_rules(graph: ArtifactGraph) -> tuple[Arithmetic, ...]:
    """Return the rules that may differ on a .tflite file.

    One of them differs only for 16-bit integers and averages.
    """
    steps = [tensor.quantization for tensor in graph.tensors.values()]
    wide = any(entry is not None and entry.dtype == np.int16 for entry in steps)
    averages = any(op.kind == "MEAN" for op in graph.ops)
    return _ALL_TFLITE_RULES if wide or averages else TFLITE_RULES
