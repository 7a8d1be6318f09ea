"""Tolerances that follow from the arithmetic; docs/checks.md derives each and shows its headroom.

End to end a result is judged against float64 truth by the noise of the arithmetic it should have:
what a model of rounding expects of float32 on this network and sample (`noise`), and no less than
the trained model's own float32 error. No absolute tolerance appears.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ...artifacts.precisions import SMALLEST_NORMAL, UNIT_ROUNDOFF, precision_named
from .comparison import SampleErrors, sample_errors

# A healthy runtime adds the same roundings in another order, so its error is of the noise's size,
# not of a multiple of it. Measured (benchmarks/check_false_alarms.py, docs/checks.md): the worst
# sample of 288 checks of healthy files had 2.11 times the noise, all samples pooled at most 0.95.
WORST_SAMPLE_LIMIT = 5.0
POOLED_LIMIT = 1.5


@dataclass(frozen=True)
class NoiseBound:
    """How much error each sample of one output may have.

    Attributes:
        noise: (N,) root mean square error that the arithmetic explains.
        worst: Multiple of it that the worst sample may have.
        pooled: Multiple that all samples together may have (root mean square of the ratios).
        reason: Where the noise comes from, to end a sentence with.
    """

    noise: np.ndarray
    worst: float
    pooled: float
    reason: str

    def ratios(self, metrics: SampleErrors) -> np.ndarray:
        """Return (N,) error over noise; an error where no noise is expected is infinite."""
        error = metrics.rms_error
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.where(error == 0, 0.0, error / self.noise)


def float_noise(
    reference: SampleErrors, unit: float, model: np.ndarray | None = None
) -> np.ndarray:
    """Return the error that float arithmetic explains, sample by sample.

    The model of rounding says how large it is on each sample; where the reference errs more than
    the model over all samples, the model is scaled up to it. Without a model, the reference's own
    error on that sample, but no less than its relative error over all samples, since a single
    sample can round to the right number by luck. In any case no less than one rounding of the
    result itself, and no less than the smallest normal number.

    Args:
        reference: The float32 reference against float64 truth.
        unit: Unit roundoff of the type that is compared.
        model: (N,) expected error by `noise.expected_noise`; None where a layer is beyond it.

    Returns:
        (N,) root mean square errors.
    """
    least = np.maximum(unit * reference.rms_truth, SMALLEST_NORMAL)
    if model is not None:
        usable = np.isfinite(model) & np.isfinite(reference.rms_error)
        floor = np.maximum(np.where(usable, model, 0.0), least)
        ratios = reference.rms_error[usable] / floor[usable]
        scale = max(1.0, float(np.sqrt(np.mean(ratios**2)))) if usable.any() else 1.0
        return np.where(usable, scale * floor, np.maximum(reference.rms_error, least))
    return np.maximum(_without_luck(reference), least)


def _without_luck(metrics: SampleErrors) -> np.ndarray:
    """Return each sample's error, but no less than the relative error of all samples together.

    One run is one draw of the roundings: a single sample may come out right by luck.
    """
    # Where flushing denormals to zero is no mere rounding, an error says nothing about the others.
    known = metrics.rms_truth > SMALLEST_NORMAL / UNIT_ROUNDOFF["float32"]
    relative = metrics.rms_error[known] / metrics.rms_truth[known]
    typical = float(np.sqrt(np.mean(relative**2))) if known.any() else 0.0
    return np.maximum(metrics.rms_error, typical * metrics.rms_truth)


def end_to_end_bound(
    output: str,
    truth: np.ndarray,
    reference: np.ndarray,
    *,
    precision: str,
    model: np.ndarray | None,
    own: np.ndarray | None,
    exported: np.ndarray | None,
) -> NoiseBound:
    """Return the bound for one output of one artifact.

    Args:
        output: Keras output name.
        truth: (N, …) float64 truth.
        reference: (N, …) float32 output of the trained model.
        precision: The artifact's precision.
        model: (N,) the expected error of float32 arithmetic, if the golden set has it.
        own: (N,) the expected error of the artifact's own arithmetic (`file_noise`), if the golden
            set has it.
        exported: (N, …) what the artifact gave on the exporting host: what it is held to where
            neither the reference nor a model of its arithmetic says how large an error may be.

    Returns:
        The bound.
    """
    of_reference = float_noise(sample_errors(reference, truth), UNIT_ROUNDOFF["float32"], model)
    if precision == "float32" or (own is None and exported is None):
        return NoiseBound(
            of_reference,
            WORST_SAMPLE_LIMIT,
            POOLED_LIMIT,
            "float32 arithmetic on this network"
            if model is not None
            else "the float32 model's own error against float64",
        )
    if own is None:
        assert exported is not None
        expected = _without_luck(sample_errors(exported, truth))
        reason = f"the {precision} file's error against float64 when it was exported"
    else:
        expected = np.where(np.isfinite(own), own, 0.0)
        reason = precision_named(precision).noise
    noise = np.maximum(expected, of_reference)
    return NoiseBound(noise, WORST_SAMPLE_LIMIT, POOLED_LIMIT, reason)
