"""Shows several reports of checks on one page, grouped by file."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...artifacts.record import Record
from ...errors import UserError
from .html_report import page_environment, style
from .json_report import read, read_decibels, reading


@dataclass(frozen=True)
class Row:
    """One file on one target in one report; the worst of its outputs.

    Attributes:
        report: Label of the report.
        kind: The file's name without the model's, such as "int8.tflite".
        artifact: The file's name.
        target: The target.
        passed: The verdict.
        reason: The first failure; empty if it passed.
        snr_db: Signal-to-noise ratio on typical samples; None if nothing was compared.
        snr_least: Its limit.
        noise: Error over the expected noise, all samples.
        noise_most: Its limit.
        same: Decisions that are the trained model's; None if no output decides.
        samples: Number of decisions.
        accuracy: Share of labelled samples that are right; None without labels.
        accuracy_least: Its limit.
        latency_ms: Median time of one inference.
    """

    report: str
    kind: str
    artifact: str
    target: str
    passed: bool
    reason: str
    snr_db: float | None
    snr_least: float
    noise: float | None
    noise_most: float | None
    same: int | None
    samples: int
    accuracy: float | None
    accuracy_least: float | None
    latency_ms: float | None

    @property
    def what(self) -> str:
        """The file and target, the same in every report."""
        return f"{self.kind} on {self.target}"


@dataclass(frozen=True)
class Summary:
    """One report: its verdict, and a row for each of its files and targets.

    Attributes:
        label: The model's name, with the report's where another report has the same.
        passed: The verdict.
        samples: Number of samples compared.
        processor: The processor of the machine that ran the check.
        rows: Its results.
    """

    label: str
    passed: bool
    samples: int
    processor: str
    rows: tuple[Row, ...]


def read_reports(paths: Sequence[Path]) -> list[Summary]:
    """Read JSON reports of `renormlite check`.

    Raises:
        UserError: A file is not such a report, or a report is given twice.
    """
    if len(set(paths)) < len(paths):
        raise UserError("Expected different reports. Received one of them twice.")
    records = [read(path) for path in paths]
    names = []
    for path, record in zip(paths, records):
        with reading(path):
            names.append(record.text("name"))
    summaries = []
    for path, record, label in zip(paths, records, _labels(names, paths)):
        with reading(path):
            summaries.append(_summary(record, label))
    return summaries


def side_by_side(summaries: Sequence[Summary]) -> dict[str, list[Row]]:
    """Return the rows of each file and target, in the order of the reports."""
    found: dict[str, list[Row]] = {}
    for summary in summaries:
        for row in summary.rows:
            found.setdefault(row.what, []).append(row)
    return found


def by_file(summaries: Sequence[Summary]) -> dict[str, list[Row]]:
    """Return the rows of each file, target by target."""
    found: dict[str, list[Row]] = {}
    for rows in side_by_side(summaries).values():
        found.setdefault(rows[0].kind, []).extend(rows)
    return found


def render(summaries: Sequence[Summary]) -> str:
    """Return the page."""
    return (
        page_environment()
        .get_template("overview.html.j2")
        .render(reports=summaries, groups=by_file(summaries), style=style())
    )


def _labels(names: Sequence[str], paths: Sequence[Path]) -> list[str]:
    """Return a label for each report: the model's name, and the file if names are equal."""
    counts = Counter(names)
    stems = Counter(path.stem for path in paths)
    files = [path.stem if stems[path.stem] == 1 else str(path) for path in paths]
    return [name if counts[name] == 1 else f"{name} ({file})" for name, file in zip(names, files)]


def _summary(record: Record, label: str) -> Summary:
    host, name = record.record("host"), record.text("name")
    limits = record.record("limits")
    return Summary(
        label=label,
        passed=record.text("verdict") == "pass",
        samples=record.integer("samples"),
        processor=host.record("cpu").text("name", "") if "cpu" in host else "",
        rows=tuple(_row(entry, label, name, limits) for entry in record.records("results")),
    )


def _row(entry: Record, label: str, model: str, limits: Record) -> Row:
    artifact = entry.text("artifact")
    outputs, decided, qualities = (
        [entry.record(part).record(output) for output in entry.record(part)]
        for part in ("metrics", "tasks", "quality")
    )
    ratios = [(o.number("pooled_ratio") or 0.0, o.number("pooled_limit")) for o in _noises(outputs)]
    noise, noise_most = max(ratios, default=(None, None), key=lambda pair: pair[0] or 0.0)
    same, before, after, labelled = (
        sum(task.integer(key) for task in decided)
        for key in ("same", "right_before", "right_after", "labelled")
    )
    drop = (limits.number("max_accuracy_drop") or 0.0) / 100
    return Row(
        report=label,
        kind=artifact.removeprefix(f"{model}."),
        artifact=artifact,
        target=entry.text("target"),
        passed=entry.text("verdict") == "pass",
        reason=entry.text("reason"),
        snr_db=min(
            (read_decibels(entry) for entry in qualities if "snr_db" in entry), default=None
        ),
        snr_least=limits.number("min_snr") or 0.0,
        noise=noise,
        noise_most=noise_most,
        same=same if decided else None,
        samples=sum(task.integer("samples") for task in decided),
        accuracy=after / labelled if labelled else None,
        accuracy_least=before / labelled - drop if labelled else None,
        latency_ms=entry.record("latency_ms").number("median") if "latency_ms" in entry else None,
    )


def _noises(outputs: Sequence[Record]) -> list[Record]:
    return [output.record("noise") for output in outputs if "noise" in output]


def rows_as_json(summaries: Sequence[Summary]) -> list[dict[str, Any]]:
    """Return all rows as plain dictionaries."""
    return [vars(row) for rows in side_by_side(summaries).values() for row in rows]
