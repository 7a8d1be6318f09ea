"""The report on a terminal, readable at 80 columns: targets, error budget, and each failure."""

from __future__ import annotations

import math
from collections import Counter
from typing import TYPE_CHECKING

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.padding import Padding
from rich.table import Table

from ..stages import FAULT, Ladder
from ..verdict import OutputVerdict, TargetResult
from .numbers import short
from .problems import Problem, problem

if TYPE_CHECKING:
    from ..parity import ParityReport

_STAGES = ("folded", "exported", "quantized", "target")


def print_report(report: ParityReport, console: Console) -> None:
    """Print what every target gave, where its error comes from, and what is wrong."""
    kinds = Counter(str(kind) for kind in report.golden.kind)
    told = ", ".join(f"{count} {kind}" for kind, count in kinds.items())
    console.print(f"[bold]{escape(report.name)}[/]: {report.samples} samples ({told})")
    console.print(_targets(report))
    console.print(
        "noise: error over what the arithmetic explains, all samples; worst: of one sample.",
        style="dim",
    )
    if any(result.stages for result in report.results):
        console.print(_budget(report))
    for result in report.results:
        for task in result.tasks:
            if task.changes or task.labelled:
                console.print(f"{escape(_name(result))}: {escape(task.sentence)}")
    for sentence in report.left_out:
        console.print(f"[yellow]left out[/] {escape(sentence)}")
    for result in report.results:
        wrong = problem(result, report.golden)
        if wrong is not None:
            _print_problem(wrong, result, console)
    word = "[bold green]PASS[/]" if report.passed else "[bold red]FAIL[/]"
    console.print(f"\n{word} {escape(report.name)} ({report.seconds:.1f} s)")


def _targets(report: ParityReport) -> Table:
    """Return the table of verdicts: a row for each output of each result, by file."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, expand=False)
    table.add_column("", no_wrap=True, min_width=4)
    table.add_column("target", overflow="fold", min_width=18)
    for heading, width in (
        ("SNR dB", 6),
        ("noise", 7),
        ("worst", 7),
        ("decisions", 9),
        ("ms", 6),
    ):
        table.add_column(heading, justify="right", no_wrap=True, min_width=width)
    for artifact in dict.fromkeys(result.artifact for result in report.results):
        table.add_row("", f"[bold]{escape(artifact)}[/]")
        for result in report.results:
            if result.artifact == artifact:
                for cells in _rows(result):
                    table.add_row(*cells)
    return table


def _rows(result: TargetResult) -> list[list[str]]:
    """Return the table rows of one result: one an output, or one that says there is none."""
    word = "[green]pass[/]" if result.passed else "[bold red]FAIL[/]"
    target = escape(result.target)
    if not result.stages:
        return [[word, target, *["-"] * 5]]
    latency = result.measured.get("latency_ms", {})
    median = latency.get("median", latency.get("mean"))
    several = len(result.stages) > 1
    judged = {entry.metrics.output: entry for entry in result.outputs}
    return [
        [
            word,
            f"{target} {escape(ladder.output)}" if several else target,
            _ratio(ladder.stages[-1].snr_db),
            *_noise(judged.get(ladder.output)),
            _decisions(result, ladder),
            "-" if median is None else short(median),
        ]
        for ladder in result.stages
    ]


def _noise(entry: OutputVerdict | None) -> tuple[str, str]:
    """Return how noisy all samples are and the worst one is, red where that is too much."""
    if entry is None:
        return "[red]nan[/]", "[red]nan[/]"
    bound = entry.bound
    pairs = ((entry.pooled_ratio, bound.pooled), (entry.worst_ratio, bound.worst))
    texts = [f"{short(v)}x" if v <= limit else f"[red]{short(v)}x[/]" for v, limit in pairs]
    return texts[0], texts[1]


def _decisions(result: TargetResult, ladder: Ladder) -> str:
    """Return how many decisions are the trained model's."""
    task = next((task for task in result.tasks if task.output == ladder.output), None)
    return "-" if task is None else f"{task.same}/{task.samples}"


def _budget(report: ParityReport) -> Table:
    """Return the error budget: what is left after each stage, in decibels, and the cause."""
    parts = {
        part
        for result in report.results
        for ladder in result.stages
        for stage in ladder.stages
        for part in stage.name.split(" + ")
    }
    columns = [name for name in _STAGES if name in parts]
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("dB left after", overflow="fold", min_width=18)
    for name in columns:
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("cause of the error", no_wrap=True)
    for artifact in dict.fromkeys(result.artifact for result in report.results):
        table.add_row(f"[bold]{escape(artifact)}[/]")
        for result in report.results:
            if result.artifact == artifact:
                for ladder in result.stages:
                    table.add_row(*_budget_cells(result, ladder, columns))
    return table


def _budget_cells(result: TargetResult, ladder: Ladder, columns: list[str]) -> list[str]:
    """Return one row of the error budget."""
    after = {stage.name.split(" + ")[-1]: stage for stage in ladder.stages}
    name = f"{result.target} {ladder.output}" if len(result.stages) > 1 else result.target
    cells = []
    for column in columns:
        stage = after.get(column)
        text = "-" if stage is None else _ratio(stage.snr_db)
        cells.append(f"[red]{text}[/]" if stage and stage.cause == FAULT else text)
    cause = f"[red]{FAULT}[/]" if ladder.cause == FAULT else ladder.cause
    return [escape(name), *cells, cause]


def _ratio(snr_db: float) -> str:
    """Return decibels as a cell."""
    if snr_db == math.inf:
        return "exact"
    return f"{snr_db:.1f}" if math.isfinite(snr_db) else "lost"


def _name(result: TargetResult) -> str:
    return f"{result.artifact} on {result.target}"


def _print_problem(wrong: Problem, result: TargetResult, console: Console) -> None:
    """Print one failure: what, where, how much, how much was allowed, and why."""
    console.print(f"\n[bold red]FAIL[/] [bold]{escape(_name(result))}[/]")
    console.print(f"  [red]{escape(wrong.what)}[/]")
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim", no_wrap=True)
    grid.add_column(overflow="fold")
    parts = (("where", wrong.where), ("how much", wrong.how_much), ("allowed", wrong.allowed))
    for term, text in parts:
        if text:
            grid.add_row(term, escape(text))
    for place, sentence in enumerate(wrong.why or (result.reason,)):
        grid.add_row("" if place else "why", escape(sentence))
    console.print(Padding(grid, (0, 0, 0, 2)))
