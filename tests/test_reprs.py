"""Protects the representation of results: one short line, and a table in notebooks."""

from pathlib import Path
from xml.etree import ElementTree

import renormlite as rl
from renormlite.artifacts.directory import open_export


def cells(page: str) -> list[list[str]]:
    """Return the rows of the table that a notebook displays."""
    table = ElementTree.fromstring(page)
    return [["".join(cell.itertext()) for cell in row] for row in table.iter("tr")]


def test_a_manifest(healthy_export: Path) -> None:
    manifest = open_export(healthy_export).manifest
    assert repr(manifest) == "Manifest('tiny', tiny.float32.tflite, tiny.float32.onnx)"
    rows = cells(manifest._repr_html_())
    assert [row[0] for row in rows] == ["file", "tiny.float32.tflite", "tiny.float32.onnx"]


def test_a_report(export: Path) -> None:
    report = rl.check_parity(export)
    assert repr(report) == "ParityReport('tiny': passed, 2 of 2 files on their targets)"
    assert [row[-1] for row in cells(report._repr_html_())] == ["verdict", "pass", "pass"]
    file = export / "tiny.float32.onnx"
    file.write_bytes(file.read_bytes().replace(b"down_relu", b"<script>!"))
    failed = rl.check_parity(export)
    assert repr(failed) == "ParityReport('tiny': FAILED, 1 of 2 files on their targets)"
    assert "FAILED: " in cells(failed._repr_html_())[2][-1]


def test_a_fold(build_network) -> None:
    import keras

    image = keras.Input((8, 8, 1))
    x = rl.BatchRenormalization(name="norm")(keras.layers.Conv2D(4, 3, name="conv")(image))
    result = rl.fold(keras.Model(image, keras.layers.Flatten()(x), name="net"))
    assert repr(result).startswith("FoldResult('net': 1 of 1 norms folded, proved in float64")
    assert cells(result._repr_html_())[1][:3] == ["norm", "folded", "conv"]
