"""Protects the metrics of an output: each against its formula, computed by other means."""

import dataclasses
import math

import numpy as np
import pytest
import scipy.special
import scipy.stats
from renormlite.runtime_checks.end_to_end.bounds import NoiseBound
from renormlite.runtime_checks.end_to_end.comparison import compare_output, sample_errors
from renormlite.runtime_checks.end_to_end.findings import OutputVerdict

RNG = np.random.default_rng(0)
TRUTH = RNG.normal(size=(6, 5))
ACTUAL = TRUTH + RNG.normal(scale=0.01, size=TRUTH.shape)
P, Q = (scipy.special.softmax(a, axis=1) for a in (TRUTH, ACTUAL))


def test_errors_have_their_textbook_values():
    found = compare_output("y", ACTUAL, TRUTH)
    error = ACTUAL - TRUTH
    assert found.max_abs == np.abs(error).max()
    assert abs(error[found.max_abs_at]) == found.max_abs
    assert found.max_rel == pytest.approx(np.abs(error / TRUTH).max())
    assert found.rms_error == pytest.approx(np.sqrt((error**2).mean(axis=1)))
    power, noise = (TRUTH**2).sum(), (error**2).sum()
    assert found.snr_db == pytest.approx(10 * math.log10(power / noise))
    peak = np.ptp(TRUTH) ** 2
    assert found.psnr_db == pytest.approx(10 * math.log10(peak / (error**2).mean()))
    cosines = [1 - scipy.spatial.distance.cosine(y, t) for y, t in zip(ACTUAL, TRUTH, strict=True)]
    assert found.cosine == pytest.approx(min(cosines))
    steps = np.spacing(np.abs(TRUTH).astype(np.float32))
    assert found.max_ulp == pytest.approx(np.max(np.abs(error) / steps))
    assert (found.samples, found.elements, found.skipped, found.nonfinite) == (6, 30, 0, 0)


def test_divergence_is_the_greatest_of_a_sample():
    assert compare_output("y", Q, P).kl == pytest.approx(scipy.stats.entropy(P, Q, axis=1).max())


def test_divergence_from_a_zero_probability_is_finite_and_large():
    sure, wrong = np.array([[0.0, 1.0]]), np.array([[1.0, 0.0]])
    assert compare_output("y", sure, sure).kl == 0
    assert 700 < compare_output("y", wrong, sure).kl < 750  # -log of the least positive float64


@pytest.mark.parametrize("truth", [TRUTH, P * 1.001, P[:, :1], P[:, 0], -P])
def test_no_divergence_without_a_distribution(truth):
    assert compare_output("y", truth, truth).kl is None


def test_decisions_are_ties_up_to_twice_the_allowed_error():
    truth = np.array([[0.0, 1.0], [0.0, 1.0], [0.0, 1.0], [0.0, 0.0]])
    other = np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
    found = compare_output(
        "y", other, truth, allowed=np.array([0.5, 0.499, 0.0, 0.0]), decides=True, topk=1
    ).agreement
    # Equal scores of the truth leave the choice free.
    assert (found.same, found.ties, found.flips) == (2, 1, 1)
    strict = compare_output("y", other, truth, decides=True).agreement
    assert (strict.same, strict.ties, strict.flips) == (2, 0, 2)
    assert (strict.topk, strict.k) == (1.0, 2)


def test_top_k_counts_the_choice_among_the_best_of_the_truth():
    truth = np.array([[4.0, 3.0, 2.0, 1.0]] * 4)
    found = compare_output("y", np.eye(4), truth, decides=True, topk=2).agreement
    assert (found.topk, found.k) == (0.5, 2)
    assert (found.same, found.flips) == (1, 3)


def test_a_single_probability_decides_between_two_classes():
    found = compare_output("y", np.array([[0.4], [0.6]]), np.array([[0.6], [0.6]]), decides=True)
    assert (found.agreement.same, found.agreement.flips) == (1, 1)


def test_values_that_are_not_finite_count_unless_both_sides_agree():
    truth = np.array([[1.0, np.nan, np.inf, np.inf, 2.0]])
    actual = np.array([[1.0, np.nan, np.inf, -np.inf, np.nan]])
    found = compare_output("y", actual, truth)
    assert (found.elements, found.skipped, found.nonfinite) == (1, 2, 2)
    assert found.max_abs == 0
    assert found.snr_db == math.inf
    assert sample_errors(actual, truth).nonfinite == 2


@pytest.mark.parametrize(
    ("nonfinite", "worst", "pooled", "sound"),
    [(0, 1.0, 1.0, True), (1, 1.0, 1.0, False), (0, 2.5, 1.0, False), (0, 1.0, 2.5, False)],
)
def test_a_verdict_needs_both_limits_and_finite_values(nonfinite, worst, pooled, sound):
    metrics = dataclasses.replace(compare_output("y", ACTUAL, TRUTH), nonfinite=nonfinite)
    bound = NoiseBound(TRUTH, np.ones(6), worst=2.0, pooled=2.0, reason="")
    ratios = np.array([0.1, worst])
    assert OutputVerdict(metrics, bound, bound, ratios, pooled, pooled_limit=2.0).sound is sound


def test_a_sample_that_only_one_side_has_as_zero_has_no_direction():
    truth = np.array([[3.0, 4.0], [1.0, 0.0]])
    assert compare_output("y", np.array([[3.0, 4.0], [0.0, 0.0]]), truth).cosine == 0
    assert compare_output("y", truth, np.array([[3.0, 4.0], [0.0, 0.0]])).cosine == 0
