"""Protects recurrent layers: each file computes what Keras predicts, or a sentence says why not."""

from __future__ import annotations

from collections.abc import Callable

import keras
import numpy as np
import pytest
import renormlite as rl
from keras import layers as kl
from renormlite.export.formats import unroll

STEPS, FEATURES = 4, 5


def _stack(*layers: keras.layers.Layer, shape: tuple[int, ...] = (STEPS, FEATURES)) -> keras.Model:
    return keras.Sequential([keras.Input(shape, name="x"), *layers])


@keras.saving.register_keras_serializable("renormlite-tests")
class OwnCell(kl.Layer):
    """A cell that Keras does not have."""

    def __init__(self, units: int, **options: object) -> None:
        super().__init__(**options)
        self.units = self.state_size = units

    def build(self, shape: tuple[int, ...]) -> None:
        self.kernel = self.add_weight(shape=(shape[-1] + self.units, self.units), name="kernel")
        self.bias = self.add_weight(shape=(self.units,), name="bias")

    def call(self, x: object, states: list[object]) -> tuple[object, list[object]]:
        joined = keras.ops.concatenate([x, states[0]], axis=-1)
        h = keras.ops.tanh(keras.ops.matmul(joined, self.kernel) + self.bias)
        return h, [h]

    def get_config(self) -> dict[str, object]:
        return {**super().get_config(), "units": self.units}


def _with_states() -> keras.Model:
    x, h, c = (
        keras.Input(s, name=n) for s, n in (((STEPS, FEATURES), "x"), ((4,), "h"), ((4,), "c"))
    )
    return keras.Model([x, h, c], kl.LSTM(4, return_state=True)(x, initial_state=[h, c]))


def _encoder_decoder() -> keras.Model:
    x = keras.Input((STEPS, FEATURES), name="x")
    code, h, c = kl.LSTM(4, return_state=True)(x)
    decoded = kl.LSTM(4, return_sequences=True)(kl.RepeatVector(3)(code), initial_state=[h, c])
    return keras.Model(x, kl.Dense(2)(decoded))


def _words() -> keras.Model:
    x = keras.Input((STEPS,), dtype="int32", name="x")
    embedded = kl.Embedding(
        7, FEATURES, mask_zero=True, embeddings_initializer=keras.initializers.RandomNormal(0, 1)
    )(x)
    return keras.Model(x, kl.Dense(3)(kl.GRU(4)(embedded)))


MODELS: dict[str, Callable[[], keras.Model]] = {
    "LSTM": lambda: _stack(kl.LSTM(6), kl.Dense(3)),
    "GRU": lambda: _stack(kl.GRU(6, return_sequences=True)),
    "SimpleRNN, no bias": lambda: _stack(kl.SimpleRNN(6, use_bias=False, activation="relu")),
    "backwards": lambda: _stack(kl.GRU(4, return_sequences=True, go_backwards=True)),
    "Bidirectional": lambda: _stack(kl.Bidirectional(kl.LSTM(3), merge_mode="sum"), kl.Dense(2)),
    "StackedRNNCells": lambda: _stack(kl.RNN([kl.LSTMCell(4), kl.GRUCell(3)])),
    "own cell": lambda: _stack(kl.RNN([OwnCell(4), kl.GRUCell(3)]), kl.Dense(2)),
    "both directions": lambda: _stack(
        kl.Bidirectional(kl.RNN([kl.LSTMCell(3), kl.GRUCell(2)], return_sequences=True))
    ),
    "ConvLSTM3D": lambda: _stack(kl.ConvLSTM3D(2, 2, padding="same"), shape=(2, 3, 3, 2, 2)),
    "ConvLSTM2D": lambda: _stack(kl.ConvLSTM2D(2, 3, padding="same"), shape=(3, 5, 5, 2)),
    "TimeDistributed": lambda: _stack(kl.TimeDistributed(kl.LSTM(3)), shape=(2, STEPS, FEATURES)),
    "initial states": _with_states,
    "encoder and decoder": _encoder_decoder,
    "Masking": lambda: _stack(kl.Masking(), kl.LSTM(4, return_sequences=True), kl.GRU(3)),
    "masked, in both directions": lambda: _stack(
        kl.Masking(), kl.Bidirectional(kl.GRU(3, return_sequences=True))
    ),
    "masked embedding": _words,
}
FILES = [("tflite", p) for p in ("float32", "dynamic", "int8", "int16x8")]
FILES += [("onnx", p) for p in ("float32", "float16", "dynamic", "int8")]

# Signal-to-noise ratio that each precision leaves at least on networks of few and small steps.
# Float loses what depth adds to 6 dB a bit. TFLite's TANH gives integers in steps of 1/128, for any
# range: states of untrained layers are a few dozen of them.
LEAST = {"float32": 110, "float16": 50, "dynamic": 30, "int8": 15, "int16x8": 35}


def _samples(model: keras.Model) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(0)
    samples = {}
    for tensor in model.inputs:
        shape = (24, *tensor.shape[1:])
        if tensor.dtype == "int32":
            values = generator.integers(1, 7, shape).astype(np.int32)
        else:
            values = np.cumsum(generator.normal(0, 0.7, shape), axis=1).astype(np.float32)
        if len(shape) < 4:
            values[::2, -2:] = 0  # masked, where there is a mask
        samples[tensor.name] = values
    return samples


@pytest.mark.parametrize("name", MODELS)
def test_every_file_computes_what_keras_predicts(name, export):
    model = MODELS[name]()
    for weight in model.weights:  # a converter may give one bias to several layers
        if "bias" in weight.name:
            weight.assign(np.random.default_rng(1).normal(0, 0.3, weight.shape))
    masked = name in ("Masking", "masked embedding")
    precisions = [p for p in LEAST if not (masked and p == "int16x8")]
    manifest, _ = export(model, precisions=precisions, inputs=_samples(model), equalize="never")
    assert {(a.format, a.precision) for a in manifest.artifacts} == {
        (f, p) for f, p in (*FILES, ("tflite", "float16")) if p in precisions
    }
    for artifact in manifest.artifacts:
        assert "Loop" not in artifact.ops
        for ratio in artifact.snr_db.values():
            assert ratio > LEAST[artifact.precision], artifact.file


def test_too_many_steps_keep_the_loop_or_are_refused(export, monkeypatch):
    monkeypatch.setattr(unroll, "MOST_STEPS", STEPS - 1)
    model = MODELS["LSTM"]()
    manifest, _ = export(model, precisions=("float32",), inputs=_samples(model))
    for artifact in manifest.artifacts:
        assert {"Loop", "WHILE"} & set(artifact.ops)
    with pytest.raises(rl.UserError, match=r"at most 3 steps.*4 steps in layer 'lstm"):
        export(model, precisions=("int8",), inputs=_samples(model))


def test_the_manifest_says_which_layers_have_no_loop(export):
    model = _stack(kl.LSTM(4, name="memory"))
    manifest, _ = export(model, formats=("tflite",), precisions=("int8",), inputs=_samples(model))
    assert any("memory (4)" in note for note in manifest.artifacts[0].notes)
    assert not model.get_layer("memory").unroll
