"""Judges outputs: each finding is a check, whether it passed, and a sentence.

Used on the host (`parity`) and in the bundle that runs on a device (`replay`).
"""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from ...artifacts.golden_set import GoldenSet
from ...artifacts.manifest import Artifact
from ...artifacts.precisions import Arithmetic, precision_named
from ...artifacts.ranges import GREATEST_HALF
from ...artifacts.sample_kinds import pooled
from .bounds import NoiseBound, end_to_end_bound, float32_bound
from .comparison import OutputMetrics, compare_output, sample_errors
from .error_budget import ErrorBudget
from .integer_agreement import IntegerAgreement, integer_agreement
from .quality import OutputQuality
from .task_agreement import TaskAgreement
from .thread_counts import ThreadComparison

if TYPE_CHECKING:
    from ..per_op.culprit import Fault
    from ..per_op.op_results import OpCheck


@dataclass(frozen=True)
class Finding:
    """One check and its result.

    Attributes:
        check: Which check: file, load, interface, training, calibration, kernels, outputs,
            finite, integers, noise, snr, slices, decisions, accuracy, clipped, headroom,
            weights, ops, evaluated, rounding, determinism, threads, samples.
        passed: Whether it passed.
        message: One sentence with the numbers.
        subject: The output or layer concerned; empty for the whole file.
    """

    check: str
    passed: bool
    message: str
    subject: str = ""


@dataclass(frozen=True)
class OutputVerdict:
    """One output: its metrics, its bound, and its errors relative to the bound.

    Attributes:
        metrics: Metrics against float64 truth.
        bound: The bound applied.
        rounding: The bound of float32 arithmetic, whatever the precision of the file.
        ratios: (N,) error of each sample over its expected noise.
        pooled_ratio: Root mean square of the ratios of all samples that were not selected by
            their error.
        pooled_limit: The limit on it (`NoiseBound.pooled_limit`).
    """

    metrics: OutputMetrics
    bound: NoiseBound
    rounding: NoiseBound
    ratios: np.ndarray
    pooled_ratio: float
    pooled_limit: float

    @classmethod
    def of(
        cls,
        metrics: OutputMetrics,
        bound: NoiseBound,
        rounding: NoiseBound,
        actual: np.ndarray,
        golden: GoldenSet,
    ) -> OutputVerdict:
        """Hold an output to a bound.

        Args:
            metrics: Its metrics against float64 truth.
            bound: The bound.
            rounding: The bound of float32 arithmetic.
            actual: (N, …) the output.
            golden: The golden set that was run.
        """
        known = bound.expected is golden.truth[metrics.output]
        errors = metrics if known else sample_errors(actual, bound.expected)
        ratios = bound.ratios(errors.rms_error)
        together = pooled(ratios, golden.kind)
        limit = bound.pooled_limit(together, actual, golden.kind)
        return cls(metrics, bound, rounding, ratios, together, limit)

    @property
    def worst_sample(self) -> int:
        """The sample with the greatest error over its expected noise."""
        return int(np.argmax(self.ratios))

    @property
    def worst_ratio(self) -> float:
        """Its error over its expected noise."""
        return float(self.ratios[self.worst_sample])

    @property
    def sound(self) -> bool:
        """Whether the output is within its bound, and finite where the truth is."""
        return self.within and self.metrics.nonfinite == 0

    @property
    def within(self) -> bool:
        """Whether its finite elements are within the bound."""
        return self.worst_ratio <= self.bound.worst and self.pooled_ratio <= self.pooled_limit


@dataclass(frozen=True)
class TargetResult:
    """One artifact on one target.

    Attributes:
        target: The target as the user wrote it.
        artifact: File name.
        precision: The artifact's precision.
        findings: Everything that was checked, passed or not.
        outputs: One verdict for each output that could be compared.
        ran: What actually ran, as reported by the runner.
        measured: Load and inference times in milliseconds and the like.
        ops: Every operator that was checked separately; empty if none was.
        faults: Faults by layer.
        stages: For each output, the error added by every stage up to the target.
        tasks: For each output that decides between classes, the agreement of its decisions.
        qualities: For each output, how close it is to the trained model on typical samples.
        threads: How the outputs with other numbers of threads differ; empty if none were requested.
        integers: How its integers agree with their predictions; None if there are none.
        given: Keras output name to (N, …) outputs of the target for the golden inputs, replaced by
            the trained model's where nothing is expected (`without_undefined`).
    """

    target: str
    artifact: str
    precision: str
    findings: tuple[Finding, ...]
    outputs: tuple[OutputVerdict, ...] = ()
    ran: Mapping[str, Any] = field(default_factory=dict)
    measured: Mapping[str, Any] = field(default_factory=dict)
    ops: tuple[OpCheck, ...] = ()
    faults: tuple[Fault, ...] = ()
    stages: tuple[ErrorBudget, ...] = ()
    tasks: tuple[TaskAgreement, ...] = ()
    qualities: tuple[OutputQuality, ...] = ()
    threads: tuple[ThreadComparison, ...] = ()
    integers: IntegerAgreement | None = field(default=None, repr=False)
    given: Mapping[str, np.ndarray] = field(default_factory=dict, repr=False)

    @property
    def passed(self) -> bool:
        """True if every check passed and at least one output was compared."""
        return bool(self.outputs) and all(finding.passed for finding in self.findings)

    @property
    def reason(self) -> str:
        """The first failure's sentence; empty if all passed."""
        failed = [finding.message for finding in self.findings if not finding.passed]
        if not failed and not self.outputs:
            return "nothing was compared"
        return failed[0] if failed else ""


