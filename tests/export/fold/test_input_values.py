"""Protects the samples made for inputs that take integers, such as those of lookups."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from keras import layers as kl
from renormlite.export.fold.input_values import InputValues, values_of_inputs


def values(low, high, whole, **options) -> InputValues:
    return InputValues(np.array(low, float), np.array(high, float), np.array(whole), **options)


def test_numbers_are_mapped_to_the_allowed_integers():
    """The magnitude, at most 1, is the place in the range; other elements stay as they are."""
    allowed = values([2, 0], [5, 0], [True, False])
    shares = np.array([0.0, 0.24, 0.26, -0.5, 0.99, 1.0, 30.0, np.nan])
    got = allowed.fit(np.stack([shares, shares], axis=1))
    np.testing.assert_array_equal(got[:, 0], [2, 2, 3, 4, 5, 5, 5, 2])
    np.testing.assert_array_equal(got[:, 1], shares)


def test_random_integers_cover_their_range_evenly():
    got = values([2, 0], [5, 0], [True, False]).random(np.random.default_rng(0), 4000)
    numbers, counts = np.unique(got[:, 0], return_counts=True)
    np.testing.assert_array_equal(numbers, [2, 3, 4, 5])
    assert counts.min() > 900  # 1000 expected, standard deviation 27
    assert abs(got[:, 1].mean()) < 0.1  # standard normal
    assert abs(got[:, 1].std() - 1) < 0.1


def test_the_keys_of_a_lookup_are_chosen():
    allowed = values([0], [2], [True], readers=("lookup",), choices=(10, 20, 40))
    np.testing.assert_array_equal(allowed.fit(np.array([[0.0], [0.5], [1.0]])), [[10], [20], [40]])
    assert set(allowed.random(np.random.default_rng(0), 100).ravel()) == {10, 20, 40}


@pytest.mark.parametrize(("oov", "others"), [(0, False), (1, True)])
def test_a_lookup_is_read_from_the_network(oov, others):
    x = keras.Input((1,), dtype="int64", name="token")
    y = kl.IntegerLookup(vocabulary=[10, 20, 40], num_oov_indices=oov, name="lookup")(x)
    (found,) = values_of_inputs(keras.Model(x, kl.Embedding(5, 2)(y)))
    assert found.readers[0] == "lookup"
    assert {10, 20, 40} <= set(found.choices)
    assert found.others is others
    assert (float(found.low[0]), float(found.high[0])) == (0.0, len(found.choices) - 1)


def test_the_rows_of_an_embedding_limit_its_input():
    x = keras.Input((3,), dtype="int32", name="token")
    (found,) = values_of_inputs(keras.Model(x, kl.Embedding(7, 2, name="table")(x)))
    np.testing.assert_array_equal(found.low, [0, 0, 0])
    np.testing.assert_array_equal(found.high, [6, 6, 6])
    assert found.whole.all()
    assert found.readers == ("table",)


@pytest.mark.parametrize(
    ("allowed", "good", "bad", "sentence"),
    [
        (values([0], [6], [True], readers=("table",)), 6, 7, "integers from 0 to 6"),
        (values([0], [6], [True], readers=("table",)), 0, -1, "integers from 0 to 6"),
        (values([0], [6], [True], readers=("table",)), 1, 1.5, "integers from 0 to 6"),
        (
            values([0], [1], [True], readers=("look",), choices=(10, 20)),
            20,
            1,
            "one of 2 known integers",
        ),
        (
            values([0], [1], [True], readers=("look",), choices=(10, 20), others=True),
            7,
            7.5,
            "integers",
        ),
    ],
)
def test_other_values_are_refused(allowed, good, bad, sentence):
    assert allowed.refusal("token", np.array([[float(good)]])) is None
    reader = allowed.readers[0]
    assert allowed.refusal("token", np.array([[float(good)], [float(bad)]])) == (
        f"Input 'token' feeds '{reader}', which takes {sentence}. Received: {bad:g}. Give samples "
        "like those the model was trained on."
    )


def test_unlimited_integers_take_the_range_of_real_samples():
    real = np.array([[3.0], [9.0]])
    free = values([0], [255], [True])
    assert (free.within(real).low[0], free.within(real).high[0]) == (3, 9)
    limited = values([0], [6], [True], readers=("table",))
    assert limited.within(real) is limited
    floats = values([-np.inf], [np.inf], [False])
    assert floats.within(real) is floats
    assert floats.refusal("x", real) is None


def test_a_selection_by_an_input_moves_none_of_its_elements():
    x, mask = keras.Input((4,)), keras.Input((4,), dtype="bool")
    model = keras.Model([x, mask], kl.Softmax()(x, mask=mask))
    assert [found.whole.all() for found in values_of_inputs(model)] == [False, True]


def test_columns_that_no_lookup_reads_may_have_any_integer():
    """The sources of edges are indices of another input, only the targets are looked up."""
    x = keras.Input((3, 2), dtype="int32", name="edges")
    model = keras.Model(x, keras.ops.one_hot(x[:, :, 1], 10))
    (found,) = values_of_inputs(model)
    edges = np.array([[[30, 0], [40, 9], [50, 4]]])
    assert found.refusal("edges", edges) is None
    assert "from 0 to 9. Received: 10" in str(found.refusal("edges", edges + np.array([0, 1])))
    drawn = found.within(edges).random(np.random.default_rng(0), 500)
    assert (drawn[..., 0].min(), drawn[..., 0].max()) == (30, 50)
    assert (drawn[..., 1].min(), drawn[..., 1].max()) == (0, 9)


@pytest.mark.parametrize(
    ("dtype", "low", "high", "whole"),
    [
        ("float32", -np.inf, np.inf, False),
        ("bfloat16", -np.inf, np.inf, False),
        ("uint8", 0, 255, True),
        ("int32", 0, 1, True),
        ("bool", 0, 1, True),
    ],
)
def test_values_that_no_layer_limits(dtype, low, high, whole):
    found = InputValues.free((2, 3), dtype)
    assert found.low.shape == (2, 3)
    assert (found.low == low).all()
    assert (found.high == high).all()
    assert (found.whole == whole).all()
    assert not found.readers


def limits(make, shape=(3,), dtype="int32"):
    x = keras.Input(shape, dtype=dtype, name="token")
    (found,) = values_of_inputs(keras.Model(x, make(x)))
    return found


TABLE = np.zeros((5, 8), "float32")


@pytest.mark.parametrize(
    ("make", "high"),
    [
        (lambda x: keras.ops.one_hot(x, 9), 8),
        (lambda x: keras.ops.take(TABLE, x, axis=0), 4),
        (lambda x: keras.ops.take(TABLE, x, axis=1), 7),
        (lambda x: kl.CategoryEncoding(6, output_mode="multi_hot")(x), 5),
        (lambda x: kl.Embedding(4, 2)(kl.Reshape((3, 1))(x)), 3),
        (lambda x: kl.Embedding(4, 2)(keras.ops.cast(x, "float32")), 3),
        (lambda x: kl.Embedding(4, 2)(keras.ops.flip(x, 1)), 3),
        (lambda x: kl.Embedding(4, 2)(kl.Concatenate()([x, x])), 3),
        # The smaller of two tables limits what both read.
        (lambda x: kl.Concatenate()([kl.Embedding(4, 2)(x), kl.Embedding(3, 2)(x)]), 2),
    ],
)
def test_every_kind_of_lookup_limits_what_it_reads(make, high):
    found = limits(make)
    assert (found.low == 0).all()
    assert (found.high == high).all()
    assert found.whole.all()
    assert found.unlimited is None


def test_only_the_elements_that_a_lookup_reads_are_limited():
    def first_two(x):
        return kl.Embedding(4, 2)(x[:, :2])

    found = limits(first_two)
    assert found.high.tolist() == [3, 3, 1]  # other integers are 0 or 1 without real samples
    assert found.unlimited.tolist() == [False, False, True]
    floats = limits(first_two, dtype="float32")
    assert floats.high.tolist() == [3, 3, np.inf]
    assert floats.whole.tolist() == [True, True, False]


def test_numbers_that_are_computed_are_not_followed():
    found = limits(lambda x: kl.Embedding(4, 2)(x + 1))
    assert not found.readers


def test_one_integer_outside_of_a_vocabulary_stands_for_all():
    x = keras.Input((1,), dtype="int64", name="token")
    y = kl.IntegerLookup(vocabulary=[10, 40, 20], num_oov_indices=1)(x)
    (found,) = values_of_inputs(keras.Model(x, kl.Embedding(5, 2)(y)))
    assert found.choices == (10, 20, 40, 41)
