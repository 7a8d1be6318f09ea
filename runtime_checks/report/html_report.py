"""The report as one self-contained HTML page: no scripts, no external fonts or images."""

from __future__ import annotations

import html
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape

from ..end_to_end.error_budget import ErrorBudget, decibels
from ..end_to_end.findings import OutputVerdict, TargetResult
from ..end_to_end.task_agreement import TaskAgreement
from .charts import (
    DriftChart,
    Histogram,
    SampleChart,
    anchor,
    budget_chart,
    drift_chart,
    error_histogram,
    sample_chart,
)
from .numbers import percent, short
from .op_points import op_points
from .problems import Problem, problem
from .shown import accuracy_in_words, limits_in_words, what_was_shown
from .worst_samples import SampleView, worst_samples

if TYPE_CHECKING:
    from ..check_record import CheckRecord

_FOLDER = Path(__file__).parent / "page"

# First words of clauses that are not names.
_CLAUSES = frozenset({"accuracy", "all", "layer", "no", "noise:", "output", "the", "too", "with"})

# Name of the meta element that lists the contents of a page.
_COVERS = "renormlite-covers"


@dataclass(frozen=True)
class OutputView:
    """One output of one result, ready to be drawn."""

    verdict: OutputVerdict | None
    budget: ErrorBudget
    task: TaskAgreement | None
    chart: SampleChart | None
    histogram: Histogram | None
    worst: list[SampleView]


@dataclass(frozen=True)
class ResultView:
    """One artifact on one target, ready to be drawn."""

    result: TargetResult
    anchor: str
    problem: Problem | None
    outputs: tuple[OutputView, ...]
    drift: DriftChart | None
    ran: tuple[tuple[str, str], ...]
    size: str
    latency: str


def page_environment() -> Environment:
    """Return the templates of pages, with the filters they use."""
    environment = Environment(
        loader=FileSystemLoader(_FOLDER),
        autoescape=select_autoescape(["j2"], default=True),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["short"] = short
    environment.filters["percent"] = percent
    environment.filters["decibels"] = decibels
    environment.filters["sentence"] = _sentence
    return environment


def style() -> str:
    """Return the style sheet of pages."""
    return (_FOLDER / "style.css").read_text(encoding="utf-8")


def render(report: CheckRecord) -> str:
    """Return the page."""
    views = [_result_view(report, result) for result in report.results]
    return (
        page_environment()
        .get_template("report.html.j2")
        .render(
            report=report,
            lead=_lead(report),
            limits=limits_in_words(report),
            accuracy=accuracy_in_words(report),
            kinds=Counter(str(kind) for kind in report.golden.kind),
            views=views,
            budget=budget_chart(report),
            folded=_folded(report.manifest),
            classes=_classes(report.manifest),
            style=style(),
            meta=_COVERS,
            covers=";".join(f"{result.artifact} on {result.target}" for result in report.results),
        )
    )


def covered(page: str) -> frozenset[tuple[str, str]]:
    """Return the (file, target) pairs that a page covers; none for another kind of page."""
    found = re.search(f'<meta name="{_COVERS}" content="([^"]*)">', page)
    pairs = html.unescape(found[1]).split(";") if found else []
    return frozenset((file, target) for file, _, target in (p.partition(" on ") for p in pairs))


def _result_view(report: CheckRecord, result: TargetResult) -> ResultView:
    classes = _classes(report.manifest)
    sizes = {entry["file"]: entry["bytes"] for entry in report.manifest["artifacts"]}
    latency = result.measured.get("latency_ms", {})
    median = latency.get("median", latency.get("mean"))
    return ResultView(
        result=result,
        anchor=anchor(result),
        problem=problem(report, result),
        outputs=tuple(_output_view(report, result, budget, classes) for budget in result.stages),
        drift=drift_chart(op_points(result)),
        ran=tuple(_flat({**result.ran, **result.measured})),
        size=f"{sizes[result.artifact] / 1024:.0f} KiB",
        latency="" if median is None else f"{median:.3g} ms",
    )


def _output_view(
    report: CheckRecord,
    result: TargetResult,
    budget: ErrorBudget,
    classes: list[str],
) -> OutputView:
    name, golden = budget.output, report.golden
    entry = next((entry for entry in result.outputs if entry.metrics.output == name), None)
    return OutputView(
        verdict=entry,
        budget=budget,
        task=next((task for task in result.tasks if task.output == name), None),
        chart=sample_chart(entry, golden) if entry else None,
        histogram=error_histogram(result.given[name], golden.reference[name], golden.truth[name]),
        worst=worst_samples(entry, result.given[name], golden, classes) if entry else [],
    )


def _sentence(text: str) -> str:
    """Return a clause as a sentence; names of files and runtimes keep their first letter."""
    first = text.split(" ", 1)[0]
    start = text[0].upper() if first in _CLAUSES else text[0]
    return f"{start}{text[1:]}{'' if text.endswith('.') else '.'}"


def _lead(report: CheckRecord) -> str:
    """Return the verdict in one sentence."""
    wrong = [result for result in report.results if not result.passed]
    files = len({result.artifact for result in report.results})
    targets = len({result.target for result in report.results})
    on = f"{files} file{'s' * (files != 1)} on {targets} target{'s' * (targets != 1)}"
    if not report.results:
        return "Nothing was checked."
    failed = sum(not finding.passed for finding in report.findings)
    if not wrong and failed:
        return f"{on}: each passes, but the check fails for the reason below."
    if not wrong:
        return f"{on} passed: {what_was_shown(report)}."
    where = ", ".join(f"{result.artifact} on {result.target}" for result in wrong[:3])
    more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
    return f"{on}: {len(wrong)} of {len(report.results)} checks failed: {where}{more}."


def _classes(manifest: Mapping[str, Any]) -> list[str]:
    """Return the names of the classes that were given at export."""
    return [str(name) for name in manifest.get("metadata", {}).get("labels", ())]


def _folded(manifest: Mapping[str, Any]) -> str:
    """Describe how the norms were folded at export."""
    records = manifest.get("fold", {}).get("records", [])
    if not records:
        return ""
    outcomes = Counter(str(record["outcome"]) for record in records)
    return ", ".join(f"{count} {outcome}" for outcome, count in outcomes.items())


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yield nested values under joined, readable names."""
    for key, value in values.items():
        name = f"{prefix}{key}".replace("_", " ")
        if isinstance(value, Mapping):
            yield from _flat(value, f"{name} ")
        elif isinstance(value, (list, tuple)):
            yield name, " ".join(str(entry) for entry in value)
        elif isinstance(value, float):
            yield name, short(value)
        elif value not in (None, ""):
            yield name, str(value)
