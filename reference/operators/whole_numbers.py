"""Arithmetic on whole numbers, such as indices and counts, which is exact on every runtime.

Float32 holds every whole number up to 2^24, and sums and products that stay below it are exact.
"""

from __future__ import annotations

import numpy as np

from .base import Arrays, Evaluated

_GREATEST = 2.0**24

# Operators whose results on whole numbers are whole numbers.
_EXACT = {
    *("add", "subtract", "multiply", "floor_divide", "remainder", "maximum", "minimum", "select"),
    *("greater", "greater_equal", "less", "less_equal", "equal", "not_equal", "bucketize"),
    *("reduce_sum", "reduce_max", "reduce_min", "argmax", "argmin", "cumsum", "sort", "argsort"),
    *("negative", "absolute", "floor", "ceil", "round", "truncate", "sign", "nonzero"),
    *("logical_not", "sign_bit", "one_hot", "pick", "identity", "pad", "crop", "slice"),
    *("flatten", "reshape"),
    *("permute", "repeat", "tile", "broadcast", "take", "concatenate", "upsample_nearest"),
    "constant",
}

# Operators whose results are whole numbers for any inputs: relations, steps and indices.
COUNTING = frozenset(
    {
        *("greater", "greater_equal", "less", "less_equal", "equal", "not_equal", "bucketize"),
        *("floor", "ceil", "round", "truncate", "sign", "sign_bit", "nonzero", "logical_not"),
        *("is_nan", "is_finite", "argmax", "argmin", "argsort", "floor_divide"),
    }
)

# Numbers that are checked first, to reject most arrays quickly.
_PROBE = 8


def exact_on(op: str, at: Evaluated, errors: Arrays) -> bool:
    """Return whether an operation on these numbers is exact in any arithmetic of float32 or wider.

    Args:
        op: The operator's name.
        at: Its evaluation.
        errors: The error, or its variance, of each input.
    """
    if op not in _EXACT or any(error.any() for error in errors):
        return False
    operands = [*at.inputs, *at.weights.values(), at.output]
    if not all(_whole(x.reshape(-1)[:_PROBE]) for x in operands):
        return False
    terms = sum(x.size for x in at.inputs) // max(at.output.size, 1) if "sum" in op else 1
    most = max(len(operands) - 1, terms) * max(np.abs(x).max(initial=0.0) for x in operands)
    return bool(most < _GREATEST) and all(_whole(x) for x in operands)


def _whole(x: np.ndarray) -> bool:
    with np.errstate(invalid="ignore"):
        return bool(np.all(np.rint(x) == x))
