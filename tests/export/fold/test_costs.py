"""Protects what the fold minimizes, and what it reports of the ranges of weights."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from keras import layers as kl
from renormlite.export.fold import fold
from renormlite.export.fold.affine import Affine
from renormlite.export.fold.cost import FREE, Cost, cost_of, one_more_is_slow, remaining_ops
from renormlite.export.fold.graph import AffineOp, Kept, MapOp


@pytest.mark.parametrize(
    ("scale", "shift", "ops"),
    [
        ([2.0, 1.0], [0.0, 3.0], ("MUL", "ADD")),
        ([2.0, 1.0], [0.0, 0.0], ("MUL",)),
        ([1.0, 1.0], [0.0, 3.0], ("ADD",)),
        ([1.0, 1.0], [0.0, 0.0], ()),
    ],
)
def test_an_affine_costs_its_operations_and_their_numbers(scale, shift, ops):
    op = AffineOp(Affine.of(scale, shift, 1), "norm", ("norm",))
    assert remaining_ops(op) == ops
    assert cost_of(op) == Cost(len(ops), 2 * len(ops))


def test_a_map_costs_one_addition_of_all_its_numbers():
    op = MapOp(np.zeros((3, 4, 5)), "map", ("norm",))
    assert remaining_ops(op) == ("ADD",)
    assert cost_of(op) == Cost(1, 60)


def test_other_operations_cost_nothing():
    assert cost_of(Kept(kl.ReLU(), "relu")) == FREE == Cost(0, 0)


def test_operations_count_before_parameters():
    assert Cost(1, 1000) < Cost(2, 0)
    assert Cost(1, 3) < Cost(1, 4)
    assert Cost(1, 5) + Cost(2, 7) == Cost(3, 12)
    assert Cost(4, 5) - Cost(1, 7) == Cost(3, -2)


@pytest.mark.parametrize(
    ("channels", "slow"),
    [(8, False), (15, False), (16, True), (17, False), (20, False), (24, True)],
)
def test_a_channel_more_is_slow_where_it_starts_a_block_of_eight(channels, slow):
    assert one_more_is_slow(channels) is slow


def test_the_growth_of_a_range_is_that_of_peak_to_root_mean_square():
    """A norm after relu folds forward, and scales the rows of the next kernel."""
    x = keras.Input((2,))
    norm, dense = kl.BatchNormalization(epsilon=0.0), kl.Dense(2, use_bias=False, name="y")
    model = keras.Model(x, dense(norm(kl.ReLU()(x))))
    norm.moving_mean.assign([0.0, 0.0])
    norm.moving_variance.assign([1.0, 0.0625])  # scales of 1 and 4
    dense.set_weights([np.array([[1.0, 8.0], [1.0, 1.0]])])
    # The columns (1, 1) and (8, 1) become (1, 4) and (8, 4).
    growth = 4 / np.sqrt((1 + 16) / 2)
    assert growth > (8 / np.sqrt((64 + 16) / 2)) / (8 / np.sqrt((64 + 1) / 2))
    (record,) = fold(model).report.records
    assert record.outcome == "folded"
    assert record.range_growth == pytest.approx(growth)
