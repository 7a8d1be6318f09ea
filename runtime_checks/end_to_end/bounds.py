"""Limits on the error of each output sample, from the arithmetic of that sample alone.

Files of floats are compared with the float64 truth. Their noise is what a model of rounding expects
of their arithmetic on this network and sample (`reference.noise`), and no less than the trained
model's own float32 error. Files of integers are compared with what the same file gave on the
exporting host: quantization is a property of the file, and two correct runtimes differ only in how
they round (`reference.integer_noise`). docs/limits.md derives both and shows their headroom.

Samples of different kinds are never pooled: an `extreme` sample may saturate every integer, and
says nothing about an ordinary one. No absolute tolerance appears.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from ...artifacts.golden_set import GoldenSet
from ...artifacts.manifest import Artifact
from ...artifacts.precisions import (
    POOLED_LIMIT,
    SMALLEST_NORMAL,
    UNIT_ROUNDOFF,
    WORST_SAMPLE_LIMIT,
    Arithmetic,
    precision_named,
)
from ...artifacts.sample_kinds import averaged, pooled, without_undefined
from .chance import greatest_rms, independent_errors
from .comparison import SampleErrors, sample_errors


@dataclass(frozen=True)
class NoiseBound:
    """The allowed error of each sample of one output.

    Attributes:
        expected: (N, …) the values to compare with.
        noise: (N,) root mean square error that the arithmetic explains; infinite for samples
            without a limit.
        worst: Allowed multiple of it for the worst sample.
        pooled: Allowed multiple for all samples together (root mean square of the ratios).
        reason: Ends a sentence: where the noise comes from.
        against: Ends a sentence: what `expected` is.
    """

    expected: np.ndarray
    noise: np.ndarray
    worst: float
    pooled: float
    reason: str
    against: str = "float64 truth"

    @property
    def greatest(self) -> np.ndarray:
        """(N,) greatest root mean square error that a sample may have."""
        return self.worst * self.noise

    def ratios(self, error: np.ndarray) -> np.ndarray:
        """Return (N,) ratios of root mean square errors to the noise.

        Args:
            error: (N,) errors against `expected`; those without expected noise become infinite.
        """
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.where(error == 0, 0.0, error / self.noise)

    def pooled_limit(self, together: float, actual: np.ndarray, kind: np.ndarray) -> float:
        """Return the allowed multiple of the noise for all samples together.

        The root mean square of few independent errors may be larger by chance than that of many: a
        single one is beyond `pooled` in a seventh of all runs. Errors are few if one element
        dominates an output, or if an element has the same value in many samples.

        Args:
            together: The multiple that is to be judged; errors are counted only above `pooled`.
            actual: (N, …) an output.
            kind: (N,) kinds of the samples.

        Returns:
            What normal errors of their number exceed once in 10,000 times, from `pooled` to
            `worst`.
        """
        if together <= self.pooled:
            return self.pooled
        count = independent_errors(actual, self.expected, self.noise, averaged(kind))
        return min(max(self.pooled, greatest_rms(count)), self.worst)

    def holds(self, error: np.ndarray, kind: np.ndarray, actual: np.ndarray | None = None) -> bool:
        """Return whether errors are within the limits.

        Args:
            error: (N,) errors against `expected`.
            kind: (N,) kinds of the samples.
            actual: (N, …) the output, for the limit on few independent errors (`pooled_limit`).
        """
        ratios = self.ratios(error)
        if float(ratios.max()) > self.worst:
            return False
        together = pooled(ratios, kind)
        limit = self.pooled if actual is None else self.pooled_limit(together, actual, kind)
        return together <= limit


def end_to_end_bound(
    golden: GoldenSet, artifact: Artifact, output: str, plain: NoiseBound, *, follows_rules: bool
) -> NoiseBound:
    """Return the bound for one output of one artifact.

    Args:
        golden: The samples, the outputs of the export's stages, and the expected noise.
        artifact: The manifest's entry of the file.
        output: Keras output name.
        plain: The bound of float32 arithmetic (`float32_bound`), which is never undercut.
        follows_rules: Whether the runtime rounds by one rule, known or not.
    """
    precision = precision_named(artifact.precision)
    model = golden.file_noise.get(artifact.file, {}).get(output)
    exported = golden.artifacts.get(artifact.file, {}).get(output)
    if precision.arithmetic is Arithmetic.FLOAT32:
        return plain
    if exported is None and (model is None or precision.arithmetic is Arithmetic.INTEGER):
        # The limit of float32 arithmetic says nothing about such a file.
        return replace(plain, noise=np.full(golden.samples, np.inf))
    if precision.arithmetic is Arithmetic.INTEGER:
        assert exported is not None
        # A target's outputs are treated in the same way before they are compared.
        known = without_undefined(
            {output: exported}, golden.kind, golden.reference, artifact.precision
        )
        spread = _spread(golden, artifact, output, known[output]) if follows_rules else None
        return _integer_bound(
            golden, plain, known[output], model, spread, in_floats=not follows_rules
        )
    if model is not None:
        size = sample_errors(golden.truth[output], golden.truth[output]).rms_truth
        finite = np.isfinite(model)
        if exported is not None and not finite.all():
            model = np.where(finite, model, sample_errors(exported, golden.truth[output]).rms_error)
        noise = _without_luck(np.where(np.isfinite(model), model, 0.0), size, golden.kind)
        reason = precision.noise
    else:
        assert exported is not None
        errors = sample_errors(exported, golden.truth[output])
        noise = _without_luck(errors.rms_error, errors.rms_truth, golden.kind)
        reason = f"the {precision.name} file when it was exported"
    return NoiseBound(
        golden.truth[output],
        np.maximum(noise, plain.noise),
        WORST_SAMPLE_LIMIT,
        POOLED_LIMIT,
        reason,
    )


def noise_of(golden: GoldenSet, artifact: Artifact) -> Mapping[str, np.ndarray]:
    """Return the noise that the model predicts for a file of floats: output name to (N,).

    It is infinite for samples of which nothing is expected. Integers saturate, so that something is
    expected of every sample.
    """
    arithmetic = precision_named(artifact.precision).arithmetic
    if arithmetic is Arithmetic.INTEGER:
        return {}
    if arithmetic is Arithmetic.FLOAT32:
        return golden.noise
    return golden.file_noise.get(artifact.file, {})


def float32_bound(golden: GoldenSet, output: str) -> NoiseBound:
    """Return the bound of float32 arithmetic, as of the trained model itself."""
    model = golden.noise.get(output)
    errors = sample_errors(golden.reference[output], golden.truth[output])
    return NoiseBound(
        golden.truth[output],
        float_noise(errors, golden.kind, UNIT_ROUNDOFF["float32"], model),
        WORST_SAMPLE_LIMIT,
        POOLED_LIMIT,
        "float32 arithmetic on this network"
        if model is not None
        else "the trained model's own float32 arithmetic",
    )


def in_floats_bound(
    golden: GoldenSet, artifact: Artifact, output: str, plain: NoiseBound
) -> NoiseBound | None:
    """Return the bound for a runtime that computes a file of integers in floats.

    Such a runtime uses the file's weights and rounds nothing else to the steps of its integers, or
    only constants. The limit is one step of difference in every operation, as between other
    runtimes.

    Args:
        golden: The samples, and what such a runtime computes.
        artifact: The manifest's entry of the file.
        output: Keras output name.
        plain: The bound of float32 arithmetic.

    Returns:
        The bound; None if a weight of the file was not found, or only Keras can evaluate a layer.
    """
    expected = golden.in_floats.get(artifact.file, {}).get(output)
    if expected is None:
        return None
    given = {output: expected}
    known = without_undefined(given, golden.kind, golden.reference, artifact.precision)
    model = golden.file_noise.get(artifact.file, {}).get(output)
    bound = _integer_bound(golden, plain, known[output], model, None, in_floats=True)
    return replace(bound, against="the network with this file's weights")


def _integer_bound(
    golden: GoldenSet,
    plain: NoiseBound,
    exported: np.ndarray,
    model: np.ndarray | None,
    spread: np.ndarray | None,
    *,
    in_floats: bool,
) -> NoiseBound:
    """Return the bound of a file of integers, relative to its outputs on the exporting host.

    The noise model gives the effect of one step of difference in every operation on the output. A
    runtime of integers with an unknown rounding rule may differ from the known rules by as much as
    they differ from each other, plus the same again or a quarter of a step in every operation,
    whichever is smaller. A runtime that computes in floats may differ by the whole step. It may
    also compute the number that an integer stands for as the sum of a multiple of the step and the
    end of its range, and round the sum relative to that end.

    Operators that the file computes in floats add the noise of float32 arithmetic; less in samples
    that saturate, by as much as these are smaller.

    Where no model says what single steps become in the output, the error of quantization is the
    limit: it consists of roundings to the same steps, and of more of them.
    """
    errors = sample_errors(exported, plain.expected)
    size = sample_errors(exported, exported).rms_truth
    if model is not None:
        less = size < errors.rms_truth
        share = np.divide(size, errors.rms_truth, where=less, out=np.ones(len(size)))
        noise = np.hypot(np.where(np.isfinite(model), model, errors.rms_error), share * plain.noise)
        reason = precision_named("int8").noise
        if spread is not None:
            unknown = np.where(spread > 0, np.minimum(spread, noise / 4), noise / 4)
            noise = np.minimum(noise, np.hypot(spread, unknown))
            reason = "the difference between known rounding rules"
    else:
        noise = _without_luck(errors.rms_error, errors.rms_truth, golden.kind)
        reason = "the file's own quantization"
    if in_floats:
        finite = np.abs(exported, where=np.isfinite(exported), out=np.zeros(exported.shape))
        size = np.maximum(size, finite.max(initial=0.0))
    least = np.maximum(UNIT_ROUNDOFF["float32"] * size, SMALLEST_NORMAL)
    return NoiseBound(
        exported,
        np.maximum(noise, least),
        WORST_SAMPLE_LIMIT,
        POOLED_LIMIT,
        reason,
        "this file's output on the exporting host",
    )


def _spread(
    golden: GoldenSet, artifact: Artifact, output: str, exported: np.ndarray
) -> np.ndarray | None:
    """Return (N,) differences between known rounding rules in an output; None without rules."""
    predictions = golden.predictions.get(artifact.file)
    if predictions is None or output not in predictions.steps:
        return None
    distances = [
        sample_errors(outputs[output], exported).rms_error
        for outputs in predictions.by_rule.values()
    ]
    size = sample_errors(exported, exported).rms_truth
    return _without_luck(np.max(distances, axis=0), size, golden.kind)


def float_noise(
    reference: SampleErrors, kind: np.ndarray, unit: float, model: np.ndarray | None = None
) -> np.ndarray:
    """Return the error that float arithmetic explains, sample by sample.

    The model of rounding says how large it is on each sample; where the reference errs more than
    the model over all samples of one kind, the model is scaled up to it for that kind. Without a
    model, or where it has no number, the reference's own error on that sample, but no less than is
    usual for its kind, since a single sample can round to the right number by chance. In any case
    no less than one rounding of the result itself, and no less than the smallest normal number.

    Args:
        reference: The float32 reference against float64 truth.
        kind: (N,) kinds of the samples.
        unit: Unit roundoff of the type that is compared.
        model: (N,) expected error by `noise.expected_noise`; None if a layer is beyond it.

    Returns:
        (N,) root mean square errors.
    """
    least = np.maximum(unit * reference.rms_truth, SMALLEST_NORMAL)
    error = reference.rms_error
    if model is None:
        return np.maximum(_without_luck(error, reference.rms_truth, kind), least)
    usable = np.isfinite(model) & np.isfinite(error)
    own = error if usable.all() else _without_luck(error, reference.rms_truth, kind)
    noise = np.maximum(own, least)
    floor = np.maximum(np.where(usable, model, 0.0), least)
    for name in np.unique(kind):
        chosen = usable & (kind == name)
        if chosen.any():
            scale = float(np.sqrt(np.mean(np.square(error[chosen] / floor[chosen]))))
            noise[chosen] = max(1.0, scale) * floor[chosen]
    return noise


def _without_luck(error: np.ndarray, size: np.ndarray, kind: np.ndarray) -> np.ndarray:
    """Return each sample's error, but no less than is usual among the samples of its kind.

    One run is one draw of the roundings, so a single sample may be exact by chance. The usual error
    is the smaller of the kind's relative and absolute root mean square: the former would be too
    large for a large sample, the latter for a small one.

    Args:
        error: (N,) root mean square errors.
        size: (N,) root mean squares of the truth.
        kind: (N,) kinds of the samples.
    """
    found = error.copy()
    for name in np.unique(kind):
        # Flushing denormals to zero is more than rounding, so such errors say nothing about others.
        chosen = (kind == name) & (size > SMALLEST_NORMAL / UNIT_ROUNDOFF["float32"])
        if not chosen.any():
            continue
        relative = float(np.sqrt(np.mean(np.square(error[chosen] / size[chosen]))))
        absolute = float(np.sqrt(np.mean(np.square(error[chosen]))))
        usual = np.minimum(relative * size[chosen], absolute)
        found[chosen] = np.maximum(error[chosen], usual)
    return found
