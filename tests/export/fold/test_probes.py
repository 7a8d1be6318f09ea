"""Protects the inputs of the proof, and its test for outputs that differ by more than rounding."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from keras import layers as kl
from renormlite import UserError
from renormlite.export.fold.evaluation import evaluate
from renormlite.export.fold.faithful import _differs, in_half_precision
from renormlite.export.fold.keras_graph import read_graph
from renormlite.export.fold.probes import (
    _batches,
    _borders,
    _words,
    free_sizes,
    probes,
    real_inputs,
)

RNG = np.random.default_rng(0)


def graph_of(*shapes, batch=None):
    inputs = [keras.Input(s, batch_size=batch, name=f"x{i}") for i, s in enumerate(shapes)]
    return read_graph(keras.Model(inputs, [kl.Activation("tanh")(x) for x in inputs]))


@pytest.mark.parametrize("shape", [(3,), (3, 0), (3, 0, 2)])
def test_shapes_without_borders_are_ones_and_zeros(shape):
    found = _borders(RNG, shape)
    assert found.shape == shape
    assert (found[0] == 1).all()
    assert (found[1:] == 0).all()


def test_the_first_sample_is_ones_and_the_others_have_impulses_at_every_border():
    found = _borders(RNG, (3, 5, 7, 2))
    assert (found[0] == 1).all()
    for sample in found[1:]:
        places = {tuple(place) for place in np.argwhere(np.abs(sample[..., 0]) > 0).tolist()}
        # The corners, the middle, and the beginning of the second row.
        assert places == {(0, 0), (0, 6), (4, 0), (4, 6), (2, 3), (1, 0)}
        assert (np.abs(sample[sample != 0]) == 8).all()
        assert {tuple(place[:2]) for place in np.argwhere(sample).tolist()} == places


def test_a_sequence_has_impulses_at_both_ends_and_in_the_middle():
    found = _borders(RNG, (2, 9, 3))
    assert {place[0] for place in np.argwhere(found[1]).tolist()} == {0, 4, 8}


@pytest.mark.parametrize(
    ("shapes", "sizes"),
    [
        ([(4,)], []),
        ([(None, 4)], [32, 64, 60, 16, 8, 7, 49, 128, 240, 512, 1000, 1024, 2520, 4096, 1]),
        ([(None, None, 8)], [32, 64, 60, 16, 8, 7, 49, 128, 240, 512, 1]),
        ([(4,), (None, 2**18)], [8, 7, 1]),  # 8 times 2^18 are 2^21 numbers
        ([(None, 2**22)], [1]),
    ],
)
def test_free_sizes_leave_samples_small(shapes, sizes):
    assert free_sizes(graph_of(*shapes)) == sizes


def test_kinds_of_samples_and_their_magnitudes():
    found = dict(probes(graph_of((4, 6), (3,)), None))
    assert list(found) == ["random", "border", "extreme"]
    for arrays in found.values():
        assert [array.shape for array in arrays] == [(2, 4, 6), (2, 3)]
    large, small = np.abs(found["extreme"][0]).max(axis=(1, 2))
    assert 1e3 < large < 1e4
    assert 1e-3 < small < 1e-2


@pytest.mark.parametrize(("batch", "count"), [(1, 2), (2, 1), (3, 1)])
def test_a_fixed_batch_is_filled(batch, count):
    found = list(probes(graph_of((4,), batch=batch), None))
    assert [kind for kind, _ in found].count("random") == count
    assert {arrays[0].shape for _, arrays in found} == {(batch, 4)}


def test_samples_are_repeated_to_whole_batches():
    array = np.arange(10).reshape(5, 2)
    found = [part[0][:, 0].tolist() for part in _batches([array], 2)]
    assert found == [[0, 2], [4, 6], [8, 0]]
    assert [part[0] is array for part in _batches([array], None)] == [True]


def test_real_samples_come_last_and_determine_free_sizes():
    real = RNG.normal(size=(3, 5, 4))
    *_, (kind, arrays) = probes(graph_of((None, 4)), None, [real])
    assert kind == "real"
    np.testing.assert_array_equal(arrays[0], real)
    (_, first), *_ = probes(graph_of((None, 4)), None, [real])
    assert first[0].shape == (2, 5, 4)


def test_texts_have_every_known_word_alone_and_with_others():
    words = [f"word{i}" for i in range(5)]
    text = kl.TextVectorization(vocabulary=words, output_sequence_length=9)
    x = keras.Input((), dtype="string")
    graph = read_graph(keras.Model(x, kl.Embedding(20, 2)(text(x))))
    given = _words(graph.inputs[0])
    assert set(words) < set(given)
    assert any(set(words) <= set(entry.split()) for entry in given)
    assert any(set(entry.split()).isdisjoint(words) for entry in given if entry)
    (found,) = [arrays for _, (arrays,) in probes(graph, None, None)][:1]
    assert set(found.tolist()) <= set(given)


def test_a_shared_layer_is_changed_once():
    shared = kl.Dense(3, name="shared")
    x = keras.Input((3,))
    graph = read_graph(keras.Model(x, shared(shared(x))))
    changed = []
    evaluate(
        graph, [[np.ones((2, 3))]], graph.outputs, change=lambda layer: changed.append(layer.name)
    )
    assert changed.count("shared") == 1


def test_real_inputs_by_name_or_in_order():
    graph = graph_of((4,), (3, 2))
    a, b = np.ones((5, 4)), np.ones((5, 3, 2))
    for given in ({"x1": b, "x0": a}, [a, b], (a, b)):
        found = real_inputs(graph, given)
        assert [array.shape for array in found] == [(5, 4), (5, 3, 2)]
    assert real_inputs(graph_of((4,)), a)[0] is a


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"x0": np.ones((5, 4))}, "Expected inputs named"),
        ([np.ones((5, 4))], "Expected 2 input arrays"),
        ([np.ones((5, 3)), np.ones((5, 3, 2))], "The input 'x0' takes arrays of shape"),
        ([np.ones((5, 4)), np.ones((5, 3))], "The input 'x1' takes arrays of shape"),
        ([np.ones((5, 4)), np.ones((4, 3, 2))], "as many as the other inputs"),
        ([np.ones((0, 4)), np.ones((0, 3, 2))], "with at least one sample"),
    ],
)
def test_other_real_inputs_are_refused(given, says):
    with pytest.raises(UserError, match=says):
        real_inputs(graph_of((4,), (3, 2)), given)


@pytest.mark.parametrize(
    ("share", "size", "differ"),
    [
        (1.0, 0.0, False),
        (1.0, 0.009, False),
        (1.0, 0.011, True),  # one per cent of the root mean square
        (0.2, 0.1, True),
        (0.1, 0.1, False),  # single elements, where a function is not continuous
    ],
)
def test_outputs_differ_if_many_elements_are_far(share, size, differ):
    expected = np.where(np.arange(100) % 2 == 0, 1.0, -1.0).reshape(10, 10)
    off = np.where(np.arange(100) < 100 * share, size, 0.0).reshape(10, 10)
    assert _differs(expected + off, expected) is differ
    assert _differs(1e6 * (expected + off), 1e6 * expected) is differ


def test_outputs_that_cannot_be_compared_do_not_differ():
    ones = np.ones((2, 3))
    assert not _differs(ones, np.full((2, 3), np.inf))
    assert not _differs(np.full((2, 3), np.nan), ones)
    assert not _differs(np.ones((3, 2)), np.zeros((2, 3)))
    assert not _differs(np.ones((0, 3)), np.ones((0, 3)))
    assert _differs(ones, np.zeros((2, 3)))


@pytest.mark.parametrize(
    ("policy", "half"), [("float32", False), ("mixed_float16", True), ("mixed_bfloat16", True)]
)
def test_models_in_half_precision(policy, half):
    x = keras.Input((4,))
    model = keras.Model(x, kl.Dense(2, dtype=policy)(kl.Dense(3)(x)))
    assert in_half_precision(model) is half
