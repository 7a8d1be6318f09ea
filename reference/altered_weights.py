"""Explains why a constant of a file differs from the expected weight.

Exchanged rows, wrong byte order, a tail of zeros, bytes of the wrong sign, a common factor: each is
tried, and the one that explains every number is reported.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from ..artifacts.graphs.base import GraphTensor

# Along a longer axis, exchanges are searched among this many differing slices.
_MOST_EXCHANGED = 256

# Returns where the numbers of a constant differ from the expected ones, and those numbers.
Compare = Callable[[np.ndarray, GraphTensor], tuple[np.ndarray, np.ndarray]]


def explain(
    expected: np.ndarray, constant: GraphTensor, axes: tuple[int, ...], role: str, compare: Compare
) -> str:
    """Return an explanation of a constant's difference, or an empty string.

    Args:
        expected: The weight in the file's order of axes, float64.
        constant: The file's constant.
        axes: The weight's axes in the network, in the order in which ``expected`` has them.
        role: "kernel", "bias", …
        compare: How weights are compared.
    """
    data = constant.data
    assert data is not None
    if not np.isfinite(expected).all():  # a mask
        return ""
    wrong, real = compare(expected.reshape(-1), constant)
    # Vectors of zeros are common: initial states, zero points.
    known = role == "kernel" or real.any()
    tail = _zero_tail(expected.reshape(-1), wrong, real) if known else None
    if tail is not None:
        offset = tail * data.dtype.itemsize
        return f"zero from byte {offset} of its {data.nbytes} on: the file was cut or not filled"

    def right(changed: np.ndarray) -> bool:
        with np.errstate(all="ignore"):  # any number may come of other bytes
            return not compare(expected.reshape(-1), replace(constant, data=changed))[0].any()

    if data.dtype.itemsize > 1 and right(data.byteswap()):
        return "its bytes are in the other order (big-endian for little-endian)"
    if data.dtype.itemsize == 1 and right(data ^ np.array(0x80, np.uint8).view(data.dtype)):
        return "its bytes have the other sign (uint8 for int8)"
    exchanged = _exchanged(expected, constant, axes, role, compare)
    flat = expected.reshape(-1)
    found = exchanged or _factor(flat, real)
    # A converter may multiply a kernel by a number, as by the 4 of a sum that it writes as a mean.
    return found if found or role == "kernel" else _factor_of_steps(flat, real, constant, compare)


def _zero_tail(expected: np.ndarray, wrong: np.ndarray, real: np.ndarray) -> int | None:
    """Return the index from which all numbers are zero by mistake; None if that is not the case."""
    nonzero = np.flatnonzero(real)
    start = int(nonzero[-1]) + 1 if nonzero.size else 0
    lost = np.count_nonzero(expected[start:])
    return start if lost > 1 and not wrong[:start].any() else None


def _exchanged(
    expected: np.ndarray,
    constant: GraphTensor,
    axes: tuple[int, ...],
    role: str,
    compare: Compare,
) -> str:
    """Describe which slices along an axis are exchanged; an empty string for none."""
    assert constant.data is not None
    data = constant.data.reshape(expected.shape)
    wrong, _ = compare(expected.reshape(-1), constant)
    wrong = wrong.reshape(expected.shape)
    for axis, size in enumerate(expected.shape):
        others = tuple(a for a in range(expected.ndim) if a != axis)
        moved = np.flatnonzero(wrong.any(axis=others))
        if not 2 <= len(moved) <= _MOST_EXCHANGED:
            continue
        order = _order(np.moveaxis(expected, axis, 0)[moved], np.moveaxis(data, axis, 0)[moved])
        if order is None:
            continue
        places = np.arange(size)
        places[moved] = moved[order]
        steps = constant.quantization
        if steps is not None and steps.scales.size > 1 and steps.scales.size == size:
            steps = replace(
                steps, scales=steps.scales[places], zero_points=steps.zero_points[places]
            )
        put_right = replace(
            constant, data=np.take(data, places, axis).reshape(constant.shape), quantization=steps
        )
        if not compare(expected.reshape(-1), put_right)[0].any():
            return exchanged_slices(moved, places, axes[axis], len(axes), role)
    return ""


def _order(expected: np.ndarray, found: np.ndarray) -> np.ndarray | None:
    """Return the found slice for each expected one, by the closest direction; None if unclear."""
    rows = [side.reshape(len(side), -1).astype(np.float64) for side in (expected, found)]
    if rows[0].shape[1] == 1:
        order = np.empty(len(expected), int)
        order[np.argsort(rows[0][:, 0])] = np.argsort(rows[1][:, 0])
        return order
    unit = [side / (np.linalg.norm(side, axis=1, keepdims=True) + 1e-300) for side in rows]
    order = np.argmax(unit[0] @ unit[1].T, axis=1)
    return order if len(set(order.tolist())) == len(order) else None


def exchanged_slices(moved: np.ndarray, places: np.ndarray, axis: int, rank: int, role: str) -> str:
    """Describe which slices of the network's weight are exchanged.

    Args:
        moved: The slices that are elsewhere in the file.
        places: Where each slice of the network is in the file.
        axis: The axis of the network's weight.
        rank: How many it has.
        role: "kernel", "bias", …
    """
    kind = "entries"
    if role == "kernel" and rank >= 2 and axis >= rank - 2:
        kind = "rows (outputs)" if axis == rank - 1 else "input channels"
    if len(moved) == 2:
        first, second = (int(place) for place in moved)
        known = " (BGR for RGB?)" if kind == "input channels" and (first, second) == (0, 2) else ""
        return f"{kind} {first} and {second} are exchanged{known}"
    shown = [int(place) for place in places[:16]]
    return f"its {kind} are in another order: {shown}{'…' if len(places) > 16 else ''}"


def _factor(expected: np.ndarray, real: np.ndarray) -> str:
    """Return the factor that all numbers were multiplied by, or an empty string."""
    power = float(expected @ expected)
    if power == 0 or not np.isfinite(real).all():
        return ""
    factor = float(expected @ real) / power
    rest = float(np.linalg.norm(real - factor * expected)) / power**0.5
    # The factor must explain most of the difference: a few changed numbers leave it near 1.
    if factor == 0 or rest > min(1e-3 * abs(factor), 0.1 * abs(factor - 1)):
        return ""
    return f"all of it is {factor:.4g} times the expected value"


# Integers that distinguish a factor from a coincidence: so many, of at least so many steps.
_TELLING, _STEPS = 4, 16


def _factor_of_steps(
    expected: np.ndarray, real: np.ndarray, constant: GraphTensor, compare: Compare
) -> str:
    """Return the factor of a wrong scale of integers, which are right otherwise; else empty."""
    steps, data = constant.quantization, constant.data
    power = float(expected @ expected)
    if steps is None or data is None or power == 0:
        return ""
    size = np.broadcast_to(steps.step(data.ndim), data.shape).reshape(-1)
    factor = float(expected @ real) / power
    if factor <= 0 or np.count_nonzero(np.abs(real) >= _STEPS * size) < _TELLING:
        return ""
    right = replace(constant, quantization=replace(steps, scales=steps.scales / factor))
    if compare(expected, right)[0].any():
        return ""
    return f"all of it is {factor:.4g} times the expected value"
