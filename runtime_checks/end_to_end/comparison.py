"""Measures the error of an output against float64 truth, without tolerances or verdicts.

Every metric is computed per sample, since a mean over samples hides the one that is wrong. Elements
that are NaN or infinite in the same way on both sides are excluded and counted; those that differ
are mismatches.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Agreement:
    """Agreement of a classifier's decisions with the truth's.

    A *flip* is another class than the truth's; it is a *tie* when the truth's own two scores lie
    closer together than twice the error of float32 arithmetic, so that either class is right.

    Attributes:
        same: Samples with the truth's top class.
        ties: Samples with another one, within the bound.
        flips: Samples with another one, beyond the bound.
        topk: Share of samples whose top class is among the truth's k best.
        k: That k.
    """

    same: int
    ties: int
    flips: int
    topk: float
    k: int


@dataclass(frozen=True)
class SampleErrors:
    """The error of each sample of an output: the basis of the bounds.

    Attributes:
        rms_error: (N,) root mean square error of each sample.
        rms_truth: (N,) root mean square of each sample's truth.
        nonfinite: Elements that are NaN or infinite on one side only or in another way.
    """

    rms_error: np.ndarray
    rms_truth: np.ndarray
    nonfinite: int

    @property
    def worst_sample(self) -> int:
        """Index of the sample with the greatest root mean square error."""
        return int(np.argmax(self.rms_error))


@dataclass(frozen=True)
class OutputMetrics(SampleErrors):
    """One output of one artifact on one target against float64 truth.

    Decibels are infinite for an exact result.

    Attributes:
        output: Keras output name.
        samples: N.
        elements: Elements compared, over all samples.
        skipped: Elements that are NaN or infinite in the truth and, alike, in the result.
        max_abs: Greatest absolute error.
        max_abs_at: Its place, sample first.
        max_rel: Greatest error relative to the truth's element, where that is not zero.
        max_ulp: Greatest error in float32 units in the last place; informative only.
        snr_db: 10 log10 of the truth's power over the error's, all samples.
        psnr_db: 10 log10 of the truth's squared range over the mean squared error.
        cosine: Least cosine similarity of a sample with its truth.
        kl: Greatest Kullback-Leibler divergence of a sample in nats, of those that are finite on
            both sides; None unless the truth is a probability distribution over the last axis.
        agreement: Agreement of the decisions; None for an output that decides nothing.
    """

    output: str
    samples: int
    elements: int
    skipped: int
    max_abs: float
    max_abs_at: tuple[int, ...]
    max_rel: float
    max_ulp: float
    snr_db: float
    psnr_db: float
    cosine: float
    kl: float | None
    agreement: Agreement | None


def finite_pair(actual: np.ndarray, truth: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return where both are finite, and where they are not finite in the same way."""
    both = np.isfinite(actual) & np.isfinite(truth)
    with np.errstate(invalid="ignore"):
        alike = (np.isnan(actual) & np.isnan(truth)) | (
            np.isinf(actual) & np.isinf(truth) & (actual == truth)
        )
    return both, alike & ~both


def rms(values: np.ndarray, where: np.ndarray) -> np.ndarray:
    """Return the root mean square of each row over the elements in ``where``; 0 if none."""
    values = np.where(where, values, 0.0)
    peak = np.abs(values).max(axis=1, initial=0.0)
    # Scaled by the peak first, so that squares neither overflow nor vanish.
    values /= np.where(peak > 0, peak, 1.0)[:, None]
    total = np.einsum("ij,ij->i", values, values)
    return peak * np.sqrt(total / np.maximum(where.sum(axis=1), 1))


def as_scores(rows: np.ndarray) -> np.ndarray:
    """Return (N, classes): of a single probability of the second of two classes, both."""
    return np.concatenate([1 - rows, rows], axis=1) if rows.shape[1] == 1 else rows


def sample_errors(actual: np.ndarray, truth: np.ndarray) -> SampleErrors:
    """Measure the error of each sample of an output.

    Args:
        actual: (N, …) the output.
        truth: (N, …) float64.
    """
    y, t = _rows(actual), _rows(truth)
    where, alike = finite_pair(y, t)
    error = _error(y, t, where)
    return SampleErrors(rms(error, where), rms(t, where), int((~where & ~alike).sum()))


def _rows(array: np.ndarray) -> np.ndarray:
    """Return (N, elements) in float64."""
    return np.asarray(array, np.float64).reshape(len(array), -1)


def _error(y: np.ndarray, t: np.ndarray, where: np.ndarray) -> np.ndarray:
    """Return y - t; 0 where excluded."""
    return np.subtract(y, t, where=where, out=np.zeros_like(t))


