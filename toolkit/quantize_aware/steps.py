"""Steps, zero points and fake quantization, as pure functions.

A quantized number is ``step * (q - zero)`` with an integer q of a given number of bits. Here
integers are *centred*, ``q - zero``, as floats: real zero is the integer zero.

    step = (high - low) / (2^bits - 1)     zero = round(q_min - low / step)      low <= 0 <= high

Steps are rounded to ``24 - bits`` significant bits. Then every multiple of the step is an exact
float32 number, dividing by the step gives back the exact integer, and any converter that is given
the range ends finds exactly the same step. It changes a step by less than 2^-16 of itself.

Sums of products of integers are exact in float32 as long as they stay below 2^24, in any order of
summation, and also where the hardware multiplies in TF32 or bfloat16 (a centred 8-bit integer has 8
bits).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from keras import ops

from ..renorm import Tensor

_MANTISSA = 24
# The smallest step: an all-zero value has this step, whose square is a normal number.
_LEAST_STEP = 2.0**-40
# Biases stay below this number of steps: exact in float32, and far from 32-bit overflow. With
# 16-bit activations, biases have 64 bits, and sums are those of the two bytes of each input.
_MOST_BIAS = {8: 2.0**22, 16: 2.0**29}


def limits(bits: int, *, narrow: bool = False) -> tuple[int, int]:
    """Return the least and the greatest signed integer of a number of bits.

    Args:
        bits: Number of bits.
        narrow: Whether to leave out the least, as symmetric weights do.
    """
    most = 2 ** (bits - 1) - 1
    return (-most if narrow else -most - 1), most


def significant(values: Tensor, bits: int) -> Tensor:
    """Round float32 numbers to a number of significant bits (Veltkamp's splitting)."""
    spread = values * (2.0 ** (_MANTISSA - bits) + 1.0)
    return spread - (spread - values)


def rounded(values: Tensor) -> Tensor:
    """Round to the nearest integer, ties to even, with a straight-through gradient."""
    return values + ops.stop_gradient(ops.round(values) - values)


def as_if(exact: Tensor, surrogate: Tensor) -> Tensor:
    """Return the value of ``exact`` with the gradient of ``surrogate``."""
    return ops.stop_gradient(exact) + (surrogate - ops.stop_gradient(surrogate))


def grid_of(low: Tensor, high: Tensor, bits: int, *, symmetric: bool = False) -> Tensor:
    """Return the grid, ``[step, zero]``, of a range; zero is exactly representable.

    Args:
        low: Scalar, the least number to represent; 0 where it is larger.
        high: Scalar, the greatest; 0 where it is smaller.
        bits: Number of bits.
        symmetric: Whether the zero point is 0, as 16-bit activations need it.

    Returns:
        Vector of two. The gradient reaches ``low`` and ``high``.
    """
    least, most = limits(bits)
    low, high = ops.minimum(low, 0.0), ops.maximum(high, 0.0)
    if symmetric:
        step = ops.maximum(ops.maximum(-low, high) / most, _LEAST_STEP)
        step = as_if(significant(step, _MANTISSA - bits), step)
        return ops.stack([step, ops.zeros_like(step)])
    step = ops.maximum((high - low) / (most - least), _LEAST_STEP)
    step = as_if(significant(step, _MANTISSA - bits), step)
    return ops.stack([step, ops.clip(rounded(least - low / step), least, most)])


def grid_between(low: float, high: float, bits: int) -> tuple[float, int]:
    """Return `grid_of` for two constants, without a backend: the step and the zero point."""
    least, most = limits(bits)
    if bits > 8:
        step = np.float32(max(-low, high) / most)
        return float(significant(step, _MANTISSA - bits)), 0
    step = significant(np.float32((high - low) / (most - least)), _MANTISSA - bits)
    return float(step), int(np.rint(least - low / step))


def integers(values: Tensor, grid: Tensor, bits: int) -> Tensor:
    """Quantize numbers to centred integers, clipped to the range of the grid.

    Multiplies by the reciprocal of the step, as runtimes do.
    """
    least, most = limits(bits)
    step, zero = grid[0], grid[1]
    return ops.clip(rounded(values * (1.0 / step)), least - zero, most - zero)


def fake_quantized(values: Tensor, grid: Tensor, bits: int) -> Tensor:
    """Return numbers rounded to a grid. The gradient reaches the numbers, the step and the zero.

    Numbers inside the range pass their gradient on; those outside give it to the end of the range
    (Esser et al. 2020, Learned Step Size Quantization, arXiv:1902.08153).
    """
    return integers(values, grid, bits) * grid[0]


def weight_steps(
    kernel: Tensor, bits: int, axes: tuple[int, ...], least: Tensor | float = 0.0
) -> Tensor:
    """Return the steps of symmetric weights: the largest over ``axes`` is the greatest integer.

    Args:
        kernel: Float weights.
        bits: Number of bits.
        axes: Axes that share a step; they stay as axes of size 1.
        least: Lower bound of the steps, see `bias_room`.
    """
    _, most = limits(bits, narrow=True)
    largest = ops.max(ops.abs(ops.stop_gradient(kernel)), axis=axes, keepdims=True)
    return significant(ops.maximum(ops.maximum(largest / most, least), _LEAST_STEP), 16)


def bias_room(bias: Tensor, step: Tensor, bits: int = 8) -> Tensor:
    """Return the least steps of weights with which a bias fits its integer.

    A bias is an integer in steps of the input's step times the weights' step. A channel with
    tiny weights would need a bias of more such steps than this integer can hold.

    Args:
        bias: Biases as real numbers.
        step: Step of the input.
        bits: Number of bits of the activations.
    """
    return ops.abs(ops.stop_gradient(bias)) / (_MOST_BIAS[bits] * step)


def weight_integers(kernel: Tensor, steps: Tensor, bits: int) -> Tensor:
    """Quantize weights to integers, with a straight-through gradient."""
    least, most = limits(bits, narrow=True)
    return rounded(ops.clip(kernel / steps, least, most))


def fixed_grid(step: float, zero: int) -> Any:
    """Return the fixed grid of an operator's output."""
    return ops.convert_to_tensor([step, float(zero)], dtype="float32")
