"""Equations of einsums."""

from __future__ import annotations

import re
import string
from collections.abc import Sequence


def spelled_out(equation: str, ranks: Sequence[int]) -> str:
    """Return an equation with letters for the axes that `...` stands for, and without spaces.

    Args:
        equation: The equation, with `->`.
        ranks: The number of axes of each operand; of one without `...`, it does not matter.
    """
    equation = equation.replace(" ", "")
    if "..." not in equation:
        return equation
    operands, result = equation.split("->")
    parts = operands.split(",")
    counts = [
        rank - len(part.replace("...", "")) if "..." in part else 0
        for part, rank in zip(parts, ranks, strict=True)
    ]
    free = [letter for letter in string.ascii_letters if letter not in equation]
    most = max(counts)
    # Axes are aligned at the end, as in broadcasting.
    names = [
        part.replace("...", "".join(free[most - count : most]))
        for part, count in zip(parts, counts, strict=True)
    ]
    return f"{','.join(names)}->{result.replace('...', ''.join(free[:most]))}"


def is_dense(equation: str) -> bool:
    """Return whether an equation multiplies the last axis by a matrix: `abc,cd->abd`."""
    read, kernel, result = re.split(",|->", equation.replace(" ", ""))
    return len(kernel) == 2 and read[-1:] == kernel[0] and result == read[:-1] + kernel[1]
