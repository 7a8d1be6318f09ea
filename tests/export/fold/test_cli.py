"""Protects `renormlite inspect` and `renormlite fold`: what they print, write and exit with."""

import json
import xml.etree.ElementTree

import keras
import pytest
from click.testing import CliRunner
from keras import layers as kl
from renormlite import UserError
from renormlite.cli.fold import command as fold_command
from renormlite.cli.inspect import command as inspect_command


@pytest.fixture
def saved(tmp_path, randomized):
    x = keras.Input((8, 8, 3), name="image")
    y = kl.BatchNormalization(name="first")(kl.Conv2D(4, 3, name="conv")(x))
    y = kl.BatchNormalization(name="second")(kl.Softmax()(y))
    y = kl.Softmax()(kl.LayerNormalization(name="third")(y))
    path = tmp_path / "model.keras"
    randomized(keras.Model(x, y)).save(path)
    return path


def run(command, *arguments):
    return CliRunner().invoke(command, [str(a) for a in arguments], catch_exceptions=False)


def test_inspect_as_a_table(saved, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    result = run(inspect_command, saved)
    assert result.exit_code == 0
    first, second, third = (
        next(line for line in result.output.splitlines() if line.startswith(name))
        for name in ("first", "second", "third")
    )
    assert "folded" in first
    assert "conv" in first
    assert "MUL ADD" in second
    assert "kept" in third
    assert "1 of 3 norms fold completely" in result.output


def test_inspect_as_json_and_picture(saved, tmp_path):
    picture = tmp_path / "graph.svg"
    result = run(inspect_command, saved, "--json", "-", "--picture", picture)
    report = json.loads(result.stdout)
    assert [r["outcome"] for r in report["records"]] == ["folded", "kept", "kept"]
    assert "softmax" in report["records"][1]["reason"]
    texts = [e.text for e in xml.etree.ElementTree.parse(picture).iter() if e.text]
    assert any("before: 7 layers" in text for text in texts)
    assert any("after: 6 layers" in text for text in texts)
    assert sum("first" in text for text in texts) == 1  # it is in the network before only
    assert sum("second" in text for text in texts) == 2


def test_fold_writes_a_model_that_loads(saved, tmp_path):
    folded, report = tmp_path / "folded.keras", tmp_path / "report.json"
    result = run(fold_command, saved, "-o", folded, "--json", report)
    assert result.exit_code == 0
    assert "proved" in result.output
    model = keras.models.load_model(folded)
    assert {layer.name for layer in model.layers} >= {"conv", "second", "third"}
    content = json.loads(report.read_text())
    assert content["proof"]["passed"]
    assert content["folded"] == 1


def test_wrong_output_name_is_a_users_error(saved, tmp_path):
    with pytest.raises(UserError, match=r"ends in \.keras"):
        run(fold_command, saved, "-o", tmp_path / "folded.h5")
