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
