"""Protects streaming: a file that is fed its own states computes what a stateful model does."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import renormlite as rl
from keras import layers as kl
from renormlite.runtimes.litert import LiteRTRunner

MODELS = {
    "LSTM and GRU": lambda: [
        kl.LSTM(3, stateful=True, return_sequences=True, name="first"),
        kl.GRU(3, stateful=True, name="second"),
    ],
    "cells": lambda: [kl.RNN([kl.LSTMCell(3), kl.GRUCell(2)], stateful=True, name="first")],
    "Bidirectional": lambda: [kl.Bidirectional(kl.SimpleRNN(3, stateful=True), name="first")],
}


def _stateful(name: str) -> keras.Model:
    x = keras.Input(batch_shape=(1, 2, 4), name="x")
    y = x
    for layer in MODELS[name]():
        y = layer(y)
    return keras.Model(x, kl.Dense(3, name="y")(y))


@pytest.mark.parametrize("name", MODELS)
def test_a_stream_through_the_file_equals_that_through_keras(name, export):
    model = _stateful(name)
    samples = np.random.default_rng(0).normal(size=(24, 2, 4)).astype(np.float32)
    manifest, folder = export(model, formats=("tflite",), inputs=samples)
    assert manifest.states == rl.Manifest.load(folder).states
    assert set(manifest.states) < {tensor.name for tensor in manifest.inputs}
    assert any("states are inputs" in note for note in manifest.notes)
    (artifact,) = manifest.artifacts
    states = {t.name: np.zeros(t.shape, t.dtype) for t in artifact.inputs if t.name != "x"}
    with LiteRTRunner(folder / artifact.file) as runner:
        for step in samples[:6, None]:
            given = runner.infer({"x": step, **states})
            # float32 sums of a few products over two steps
            np.testing.assert_allclose(given["y"], model(step, training=False), atol=2e-6)
            states = {name: given[output] for name, output in manifest.states.items()}


@pytest.mark.parametrize("kind", ["real", "random"])
def test_the_golden_set_holds_the_states_of_a_stream(export, kind):
    samples = np.random.default_rng(0).normal(size=(8, 2, 4)).astype(np.float32)
    inputs = samples if kind == "real" else None
    manifest, folder = export(_stateful("LSTM and GRU"), formats=("tflite",), inputs=inputs)
    with np.load(folder / "golden.npz") as golden:
        usual = golden["kind"] == kind
        for taking, giving in manifest.states.items():
            state, following = golden[f"input:{taking}"][usual], golden[f"truth:{giving}"][usual]
            assert not state[0].any()
            np.testing.assert_allclose(state[1:], following[:-1], atol=1e-6)
