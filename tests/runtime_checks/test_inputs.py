"""Protects the user's own samples: checked with their labels, or refused in one sentence."""

from __future__ import annotations

import json

import numpy as np
import pytest
from renormlite import UserError, check_parity
from renormlite.runtime_checks.inputs import read_samples
from renormlite.runtime_checks.manifest import read_export

COUNT = 9


@pytest.fixture
def own() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(2)
    return {
        "image": rng.normal(size=(COUNT, 8, 8, 1)).astype(np.float32),
        "label": rng.integers(0, 10, COUNT),
    }


def as_file(kind: str, own, tmp_path):
    if kind == "npz":
        np.savez(tmp_path / "own.npz", **own)
        return tmp_path / "own.npz"
    if kind == "npy":
        np.save(tmp_path / "own.npy", own["image"])
        return str(tmp_path / "own.npy")
    return own["image"] if kind == "array" else own


@pytest.mark.parametrize("kind", ["npz", "npy", "array", "dict"])
def test_every_source_is_checked(healthy_export, own, tmp_path, kind):
    report = check_parity(healthy_export, ("litert",), as_file(kind, own, tmp_path))
    assert report.passed
    assert report.samples == 16 + COUNT
    assert (report.golden.kind[16:] == "real").all()
    task = report.results[0].tasks[0]
    assert (task.kind, task.samples) == ("real", COUNT)
    assert task.labelled == (COUNT if kind in ("npz", "dict") else 0)


def test_accuracy_is_that_of_the_trained_model(healthy_export, own):
    """Truth comes from the folded network: its decisions are the Keras model's."""
    export = read_export(healthy_export)
    network = export.read_network(export.artifacts[0])
    decided = network.run({"image": own["image"]})["scores"].argmax(axis=1)
    labels = np.where(np.arange(COUNT) < 6, decided, (decided + 1) % 10)
    report = check_parity(healthy_export, ("onnxruntime",), {**own, "label": labels})
    task = report.results[0].tasks[0]
    assert (task.right_before, task.right_after, task.labelled) == (6, 6, COUNT)


def test_own_samples_are_judged_as_the_golden_ones_are(export, own):
    with np.load(export / "network.npz") as archive:
        weight = next(archive[k] for k in archive.files if k.startswith("point")).ravel()[0]
    path = export / "tiny.float32.tflite"
    data = path.read_bytes()
    path.write_bytes(data.replace(weight.tobytes(), np.float32(weight + 0.5).tobytes()))
    report = check_parity(export, ("litert",), own)
    ratios = report.results[0].outputs[0].bound.ratios(report.results[0].outputs[0].metrics)
    assert len(ratios) == 16 + COUNT
    assert ratios[16:].max() > 5


def test_a_changed_file_is_no_witness_of_itself(export, own):
    """What a damaged file gives now is not what it gave when it was exported."""
    path = export / "tiny.float32.onnx"
    path.write_bytes(path.read_bytes() + b"\0")
    report = check_parity(export, ("onnxruntime",), own)
    assert not report.passed
    assert "tiny.float32.onnx" not in report.golden.artifacts


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (lambda own: {"picture": own["image"]}, r"must hold the model's inputs \['image'\]"),
        (lambda own: {"image": own["image"][:, :4]}, r"shape \(N, 8, 8, 1\)"),
        (lambda own: {"image": own["image"].astype(str)}, "must hold numbers"),
        (lambda own: {"image": own["image"][:0]}, "as many samples"),
        (lambda own: {**own, "label": own["label"][:3]}, "one class number for each of 9"),
        (lambda own: {**own, "label": own["label"] / 2}, "one class number"),
    ],
)
def test_what_does_not_fit_is_refused(healthy_export, own, spoil, sentence):
    with pytest.raises(UserError, match=sentence):
        read_samples(spoil(own), read_export(healthy_export))


def test_files_that_are_none(healthy_export, tmp_path):
    export = read_export(healthy_export)
    with pytest.raises(UserError, match="does not exist"):
        read_samples(tmp_path / "none.npz", export)
    (tmp_path / "text.npz").write_text("no samples")
    with pytest.raises(UserError, match=r"is no \.npz or \.npy file"):
        read_samples(tmp_path / "text.npz", export)


def test_a_network_that_only_keras_evaluates(export, own):
    with np.load(export / "network.npz") as archive:
        arrays = dict(archive)
    graph = json.loads(str(arrays["graph"]))
    graph["nodes"][0]["op"] = "opaque"
    arrays["graph"] = np.array(json.dumps(graph))
    np.savez(export / "network.npz", **arrays)
    from renormlite.files import sha256

    manifest = json.loads((export / "manifest.json").read_text())
    manifest["network"]["sha256"] = sha256(export / "network.npz")
    (export / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match="renormlite export --inputs"):
        check_parity(export, ("litert",), own)
