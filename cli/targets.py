"""`renormlite targets`: list runtimes and devices, and how to make the missing ones usable."""

from __future__ import annotations

import functools
import json
import shutil
import textwrap
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

import click
from rich import box
from rich.markup import escape
from rich.table import Table

from ..devices.base import DeviceOptions
from ..devices.survey import survey
from .device_options import browser_option
from .model_options import import_modules, import_option
from .output_file import json_option, write_json_text
from .safe_console import SafeConsole


@click.command("targets")
@json_option("the list")
@browser_option
@import_option("registers a runtime", click.option)
def command(json_path: Path | None, browser: Path | None, imports: tuple[str, ...]) -> None:
    """List every runtime on every device: whether it is usable, its version, and what it lacks."""
    import_modules(imports)
    statuses = survey(DeviceOptions(browser=browser))
    if json_path is not None:
        write_json_text(json_path, json.dumps([asdict(status) for status in statuses], indent=1))
        return
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in ("target", "usable", "version"):
        table.add_column(heading, overflow="fold")
    for status in statuses:
        usable = "[green]yes[/]" if status.usable else "[red]no[/]"
        table.add_row(escape(status.target), usable, escape(status.version))
    SafeConsole().print(table)
    _footnotes((status.note, status.target) for status in statuses if status.note)
    _footnotes(
        (f"run: {status.command}", status.target) for status in statuses if not status.usable
    )
    click.echo(f"{sum(status.usable for status in statuses)} of {len(statuses)} usable here")


def _footnotes(pairs: Iterable[tuple[str, str]]) -> None:
    """Print each note once, with its targets."""
    targets: dict[str, list[str]] = {}
    for text, target in pairs:
        targets.setdefault(text, []).append(target)
    for text, names in targets.items():
        click.echo(text)
        width = shutil.get_terminal_size().columns
        wrap = functools.partial(textwrap.fill, width=width, break_on_hyphens=False)
        click.echo(wrap(", ".join(names), initial_indent="    ", subsequent_indent="    ") + "\n")
