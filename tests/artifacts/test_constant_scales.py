"""Protects the scales that are read for the kernels of integer products in ONNX files."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from renormlite.artifacts.graphs import read_graph


def test_a_constant_scale_of_the_activation_is_not_that_of_the_kernel(tmp_path):
    """The values of a quantized embedding have a constant scale, which comes first."""
    constants = {
        "kernel": np.ones((4, 3), np.int8),
        "zero": np.zeros((), np.uint8),
        "zeros": np.zeros(3, np.int8),
        "scale": np.array(0.5, np.float32),
        "scales": np.array([0.1, 0.2, 0.3], np.float32),
    }
    nodes = [
        helper.make_node("MatMulInteger", ["x", "kernel", "zero", "zeros"], ["sums"]),
        helper.make_node("Cast", ["sums"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["scale", "scales"], ["both"]),
        helper.make_node("Mul", ["floats", "both"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("x", TensorProto.UINT8, [1, 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 3])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, tmp_path / "net.onnx")
    kernel = read_graph(tmp_path / "net.onnx", "onnx").tensors["kernel"]
    np.testing.assert_array_equal(kernel.quantization.scales, constants["scales"])


def test_rows_of_a_table_have_the_constant_scale_of_the_product_that_reads_them(tmp_path):
    """As of a codebook that ONNX Runtime's quantizer hands to a convolution without floats."""
    constants = {
        "table": np.arange(12, dtype=np.uint8).reshape(3, 4),
        "kernel": np.ones((4, 2), np.int8),
        "zero": np.array(150, np.uint8),
        "zeros": np.zeros((), np.int8),
        "scale": np.array(0.5, np.float32),
        "other": np.array(0.1, np.float32),
        "shape": np.array([-1, 4], np.int64),
    }
    nodes = [
        helper.make_node("Gather", ["table", "x"], ["rows"]),
        helper.make_node("Reshape", ["rows", "shape"], ["moved"]),
        helper.make_node("MatMulInteger", ["moved", "kernel", "zero", "zeros"], ["sums"]),
        helper.make_node("Cast", ["sums"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["scale", "other"], ["both"]),
        helper.make_node("Mul", ["floats", "both"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("x", TensorProto.INT64, [1])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 2])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, tmp_path / "net.onnx")
    tensors = read_graph(tmp_path / "net.onnx", "onnx").tensors
    for key in ("table", "rows", "moved"):
        found = tensors[key].quantization
        assert (found.scales.tolist(), found.zero_points.tolist()) == ([0.5], [150])
    np.testing.assert_array_equal(tensors["kernel"].quantization.scales, np.float32([0.1]))
    assert tensors["x"].quantization is None
