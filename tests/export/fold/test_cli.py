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
    assert f"wrote {picture}" in result.stderr
    drawing = xml.etree.ElementTree.parse(picture)
    texts = [e.text for e in drawing.iter() if e.text and not e.tag.endswith(("style", "title"))]
    assert "before: 7 layers" in texts
    assert "after: 6 layers" in texts
    assert texts.count("first") == 1  # it is in the network before only
    assert "→ conv" in texts
    assert texts.count("second") == 2
    assert any("1 of 3 norms fold completely" in text for text in texts)
    assert "Something stays of: second, third." in texts
    shown = " ".join(texts)
    assert all(record["reason"] in shown for record in report["records"])
    assert "prefers-color-scheme: dark" in picture.read_text()


def test_a_layer_of_both_networks_has_one_row(saved, tmp_path):
    picture = tmp_path / "graph.svg"
    run(inspect_command, saved, "--picture", picture)
    rows: dict[str, set[str]] = {}
    for text in xml.etree.ElementTree.parse(picture).iter("{http://www.w3.org/2000/svg}text"):
        parts = [part for part in text if part.get("class") == "name"]
        if parts:
            rows.setdefault(str(parts[0].text), set()).add(text.get("y", ""))
    assert {"image", "conv", "first", "second", "third"} <= set(rows)
    assert all(len(places) == 1 for places in rows.values())


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


def test_wrong_output_name_is_a_user_error(saved, tmp_path):
    with pytest.raises(UserError, match=r"ends in \.keras"):
        run(fold_command, saved, "-o", tmp_path / "folded.h5")
