"""Protects the explanation of an int8 file: the layer, the cause, and how much it costs."""

from __future__ import annotations

import dataclasses
import json

import keras
import numpy as np
import pytest
import renormlite as rl
from click.testing import CliRunner
from keras import layers
from renormlite.cli.explain import command


def _network(spread: float) -> keras.Model:
    """A network one of whose channels in `wide` is larger than the others by a factor."""
    keras.utils.set_random_seed(3)
    x = keras.Input((12, 12, 3), name="image")
    y = layers.Conv2D(8, 3, activation="relu", padding="same", name="first")(x)
    y = layers.Conv2D(8, 3, activation="relu", padding="same", name="wide")(y)
    y = layers.Conv2D(8, 3, activation="relu", padding="same", name="last")(y)
    model = keras.Model(x, layers.Dense(5, name="scores")(layers.Flatten()(y)))
    factor = np.where(np.arange(8) == 2, spread, 1.0).astype(np.float32)
    wide, last = model.get_layer("wide"), model.get_layer("last")
    wide.kernel.assign(wide.kernel * factor)
    last.kernel.assign(last.kernel / factor[:, None])
    return model


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("explained")


def _export(model, folder, images, calibration):
    rl.export_model(
        model,
        folder,
        formats=("tflite",),
        precisions=("float32", "int8"),
        calibration=calibration,
        inputs=images,
        equalize="never",
    )
    return rl.explain(folder).files[0]


def test_unequal_channels_are_the_cause_in_their_layer(folder, images):
    found = _export(_network(200.0), folder / "wide", images, images)
    first = found.layers[0]
    assert first.layer == "wide"
    assert max(first.causes_db, key=first.causes_db.get) == "steps"
    assert "channels differ by" in first.why
    assert "equalize" in first.remedy
    # The parts are measured in the exact network, the whole on LiteRT: they agree to a decibel.
    assert found.measured_db == pytest.approx(found.snr_db, abs=1.0)
    # Without the layer's errors the file gains what is claimed, or nearly so: its output is still
    # rounded to 8 bits for the next layer, so keep that one too.
    assert first.cost_db > 6
    rl.export_model(
        _network(200.0),
        folder / "kept",
        formats=("tflite",),
        precisions=("int8",),
        calibration=images,
        inputs=images,
        equalize="never",
        keep_int16=("wide", "last"),
    )
    kept = rl.explain(folder / "kept").files[0]
    assert kept.measured_db > found.measured_db + first.cost_db - 2


def test_a_narrow_range_is_the_cause_where_values_are_clipped(folder, images):
    found = _export(_network(1.0), folder / "narrow", images, images[:16] * 0.2)
    first = found.layers[0]
    assert first.layer == "input 'image'"
    assert max(first.causes_db, key=first.causes_db.get) == "clipping"
    assert "calibrate" in first.remedy


def test_the_range_of_one_sum_of_an_unrolled_loop_is_not_taken_for_that_of_its_result(folder):
    keras.utils.set_random_seed(0)
    x = keras.Input((4, 8), name="steps")
    model = keras.Model(x, layers.Dense(3)(layers.LSTM(8, unroll=True, name="loop")(x)))
    data = np.random.default_rng(0).normal(size=(32, 4, 8)).cumsum(1).astype(np.float32) / 4
    found = _export(model, folder / "loop", data, data)
    assert all(layer.causes_db["clipping"] < 0.5 for layer in found.layers)
    artifacts = rl.Manifest.load(folder / "loop").artifacts
    assert not any("are clipped" in note for artifact in artifacts for note in artifact.notes)


def _classifier() -> keras.Model:
    """A network that is sure of its classes: softmax gives 1, its integers reach 255/256."""
    keras.utils.set_random_seed(1)
    x = keras.Input((12, 12, 3), name="image")
    y = layers.Conv2D(8, 3, activation="relu", name="first")(x)
    y = layers.Dense(5, activation="softmax", name="scores")(layers.GlobalAveragePooling2D()(y))
    model = keras.Model(x, y)
    model.get_layer("scores").kernel.assign(40 * model.get_layer("scores").kernel)
    return model


@pytest.fixture(scope="module")
def sure(folder):
    images = np.random.default_rng(0).normal(0, 0.2, (24, 12, 12, 3)).cumsum(2).astype(np.float32)
    rl.export_model(
        _classifier(),
        folder / "sure",
        formats=("tflite",),
        precisions=("int8", "int16x8"),
        calibration=images,
        inputs=images,
        equalize="never",
    )
    return {file.file.split(".")[1]: file for file in rl.explain(folder / "sure").files}


def test_the_fixed_range_of_a_softmax_is_a_matter_of_its_steps(sure):
    found = sure["int8"]
    (scores,) = [layer for layer in found.layers if layer.layer == "scores"]
    assert scores.causes_db["clipping"] < 0.1
    assert "255 steps" in scores.why
    assert found.measured_db == pytest.approx(found.snr_db, abs=1.0)


def test_remedies_are_options_that_the_precision_has(sure):
    remedies = {
        name: " ".join(layer.remedy for layer in file.layers) for name, file in sure.items()
    }
    assert "--keep-float" in remedies["int8"]
    assert "--keep" not in remedies["int16x8"]
    assert "export float16" in remedies["int16x8"]
    for layer in sure["int8"].layers:
        if max(layer.causes_db, key=layer.causes_db.get) == "weights":
            assert "--keep-int16" not in layer.remedy  # its weights would still have 8 bits


def test_an_error_that_the_layers_do_not_explain_is_the_kernels(sure):
    from renormlite.runtime_checks.explanation import _of_kernels

    for file in sure.values():
        told = any("kernels" in sentence for sentence in file.advice)
        assert told == (file.snr_db - file.measured_db >= 3)
    assert _of_kernels(60.0, 50.0)[0].startswith("These causes explain 60.0 dB, the file has 50.0")
    assert not _of_kernels(60.0, None)


def test_the_command_prints_and_writes_json(folder, images):
    target = folder / "command"
    _export(_network(200.0), target, images, images)
    result = CliRunner().invoke(command, [str(target), "--json", str(target / "why.json")])
    assert result.exit_code == 0, result.output
    assert "wide costs" in result.output
    written = json.loads((target / "why.json").read_text())
    assert written["files"][0]["layers"][0]["layer"] == "wide"
    with pytest.raises(rl.UserError, match="no file of integers among x"):
        rl.explain(target, ["x.tflite"])


def test_a_cost_is_the_gain_without_it():
    from renormlite.reference.quantization_costs import Costs, Effect, LayerCost

    parts = [LayerCost(name, {"steps": Effect(power)}) for name, power in (("a", 0.9), ("b", 0.1))]
    costs = Costs(tuple(parts), Effect(1.0))
    assert costs.decibels(0.9) == pytest.approx(10)
    assert costs.decibels(0.0) == 0
    assert dataclasses.replace(parts[0], causes={"steps": Effect(0.5)}).worst == "steps"
