"""Protects that an export holds few copies of large weights."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from renormlite import BatchRenormalization
from renormlite.export import golden_set
from renormlite.export.fold import build, fold
from renormlite.export.fold.backend import view_of
from renormlite.export.fold.keras_graph import read_graph
from renormlite.export.signature import signature_of


@pytest.fixture
def model():
    keras.utils.set_random_seed(1)
    x = data = keras.Input((6, 6, 3))
    x = keras.layers.Conv2D(4, 3, padding="same", use_bias=False)(x)
    x = keras.layers.ReLU()(BatchRenormalization()(x))
    x = keras.layers.Flatten()(x)
    return keras.Model(data, keras.layers.Dense(5, activation="softmax", name="head")(x))


def test_untouched_weights_share_memory(model):
    folded = fold(model).model
    before, after = (view_of(m.get_layer("head").kernel) for m in (model, folded))
    assert np.shares_memory(before, after)


def test_shared_weights_can_be_trained_apart(model):
    folded = fold(model).model
    kernel = folded.get_layer("head").kernel
    before, copied = view_of(kernel), np.array(kernel)
    model.get_layer("head").kernel.assign_add(np.ones_like(copied))
    assert np.array_equal(view_of(kernel), copied)
    assert np.array_equal(before, copied)
    assert np.array_equal(view_of(model.get_layer("head").kernel), copied + 1)


def test_float64_layers_are_freed_after_their_last_call(model):
    weighted = []
    for call, layer in build.build_layers(read_graph(model)):
        if call.name in ("conv2d", "head"):
            weighted.append(layer)
    for layer in weighted:
        with pytest.raises(TypeError):
            np.array(layer.kernel)
    assert np.isfinite(np.array(model.get_layer("head").kernel)).all()


def test_layer_by_layer_equals_the_whole_network(model, monkeypatch):
    signature, x = signature_of(model), np.random.default_rng(0).random((11, 6, 6, 3))
    inputs = {signature.inputs[0].name: x}
    whole = golden_set.float64_function(model, signature)(inputs)
    monkeypatch.setattr(golden_set, "_LARGE", 0)
    parts = golden_set.float64_function(model, signature)(inputs)
    assert list(parts) == list(whole)
    for name, values in whole.items():
        assert values.dtype == parts[name].dtype == np.float64
        np.testing.assert_allclose(parts[name], values, rtol=1e-13)
