"""Protects the exact tests of significance: each probability as SciPy computes it."""

from __future__ import annotations

import numpy as np
import pytest
from renormlite.runtime_checks.end_to_end.chance import (
    all_within,
    at_least,
    greatest_rms,
    independent_errors,
    mcnemar,
)
from scipy import stats


@pytest.mark.parametrize("trials", [1, 2, 7, 40, 3000])
@pytest.mark.parametrize("rate", [1e-6, 0.05, 0.5, 0.9])
def test_hits_at_a_given_rate(trials, rate):
    for hits in {0, 1, trials // 2, int(rate * trials), trials}:
        expected = stats.binom.sf(hits - 1, trials, rate)
        assert at_least(hits, trials, rate) == pytest.approx(expected, rel=1e-9, abs=1e-300)


def test_certain_and_impossible_hits():
    assert at_least(0, 5, 0.0) == at_least(-1, 5, 0.0) == 1
    assert at_least(1, 5, 0.0) == at_least(5, 5, -0.1) == 0
    assert at_least(5, 5, 1.0) == at_least(5, 5, 1.5) == 1
    assert at_least(6, 5, 0.5) == 0


@pytest.mark.parametrize(("lost", "gained"), [(0, 0), (1, 0), (0, 4), (3, 3), (9, 2), (700, 640)])
def test_lost_and_gained_decisions(lost, gained):
    if lost + gained:
        expected = stats.binomtest(lost, lost + gained, 0.5).pvalue
        assert mcnemar(lost, gained) == pytest.approx(expected, rel=1e-9)
    else:
        assert mcnemar(lost, gained) == 1


def test_all_uniform_numbers_in_a_share_of_their_interval():
    # The range of n uniform numbers has the beta distribution (n - 1, 2).
    for count in (2, 3, 10):
        for share in (0.01, 0.5, 0.99):
            expected = stats.beta.cdf(share, count - 1, 2)
            assert all_within(share, count) == pytest.approx(expected, rel=1e-12)
    assert all_within(1.0, 3) == all_within(2.0, 3) == all_within(0.5, 1) == 1


@pytest.mark.parametrize(("count", "off"), [(3, 0.02), (8, 0.01), (20, 0.004), (3000, 1e-4)])
def test_the_greatest_root_mean_square_by_chance(count, off):
    """Wilson and Hilferty's approximation; its error falls with the number of errors."""
    expected = np.sqrt(stats.chi2.isf(1e-4, count) / count)
    assert greatest_rms(count) == pytest.approx(expected, rel=off)


def found(errors, expected=None, noise=None, where=None) -> float:
    errors = np.asarray(errors, float)
    if expected is None:
        expected = np.arange(errors.size, dtype=float).reshape(errors.shape)
    noise = np.ones(len(errors)) if noise is None else np.array(noise)
    where = np.ones(len(errors), bool) if where is None else np.array(where)
    return independent_errors(expected + errors, np.asarray(expected, float), noise, where)


def test_errors_of_equal_size_count_each():
    assert found([[0.5, -0.5], [0.5, 0.5]]) == pytest.approx(4)
    assert found([[0.5, 0.0], [0.0, 0.5]]) == pytest.approx(2)
    assert found([[0.5, 0.0], [0.0, 0.0]]) == pytest.approx(1)
    assert found([[0.0, 0.0]]) == 1


def test_unequal_errors_count_as_equal_ones_of_the_same_mean():
    # (1 + 1 + 4)^2 / (1 + 1 + 16) of the squares.
    assert found([[1.0, 1.0, 2.0]]) == pytest.approx(36 / 18)


def test_errors_are_relative_to_the_noise_of_their_sample():
    assert found([[0.5], [50.0]], noise=[1.0, 100.0]) == pytest.approx(2)


def test_one_value_in_several_samples_has_one_error():
    same = np.array([[7.0, 1.0], [7.0, 2.0], [7.0, 3.0]])
    # The first element is one error of three equal squares, the others are three.
    assert found(np.full((3, 2), 0.5), same) == pytest.approx((3 + 3) ** 2 / (9 + 3))
    # Another error of the same value is another one.
    assert found([[0.5, 0], [-0.5, 0], [0.5, 0]], same) == pytest.approx(9 / 5)
    # The same value in another element is another one.
    assert found([[0.5, 0.5]], [[7.0, 7.0]]) == pytest.approx(2)


def test_only_some_samples_count_and_only_finite_errors():
    assert found([[0.5], [0.5], [0.5]], where=[True, False, True]) == pytest.approx(2)
    assert found([[0.5], [np.nan], [np.inf]]) == pytest.approx(1)
    assert found([[0.5], [0.5]], noise=[1.0, 0.0]) == pytest.approx(1)
    assert found([[np.nan], [0.5]], where=[True, False]) == 1
