"""The data of one check; every form of report is a function of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..artifacts.golden_set import GoldenSet
from ..artifacts.html_table import html_table
from .end_to_end.findings import Finding, TargetResult
from .end_to_end.quality_gates import QualityLimits
from .search.search import Searched

if TYPE_CHECKING:
    from .streaming.check import Streamed

_HEADINGS = ("file", "target", "SNR (dB)", "same decisions", "verdict")


@dataclass(frozen=True)
class CheckRecord:
    """The results of checking an export directory.

    Attributes:
        name: Name of the exported model.
        directory: Its path.
        results: One entry for each artifact on each target.
        samples: Number of samples compared.
        host: Python, system and processor that the checks ran on.
        seconds: Duration of the whole check.
        manifest: The manifest as parsed.
        golden: The samples that were run.
        left_out: A sentence for each artifact whose arithmetic a target does not support.
        searched: What each search found.
        findings: Findings that do not belong to one file: about own samples, or about changes since
            an earlier check. Those that passed are notes.
        limits: How much quality a file may lose.
        streamed: The totals of own samples that do not fit into memory; None if all do.
        layers: The only Keras layers that were judged; empty for whole files.
    """

    name: str
    directory: Path
    results: tuple[TargetResult, ...]
    samples: int
    host: Mapping[str, Any]
    seconds: float
    manifest: Mapping[str, Any]
    golden: GoldenSet
    left_out: tuple[str, ...] = ()
    searched: tuple[Searched, ...] = ()
    findings: tuple[Finding, ...] = ()
    limits: QualityLimits = field(default_factory=QualityLimits)
    streamed: Streamed | None = None
    layers: tuple[str, ...] = ()

    def __repr__(self) -> str:
        """Return the verdict in one line."""
        return f"{type(self).__name__}({self.name!r}: {self._summary})"

    def _repr_html_(self) -> str:
        """Return the verdicts as a table, for notebooks."""
        rows = []
        for result in self.results:
            ratios = [budget.stages[-1].snr_db for budget in result.stages]
            snr = f"{min(ratios):.1f}" if ratios else "-"
            same = ", ".join(f"{task.same}/{task.samples}" for task in result.tasks) or "-"
            word = "pass" if result.passed else f"FAILED: {result.reason}"
            rows.append((result.artifact, result.target, snr, same, word))
        rows += [("", "", "", "", f.message) for f in self.findings if not f.passed]
        return html_table(f"{self.name}: {self._summary}", _HEADINGS, rows)

    def in_its_terms(self, text: str) -> str:
        """Return a text about the trained model in terms of the reference of this check."""
        return text

    @property
    def _summary(self) -> str:
        passed = sum(result.passed for result in self.results)
        word = "passed" if self.passed else "FAILED"
        return f"{word}, {passed} of {len(self.results)} files on their targets"

    @property
    def failures(self) -> list[tuple[str, str]]:
        """Place and reason of each failure; the place is "FILE on TARGET" or empty."""
        of_files = [(f"{r.artifact} on {r.target}", r.reason) for r in self.results if not r.passed]
        return of_files + [("", f.message) for f in self.findings if not f.passed]

    @property
    def passed(self) -> bool:
        """True if there was something to check and all of it passed."""
        return (
            bool(self.results)
            and all(result.passed for result in self.results)
            and all(finding.passed for finding in self.findings)
        )
