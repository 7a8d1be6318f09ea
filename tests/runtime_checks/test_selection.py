"""Protects what is checked where: the usual targets, a part of the files, one layer."""

from __future__ import annotations

import json

import keras
import pytest
from click.testing import CliRunner
from renormlite import UserError, check_parity, export_model
from renormlite.artifacts.directory import read_export
from renormlite.cli.check import command
from renormlite.runtime_checks.report.shown import what_was_shown
from renormlite.runtime_checks.selection import select

from .test_parity import corrupt


def names(selection):
    return {str(target): [f.file for f in files] for target, files in selection.files.items()}


def test_the_usual_targets_are_those_that_fit_the_files(export):
    assert names(select(read_export(export))) == {
        "litert": ["tiny.float32.tflite"],
        "onnxruntime": ["tiny.float32.onnx"],
    }
    manifest = json.loads((export / "manifest.json").read_text())
    manifest["artifacts"] = [a for a in manifest["artifacts"] if a["format"] == "onnx"]
    (export / "manifest.json").write_text(json.dumps(manifest))
    assert list(names(select(read_export(export)))) == ["onnxruntime"]
    assert check_parity(export).passed


def test_a_format_without_a_runtime_is_skipped(healthy_export, monkeypatch):
    def without_onnx(runtime):
        return runtime == "litert"

    monkeypatch.setattr("renormlite.runtime_checks.selection.usable_here", without_onnx)
    selection = select(read_export(healthy_export))
    assert list(names(selection)) == ["litert"]
    assert selection.left_out == (
        "tiny.float32.onnx was not run: no runtime for .onnx is installed "
        "(pip install onnxruntime)",
    )


def test_a_format_that_no_runtime_loads_is_left_out(export):
    manifest = json.loads((export / "manifest.json").read_text())
    manifest["artifacts"][0]["format"] = "other"
    (export / "manifest.json").write_text(json.dumps(manifest))
    (reason,) = select(read_export(export)).left_out
    assert reason.endswith("was not run: no runtime loads .other files")


def test_parts(coarse_export):
    export = read_export(coarse_export)
    chosen = names(select(export, ["onnxruntime"], precisions=["int8", "float16"]))
    assert chosen == {"onnxruntime": ["tiny.float16.onnx", "tiny.int8.onnx"]}
    assert names(select(export, artifacts=["tiny.int8.tflite"])) == {"litert": ["tiny.int8.tflite"]}


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"artifacts": ["none.tflite"]}, "has no artifact 'none.tflite'. It has tiny"),
        ({"precisions": ["int4"]}, "has no precision 'int4'. It has float32"),
        ({"artifacts": ["tiny.int8.onnx"], "precisions": ["float32"]}, "None of tiny.int8.onnx"),
        ({"layers": ["no"]}, "has no layer 'no' .* It has 'stem'"),
    ],
)
def test_an_unknown_part_is_refused(coarse_export, options, sentence):
    with pytest.raises(UserError, match=sentence):
        check_parity(coarse_export, **options)


def test_the_verdict_on_a_layer_is_about_that_layer(export):
    import numpy as np

    with np.load(export / "network.npz") as archive:
        kernel = next(archive[key] for key in archive.files if key.startswith("point"))
    corrupt(export / "tiny.float32.onnx", float(kernel.flat[0]), float(kernel.flat[0]) + 0.1)
    record = json.loads((export / "manifest.json").read_text())
    entry = next(a for a in record["artifacts"] if a["format"] == "onnx")
    entry["sha256"] = read_sha(export / "tiny.float32.onnx")
    (export / "manifest.json").write_text(json.dumps(record))
    good = check_parity(export, ["onnxruntime"], layers=["stem"])
    bad = check_parity(export, ["onnxruntime"], layers=["point"])
    assert (good.passed, bad.passed) == (True, False)
    assert {check.layer for check in good.results[0].ops} == {"stem"}
    assert {fault.layer for fault in bad.results[0].faults} == {"point"}
    says = "the weights and ops of 'stem' compute what the trained model computes; the outputs"
    assert what_was_shown(good).startswith(says)


def read_sha(path):
    from renormlite.files import sha256

    return sha256(path)


def test_a_part_does_not_replace_the_page_of_the_whole(export):
    def run(*options):
        result = CliRunner().invoke(command, [str(export), *options], catch_exceptions=False)
        assert result.exit_code == 0
        return " ".join(result.output.split()).replace(" ", "")

    assert "report:" + str(export / "report.html") in run()
    whole = (export / "report.html").read_text()
    assert "report.part.html" in run("--artifact", "tiny.float32.onnx")
    assert "report.part.html" in run("--layer", "stem")
    assert "report.part.html" in run("--artifact", "tiny.float32.onnx")
    assert (export / "report.html").read_text() == whole
    assert "tiny.float32.tflite" not in (export / "report.part.html").read_text()
    assert "report.part.html" not in run()
    (export / "tiny.float32.tflite").rename(export / "old")
    assert "report.part.html" in run("--artifact", "tiny.float32.onnx", "--layer", "stem")
    assert "report.part.html" not in run("--artifact", "tiny.float32.onnx")


def test_layers_are_selected_by_patterns(export):
    report = check_parity(export, layers=["st*"])
    assert {op.layer for result in report.results for op in result.ops} == {"stem"}
    with pytest.raises(UserError, match=r"no layer 'xy\*' with weights .* It has 'stem', "):
        check_parity(export, layers=["xy*"])


def block(name):
    image = keras.Input((6, 6, 2))
    y = keras.layers.Conv2D(2, 3, padding="same", name="conv")(image)
    return keras.Model(image, keras.layers.ReLU(name="relu")(y), name=name)


def test_layers_of_nested_models_are_selected_by_their_paths(tmp_path):
    image = keras.Input((6, 6, 2), name="image")
    second = block("second")
    y = keras.layers.Flatten()(second(block("first")(image)))
    model = keras.Model(image, keras.layers.Dense(2, name="y")(y))
    export_model(model, tmp_path)
    for chosen in ("first/conv", "second/conv", "second", "second/*"):
        assert check_parity(tmp_path, layers=[chosen]).passed
    with pytest.raises(UserError, match=r"It has 'first/conv', 'first/relu', 'second/conv', "):
        check_parity(tmp_path, layers=["third/conv"])
    weight = float(second.get_layer("conv").kernel[0, 0, 0, 0])
    for file in ("tflite", "onnx"):
        corrupt(next(tmp_path.glob(f"*.float32.{file}")), weight, weight + 0.5)
    record = json.loads((tmp_path / "manifest.json").read_text())
    for entry in record["artifacts"]:
        entry["sha256"] = read_sha(tmp_path / entry["file"])
    (tmp_path / "manifest.json").write_text(json.dumps(record))
    assert check_parity(tmp_path, layers=["first/conv"]).passed
    for chosen in ("second/conv", "second"):
        report = check_parity(tmp_path, layers=[chosen])
        assert [result.passed for result in report.results] == [False, False]
