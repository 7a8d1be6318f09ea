"""Protects `renormlite export`: its table, its options, and one line for a mistake."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import renormlite as rl
from click.testing import CliRunner, Result
from renormlite.cli.export import command
from renormlite.export.quantization.calibration import RANDOM_COST


@pytest.fixture
def model_file(small, tmp_path) -> Path:
    path = tmp_path / "shapes.keras"
    small.save(path)
    return path


def _run(*arguments: object) -> Result:
    return CliRunner().invoke(command, [str(argument) for argument in arguments])


def test_it_writes_files_and_prints_a_table(model_file, images, tmp_path):
    np.savez(tmp_path / "images.npz", image=images)
    result = _run(
        *(model_file, "--output", tmp_path / "out" / "shapes"),
        *("--inputs", tmp_path / "images.npz", "--precision", "float32,int16x8"),
    )
    assert result.exit_code == 0, result.output
    for name in ("shapes.float32.tflite", "shapes.float32.onnx", "shapes.int16x8.tflite"):
        assert name in result.output
        assert (tmp_path / "out" / "shapes" / name).exists()
    for heading in ("size", "ops", "SNR (dB)", "time"):
        assert heading in result.output
    assert "onnx does not support int16x8: not written" in result.output


def test_every_option_reaches_the_manifest(model_file, images, tmp_path):
    np.save(tmp_path / "images.npy", images)
    (tmp_path / "labels.txt").write_text("a\nb\nc\nd\ne\n")
    result = _run(
        *(model_file, "-o", tmp_path / "out", "--to", "onnx,tflite", "--precision", "int8"),
        *("--calibration", tmp_path / "images.npy", "--calibration-samples", 20, "--batch", 2),
        *("--layout", "nchw", "--opset", 15, "--quantized-io", "integer", "--equalize", "never"),
        *("--labels", tmp_path / "labels.txt", "--mean", "0.5", "--scale", "2,2,4"),
        *("--description", "shapes"),
    )
    assert result.exit_code == 0, result.output
    record = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert record["options"] == {
        "allow_flex": False,
        "budget": None,
        "batch_size": 2,
        "calibration_samples": 20,
        "equalize": "never",
        "formats": ["onnx", "tflite"],
        "input_norms": "auto",
        "keep_float": [],
        "keep_int16": [],
        "layout": "nchw",
        "opset": 15,
        "portable": False,
        "precisions": ["int8"],
        "quantized_io": "integer",
        "recipe": None,
        "split_outputs": [],
    }
    assert record["metadata"] == {
        "description": "shapes",
        "labels": ["a", "b", "c", "d", "e"],
        "preprocessing": {"mean": 0.5, "scale": [2.0, 2.0, 4.0]},
    }
    assert record["calibration"]["samples"] == 20


def test_random_calibration_prints_a_warning(model_file, images, tmp_path):
    arguments = (model_file, "-o", tmp_path / "out", "--to", "tflite", "--precision", "int8")
    general = _run(*arguments, "--calibration", "random")
    assert general.exit_code == 0, general.output
    assert f"calibrated with random numbers; {RANDOM_COST}" in general.output
    np.savez(tmp_path / "images.npz", image=images)
    measured = _run(*arguments, "--calibration", "random", "--inputs", tmp_path / "images.npz")
    assert measured.exit_code == 0, measured.output
    ratios = re.search(r"numbers: ([\d.]+) dB .* samples: ([\d.]+) dB", measured.output)
    assert float(ratios[1]) < float(ratios[2])


def test_a_free_batch(model_file, tmp_path):
    result = _run(model_file, "-o", tmp_path / "out", "--to", "onnx", "--batch", "dynamic")
    assert result.exit_code == 0, result.output
    record = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert record["artifacts"][0]["inputs"][0]["shape"][0] is None


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--precision", "int8"), "real samples"),
        (("--inputs", "nowhere.npz"), "nowhere.npz"),
        (("--to", "onnx", "--precision", "int4"), "int4"),
        (("--to", "tflite", "--layout", "nchw"), "is for onnx files"),
        (("--quantized-io", "integer"), "int8, auto, int16x8"),
    ],
)
def test_a_usage_error_is_one_sentence(arguments, sentence, model_file, tmp_path):
    result = _run(model_file, "-o", tmp_path / "out", *arguments)
    assert isinstance(result.exception, rl.UserError)
    assert sentence in str(result.exception)
    assert "\n" not in str(result.exception)
    assert not (tmp_path / "out" / "manifest.json").exists()


@pytest.mark.parametrize(
    ("option", "value", "sentence"),
    [
        ("--to", "tensorrt", "no format 'tensorrt'; there are tflite"),
        ("--to", "tflite,", "several with commas"),
        ("--precision", "int7", "no precision 'int7'"),
        ("--precision", "float32, float32", "given twice"),
        ("--opset", "7", "13<=x<=21"),
        ("--layout", "chwn", "'nchw'"),
        ("--quantized-io", "both", "'integer'"),
        ("--equalize", "often", "'never'"),
        ("--batch", "many", "or `dynamic`"),
        ("--batch", "0", "0 is not in the range 1<=x<=65536"),
        ("--mean", "grey", "numbers separated by commas"),
    ],
)
def test_wrong_usage_exits_with_two_before_anything_is_loaded(option, value, sentence):
    result = _run("nowhere.keras", option, value)
    assert result.exit_code == 2
    assert sentence in result.output
    assert f"Invalid value for '{option}'" in result.output


def test_unused_calibration_is_reported(model_file, tmp_path):
    result = _run(model_file, "-o", tmp_path / "out", "--to", "onnx", "--calibration", "photos/")
    assert result.exit_code == 0, result.output
    assert "--calibration was not used" in result.output
