"""Prints the contents of a .tflite or .onnx file."""

from __future__ import annotations

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ..runtime_checks.file_table import FileTable


def print_table(console: Console, table: FileTable) -> None:
    """Print every op, the totals, and a line for each property that limits where the file runs."""
    grid = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in ("op", "kind", "output"):
        grid.add_column(heading, overflow="fold")
    for heading in ("parameters", "MACs"):
        grid.add_column(heading, justify="right")
    grid.add_column("precision")
    where = ""
    for row in table.ops:
        if row.where != where:
            where = row.where
            grid.add_row("", escape(where), "", "", f"x {row.times:,}")
        shape = "x".join("N" if size < 0 else str(size) for size in row.shape)
        numbers = [f"{n:,}" if n else "" for n in (row.parameters, row.macs)]
        grid.add_row(str(row.index), escape(row.kind), shape, *numbers, row.precision)
    console.print(f"[bold]{escape(table.file)}[/] ({table.bytes / 1024:.1f} KiB)")
    for what, entries in (("input", table.inputs), ("output", table.outputs)):
        for entry in entries:
            console.print(f"{what} {escape(entry)}", highlight=False)
    console.print(grid)
    console.print(
        f"{len(table.ops)} ops, {table.parameters:,} parameters, {table.macs:,} multiplications; "
        f"peak activation memory {table.arena_bytes / 1024:.1f} KiB",
        highlight=False,
    )
    for sentence in table.float_ops:
        says = "[yellow]float op, which integer-only hardware cannot run[/]: "
        console.print(says + escape(sentence), highlight=False)
    for text, entries in (
        ("shapes computed at run time, which delegates do not support", table.computed_shapes),
        ("unfolded norms", table.norms),
        ("ops outside the format's standard set", table.foreign_ops),
        ("loops and branches", table.loops),
    ):
        if entries:
            console.print(f"[yellow]{text}[/]: {escape(', '.join(entries))}", highlight=False)
