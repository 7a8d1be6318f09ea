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