# Follows the sentence on NaN and infinity of a file of half precision.
_IN_HALF = (
    f"; a runtime that computes in half precision makes values beyond {GREATEST_HALF:.0f} infinite"
)
# Follows the name of an output without a limit.
_UNLIMITED = (
    "is not compared with its noise: the outputs of the exported file for samples added since are "
    "not known, because the file was changed or does not run on this machine"
)
# Follows the sentence on integers that match no rule.
_HELD = "; the outputs are compared within a limit instead"
_WITHIN_A_STEP = "; each operator is within one step of a known rule, as an unknown rule is"


def judge_outputs(
    results: Mapping[str, np.ndarray],
    golden: GoldenSet,
    artifact: Artifact,
    *,
    decides: Container[str] = (),
    bound_to_rules: bool = False,
    follows_rules: bool = True,
    agreed: IntegerAgreement | None = None,
    bounds: Mapping[str, NoiseBound] | None = None,
) -> tuple[list[Finding], list[OutputVerdict]]:
    """Judge a target's outputs for the golden inputs.

    Args:
        results: Keras output name to (N, …), as `session.Session.run` returns them.
        golden: The golden set that was run.
        artifact: The manifest's entry of the file.
        decides: Keras names of the outputs that decide between classes.
        bound_to_rules: Whether integers that match no known rounding rule are a failure.
        follows_rules: Whether the runtime rounds by one rule, known or not.
        agreed: How integers agree with their predictions, if that is known already.
        bounds: Bounds of outputs that are known already.

    Returns:
        The findings, and a verdict for each output that was compared.
    """
    findings: list[Finding] = []
    verdicts: list[OutputVerdict] = []
    if agreed is None:
        agreed = integer_agreement(artifact, results, golden, follows_rules=follows_rules)
    if agreed is not None:
        known = bool(agreed.kernels) or bool(agreed.reason)
        right = known or (agreed.plausible and not bound_to_rules)
        held = not agreed.kernels and artifact.file in golden.artifacts
        findings.append(Finding("integers", right, agreed.sentence + _HELD * held))
    for spec in artifact.outputs:
        name = spec.keras_name
        if name not in results:
            findings.append(
                Finding("outputs", False, f"output '{name}' is missing from {artifact.file}", name)
            )
            continue
        truth, actual = golden.truth[name], results[name]
        if actual.shape != truth.shape:
            findings.append(
                Finding(
                    "outputs",
                    False,
                    f"output '{name}' must have the shape {truth.shape} for the golden inputs; "
                    f"it has {actual.shape}",
                    name,
                )
            )
            continue
        half = precision_named(artifact.precision).arithmetic is Arithmetic.FLOAT16
        findings.append(_finite(name, actual, golden, _IN_HALF if half else ""))
        rounding = float32_bound(golden, name)
        bound = (bounds or {}).get(name) or end_to_end_bound(
            golden, artifact, name, rounding, follows_rules=follows_rules
        )
        if agreed is not None and agreed.kernels and name in agreed.expected:
            bound = replace(
                bound,
                expected=agreed.instead_of(bound.expected, name, golden.kind),
                against=f"the rounding of {agreed.kernels[0]}",
            )
        metrics = compare_output(
            name, actual, truth, allowed=rounding.greatest, decides=name in decides
        )
        verdict = OutputVerdict.of(metrics, bound, rounding, actual, golden)
        findings.append(_noise(verdict, golden))
        if metrics.elements:
            verdicts.append(verdict)
    return findings, verdicts


def judge_unknown_rule(result: TargetResult, golden: GoldenSet, artifact: Artifact) -> TargetResult:
    """Judge the outputs of integers anew after every operator was found within one step.

    So the target rounds by an unknown rule, which may differ from the known ones by more than these
    do from each other: the bound is that of one step in every operation.

    Args:
        result: The verdict, whose integers follow no known rule.
        golden: The golden set that was run.
        artifact: The manifest's entry of the file.

    Returns:
        The result with the other bound.
    """
    verdicts = []
    for entry in result.outputs:
        name = entry.metrics.output
        bound = end_to_end_bound(golden, artifact, name, entry.rounding, follows_rules=False)
        given = result.given[name]
        verdicts.append(OutputVerdict.of(entry.metrics, bound, entry.rounding, given, golden))
    noise = {entry.metrics.output: _noise(entry, golden) for entry in verdicts}
    findings = []
    for finding in result.findings:
        if finding.check == "integers":
            finding = replace(finding, passed=True, message=finding.message + _WITHIN_A_STEP)
        elif finding.check == "noise":
            finding = noise.get(finding.subject, finding)
        findings.append(finding)
    return replace(result, findings=tuple(findings), outputs=tuple(verdicts))


