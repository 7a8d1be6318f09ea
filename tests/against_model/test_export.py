"""Protects `check DIR --model`: an export of the model passes, changed layers are named."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from click.testing import CliRunner
from renormlite import export_model
from renormlite.against_model.export import check_export
from renormlite.cli.main import cli
from renormlite.toolkit.saving import load_model


@pytest.fixture(scope="module")
def exported(mixed, images, tmp_path_factory):
    """The model's file and its export."""
    folder = tmp_path_factory.mktemp("exported")
    mixed.save(folder / "mixed.keras")
    export_model(
        mixed, folder / "mixed", formats=("onnx",), inputs=images, source=folder / "mixed.keras"
    )
    return folder


def findings(exported, model, **options):
    report = check_export(model, exported / "mixed", **options)
    assert all(result.passed for result in report.results)
    return report.findings


def test_the_file_of_the_export_needs_no_comparison(exported, mixed):
    (finding,) = findings(exported, mixed, source=exported / "mixed.keras")
    assert finding.passed
    assert "equal SHA-256" in finding.message


def test_a_model_with_the_same_weights_passes(exported, mixed):
    (finding,) = findings(exported, mixed)
    assert finding.passed
    assert "all weights are equal" in finding.message


def test_changed_layers_are_named(exported):
    model = load_model(exported / "mixed.keras")
    kernel, bias = model.get_layer("age").get_weights()
    kernel[2, 1] += 0.5
    model.get_layer("age").set_weights([kernel, bias])
    (finding,) = findings(exported, model)
    assert (finding.passed, finding.subject) == (False, "age")
    assert "different weights (1 / 48 of its kernel, by up to 0.5)" in finding.message


def test_another_network_fails(exported):
    other = keras.Sequential(
        [keras.Input((8, 8, 3)), keras.layers.Flatten(), keras.layers.Dense(4)]
    )
    found = findings(exported, other)
    assert not any(finding.passed for finding in found)
    assert any("was removed since the export" in finding.message for finding in found)


def run(*arguments):
    result = CliRunner().invoke(cli, ["check", *map(str, arguments)], catch_exceptions=False)
    return result.exit_code, " ".join(result.output.split())


def test_on_the_command_line(exported, foreign, images, tmp_path):
    model = ("--model", exported / "mixed.keras")
    page = ("--html", tmp_path / "page.html")
    assert run(exported / "mixed", *model, *page)[0] == 0
    np.savez(tmp_path / "images.npz", image=images)
    code, output = run(
        foreign / "float32.onnx", *model, *page, "--inputs", tmp_path / "images.npz",
        "--map-input", "image=image",
    )  # fmt: skip
    assert code == 0
    assert "assumed float32.onnx: input 'image' is 'image', as asked for" in output
