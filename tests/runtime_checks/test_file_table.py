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


def test_notes_on_a_file(odd):
    table = file_table(odd)
    assert table.norms == ("ops 0 (Mul) and 1 (Add)",)
    assert table.foreign_ops == ("op 2 (Gelu)",)


def test_float_ops_of_an_integer_file_have_a_reason(coarse_export, odd):
    assert file_table(coarse_export / "tiny.int8.onnx").float_ops == ()
    assert file_table(odd).float_ops == ()  # no integers, no float ops to tell
    model = onnx.load(coarse_export / "tiny.int8.onnx")
    output = model.graph.output[0].name
    for entry in model.graph.node:
        entry.output[:] = ["inner" if name == output else name for name in entry.output]
    model.graph.node.extend(
        [
            helper.make_node("Erf", ["inner"], ["erf"]),
            helper.make_node("Softmax", ["erf"], [output]),
        ]
    )
    onnx.save(model, odd)
    assert file_table(odd).float_ops == (
        f"Erf (op {len(model.graph.node) - 2}): no integer form of it is known",
        f"Softmax (op {len(model.graph.node) - 1}): quantizers can write it in integers: its "
        "tensors have no scales",
    )


def test_a_free_batch_is_one_sample(tmp_path):
    """Computed shapes are then known, and so are memory and work of the following ops."""
    nodes = [
        helper.make_node("Shape", ["x"], ["shape"]),
        helper.make_node("Gather", ["shape", "first"], ["row"]),
        helper.make_node("Concat", ["row", "rest"], ["wanted"], axis=0),
        helper.make_node("Reshape", ["x", "wanted"], ["flat"]),
        helper.make_node("MatMul", ["flat", "kernel"], ["y"]),
    ]
    kept = {
        "first": np.array([0]),
        "rest": np.array([12]),
        "kernel": np.ones((12, 5), "f4"),
    }
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
        for name, shape in (("x", ["n", 3, 4]), ("y", ["n", 5]))
    ]
    graph = helper.make_graph(
        nodes, "g", ends[:1], ends[1:], [numpy_helper.from_array(v, k) for k, v in kept.items()]
    )
    onnx.save(helper.make_model(graph), tmp_path / "g.onnx")
    table = file_table(tmp_path / "g.onnx")
    assert (table.macs, table.inputs) == (60, ("x float32 (N, 3, 4)",))
    assert table.ops[-1].shape == (1, 5)
    assert table.computed_shapes == ("op 0 (Shape)",)


def test_recurrent_ops_work_at_every_step(tmp_path):
    """The matrices of both directions, (2, 48, 8) and (2, 48, 12), are used in each of 16 steps."""
    sizes = {"W": (2, 48, 8), "R": (2, 48, 12), "B": (2, 96)}
    kept = [numpy_helper.from_array(np.ones(size, "f4"), name) for name, size in sizes.items()]
    node = helper.make_node("LSTM", ["x", *sizes], ["y"], hidden_size=12, direction="bidirectional")
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
        for name, shape in (("x", [16, 1, 8]), ("y", [16, 2, 1, 12]))
    ]
    graph = helper.make_graph([node], "g", ends[:1], ends[1:], kept)
    onnx.save(helper.make_model(graph), tmp_path / "g.onnx")
    table = file_table(tmp_path / "g.onnx")
    assert (table.macs, table.loops) == (16 * 2 * 48 * (8 + 12), ())


def a_loop(path, times):
    """A file with a product in a loop, whose kernel is in the main graph."""
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["go"], ["on"]),
            helper.make_node("MatMul", ["a", "k"], ["b"]),
        ],
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("a", TensorProto.FLOAT, [1, 2]),
        ],
        [
            helper.make_tensor_value_info("on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("b", TensorProto.FLOAT, [1, 2]),
        ],
    )
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 2]) for name in "xy"]
    kept = {"times": np.array(3), "start": np.array(True), "k": np.ones((2, 2), "f4")}
    if times is None:
        ends.insert(1, helper.make_tensor_value_info("times", TensorProto.INT64, []))
        del kept["times"]
    loop = helper.make_node("Loop", ["times", "start", "x"], ["y"], body=body)
    entries = [numpy_helper.from_array(value, key) for key, value in kept.items()]
    graph = helper.make_graph([loop], "g", ends[:-1], ends[-1:], entries)
    onnx.save(helper.make_model(graph), path)
    return file_table(path)


def test_the_ops_of_a_loop_are_counted_for_every_step(tmp_path):
    table = a_loop(tmp_path / "g.onnx", times=3)
    assert [(row.kind, row.where, row.times) for row in table.ops] == [
        ("Loop", "", 1),
        ("Identity", "op 0 (Loop) body", 3),
        ("MatMul", "op 0 (Loop) body", 3),
    ]
    assert (table.parameters, table.macs) == (4, 3 * 4)
    assert table.loops == ("op 0 (Loop): counted 3 times",)
    # x, and a and b in the body; ONNX infers no shape for the result of a loop.
    assert table.arena_bytes == 4 * 2 + 4 * (2 + 2)
    table = a_loop(tmp_path / "g.onnx", times=None)
    assert table.macs == 4
    assert "its number of steps is computed at run time" in table.loops[0]


def test_loops_of_tensorflow(tmp_path):
    """A loop to a constant, and two branches."""
    import tensorflow as tf

    kernel = np.ones((4, 4), "f4")

    @tf.function(input_signature=[tf.TensorSpec((1, 4), tf.float32)])
    def network(x):
        _, y = tf.while_loop(
            lambda i, y: i < 5, lambda i, y: (i + 1, tf.tanh(y @ kernel)), [tf.constant(0), x]
        )
        return tf.cond(tf.reduce_sum(y) > 0, lambda: y @ (2 * kernel), lambda: -y)

    function = network.get_concrete_function()
    converter = tf.lite.TFLiteConverter.from_concrete_functions([function], network)
    (tmp_path / "g.tflite").write_bytes(converter.convert())
    table = file_table(tmp_path / "g.tflite")
    assert table.macs == 5 * 16 + 16
    assert [text.partition(": ")[2] for text in table.loops] == [
        "counted 5 times",
        "every branch is counted",
    ]


def test_weights_in_another_file_are_read(tmp_path, coarse_export):
    whole = coarse_export / "tiny.float32.onnx"
    path = tmp_path / "net.onnx"
    save = {"save_as_external_data": True, "location": "net.data", "size_threshold": 0}
    onnx.save(onnx.load(whole), path, **save)
    inside, beside = file_table(whole), file_table(path)
    assert (beside.parameters, beside.macs) == (inside.parameters, inside.macs)
    (tmp_path / "net.data").unlink()
    with pytest.raises(UserError, match=r"net\.data, which holds its weights, is missing"):
        file_table(path)


def test_on_the_command_line(odd, tmp_path):
    printed = CliRunner().invoke(cli, ["inspect", str(odd)], catch_exceptions=False)
    assert "unfolded norms: ops 0 (Mul) and 1 (Add)" in printed.output
    record = CliRunner().invoke(cli, ["inspect", str(odd), "--json", "-"], catch_exceptions=False)
    assert json.loads(record.stdout)["parameters"] == 3
    with pytest.raises(UserError, match=r"There is no file .*none\.onnx"):
        CliRunner().invoke(cli, ["inspect", str(tmp_path / "none.onnx")], catch_exceptions=False)
    (tmp_path / "text.tflite").write_text("text")
    with pytest.raises(UserError, match="cannot be read as a TFLite file"):
        CliRunner().invoke(cli, ["inspect", str(tmp_path / "text.tflite")], catch_exceptions=False)
