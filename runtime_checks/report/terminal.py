"""The report on a terminal, readable at 80 columns: targets, error budget, and each failure."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from rich.console import Console, JustifyMethod, RenderableType
from rich.markup import escape
from rich.padding import Padding
from rich.table import Table

from ..end_to_end.error_budget import FAULT, ErrorBudget
from ..end_to_end.findings import OutputVerdict, TargetResult
from .numbers import short
from .problems import Problem, problem
from .shown import accuracy_in_words, limits_in_words, what_was_shown

if TYPE_CHECKING:
    from ..check_record import CheckRecord

_STAGES = ("folded", "exported", "quantized", "target")

# Headings and widths; with two spaces between them they fill 80 columns.
_TARGETS = (
    ("", 4),
    ("target", 22),
    ("SNR dB", 6),
    ("noise", 7),
    ("worst", 7),
    ("decisions", 9),
    ("ms", 8),
)
_BUDGET = (
    ("target", 22),
    ("folded", 6),
    ("exported", 8),
    ("quantized", 9),
    ("on target", 9),
    ("cause", 12),
)
_TASKS = (
    ("target", 22),
    ("same", 11),
    ("flips", 5),
    ("before", 6),
    ("after", 6),
    ("lost", 4),
    ("gained", 6),
)

# Headings of the columns that do not hold numbers.
_WORDS = ("", "check", "target", "cause")


def print_report(report: CheckRecord, console: Console) -> None:
    """Print the results of every target, the error budgets, and the failures."""
    kinds = Counter(str(kind) for kind in report.golden.kind)
    told = ", ".join(f"{count} {kind}" for kind, count in kinds.items())
    console.print(f"[bold]{escape(report.name)}[/]: {report.samples} samples ({told})")
    accuracy = accuracy_in_words(report)
    if accuracy:
        console.print(escape(accuracy), highlight=False)
    console.print()
    _print_streamed(report, console)
    _print_by_file(report, _TARGETS, _rows, console, _limits(report))
    console.print(f"{limits_in_words(report)}\n", style="dim", highlight=False)
    if any(result.stages for result in report.results):
        _print_by_file(report, _BUDGET, _budget_rows, console)
        console.print(
            "signal-to-noise ratio in dB after each stage, against float64 truth",
            style="dim",
        )
    tasks = [task for result in report.results for task in result.tasks]
    if any(task.changed or task.labelled for task in tasks):
        console.print()
        _print_by_file(report, _TASKS, _task_rows, console)
        console.print(
            escape(report.in_its_terms("same: decisions of the trained model; "))
            + "flips: changed, not ties of float32; before, after: accuracy in percent",
            style="dim",
        )
    for sentence in dict.fromkeys(task.sentence for task in tasks if task.flips and task.unjudged):
        console.print(escape(report.in_its_terms(sentence)))
    _print_threads(report, console)
    _print_assumptions(report, console)
    for sentence in report.left_out:
        console.print(f"[yellow]left out[/] {escape(sentence)}")
    for finding in report.findings:
        word = "[yellow]note[/]" if finding.passed else "[bold red]FAIL[/]"
        console.print(f"{word} {escape(finding.message)}")
    for result in report.results:
        wrong = problem(report, result)
        if wrong is not None:
            _print_problem(wrong, result, console)
    word = "[bold green]PASS[/]" if report.passed else "[bold red]FAIL[/]"
    console.print()
    if report.passed:
        console.print(what_was_shown(report), highlight=False, markup=False)
    console.print(f"{word} {escape(report.name)} ({report.seconds:.1f} s)")


def _print_streamed(report: CheckRecord, console: Console) -> None:
    """Print the totals of samples that were judged part by part."""
    if report.streamed is None:
        return
    console.print(f"{escape(report.streamed.sentence)}:", highlight=False)
    for file in report.streamed.files:
        for entry in file.outputs:
            ratio = "-" if entry.snr_db is None else _ratio(entry.snr_db)
            console.print(
                escape(
                    f"  {file.artifact} on {file.target}, {entry.output}: {ratio} dB, noise "
                    f"{short(entry.pooled)}x, worst {short(entry.worst)}x (sample "
                    f"{entry.worst_sample})"
                ),
                highlight=False,
            )
            if entry.task is not None:
                sentence = entry.task.agreement(entry.output).sentence
                console.print(escape(f"  {sentence}"), highlight=False)
    console.print()


def _print_assumptions(report: CheckRecord, console: Console) -> None:
    """Print how the inputs and outputs of foreign files were found."""
    checked = {result.artifact for result in report.results}
    for entry in report.manifest["artifacts"]:
        notes = "; ".join(entry.get("notes", ()))
        if entry.get("foreign") and entry["file"] in checked and notes:
            console.print(f"[dim]assumed[/] {escape(entry['file'])}: {escape(notes)}")


def _print_threads(report: CheckRecord, console: Console) -> None:
    """Print how other numbers of threads changed the bits; failures are printed elsewhere."""
    told = [
        f"[dim]threads[/] {escape(_name(result))}: {escape(finding.message)}"
        for result in report.results
        for finding in result.findings
        if finding.check == "threads" and finding.passed
    ]
    if told:
        console.print()
    for line in told:
        console.print(line)


def _print_by_file(
    report: CheckRecord,
    columns: Sequence[tuple[str, int]],
    rows: Callable[[TargetResult], list[list[str]]],
    console: Console,
    limits: Sequence[str] = (),
) -> None:
    """Print the rows of every result under the name of its file, in columns of fixed widths."""
    heads = [[heading for heading, _ in columns], *([limits] if limits else [])]
    console.print(fixed_grid(columns, [[f"[dim]{cell}[/]" for cell in head] for head in heads]))
    for artifact in dict.fromkeys(result.artifact for result in report.results):
        results = [result for result in report.results if result.artifact == artifact]
        cells = [row for result in results for row in rows(result)]
        if cells:
            console.print(f"[bold]{escape(artifact)}[/]")
            console.print(fixed_grid(columns, cells))


def _limits(report: CheckRecord) -> list[str]:
    """Return the limits of the columns of `_TARGETS`, the widest of all outputs."""
    bounds = [entry.bound for result in report.results for entry in result.outputs]
    if not bounds:
        return []
    least = 100 - report.limits.max_flipped
    return [
        "",
        "limit",
        f">= {report.limits.min_snr:g}",
        f"<= {max(bound.pooled for bound in bounds):g}x",
        f"<= {max(bound.worst for bound in bounds):g}x",
        f">= {least:g} %",
        "",
    ]


def fixed_grid(
    columns: Sequence[tuple[str, int]], rows: Sequence[Sequence[RenderableType]]
) -> Table:
    """Return rows in columns of fixed widths; columns of numbers are aligned to the right.

    Args:
        columns: Heading and width of each column.
        rows: The cells of each row; headings are a row of their own.
    """
    grid = Table.grid(padding=(0, 2))
    for heading, width in columns:
        justify: JustifyMethod = "left" if heading in _WORDS else "right"
        grid.add_column(justify=justify, width=width, overflow="fold")
    for row in rows:
        grid.add_row(*row)
    return grid


def _rows(result: TargetResult) -> list[list[str]]:
    """Return the table rows of one result: one for each output, or a placeholder."""
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
            f"{target} {escape(budget.output)}" if several else target,
            _ratio(budget.stages[-1].snr_db),
            *_noise(judged.get(budget.output)),
            _decisions(result, budget),
            "-" if median is None else short(median),
        ]
        for budget in result.stages
    ]


def _noise(entry: OutputVerdict | None) -> tuple[str, str]:
    """Return the noise of all samples and of the worst one, in red beyond the limit."""
    if entry is None:
        return "[red]nan[/]", "[red]nan[/]"
    pairs = ((entry.pooled_ratio, entry.pooled_limit), (entry.worst_ratio, entry.bound.worst))
    texts = [f"{short(v)}x" if v <= limit else f"[red]{short(v)}x[/]" for v, limit in pairs]
    return texts[0], texts[1]


def _decisions(result: TargetResult, budget: ErrorBudget) -> str:
    """Return how many decisions agree with the trained model's."""
    task = next((task for task in result.tasks if task.output == budget.output), None)
    return "-" if task is None else f"{task.same}/{task.samples}"


