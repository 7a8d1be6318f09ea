"""Functions that TFLite's kernels compute by tables and in fixed point.

For 8 bits a table holds all 256 results, computed in float32. For 16 bits tables of 257 or 513
points are interpolated linearly.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from ..special_functions import erfc, rounded_once
from .arithmetic import Arithmetic, Finish
from .fixed_point import away_from_zero, divided, high_product, multiplier
from .quantized import Ints, Output, Quantized

Function = Callable[[np.ndarray], np.ndarray]
_ONE, _UNIT = np.float32(1), 2.0**-24


def float32_sigmoid(x: np.ndarray) -> np.ndarray:
    """Return the logistic function in float32."""
    return np.asarray(_ONE / (_ONE + rounded_once(np.exp)(-x)))


def float32_gelu(x: np.ndarray) -> np.ndarray:
    """Return the exact GELU in float32. Source: TFLite, `reference/gelu.h`."""
    return np.asarray(np.float32(0.5) * x * erfc(x * np.float32(-np.sqrt(0.5))))


def float32_gelu_tanh(x: np.ndarray) -> np.ndarray:
    """Return the tanh approximation of GELU. Source: TFLite, `reference/gelu.h`."""
    inner = np.float32(2 / np.sqrt(np.pi) * np.sqrt(0.5)) * (x + np.float32(0.044715) * x * x * x)
    return np.asarray(np.float32(0.5) * x * (_ONE + rounded_once(np.tanh)(inner)))


def tabled(function: Function, x: Quantized, output: Output) -> Finish:
    """Return a function of integers by a table of all results (8 bits) or `wide_table` (16 bits).

    The function is one of the C library, which errs by some units in the last place: results next
    to a tie depend on the library. The `turn` of a rule turns them.

    Source: TFLite, `internal/common.h`, `LUTPopulateInt8` and `LUTPopulateInt16`.

    Args:
        function: The function of float32 numbers.
        x: The argument.
        output: The steps of the result.
    """
    scale, y = x.scale[0], output.scale[0]
    if x.bits == 16:

        @functools.cache
        def interpolated(turn: float) -> Ints:
            table = wide_table(function, scale, x.point, y, np.float32, turn)
            return looked_up(x.integers, table)

        return lambda rule: interpolated(rule.turn)
    limits = np.iinfo(x.steps.dtype)
    inputs = np.arange(limits.min, limits.max + 1) - x.point
    results = function(scale * inputs.astype(np.float32)) * (_ONE / y)

    def finish(rule: Arithmetic) -> Ints:
        turned = results + rule.turn * _UNIT * np.abs(results) if rule.turn else results
        table = output.saturated(rule.nearest(turned))
        return np.asarray(table[x.integers - limits.min])

    return finish


def wide_table(
    function: Function, scale: Any, point: int, y: Any, dtype: Any, turn: float = 0.0
) -> Ints:
    """Return TFLite's table of 513 points for a function of 16-bit integers.

    Each point is shifted by half the error of linear interpolation at the midpoint. Source: TFLite,
    `internal/common.h`, `LUTPopulateInt16`.

    Args:
        function: The function.
        scale: Scale of its argument.
        point: The argument's zero point.
        y: Scale of the result, whose zero point is 0.
        dtype: The floating-point type that the kernel computes the table in.
        turn: Units in the last place by which the function may err: a positive number gives the
            greatest table, a negative one the least.
    """
    scale, y, one = dtype(scale), dtype(y), dtype(1)
    low, high = scale * dtype(-32768 - point), scale * dtype(32767 - point)
    step = (high - low) / dtype(512)
    inverse = dtype(65536) / (y * dtype(32767) - y * dtype(-32768))
    index = np.arange(512).astype(dtype)
    value, middle, following = (
        function(at).astype(dtype)
        for at in (
            low + index * step,
            low + index * step + step / dtype(2),
            low + (index + one) * step,
        )
    )
    last = function(np.asarray([high], dtype)).astype(dtype)
    if turn:
        value, middle, last = (x + turn * _UNIT * np.abs(x) for x in (value, middle, last))
        following = following - turn * _UNIT * np.abs(following)
    sample = away_from_zero(value * inverse)
    line = away_from_zero((following * inverse + sample) / dtype(2))
    bias = away_from_zero((line - away_from_zero(middle * inverse)) / dtype(2))
    last = away_from_zero(last * inverse)
    return np.clip(np.concatenate([sample - bias, last]), -32768, 32767).astype(np.int64)


def looked_up(x: Ints, table: Ints) -> Ints:
    """Return a function of 16-bit integers, interpolated between two of 513 points.

    Differences beyond 16 bits overflow, as next to the pole of a logarithm. Source: TFLite,
    `internal/common.h`, `LUTLookup`.
    """
    index, offset = 256 + (x >> 7), x & 0x7F
    base = table[index]
    slope = (table[index + 1] - base).astype(np.int16).astype(np.int64)
    return np.asarray(base + ((slope * offset + 64) >> 7)).astype(np.int16).astype(np.int64)


# 2^16 times the logistic function at multiples of 1/24. TFLite's table (`internal/common.h`) is one
# more than the nearest integer at the positions of the bits that are set here.
_ABOVE = 0x800000000000000000000000000000800011009020440005C0467BAEFA7BD110
_SIGMOID = np.minimum(np.rint(65536 / (1 + np.exp(-np.arange(256) / 24))), 65535).astype(
    np.int64
) + np.array([_ABOVE >> place & 1 for place in range(256)])


def _wide_argument(x: Ints, scale: Any, powers: tuple[int, ...]) -> Ints:
    """Return 16-bit integers in steps of 1/(3 · 4096).

    Source: TFLite, `kernels/activations.cc`, `SigmoidPrepare` and `TanhPrepare`.

    Args:
        x: The integers.
        scale: Their scale.
        powers: Left shifts by which scales that are a power of two are treated exactly.
    """
    mantissa, exponent = np.frexp(np.float32(scale))
    shift = 12 + int(exponent) - 1
    if mantissa == 0.5 and shift in powers:
        return x * (3 << shift)
    factor, right = float(np.float32(scale)) * 4096.0 * 3.0, 0
    while factor <= 32767.0 / 2.0 and right <= 30:
        factor, right = factor * 2, right + 1
    return np.asarray((x * int(factor) + ((1 << right) >> 1)) >> right)


def wide_sigmoid(x: Ints, scale: Any) -> Ints:
    """Return the logistic function of 16-bit integers in steps of 2^-15.

    Source: TFLite, `reference/integer_ops/logistic.h`.
    """
    argument = _wide_argument(x, scale, (0,))
    size = np.abs(argument)
    index, part = size >> 9, size & 0x1FF
    low, high = _SIGMOID[np.minimum(index, 255)], _SIGMOID[np.minimum(index + 1, 255)]
    result = np.where(index >= 255, 0x7FFF << 10, (low << 9) + part * (high - low))
    result = np.where(argument >= 0, result + (1 << 9), (1 << 25) - result + (1 << 9) - 1)
    return np.asarray(result >> 10)


def wide_tanh(x: Ints, scale: Any) -> Ints:
    """Return the hyperbolic tangent of 16-bit integers in steps of 2^-15.

    Source: TFLite, `reference/integer_ops/tanh.h`.
    """
    argument = _wide_argument(x, scale, (0, 1))
    size = np.abs(argument)
    index, part = size >> 8, size & 0xFF
    low, high = _SIGMOID[np.minimum(index, 255)], _SIGMOID[np.minimum(index + 1, 255)]
    result = np.where(index >= 255, 0xFFFF << 8, (low << 8) + part * (high - low))
    half, nudge = 1 << 23, 1 << 7
    result = np.where(argument >= 0, result - half + nudge, half - result + nudge - 1)
    return np.asarray(result >> 8)


def hard_swish(x: Quantized, output: Output) -> Ints:
    """Return x relu6(x + 3) / 6 in 16-bit fixed point. Source: TFLite, `reference/hard_swish.h`."""
    fine = np.float32(1 / 128) * x.scale[0]
    m_out, e_out = _short(fine / output.scale[0])
    m_gate, e_gate = _short(fine / np.float32(3 / 32768))
    raised = x.centred << 7
    value, gate = high_product(raised, m_out, 16), raised
    if e_gate > 0:
        gate = _saturated16(gate << (e_gate - 1))
    gate = high_product(gate, m_gate, 16)
    if e_gate > 0:
        gate = _saturated16(gate << 1)
    gate = (divided(gate, max(-e_gate, 0)) + (1 << 15)) >> 1
    product = gate * value
    product = np.sign(product) * (np.abs(product) >> 15)  # rounds towards zero
    return output.saturated(divided(product, -e_out))


def _short(scale: Any) -> tuple[int, int]:
    """Return a multiplier of 16 bits and its exponent."""
    m, e = multiplier(float(scale))
    return min((int(m) + (1 << 15)) >> 16, 32767), int(e)


def _saturated16(values: Ints) -> Ints:
    return np.clip(values, -32768, 32767)


def wide_softmax(x: Ints, scale: Any, beta: Any) -> Ints:
    """Return the softmax of 16-bit integers in steps of 2^-15: two tables in fixed point.

    Source: TFLite, `reference/softmax.h`, `SoftmaxInt16`.
    """
    m, e = multiplier(float(np.float32(scale * beta)) / (10.0 / 65535.0))
    difference = x - x.max(axis=-1, keepdims=True)
    scaled = divided(high_product(difference << max(e, 0), m), max(-e, 0)) + 32767
    raised = looked_up(_saturated16(scaled), _EXP)
    total = raised.sum(axis=-1, keepdims=True)
    headroom = 32 - np.frexp(total.astype(np.float64))[1].astype(np.int64)
    shifted = ((total << (headroom - 1)) + (1 << 13)) >> 14
    reciprocal = looked_up(_saturated16(shifted - (1 << 15) - (1 << 16)), _RECIPROCAL)
    right = 31 - headroom
    return np.clip((raised * reciprocal + (np.int64(1) << (right - 1))) >> right, 0, 32767)


_EXP = wide_table(np.exp, 10.0 / 65535, 32767, 2.0 / 65535, np.float64)
_RECIPROCAL = wide_table(lambda x: 1 / (1 + x), 1.0 / 65535, -32768, 2.0 / 65535, np.float64)
