"""Bounds the errors of functions of integers, element by element, at the numbers of a runtime.

A bound from the steepest slope over all elements is of no use for the exponential function or the
logarithm. The runtime's numbers give each element's slope, and its actual rounding error, which
counts only as far as the kind of op explains it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ...artifacts.graphs.base import GraphOp
from ...reference.operators import OPERATORS
from ...reference.rounding.arithmetic import places_in_1024ths

Array = np.ndarray

# Ops to operators of the network: monotone functions of one operand, and those of two operands.
_MONOTONE = {"EXP": "exp", "LOG": "log", "LOGISTIC": "sigmoid", "SQRT": "sqrt", "TANH": "tanh"}
_COMBINED = {"ADD": "add", "MUL": "multiply", "SUB": "subtract"}
_OPERATORS = {**_MONOTONE, **_COMBINED}

# Ops whose errors are bounded here.
POINTWISE = frozenset(_OPERATORS)


def carried_errors(op: GraphOp, operands: Sequence[Array], errors: Sequence[Array]) -> Array:
    """Return the errors that an op's result has from those of its operands.

    Args:
        op: An op of `POINTWISE`.
        operands: The numbers that it reads.
        errors: Bound on the error of each, of shapes that broadcast with them.

    Returns:
        Bounds; infinite where the function may leave its domain, or an operand's bound is infinite.
    """
    if op.kind in _MONOTONE:
        (x,), (error,), middle = operands, errors, _value(op, operands)
        with np.errstate(all="ignore"):
            sides = [np.abs(_value(op, [x + shift]) - middle) for shift in (error, -error)]
        found = np.maximum(*sides)
        # Behind a saturated number, the range of a function is no useful bound.
        return np.where(np.isnan(found) | np.isinf(error), np.inf, found)
    (a, b), (of_a, of_b) = operands, errors
    if op.kind == "MUL":
        return np.asarray(np.abs(b) * of_a + np.abs(a) * of_b + of_a * of_b)
    return np.asarray(of_a + of_b)


def own_errors(op: GraphOp, operands: Sequence[Array], result: Array, most: float) -> Array:
    """Return the rounding error of each element, no more than an op of the kind may have.

    Args:
        op: An op of `POINTWISE`.
        operands: The numbers that it read.
        result: The numbers that it returned.
        most: The greatest error of the op.
    """
    with np.errstate(all="ignore"):
        found = np.abs(result - _value(op, operands))
    return np.where(found <= most, found, most)


def error_of_places(op: GraphOp, x: Array, sizes: Sequence[int]) -> float:
    """Return the error of a RESIZE_BILINEAR of integers from its places, which are in 1/1024.

    Args:
        op: The op.
        x: (…, H, W, C) the numbers that it reads.
        sizes: Height and width of the result.
    """
    corners, centres = (bool(op.attributes.get(n)) for n in ("alignCorners", "halfPixelCenters"))
    found = 0.0
    for axis, wanted in zip((-3, -2), sizes):
        size, at = x.shape[axis], np.arange(wanted)
        step = (size - 1) / (wanted - 1) if corners and wanted > 1 else size / wanted
        exact = np.clip((at + 0.5) * step - 0.5 if centres else at * step, 0, size - 1)
        low, high, share = places_in_1024ths(size, wanted, corners, centres)
        used = np.where(low < high, low + share / 1024, low)
        # XNNPACK rounds exact places to 1/2048.
        most = float(np.abs(used - exact).max(initial=0.0)) + 2.0**-12
        found += most * float(np.abs(np.diff(x, axis=axis)).max(initial=0.0))
    return found


@np.errstate(all="ignore")
def _value(op: GraphOp, operands: Sequence[Array]) -> Array:
    """Return the exact result of an op."""
    return OPERATORS[_OPERATORS[op.kind]].evaluate(list(operands), {}, {})
