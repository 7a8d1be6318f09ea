"""The report as annotations of GitHub Actions: one command line for each failure.

Source: GitHub's documentation of workflow commands, `::error title=TITLE::MESSAGE`.
"""

from __future__ import annotations

from ..check_record import CheckRecord


def annotate(report: CheckRecord) -> str:
    """Return the lines; for a report that passed, one notice.

    Args:
        report: The report.
    """
    lines = [
        f"::error title={_property(where or report.name)}::{_data(why)}"
        for where, why in report.failures
    ]
    if report.passed:
        passed = f"{len(report.results)} files on their targets passed"
        lines.append(f"::notice title={_property(report.name)}::{_data(passed)}")
    return "".join(f"{line}\n" for line in lines)


def _data(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")
