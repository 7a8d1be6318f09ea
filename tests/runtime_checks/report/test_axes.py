"""Protects the geometry of charts: order is kept and every point is within the chart."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from renormlite.runtime_checks.report.axes import decibel_axis, exponent, log_axis
from renormlite.runtime_checks.report.charts import error_histogram
from renormlite.runtime_checks.report.numbers import percent, short

positive = st.lists(st.floats(1e-300, 1e300), min_size=1, max_size=20)


@given(positive, st.integers(-20, 0), st.integers(1, 20))
def test_log_axis_keeps_the_order_and_stays_within_the_chart(values, least, most):
    axis = log_axis(values, least=least, most=most)
    places = [axis.at(exponent(value)) for value in sorted([0.0, *values, math.inf])]
    assert places == sorted(places)
    assert all(0 <= place <= 100 for place in places)
    assert 3 <= len(axis.ticks) <= 11
    assert axis.at(math.nan) == axis.over


@given(st.lists(st.floats(-50, 400), max_size=8))
def test_decibels_run_from_exact_to_lost(values):
    axis = decibel_axis(values)
    ordered = [math.inf, *sorted(values, reverse=True), -math.inf]
    places = [axis.at(-value) for value in ordered]
    assert places == sorted(places)
    assert (places[0], places[-1]) == (axis.under, axis.over)


def test_histogram_counts_every_element():
    truth = np.zeros(1000)
    error = np.random.default_rng(0).normal(0, 1e-3, 1000)
    error[:100] = 0
    chart = error_histogram(error, np.zeros(1000), truth)
    assert chart is not None
    counted = [int(bar.title.split(": ")[1].split(" ")[0]) for bar in chart.bars]
    assert sum(counted) == 1000
    assert counted[0] == 100
    assert max(bar.height for bar in chart.bars) <= 100
    assert all(bar.at >= 0 and bar.at + bar.width <= 100 for bar in chart.bars)


def test_histogram_without_elements_and_without_errors():
    assert error_histogram(np.full(3, np.nan), np.zeros(3), np.zeros(3)) is None
    chart = error_histogram(np.zeros(3), np.zeros(3), np.zeros(3))
    assert chart is not None
    assert len(chart.bars) == 1


@pytest.mark.parametrize(
    ("value", "text"),
    [(1.2345e-7, "1.23e-7"), (1e5, "1e5"), (0.5, "0.5"), (math.inf, "∞"), (-math.inf, "-∞")],
)
def test_short_numbers(value, text):
    assert short(value) == text


@pytest.mark.parametrize(("share", "text"), [(-1e-9, "0.0 %"), (1.0, "100.0 %"), (-0.5, "-50.0 %")])
def test_shares(share, text):
    assert percent(share) == text