def compare_output(
    output: str,
    actual: np.ndarray,
    truth: np.ndarray,
    *,
    allowed: np.ndarray | None = None,
    decides: bool = False,
    topk: int = 5,
) -> OutputMetrics:
    """Measure one output against its truth.

    Args:
        output: Keras output name.
        actual: (N, …) outputs of the target.
        truth: (N, …) float64.
        allowed: (N,) greatest error per element that float32 arithmetic explains in each sample; it
            distinguishes ties from flips. None counts every change of class as a flip.
        decides: Whether the output decides between classes (`agreement.deciding_outputs`).
        topk: The k of the top-k agreement.

    Returns:
        The metrics.
    """
    samples = len(truth)
    y, t = _rows(actual), _rows(truth)
    where, alike = finite_pair(y, t)
    error = _error(y, t, where)
    size = np.abs(error)
    rms_error, rms_truth = rms(error, where), rms(t, where)
    place = int(np.argmax(size))
    inside = np.unravel_index(place, truth.shape)
    nonzero = where & (t != 0)
    relative = np.divide(size, np.abs(t), where=nonzero, out=np.zeros_like(size))
    size_of_truth, size_of_error = math.hypot(*rms_truth), math.hypot(*rms_error)
    span = float(np.ptp(t[where])) if where.any() else 0.0
    return OutputMetrics(
        output=output,
        samples=samples,
        elements=int(where.sum()),
        skipped=int(alike.sum()),
        nonfinite=int((~where & ~alike).sum()),
        max_abs=float(size.flat[place]),
        max_abs_at=tuple(int(index) for index in inside),
        max_rel=float(relative.max()),
        max_ulp=_ulp(size, t, where),
        snr_db=_decibel(size_of_truth, size_of_error),
        psnr_db=_decibel(span, size_of_error / math.sqrt(samples)),
        cosine=_cosine(y, t, where, rms_truth),
        kl=_divergence(y, t, truth.shape, where),
        agreement=_agreement(y, t, where, allowed, topk) if decides else None,
        rms_error=rms_error,
        rms_truth=rms_truth,
    )


def _decibel(signal: float, noise: float) -> float:
    """Return the ratio of two amplitudes in decibels; their squares could overflow."""
    if noise == 0:
        return float("inf")
    return 20 * (math.log10(signal) - math.log10(noise)) if signal > 0 else float("-inf")


def _ulp(size: np.ndarray, truth: np.ndarray, where: np.ndarray) -> float:
    """Return the greatest error in units in the last place of the truth as float32."""
    with np.errstate(over="ignore"):
        step = np.spacing(np.abs(truth).astype(np.float32)).astype(np.float64)
    known = where & np.isfinite(step)
    return float(np.max(np.divide(size, step, where=known, out=np.zeros_like(size))))


def _cosine(y: np.ndarray, t: np.ndarray, where: np.ndarray, rms_truth: np.ndarray) -> float:
    """Return the least cosine of a sample; 1 for a sample that is zero on both sides."""
    rms_y = rms(y, where)
    unit_y = np.where(where, y, 0.0) / np.where(rms_y > 0, rms_y, 1.0)[:, None]
    unit_t = np.where(where, t, 0.0) / np.where(rms_truth > 0, rms_truth, 1.0)[:, None]
    dot = np.sum(unit_y * unit_t, axis=1) / np.maximum(where.sum(axis=1), 1)
    both_zero = (rms_y == 0) & (rms_truth == 0)
    neither = (rms_y > 0) & (rms_truth > 0)
    return float(np.min(np.where(both_zero, 1.0, np.where(neither, dot, 0.0))))


def _divergence(
    y: np.ndarray, t: np.ndarray, shape: tuple[int, ...], where: np.ndarray
) -> float | None:
    """Return the greatest KL(truth || actual) over the last axis, None for no distribution."""
    if len(shape) < 2 or shape[-1] < 2:
        return None
    usable = where.reshape(-1, shape[-1]).all(axis=1)
    p = t.reshape(-1, shape[-1])[usable]
    if not len(p):
        return None
    # 1e-6: a float64 softmax sums to one within 1e-15; other outputs do not by accident.
    if np.any(p < 0) or np.any(np.abs(p.sum(axis=1) - 1) > 1e-6):
        return None
    q = y.reshape(-1, shape[-1])[usable]
    # The least positive float64 stands in for a zero, which would make the divergence infinite.
    tiny = np.finfo(np.float64).tiny
    terms = np.where(p > 0, p * (np.log(np.maximum(p, tiny)) - np.log(np.maximum(q, tiny))), 0.0)
    return float(max(0.0, np.max(terms.sum(axis=1))))


def _agreement(
    y: np.ndarray,
    t: np.ndarray,
    where: np.ndarray,
    allowed: np.ndarray | None,
    k: int,
) -> Agreement | None:
    """Return the agreement of the decisions between the classes of each row."""
    usable = where.all(axis=1)
    y, t = as_scores(y[usable]), as_scores(t[usable])
    if not len(t):
        return None
    rows = np.arange(len(t))
    chosen, right = np.argmax(y, axis=1), np.argmax(t, axis=1)
    gap = t[rows, right] - t[rows, chosen]
    slack = 2 * allowed[usable] if allowed is not None else np.zeros(len(t))
    other = gap > 0
    k = min(k, t.shape[1])
    best = np.argpartition(-t, k - 1, axis=1)[:, :k]
    return Agreement(
        same=int(np.sum(~other)),
        ties=int(np.sum(other & (gap <= slack))),
        flips=int(np.sum(other & (gap > slack))),
        topk=float(np.mean(np.any(best == chosen[:, None], axis=1))),
        k=k,
    )
