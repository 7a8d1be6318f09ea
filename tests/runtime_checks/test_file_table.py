"""Protects what `inspect FILE` says of a file: parameters, work, memory, what is remarkable."""

from __future__ import annotations

import json

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from onnx import TensorProto, helper, numpy_helper
from renormlite import UserError
from renormlite.cli.main import cli
from renormlite.runtime_checks.file_table import file_table

# The network of conftest: stem, down, depth, point, scores.
PARAMETERS = (9 * 6 + 6) + (9 * 6 * 8 + 8) + (9 * 8 + 8) + (8 * 8 + 8) + (128 * 10 + 10)
MACS = 64 * 6 * 9 + 16 * 8 * 9 * 6 + 16 * 8 * 9 + 16 * 8 * 8 + 128 * 10


@pytest.mark.parametrize("suffix", ["tflite", "onnx"])
@pytest.mark.parametrize("precision", ["float32", "int8"])
def test_parameters_and_work(coarse_export, precision, suffix):
    table = file_table(coarse_export / f"tiny.{precision}.{suffix}")
    scales = 0 if (precision, suffix) != ("int8", "onnx") else table.parameters - PARAMETERS
    assert table.parameters == PARAMETERS + scales
    if scales == 0:
        assert table.macs == MACS
    assert table.norms == table.foreign_ops == ()


def test_activations_of_a_chain(coarse_export):
    """The stem's output and the next layer's are held together, nothing larger is."""
    table = file_table(coarse_export / "tiny.float32.tflite")
    assert table.arena_bytes == 4 * (8 * 8 * 6 + 4 * 4 * 8)


def test_integer_files_compute_in_integers(coarse_export):
    rows = file_table(coarse_export / "tiny.int8.tflite").ops
    assert {row.precision for row in rows if row.macs} == {"int8"}
    rows = file_table(coarse_export / "tiny.dynamic.tflite").ops
    assert {"int8 weights"} & {row.precision for row in rows if row.macs} or all(
        row.precision == "float32" for row in rows if row.macs
    )


@pytest.fixture
def odd(tmp_path):
    """A file with an unfolded norm, and an operator of another domain."""
    scale = np.arange(1, 4, dtype="f4").reshape(3, 1, 1)
    nodes = [
        helper.make_node("Mul", ["x", "scale"], ["y"]),
        helper.make_node("Add", ["y", "scale"], ["z"]),
        helper.make_node("Gelu", ["z"], ["w"], domain="com.microsoft"),
    ]
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 3, 4, 4]) for name in ("x", "w")
    ]
    graph = helper.make_graph(
        nodes, "odd", ends[:1], ends[1:], [numpy_helper.from_array(scale, "scale")]
    )
    onnx.save(helper.make_model(graph), tmp_path / "odd.onnx")
    return tmp_path / "odd.onnx"


def test_what_is_remarkable(odd):
    table = file_table(odd)
    assert table.norms == ("ops 0 (Mul) and 1 (Add)",)
    assert table.foreign_ops == ("op 2 (Gelu)",)


def test_on_the_command_line(odd, tmp_path):
    printed = CliRunner().invoke(cli, ["inspect", str(odd)], catch_exceptions=False)
    assert "norms left unfolded: ops 0 (Mul) and 1 (Add)" in printed.output
    record = CliRunner().invoke(cli, ["inspect", str(odd), "--json", "-"], catch_exceptions=False)
    assert json.loads(record.stdout)["parameters"] == 3
    with pytest.raises(UserError, match=r"There is no file .*none\.onnx"):
        CliRunner().invoke(cli, ["inspect", str(tmp_path / "none.onnx")], catch_exceptions=False)
    (tmp_path / "text.tflite").write_text("text")
    with pytest.raises(UserError, match="cannot be read as a TFLite file"):
        CliRunner().invoke(cli, ["inspect", str(tmp_path / "text.tflite")], catch_exceptions=False)
