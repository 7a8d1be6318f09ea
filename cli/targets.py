"""`renormlite targets`: what can run here, and what would make the rest usable."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import click
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ..runtime_checks.devices.base import DeviceOptions
from ..runtime_checks.devices.survey import survey


@click.command("targets")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
@click.option("--browser", type=click.Path(path_type=Path), help="The browser to look at.")
def command(as_json: bool, browser: Path | None) -> None:
    """List every runtime on every device: usable or not, version, what would make it usable."""
    statuses = survey(DeviceOptions(browser=browser))
    if as_json:
        click.echo(json.dumps([asdict(status) for status in statuses], indent=1))
        return
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("target", no_wrap=True)
    table.add_column("usable", no_wrap=True)
    table.add_column("version", no_wrap=True)
    table.add_column("note; what makes it usable", overflow="fold")
    for status in statuses:
        table.add_row(
            escape(status.target),
            "[green]yes[/]" if status.usable else "[red]no[/]",
            escape(status.version or "-"),
            escape("; ".join(part for part in (status.note, status.command) if part)),
        )
    Console().print(table)
    usable = sum(status.usable for status in statuses)
    click.echo(f"{usable} of {len(statuses)} usable here")
