"""Formatting of numbers for reading."""

from __future__ import annotations

import math


def short(value: float) -> str:
    """Return a number with three digits: `0.0123`, `1.2e-7`, `∞`."""
    if math.isinf(value):
        return "∞" if value > 0 else "-∞"
    text = f"{value:.3g}"
    mantissa, _, power = text.partition("e")
    return f"{mantissa}e{int(power)}" if power else text


def percent(share: float) -> str:
    """Return a share in percent with one decimal, without a negative zero."""
    return f"{round(100 * share, 1) + 0.0:.1f} %"