def _budget_rows(result: TargetResult) -> list[list[str]]:
    """Return the error budget of one result: a row for each output."""
    rows = []
    for budget in result.stages:
        after = {stage.name.split(" + ")[-1]: stage for stage in budget.stages}
        name = f"{result.target} {budget.output}" if len(result.stages) > 1 else result.target
        cells = []
        for column in _STAGES:
            stage = after.get(column)
            text = "-" if stage is None else _ratio(stage.snr_db)
            cells.append(f"[red]{text}[/]" if stage and stage.cause == FAULT else text)
        cause = f"[red]{FAULT}[/]" if budget.cause == FAULT else budget.cause
        rows.append([escape(name), *cells, cause])
    return rows


def _task_rows(result: TargetResult) -> list[list[str]]:
    """Return a row on the decisions for each output that decides."""
    rows = []
    for task in result.tasks:
        name = f"{result.target} {task.output}" if len(result.stages) > 1 else result.target
        known = task.labelled > 0
        rows.append(
            [
                escape(name),
                f"{task.same}/{task.samples}",
                str(task.flips),
                f"{100 * task.right_before / task.labelled:.2f}" if known else "-",
                f"{100 * task.right_after / task.labelled:.2f}" if known else "-",
                str(task.lost) if known else "-",
                str(task.gained) if known else "-",
            ]
        )
    return rows


def _ratio(snr_db: float) -> str:
    """Return decibels as a cell."""
    if snr_db == math.inf:
        return "exact"
    return f"{snr_db:.1f}" if math.isfinite(snr_db) else "lost"


def _name(result: TargetResult) -> str:
    return f"{result.artifact} on {result.target}"


def _print_problem(wrong: Problem, result: TargetResult, console: Console) -> None:
    """Print one failure: what, why, where, how much, how much was allowed, and all numbers."""
    console.print(f"\n[bold red]FAIL[/] [bold]{escape(_name(result))}[/]")
    console.print(f"  [red]{escape(wrong.what)}[/]")
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim", no_wrap=True)
    grid.add_column(overflow="fold")
    parts = (("where", wrong.where), ("how much", wrong.how_much), ("allowed", wrong.allowed))
    for place, sentence in enumerate(wrong.why or (result.reason,)):
        grid.add_row("" if place else "why", escape(sentence))
    for term, text in parts:
        if text:
            grid.add_row(term, escape(text))
    for place, sentence in enumerate(wrong.numbers):
        grid.add_row("" if place else "numbers", f"[dim]{escape(sentence)}[/]")
    console.print(Padding(grid, (0, 0, 0, 2)))
