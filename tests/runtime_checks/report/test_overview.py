"""Protects the page that puts several checks side by side, and its command."""

import html
import json
from html.parser import HTMLParser

import pytest
from click.testing import CliRunner
from renormlite import UserError
from renormlite.cli.report import command
from renormlite.runtime_checks.report.overview import (
    by_file,
    read_reports,
    render,
    side_by_side,
)


@pytest.fixture
def reports(healthy, failing, tmp_path):
    """Two JSON reports of one model: the first passes, the second fails."""
    paths = [tmp_path / "today.json", tmp_path / "last-week.json"]
    for path, report in zip(paths, (healthy, failing), strict=True):
        path.write_text(report.to_json())
    return paths


def test_the_same_file_of_two_checks_is_shown_together(reports):
    groups = side_by_side(read_reports(reports))
    rows = groups["float32.tflite on litert"]
    assert [(row.report, row.passed) for row in rows] == [
        ("digits (today)", True),
        ("digits (last-week)", False),
    ]
    entry = next(
        entry
        for entry in json.loads(reports[0].read_text())["results"]
        if entry["artifact"] == "digits.float32.tflite"
    )
    assert rows[0].snr_db == entry["quality"]["digit"]["snr_db"]
    assert rows[0].noise == entry["metrics"]["digit"]["noise"]["pooled_ratio"]
    assert rows[0].noise_most == 1.5
    assert rows[0].snr_least == 10
    assert (rows[0].same, rows[0].samples) == (16, 16)
    assert rows[0].accuracy is None


def test_targets_of_a_file_are_compared_on_the_page(reports):
    report = json.loads(reports[1].read_text())
    for entry in report["results"]:
        entry["target"] += "@ssh:pi"
    reports[1].write_text(json.dumps(report))
    rows = by_file(read_reports(reports))["float32.tflite"]
    assert [row.target for row in rows] == ["litert", "litert@ssh:pi"]


def test_accuracy_and_its_limit(reports):
    report = json.loads(reports[0].read_text())
    for entry in report["results"]:
        entry["tasks"]["digit"].update(labelled=200, right_before=190, right_after=187)
    reports[0].write_text(json.dumps(report))
    (first, *_) = side_by_side(read_reports(reports)).values()
    assert first[0].accuracy == 187 / 200
    assert first[0].accuracy_least == pytest.approx(0.94)


def test_the_page_says_what_failed_and_is_whole(reports):
    summaries = read_reports(reports)
    page = render(summaries)
    HTMLParser().feed(page)
    text = page.partition("<body>")[2]
    assert text.count("<tr>") == len(by_file(summaries)) + sum(len(s.rows) for s in summaries)
    failed = next(row for row in summaries[1].rows if not row.passed)
    assert failed.reason in html.unescape(text)
    assert "src=" not in text


def test_names_are_text(reports):
    report = json.loads(reports[0].read_text()) | {"name": "<b>net</b>"}
    reports[0].write_text(json.dumps(report))
    assert "<b>net" not in render(read_reports(reports))


def test_the_command(reports, tmp_path):
    page = tmp_path / "all.html"
    options = ["--html", str(page), "--json", "-"]
    done = CliRunner().invoke(command, [*map(str, reports), *options], catch_exceptions=False)
    assert done.exit_code == 0
    assert {row["report"] for row in json.loads(done.stdout)} == {
        "digits (today)",
        "digits (last-week)",
    }
    assert "float32.tflite on litert" in done.stderr
    assert max(len(line) for line in done.stderr.splitlines()) <= 80
    assert page.is_file()


def test_other_files_are_refused(reports, tmp_path):
    (tmp_path / "no.json").write_text('{"schema": "renormlite/manifest/1"}')
    (tmp_path / "cut.json").write_text(reports[0].read_text()[:500])
    for wrong in ("no.json", "cut.json", "missing.json"):
        with pytest.raises(UserError, match="is not a JSON report of `renormlite check`"):
            read_reports([reports[0], tmp_path / wrong])
    with pytest.raises(UserError, match="twice"):
        read_reports([reports[0], reports[0]])
