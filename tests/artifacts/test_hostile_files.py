"""Protects the readers of files: hostile files give a result or an error of one sentence."""

from __future__ import annotations

import itertools
import json
import random
from pathlib import Path

import numpy as np
import pytest
from healthy_files import write_healthy_files
from hostile import PARSERS, VALUES, changed, inputs, outcome, place_of, places
from renormlite import UserError
from renormlite.artifacts.archive import save_arrays
from renormlite.artifacts.directory import read_export
from renormlite.artifacts.golden_set import read_golden
from renormlite.artifacts.manifest import Manifest
from renormlite.artifacts.samples import load_samples
from renormlite.runtime_checks.bundle.write import write_bundle


def read(directory: Path) -> None:
    """Read all of an export."""
    export = read_export(directory)
    export.read_golden()
    _ = export.folded_network
    for artifact in export.artifacts:
        export.damaged(artifact)


def test_every_value_of_a_manifest_replaced(export):
    """3,000 of all combinations of a value and its replacement, or its removal."""
    file = export / "manifest.json"
    record = json.loads(file.read_text())
    cases = [(path, value) for path in places(record) for value in (*VALUES, places)]
    for path, value in random.Random(0).sample(cases, min(3000, len(cases))):
        file.write_text(json.dumps(changed(record, path, value)))
        assert outcome(read, export) == "", (path, value)


@pytest.mark.parametrize(
    "text", ["[" * 100_000, '{"schema": NaN}', "", "\ufeff{}", "null", '"x"', "{" * 5]
)
def test_text_that_is_not_a_manifest_is_refused(text, export):
    (export / "manifest.json").write_text(text)
    with pytest.raises(UserError):
        Manifest.load(export)


@pytest.mark.parametrize("name", ["../outside", "a/b", "..", "/etc/passwd", "a\\b", "a\nb", ""])
def test_names_in_a_manifest_that_lead_out_of_its_directory_are_refused(name, export, tmp_path):
    file = export / "manifest.json"
    record = json.loads(file.read_text())
    for path in (("name",), ("golden", "file"), ("network", "file"), ("artifacts", 0, "file")):
        file.write_text(json.dumps(changed(record, path, name)))
        with pytest.raises(UserError, match=f"{path[-1]} (must be|is missing)"):
            write_bundle(export)
    assert [p.name for p in tmp_path.iterdir()] == ["tiny"]


@pytest.fixture(scope="module")
def healthy_files(tmp_path_factory):
    """One file of every kind."""
    return write_healthy_files(tmp_path_factory.mktemp("healthy"))


# Slow readers get fewer files; benchmarks/fuzz_files.py reads hundreds of thousands.
@pytest.mark.parametrize("name", PARSERS)
def test_altered_files_give_a_result_or_one_sentence(name, healthy_files, tmp_path):
    parser, place = PARSERS[name], place_of(name, tmp_path)
    count = {"keras": 10, "bundle": 60}.get(name, 300)
    healthy = healthy_files[name].read_bytes()
    for number, data in enumerate(itertools.islice(inputs(parser, healthy, 0), count)):
        place.write_bytes(data)
        assert outcome(parser.read, place) == "", f"input {number}"


def test_faults_of_a_parser_are_reported(tmp_path):
    def broken(path):
        raise KeyError("x")

    def raw(path):
        raise UserError("\x1b[31m")

    assert outcome(broken, tmp_path) == "KeyError: 'x'"
    assert "not one printable line" in outcome(raw, tmp_path)


@pytest.mark.parametrize("shape", ["(9999999,)", "(2251799813685248,)", "(-1,)", "(7, -1)"])
def test_a_shape_that_does_not_fit_the_file_allocates_nothing(shape, tmp_path):
    header = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}}}".ljust(117) + "\n"
    data = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode() + bytes(64)
    path = tmp_path / "huge.npy"
    path.write_bytes(data)
    with pytest.raises(UserError, match=r"is not a \.npz or \.npy file"):
        load_samples(path, ())


def test_numbers_of_samples_in_a_golden_set_are_one_for_each(tmp_path) -> None:
    arrays = {"kind": np.array(["real", "real"]), "input:x": np.zeros((2, 3))}
    arrays |= {f"{prefix}:y": np.zeros((2, 4)) for prefix in ("truth", "folded64", "reference")}
    arrays["predicted:a.tflite:XNNPACK:y"] = np.zeros((2, 4))
    unknown = {**arrays, "saturated:a.tflite:y": np.ones(2)}
    save_arrays(tmp_path / "golden.npz", unknown)
    known = read_golden(tmp_path / "golden.npz", ["y"])
    assert known.predictions["a.tflite"].saturated is None
    save_arrays(tmp_path / "golden.npz", {**arrays, "saturated:a.tflite:": np.array([0, 2])})
    flags = read_golden(tmp_path / "golden.npz", ["y"]).predictions["a.tflite"].saturated
    assert flags is not None
    assert flags.tolist() == [False, True]
    for key in ("saturated:a.tflite:", "noise:y", "file-noise:a.tflite:y", "step:a.tflite:y"):
        save_arrays(tmp_path / "golden.npz", {**arrays, key: np.zeros((2, 4))})
        with pytest.raises(UserError, match=f"'{key}' must hold 2 samples as 'kind' does"):
            read_golden(tmp_path / "golden.npz", ["y"])
