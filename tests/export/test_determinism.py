"""Protects that the same model gives the same bytes, within a process and in two of them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import renormlite as rl
from renormlite.export.formats.format_table import FORMAT_NAMES

PRECISIONS = ("float32", "float16", "dynamic", "int8", "int16x8", "int4")

PROGRAM = """
import sys, numpy as np, renormlite as rl
model = rl.load_model(sys.argv[1])
rl.export_model(model, sys.argv[2], formats=sys.argv[3].split(","),
                precisions=sys.argv[4].split(","), inputs=sys.argv[5], source=sys.argv[1])
"""


def _contents(folder: Path) -> dict[str, bytes]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


@pytest.mark.timeout(300)
def test_two_processes_write_the_same_bytes(small, images, tmp_path):
    import numpy as np

    small.save(tmp_path / "small.keras")
    np.save(tmp_path / "images.npy", images)
    made = []
    for seed in ("1", "2"):
        folder = tmp_path / seed / "net"
        subprocess.run(
            [
                *(sys.executable, "-c", PROGRAM, tmp_path / "small.keras", folder),
                *(",".join(FORMAT_NAMES), ",".join(PRECISIONS), tmp_path / "images.npy"),
            ],
            check=True,
            capture_output=True,
            env={**os.environ, "PYTHONHASHSEED": seed},
        )
        made.append(_contents(folder))
    first, second = made
    assert sorted(first) == sorted(second)
    assert [name for name in first if first[name] != second[name]] == []
    assert "manifest.json" in first
    assert len(first) > len(PRECISIONS)


def test_exporting_twice_in_one_process_writes_the_same_bytes(small, tmp_path):
    for folder in ("one", "two"):
        rl.export_model(small, tmp_path / folder / "net", formats=FORMAT_NAMES)
    assert _contents(tmp_path / "one") == _contents(tmp_path / "two")


def test_another_export_before_leaves_onnx_files_with_free_sizes_and_tables_the_same(tmp_path):
    import keras

    numbers = keras.Input((3,), dtype="int64", name="numbers")
    looked_up = keras.layers.IntegerLookup(vocabulary=[900, 7, 41, 12, 5])(numbers)
    model = keras.Model(numbers, keras.layers.Embedding(6, 4, name="rows")(looked_up))
    for folder in ("one", "two"):
        rl.export_model(model, tmp_path / folder / "net", formats=("onnx",), batch_size=None)
    one, two = (
        (tmp_path / folder / "net" / "net.float32.onnx").read_bytes() for folder in ("one", "two")
    )
    assert one == two


def test_of_equal_nodes_the_same_one_is_kept_in_whatever_order_they_come():
    from types import SimpleNamespace

    from renormlite.export.formats.tf2onnx_mends import mended_tf2onnx
    from tf2onnx.optimizer.merge_duplicated_nodes_optimizer import MergeDuplicatedNodesOptimizer

    nodes = [SimpleNamespace(name=name, output=[f"{name}:0"]) for name in ("a__2", "b__1", "c__3")]
    for order in (nodes, nodes[::-1]):
        removed: list[str] = []
        graph = SimpleNamespace(
            outputs=[], replace_all_inputs=lambda old, new: None, remove_node=removed.append
        )
        with mended_tf2onnx():
            MergeDuplicatedNodesOptimizer()._merge_nodes_that_are_duplicated(list(order), graph)
        assert removed == ["b__1", "c__3"]
