"""A progress bar with the remaining time, for commands that take longer than two seconds."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn

from ..advance import Listener, listening
from .safe_console import SafeConsole
from .verbosity import is_quiet

# Shorter commands show no bar.
_SHOWN_AFTER_S = 2.0


@contextlib.contextmanager
def progress_bar(doing: str, console: Console | None = None) -> Iterator[Listener]:
    """Show the progress of a block that runs longer than two seconds; remove the bar at its end.

    Args:
        doing: Description of the block, shown until the first step is reported.
        console: Where the block prints; standard error by default. The bar is not shown if this is
            not a terminal, or with `--quiet`.

    Yields:
        A listener for steps that `advance` does not report.
    """
    with Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        TimeRemainingColumn(),
        console=console or SafeConsole(stderr=True, quiet=is_quiet()),
        transient=True,
    ) as progress:
        task = progress.add_task(escape(doing), total=None, visible=False)
        timer = threading.Timer(_SHOWN_AFTER_S, lambda: progress.update(task, visible=True))
        timer.daemon = True
        timer.start()

        def show(what: str, done: float, total: int) -> None:
            progress.update(task, description=escape(what), completed=done, total=total)

        try:
            with listening(show):
                yield show
        finally:
            timer.cancel()