def judge_proven(result: TargetResult, golden: GoldenSet, proven: Sequence[int]) -> TargetResult:
    """Judge integers anew after every operator was found right, by known rules, on some samples.

    A rounding that goes the other way early in a network may change a sample by more than the model
    of noise expects, such as in a softmax that saturates. What every operator computes correctly
    from its own inputs is right whatever the difference.

    Args:
        result: The verdict.
        golden: The golden set that was run.
        proven: The samples.

    Returns:
        The result, in which these samples have no limit.
    """
    rest = np.ones(golden.samples, bool)
    rest[list(proven)] = False
    verdicts, findings = [], {}
    for entry in result.outputs:
        whole = pooled(entry.ratios[rest], golden.kind[rest]) if rest.any() else 0.0
        within = np.where(rest, entry.ratios, 0.0)
        judged = replace(entry, ratios=within, pooled_ratio=whole, pooled_limit=entry.bound.pooled)
        explained = judged.sound and not entry.sound
        verdicts.append(judged if explained else entry)
        if explained:
            name, bound = entry.metrics.output, entry.bound
            says = (
                f"output '{name}' differs from {bound.against} by {whole:.2f}x the noise of "
                f"{bound.reason} (allowed {entry.pooled_limit:.3g}x), and by up to "
                f"{entry.worst_ratio:.3g}x in {len(proven)} samples for which every operator gives "
                "the integers of a known rule"
            )
            findings[name] = Finding("noise", True, says, name)
    return replace(
        result,
        outputs=tuple(verdicts),
        findings=tuple(
            findings.get(finding.subject, finding) if finding.check == "noise" else finding
            for finding in result.findings
        ),
    )


def _finite(name: str, actual: np.ndarray, golden: GoldenSet, remark: str) -> Finding:
    """Check that NaN and infinity occur exactly where the float32 reference has them.

    Args:
        name: Keras output name.
        actual: (N, …) the output.
        golden: The golden set that was run.
        remark: Ends the sentence of a failure.
    """
    expected = golden.reference[name].reshape(golden.samples, -1)
    found = np.asarray(actual).reshape(golden.samples, -1)
    wrong = (np.isnan(found) != np.isnan(expected)) | (np.isinf(found) != np.isinf(expected))
    if not wrong.any():
        return Finding(
            "finite", True, f"output '{name}' is finite where the trained model is", name
        )
    sample, place = (int(index[0]) for index in np.nonzero(wrong))
    return Finding(
        "finite",
        False,
        f"output '{name}' is {found[sample, place]} where the trained model gives "
        f"{expected[sample, place]:.6g}: {_count(wrong)}, first in sample {sample} "
        f"({golden.kind[sample]}), element {place}{remark}",
        name,
    )


def _noise(verdict: OutputVerdict, golden: GoldenSet) -> Finding:
    """Check errors against the expected noise."""
    name, bound, metrics = verdict.metrics.output, verdict.bound, verdict.metrics
    if metrics.elements == 0:
        return Finding(
            "noise",
            False,
            f"output '{name}' has no finite element to compare: zero comparisons",
            name,
        )
    if np.isinf(bound.noise).all():
        return Finding("noise", True, f"output '{name}' {_UNLIMITED}", name)
    if verdict.within:
        return Finding(
            "noise",
            True,
            f"output '{name}' differs from {bound.against} by {verdict.pooled_ratio:.2f}x the "
            f"noise of {bound.reason} (allowed {verdict.pooled_limit:.3g}x; worst sample "
            f"{verdict.worst_ratio:.2f}x of {bound.worst:g}x)",
            name,
        )
    sample = verdict.worst_sample
    over = verdict.ratios > bound.worst
    index = [int(i) for i in metrics.max_abs_at]
    least = max(verdict.worst_ratio, verdict.pooled_ratio * bound.worst / verdict.pooled_limit)
    return Finding(
        "noise",
        False,
        f"output '{name}' differs from {bound.against}: mismatched samples {_count(over)}; sample "
        f"{sample} ({golden.kind[sample]}) has the RMS error "
        f"{verdict.worst_ratio * bound.noise[sample]:.3g}, allowed "
        f"{bound.worst * bound.noise[sample]:.3g} ({bound.worst:g}x the noise of {bound.reason}); "
        f"all samples together {verdict.pooled_ratio:.3g}x, allowed {verdict.pooled_limit:.3g}x; "
        f"greatest absolute error against float64 truth {metrics.max_abs:.3g} at {index}; would "
        f"pass only with a tolerance of {least:.3g}x",
        name,
    )


def _count(wrong: np.ndarray) -> str:
    """Return `3 / 100 (3 %)`."""
    return f"{int(wrong.sum())} / {wrong.size} ({100 * wrong.mean():.3g} %)"
