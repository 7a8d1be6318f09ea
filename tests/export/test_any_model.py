"""Protects that models of every kind export and compute what Keras does, or say why not."""

from __future__ import annotations

import re
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import renormlite as rl
from any_models import MODELS, Case, settle

# Samples that a comparison with Keras is fair on: of the others nothing is expected, or, of numbers
# near the end of float32's range, less.
FAIR = ("real", "random", "border")

# What an internal name looks like; none may reach a user.
CODED = re.compile(r"\bk\d+k(_\d+)?\b")

EXPORTS = {name: entry for name, entry in MODELS.items() if entry.refusal is None}
REFUSED = {name: entry for name, entry in MODELS.items() if entry.refusal is not None}


def built(entry: Case) -> keras.Model:
    keras.utils.set_random_seed(1)
    return settle(entry.build())


def expected(entry: Case, model: keras.Model, inputs: list[np.ndarray]) -> list[np.ndarray]:
    """Return the outputs of Keras, or of the entry's oracle, for inputs."""
    if entry.oracle is not None:
        outputs = entry.oracle(model, inputs)
    elif isinstance(model, keras.Sequential) or len(inputs) == 1:
        outputs = model(inputs[0], training=False)
    elif hasattr(model, "inputs") and hasattr(model, "output_names"):
        outputs = model(keras.tree.pack_sequence_as(model.input, inputs), training=False)
    else:  # a subclassed model whose inputs have names
        outputs = model(dict(zip("uv", inputs, strict=True)), training=False)
    return [np.asarray(keras.ops.convert_to_numpy(y)) for y in keras.tree.flatten(outputs)]


def in_whole_batches(entry: Case, model: keras.Model, inputs: list[np.ndarray]) -> list[np.ndarray]:
    """Return what is expected, of a model that takes batches of one size as well."""
    size = getattr(model, "inputs", None) and model.inputs[0].shape and model.inputs[0].shape[0]
    if not size:
        return expected(entry, model, inputs)
    count = len(inputs[0])
    parts = [
        expected(entry, model, [x[np.arange(i, i + size) % count] for x in inputs])
        for i in range(0, count, size)
    ]
    return [np.concatenate(part)[:count] for part in zip(*parts, strict=True)]


# One of these is exported beside float32.
FURTHER = ("float16", "dynamic", "int8", "int16x8", "int4")


def further(name: str) -> str:
    """Return the second precision of a model."""
    return EXPORTS[name].precision or FURTHER[zlib.crc32(name.encode()) % len(FURTHER)]


@pytest.mark.parametrize("name", EXPORTS)
def test_exports_and_computes_what_keras_does(name: str, tmp_path: Path) -> None:
    entry = EXPORTS[name]
    model = built(entry)
    manifest = rl.export_model(
        model,
        tmp_path / "net",
        precisions=("float32", further(name)),
        calibration="random" if further(name).startswith("int") else None,
        shapes=entry.shapes,
    )
    notes = " ".join(manifest.notes)
    assert not CODED.search(notes)
    assert re.search(entry.note, notes) if entry.note else not notes
    golden = np.load(tmp_path / "net" / "golden.npz")
    fair = np.isin(golden["kind"], FAIR)
    inputs = [golden[f"input:{tensor.name}"][fair] for tensor in manifest.inputs]
    wanted = in_whole_batches(entry, model, inputs)
    for artifact in manifest.artifacts:
        if artifact.precision != "float32":
            continue
        for tensor, truth in zip(artifact.outputs, wanted, strict=True):
            got = golden[f"artifact:{artifact.file}:{tensor.keras_name}"][fair]
            assert got.shape == truth.shape
            if truth.dtype.kind != "f":
                np.testing.assert_array_equal(got, truth)
                continue
            assert snr(truth, got) > entry.least_snr, artifact.file
    onnx = [artifact.file for artifact in manifest.artifacts if artifact.format == "onnx"]
    assert not failures(tmp_path / "net", ("litert", "onnxruntime"))
    assert not failures(tmp_path / "net", ("openvino",), onnx)


def failures(export: Path, targets: tuple[str, ...], files: Sequence[str] = ()) -> list[str]:
    """Return the sentences of the findings that failed."""
    report = rl.check_parity(export, targets=targets, artifacts=files)
    return [f.message for result in report.results for f in result.findings if not f.passed]


def snr(truth: np.ndarray, got: np.ndarray) -> float:
    """Return the signal over the error in decibels."""
    truth = truth.astype(np.float64)
    error = np.square(got - truth).sum()
    return 10 * np.log10(np.square(truth).sum() / error) if error else np.inf


@pytest.mark.parametrize("name", REFUSED)
def test_is_refused_in_one_sentence(name: str, tmp_path: Path) -> None:
    entry = REFUSED[name]
    with pytest.raises(rl.UserError) as refusal:
        rl.export_model(built(entry), tmp_path / "net", shapes=entry.shapes)
    assert re.search(entry.refusal or "", str(refusal.value))
    assert "\n" not in str(refusal.value)
    assert not CODED.search(str(refusal.value))
    assert not [file for file in tmp_path.rglob("*") if file.is_file()]


class Sums(keras.layers.Layer):
    """Weighted sums over all steps so far."""

    def call(self, inputs: Any) -> Any:
        """Return the sums, by a loop that collects one result of each step."""
        ops = keras.ops
        steps = ops.transpose(inputs, (1, 0, 2))
        _, sums = ops.scan(lambda c, x: (c * 0.8 + x, c + x), steps[0] * 0, steps)
        return ops.transpose(sums, (1, 0, 2))


def test_a_loop_that_onnx_cannot_have_is_named(tmp_path: Path) -> None:
    x = keras.Input((6, 4), name="x")
    model = keras.Model(x, Sums(name="sums")(x))
    with pytest.raises(rl.UserError, match=r"The loop of layer 'sums' cannot be .* loop of Python"):
        rl.export_model(model, tmp_path / "net", formats=("onnx",))
    assert rl.export_model(model, tmp_path / "net", formats=("tflite",)).artifacts
