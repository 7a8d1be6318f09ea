"""Protects the manifest: its contents, reading it back, and one clear line for damage."""

from __future__ import annotations

import hashlib
import json

import pytest
import renormlite as rl
from renormlite.artifacts.manifest import SCHEMA, Manifest


@pytest.fixture
def exported(small, images, export):
    return export(
        small,
        formats=("tflite", "onnx", "saved_model"),
        precisions=("float32", "int8"),
        inputs=images,
        quantized_io="integer",
    )


def test_it_reads_back_as_written(exported):
    import dataclasses

    manifest, folder = exported
    untimed = [dataclasses.replace(a, seconds=0.0) for a in manifest.artifacts]
    files = [a for a in untimed if a.files is None]
    folders = [a for a in untimed if a.files is not None]
    expected = dataclasses.replace(manifest, artifacts=(*files, *folders))
    assert Manifest.load(folder) == expected


def test_hashes_and_sizes_are_those_of_the_files(exported):
    _, folder = exported
    record = json.loads((folder / "manifest.json").read_text())
    assert record["schema"] == SCHEMA
    entries = [record["golden"], record["network"], *record["artifacts"]]
    for entry in entries:
        data = (folder / entry["file"]).read_bytes()
        assert hashlib.sha256(data).hexdigest() == entry["sha256"]
        assert entry.get("bytes", len(data)) == len(data)
    (saved,) = record["folders"]
    assert "saved_model.pb" in saved["files"]
    for name, digest in saved["files"].items():
        data = (folder / saved["file"] / name).read_bytes()
        assert hashlib.sha256(data).hexdigest() == digest


def test_it_records_the_origin_of_each_file(exported):
    _, folder = exported
    record = json.loads((folder / "manifest.json").read_text())
    assert record["inputs"] == [{"name": "image", "shape": [None, 12, 12, 3], "dtype": "float32"}]
    assert len(record["fold"]["records"]) == 3
    assert record["fold"]["proof"]["passed"] is True
    assert record["calibration"]["samples"] == 48
    assert record["calibration"]["random"] is False
    int8 = next(a for a in record["artifacts"] if a["file"] == "net.int8.tflite")
    assert set(int8["inputs"][0]) == {"name", "shape", "dtype", "scale", "zero_point"}
    assert set(record["versions"]) >= {"renormlite", "keras", "tensorflow", "onnx", "python"}


def test_the_source_files_hash_is_recorded(small, export, tmp_path):
    path = tmp_path / "small.keras"
    small.save(path)
    manifest, _ = export(small, source=path)
    assert manifest.source["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (lambda text: text[: len(text) // 2], "damaged"),
        (lambda text: text.replace("manifest/1", "manifest/999"), "manifest/999"),
        (lambda text: text.replace('"golden"', '"gilded"'), "golden"),
        (lambda text: "[]", "None"),
        (lambda text: text.replace('"sha256"', '"md5"'), r"golden\.sha256 is missing"),
    ],
    ids=["truncated", "other schema", "field missing", "no object", "field renamed"],
)
def test_damage_is_reported_in_one_sentence(damage, sentence, exported):
    _, folder = exported
    path = folder / "manifest.json"
    path.write_text(damage(path.read_text()))
    with pytest.raises(rl.UserError, match=sentence):
        Manifest.load(folder)


def test_no_manifest(tmp_path):
    with pytest.raises(rl.UserError, match=r"holds no manifest\.json"):
        Manifest.load(tmp_path)
