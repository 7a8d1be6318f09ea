"""Reports the progress of an export and the time of each step."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator


@dataclasses.dataclass(frozen=True)
class Progress:
    """One step of an export, reported when it begins and when it ends.

    Attributes:
        subject: The file that the step works on, or `model`.
        stage: Name of the step: `fold`, `trace`, `convert`, `validate`, `run`, ….
        seconds: Wall time in seconds; None when it begins.
    """

    subject: str
    stage: str
    seconds: float | None = None


Listener = Callable[[Progress], None]


def _ignore(progress: Progress) -> None:
    """Do nothing; the default listener."""


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
