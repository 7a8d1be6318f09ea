"""The options about what quality a file may lose."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import click

from ..runtime_checks.end_to_end.quality_gates import QualityLimits
from .option_groups import grouped

_DEFAULTS = QualityLimits()
_PERCENT = click.FloatRange(0, 100)


def quality_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add the options about quality; the command gets them as ``limits``."""
    option = grouped("Quality")

    @option(
        "--max-accuracy-drop",
        type=_PERCENT,
        default=_DEFAULTS.max_accuracy_drop,
        show_default=True,
        metavar="POINTS",
        help="Percentage points of accuracy that a file may lose; more fails where it is also "
        "beyond chance.",
    )
    @option(
        "--min-snr",
        type=float,
        default=_DEFAULTS.min_snr,
        show_default=True,
        metavar="DB",
        help="Least signal-to-noise ratio of an output against float64 truth.",
    )
    @option(
        "--max-flipped",
        type=_PERCENT,
        default=_DEFAULTS.max_flipped,
        show_default=True,
        metavar="PERCENT",
        help="Decisions on real samples that may change; more fail where that is beyond chance.",
    )
    @option(
        "--max-clipped",
        type=_PERCENT,
        default=_DEFAULTS.max_clipped,
        show_default=True,
        metavar="PERCENT",
        help="Values of real inputs, or of one layer, that may lie beyond a file's integers.",
    )
    @functools.wraps(command)
    def collect(
        *args: Any,
        max_accuracy_drop: float,
        min_snr: float,
        max_flipped: float,
        max_clipped: float,
        **others: Any,
    ) -> None:
        limits = QualityLimits(max_accuracy_drop, min_snr, max_flipped, max_clipped)
        command(*args, limits=limits, **others)

    return collect
