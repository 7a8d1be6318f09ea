"""Tells whoever waits what an export is doing and how long each step took."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator


@dataclasses.dataclass(frozen=True)
class Progress:
    """One step of an export, told when it begins and again when it ends.

    Attributes:
        subject: The file the step works on, or `model`.
        stage: What is done: `fold`, `trace`, `convert`, `validate`, `run`, ….
        seconds: Wall time it took; None when it begins.
    """

    subject: str
    stage: str
    seconds: float | None = None


Listener = Callable[[Progress], None]


def _ignore(progress: Progress) -> None:
    """Stand in for a listener."""


@dataclasses.dataclass(frozen=True)
class Steps:
    """Context managers that report to a listener.

    Attributes:
        listener: Called at the beginning and end of every step.
    """

    listener: Listener = _ignore

    @contextlib.contextmanager
    def __call__(self, subject: str, stage: str) -> Iterator[None]:
        """Report the beginning of a step and, unless it raises, its end."""
        self.listener(Progress(subject, stage))
        started = time.perf_counter()
        yield
        self.listener(Progress(subject, stage, time.perf_counter() - started))
