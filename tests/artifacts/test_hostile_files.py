"""Protects the boundary: reading hostile files ends in a record or in one sentence."""

from __future__ import annotations

import copy
import json
import random
from pathlib import Path

import numpy as np
import pytest
from renormlite import UserError
from renormlite.artifacts.directory import read_export
from renormlite.artifacts.golden_set import read_golden
from renormlite.artifacts.manifest import Manifest
from renormlite.artifacts.network import read_network
from renormlite.artifacts.samples import load_samples
from renormlite.runtime_checks.bundle.write import write_bundle

VALUES = (
    *(None, True, 0, -1, 1e308, 10**400, "", "..", "../x", "a/b", "C:\\x", "\x1b[31m", "\x00"),
    *([], [[]], [None], {}, {"": {}}, {"a": [1]}, "x" * 300, "NaN", "int8", "float99", [2**70]),
)


def places(value: object, path: tuple = ()) -> list[tuple]:
    """Return the path of every value inside nested JSON."""
    entries = value.items() if isinstance(value, dict) else enumerate(value)
    found = []
    for key, entry in entries:
        found.append((*path, key))
        if isinstance(entry, (dict, list)):
            found += places(entry, (*path, key))
    return found


def changed(record: dict, path: tuple, value: object) -> dict:
    """Return a copy with one value replaced; with `places` as the value, one removed."""
    record = copy.deepcopy(record)
    holder = record
    for key in path[:-1]:
        holder = holder[key]
    if value is places:
        del holder[path[-1]]
    else:
        holder[path[-1]] = value
    return record


def read(directory: Path) -> None:
    """Read all of an export."""
    export = read_export(directory)
    export.read_golden()
    _ = export.folded_network
    for artifact in export.artifacts:
        export.damaged(artifact)


def refusal(call, *arguments) -> str:
    """Return the sentence with which a call refuses; empty where it returns."""
    try:
        call(*arguments)
    except UserError as error:
        return str(error)
    return ""


def test_every_value_of_a_manifest_replaced(export):
    """Each value, and a missing one, in 3,000 combinations drawn from all."""
    file = export / "manifest.json"
    record = json.loads(file.read_text())
    cases = [(path, value) for path in places(record) for value in (*VALUES, places)]
    for path, value in random.Random(0).sample(cases, min(3000, len(cases))):
        file.write_text(json.dumps(changed(record, path, value)))
        sentence = refusal(read, export)
        assert not set(sentence) & {"\n", "\x1b"}


@pytest.mark.parametrize(
    "text", ["[" * 100_000, '{"schema": NaN}', "", "\ufeff{}", "null", '"x"', "{" * 5]
)
def test_text_that_is_no_manifest(text, export):
    (export / "manifest.json").write_text(text)
    with pytest.raises(UserError):
        Manifest.load(export)


@pytest.mark.parametrize("name", ["../outside", "a/b", "..", "/etc/passwd", "a\\b", "a\nb", ""])
def test_no_name_in_a_manifest_leads_out_of_its_directory(name, export, tmp_path):
    file = export / "manifest.json"
    record = json.loads(file.read_text())
    for path in (("name",), ("golden", "file"), ("network", "file"), ("artifacts", 0, "file")):
        file.write_text(json.dumps(changed(record, path, name)))
        with pytest.raises(UserError, match=f"{path[-1]} (must be|is missing)"):
            write_bundle(export)
    assert [p.name for p in tmp_path.iterdir()] == ["tiny"]


def flipped(data: bytes, generator: np.random.Generator) -> bytes:
    """Return bytes with up to four bits flipped, or with the end cut off."""
    if generator.random() < 0.2:
        return data[: int(generator.integers(len(data)))]
    changed = bytearray(data)
    for place in generator.integers(len(data), size=int(generator.integers(1, 5))):
        changed[place] ^= 1 << int(generator.integers(8))
    return bytes(changed)


@pytest.mark.parametrize("seed", range(4))
def test_damaged_archives(seed, healthy_export, tmp_path):
    generator = np.random.default_rng(seed)
    small = {"kind": np.array(["real"]), "input:x": np.ones((1, 2), np.float32)}
    for prefix in ("truth", "folded64", "reference"):
        small[f"{prefix}:y"] = np.ones((1, 1))
    np.savez(tmp_path / "golden.npz", **small)
    golden = (tmp_path / "golden.npz").read_bytes()
    network = (healthy_export / "network.npz").read_bytes()
    for _ in range(250):
        (tmp_path / "golden.npz").write_bytes(flipped(golden, generator))
        (tmp_path / "network.npz").write_bytes(flipped(network, generator))
        for call in (
            lambda: read_golden(tmp_path / "golden.npz", ["y"]),
            lambda: read_network(tmp_path / "network.npz"),
            lambda: load_samples(tmp_path / "golden.npz", ()),
        ):
            assert "\n" not in refusal(call)


@pytest.mark.parametrize("shape", ["(9999999,)", "(2251799813685248,)", "(-1,)", "(7, -1)"])
def test_a_shape_that_does_not_fit_the_file_allocates_nothing(shape, tmp_path):
    header = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}}}".ljust(117) + "\n"
    data = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode() + bytes(64)
    path = tmp_path / "huge.npy"
    path.write_bytes(data)
    with pytest.raises(UserError, match=r"is not a \.npz or \.npy file"):
        load_samples(path, ())
