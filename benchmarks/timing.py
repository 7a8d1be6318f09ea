"""Measures several actions in alternation, and compares them by their ratios within a round."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping

from rows import Row, median_row

Action = Callable[[], object]
Clock = Callable[[], float]

CLOCKS: dict[str, Clock] = {"wall": time.perf_counter, "cpu": time.process_time}


def paired(actions: Mapping[str, Action], rounds: int, clock: str) -> dict[str, list[float]]:
    """Return seconds by name, one entry per round; each round runs every action once, shuffled.

    The CPU's clock counts the time of all threads, and not that of other processes.
    """
    now = CLOCKS[clock]
    for action in actions.values():
        for _ in range(3):
            action()
    seconds: dict[str, list[float]] = {name: [] for name in actions}
    order = list(actions)
    shuffle = random.Random(0).shuffle
    for _ in range(rounds):
        shuffle(order)
        for name in order:
            start = now()
            actions[name]()
            seconds[name].append(now() - start)
    return seconds


def ratio_rows(case: str, label: str, seconds: Mapping[str, list[float]]) -> list[Row]:
    """Return the ratios of the first action's times, called ``label``, over each other's."""
    first, *others = seconds
    ratios = {
        name: [a / b for a, b in zip(seconds[first], seconds[name], strict=True)] for name in others
    }
    return [median_row(case, f"{label} / {n}", "ratio", values) for n, values in ratios.items()]


def time_row(case: str, name: str, seconds: list[float]) -> Row:
    """Return the times of one action in milliseconds."""
    return median_row(case, f"{name}, ms", "ms", [s * 1e3 for s in seconds])
