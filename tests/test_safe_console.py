"""Protects the terminal from control characters and markup in names of other sources."""

from __future__ import annotations

import io

import pytest
from renormlite.cli.safe_console import SafeConsole
from rich.table import Table


def printed(*things: object, **options: object) -> str:
    stream = io.StringIO()
    SafeConsole(file=stream, width=60).print(*things, **options)
    return stream.getvalue()


@pytest.mark.parametrize(
    "text", ["a\x1b[31mb", "a\x1b]0;title\x07", "a\rb", "a\x9b2J", "a\x08\x08"]
)
def test_control_characters_are_escaped(text):
    table = Table("heading", title=text)
    table.add_row(text)
    for output in (printed(text), printed(table), printed(f"[bold]{text}[/]")):
        assert set(output) & set(map(chr, [*range(10), *range(11, 32), *range(127, 160)])) == set()


@pytest.mark.parametrize("text", ["[/red]", "net[/bold].keras", "[/]"])
def test_markup_in_names_is_shown_as_text(text):
    table = Table("heading", title=text)
    table.add_row(text)
    assert text in printed(text)
    assert text in printed(table)


def test_markup_and_line_breaks_of_the_program_are_kept():
    assert printed("[bold]a[/] b\nc") == "a b\nc\n"
