"""A console that prints names from files as plain text."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.errors import MarkupError
from rich.segment import Segment
from rich.text import Text

from ..errors import printable


class SafeConsole(Console):
    """A console that escapes control characters and prints invalid markup as plain text.

    Names of layers, tensors and files come from untrusted files: they must not move the cursor,
    change colours, or abort a command with a stray `[/bold]`.
    """

    def render(
        self, renderable: RenderableType, options: ConsoleOptions | None = None
    ) -> Iterable[Segment]:
        """Render, with control characters in text escaped as `\\x1b`."""
        for segment in super().render(renderable, options):
            text, style, control = segment
            if control or text.isprintable():
                yield segment
            else:
                yield Segment("\n".join(map(printable, text.split("\n"))), style)

    def on_broken_pipe(self) -> None:
        """Let the command line report it: rich would exit with 1, which means a failed check."""
        raise  # called while the error is handled

    def render_str(self, text: str, **options: Any) -> Text:
        """Render text with markup; invalid markup is rendered as plain text."""
        try:
            return super().render_str(text, **options)
        except MarkupError:
            return super().render_str(text, **{**options, "markup": False})
