"""The options of a check, validated in one place."""

# ruff: noqa: RUF009 (`option` makes a dataclass field)

from __future__ import annotations

import dataclasses
from pathlib import Path

from ..devices.base import DeviceOptions
from ..options import option, validate
from .end_to_end.quality_gates import QualityLimits
from .end_to_end.thread_counts import Threads, parse_threads, thread_counts

# Runs of each file in a search where no number is given.
RUNS = 200

_SELECTION, _SAMPLES, _CHECKS = "Selection", "Samples", "Checks"


@dataclasses.dataclass(frozen=True, kw_only=True)
class CheckOptions:
    """The options of a check; their flags explain them."""

    targets: tuple[str, ...] | None = option(
        None,
        "--on",
        "Where to run: `RUNTIME[+VARIANT][@DEVICE]`, separated by commas.  "
        "[default: the first installed runtime for each format of the files]",
        group=_SELECTION,
        kind=tuple,
    )
    artifacts: tuple[str, ...] = option(
        (), "--artifact", "Check these files only.", group=_SELECTION
    )
    precisions: tuple[str, ...] = option(
        (), "--precision", "Check files of these precisions only.", group=_SELECTION
    )
    layers: tuple[str, ...] = option(
        (),
        "--layer",
        "Check the weights and operators of these Keras layers only: names, paths or patterns "
        "('head*').",
        group=_SELECTION,
    )
    limit: int | None = option(
        None,
        "--samples",
        "Use at most N samples of --inputs, evenly spaced.  "
        "[default: all of a file, 200 of a folder of images]",
        group=_SAMPLES,
        least=1,
        kind=int,
        metavar="N",
    )
    workers: int = option(
        1,
        "--workers",
        "Judge the parts of samples that do not fit into memory in N processes.",
        group=_SAMPLES,
        least=1,
        most=1024,
        metavar="N",
    )
    ray: str | None = option(
        None,
        "--ray",
        "Judge them on the machines of a Ray cluster (auto, local, ray://HOST:PORT).",
        group=_SAMPLES,
        kind=str,
        metavar="ADDRESS",
    )
    search: int | None = option(
        None,
        "--search",
        "Search for the inputs on which each file's error is largest, with N runs of the file "
        f"({RUNS} if N is omitted), and check on those as well.",
        group=_SAMPLES,
        least=1,
        kind=int,
        implied=RUNS,
        metavar="[N]",
    )
    threads: Threads = option(
        1,
        "--threads",
        "Threads that each runtime may use. With several numbers, such as 1,4, the outputs are "
        "compared across them.",
        group=_CHECKS,
        parse=parse_threads,
        metavar="N[,N…]",
    )
    per_op: bool = option(
        False,
        "--per-op",
        "Check every operator, not only those of files whose outputs are wrong.",
        group=_CHECKS,
    )
    baseline: Path | None = option(
        None,
        "--baseline",
        "JSON report of an earlier check: report what changed, and fail if anything got worse.",
        group=_CHECKS,
        kind=Path,
        metavar="FILE",
    )
    limits: QualityLimits = QualityLimits()
    devices: DeviceOptions = DeviceOptions()

    def __post_init__(self) -> None:
        validate(self)
        thread_counts(self.threads)  # raises for numbers that no runtime takes

    @property
    def thread_counts(self) -> tuple[int, ...]:
        """The numbers of threads to run with; the first is the one to judge."""
        return thread_counts(self.threads)
