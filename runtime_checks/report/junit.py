"""The report as JUnit XML, for the test pages of CI servers.

One `testsuite` for each target, one `testcase` for each finding. Names consist of artifact, check
and subject, without numbers, so that a server recognizes a test across runs. The dialect is the one
that Jenkins, GitLab and GitHub's report actions all read: `failure` with `message` and text,
`properties` of the suite for what actually ran.
"""

from __future__ import annotations

import datetime
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

from ..end_to_end.findings import Finding, TargetResult

if TYPE_CHECKING:
    from ..check_record import CheckRecord

# Characters that XML 1.0 cannot hold, even escaped, such as color codes of a runtime's message.
_FORBIDDEN = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def render(report: CheckRecord) -> str:
    """Return the report as JUnit XML."""
    root = ElementTree.Element("testsuites", name=_text(f"renormlite check {report.name}"))
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    for target in dict.fromkeys(result.target for result in report.results):
        results = [result for result in report.results if result.target == target]
        root.append(_suite(report, target, results, now))
    if report.left_out:
        root.append(_left_out(report, now))
    if report.findings:
        root.append(_about_no_file(report, now))
    for key in ("tests", "failures"):
        root.set(key, str(sum(int(suite.get(key, "0")) for suite in root)))
    root.set("errors", "0")
    root.set("time", f"{report.seconds:.3f}")
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode", xml_declaration=True) + "\n"


def _suite(
    report: CheckRecord, target: str, results: Sequence[TargetResult], now: str
) -> ElementTree.Element:
    """Return the suite of one target."""
    suite = ElementTree.Element(
        "testsuite", name=_text(target), timestamp=now, hostname=_text(str(report.host["system"]))
    )
    properties = ElementTree.SubElement(suite, "properties")
    cases: list[ElementTree.Element] = []
    for result in results:
        for name, value in _flat(result.artifact, {**result.ran, **result.measured}):
            ElementTree.SubElement(properties, "property", name=_text(name), value=_text(value))
        cases.extend(_cases(report.name, result))
    suite.extend(cases)
    suite.set("tests", str(len(cases)))
    suite.set("failures", str(sum(case.find("failure") is not None for case in cases)))
    suite.set("errors", "0")
    suite.set("skipped", "0")
    suite.set("time", f"{sum(float(case.get('time', '0')) for case in cases):.3f}")
    return suite


def _left_out(report: CheckRecord, now: str) -> ElementTree.Element:
    """Return the suite of files that could not be run, as skipped tests."""
    count = str(len(report.left_out))
    suite = ElementTree.Element(
        "testsuite", name="left out", timestamp=now, tests=count, skipped=count, time="0.000"
    )
    suite.set("failures", "0")
    suite.set("errors", "0")
    for sentence in report.left_out:
        name = sentence.partition(":")[0]
        case = ElementTree.SubElement(
            suite, "testcase", classname=_text(f"{report.name}.left out"), name=_text(name)
        )
        ElementTree.SubElement(case, "skipped", message=_text(sentence))
    return suite


def _about_no_file(report: CheckRecord, now: str) -> ElementTree.Element:
    """Return the suite of findings that belong to no single file."""
    failures = sum(not finding.passed for finding in report.findings)
    suite = ElementTree.Element(
        "testsuite",
        name="check",
        timestamp=now,
        tests=str(len(report.findings)),
        failures=str(failures),
        errors="0",
        skipped="0",
        time="0.000",
    )
    for finding in report.findings:
        case = ElementTree.SubElement(
            suite,
            "testcase",
            classname=_text(f"{report.name}.{finding.check}"),
            name=_text(f"{finding.check} {finding.subject}"),
            time="0.000",
        )
        if finding.passed:
            ElementTree.SubElement(case, "system-out").text = _text(finding.message)
        else:
            ElementTree.SubElement(
                case, "failure", message=_text(finding.message), type=_text(finding.check)
            )
    return suite


def _cases(model: str, result: TargetResult) -> Iterator[ElementTree.Element]:
    """Yield a test case for each finding of one result."""
    findings = list(result.findings)
    if not result.passed and all(finding.passed for finding in findings):
        # Zero comparisons are a failure, which a suite of passed cases would hide.
        findings.append(Finding("outputs", False, result.reason))
    loading = float(result.measured.get("load_ms", 0.0)) / 1e3
    seen: Counter[str] = Counter()
    for place, finding in enumerate(findings):
        name = f"{result.artifact}: {finding.check}"
        if finding.subject:
            name += f" {finding.subject}"
        seen[name] += 1
        case = ElementTree.Element(
            "testcase",
            classname=_text(f"{model}.{result.target}"),
            name=_text(name if seen[name] == 1 else f"{name} ({seen[name]})"),
            time=f"{loading if place == 0 else 0.0:.3f}",
        )
        if finding.passed:
            ElementTree.SubElement(case, "system-out").text = _text(finding.message)
        else:
            failure = ElementTree.SubElement(
                case, "failure", message=_text(finding.message), type=_text(finding.check)
            )
            failure.text = _text("\n".join(_context(finding, result)))
        yield case


def _context(finding: Finding, result: TargetResult) -> Iterator[str]:
    """Yield the lines of a failure: what failed, on what, and at which stage."""
    yield f"{result.artifact} on {result.target}"
    yield finding.message
    for budget in result.stages:
        if finding.subject in ("", budget.output):
            yield budget.sentence


def _flat(prefix: str, values: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield nested values under dotted names."""
    for key, value in values.items():
        name = f"{prefix}.{key}"
        if isinstance(value, Mapping):
            yield from _flat(name, value)
        else:
            yield name, str(value)


def _text(text: str) -> str:
    """Return text that XML can hold."""
    return _FORBIDDEN.sub("\ufffd", text)
