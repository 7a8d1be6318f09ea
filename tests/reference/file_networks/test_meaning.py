"""Protects that the network of a file is what the file computes, op by op."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from renormlite.artifacts.graphs import read_graph, with_shapes
from renormlite.artifacts.precisions import UNIT_ROUNDOFF
from renormlite.reference.file_networks import network_of_file
from renormlite.reference.network import evaluate_network
from renormlite.runtimes import Target, make_runner

RNG = np.random.default_rng(0)
# The runtimes compute in float32, sums of a few dozen terms of size one.
CLOSE = 200 * UNIT_ROUNDOFF["float32"]


def constant(*shape):
    return RNG.normal(size=shape).astype("f4")


# Op, constants behind the input, attributes, shape of the input.
OPS = {
    "conv": ("Conv", [constant(4, 3, 3, 3), constant(4)], {"pads": [1, 0, 0, 1]}, (3, 6, 5)),
    "strided conv": (
        "Conv",
        [constant(6, 1, 3, 3)],
        {"strides": [2, 2], "group": 3, "auto_pad": "SAME_UPPER"},
        (3, 7, 6),
    ),
    "dilated conv": ("Conv", [constant(2, 3, 3)], {"dilations": [2]}, (3, 9)),
    "gemm": ("Gemm", [constant(4, 5), constant(4)], {"transB": 1}, (5,)),
    "matmul": ("MatMul", [constant(5, 4)], {}, (3, 5)),
    "add": ("Add", [constant(3, 1, 1)], {}, (3, 4, 4)),
    "add with samples": ("Add", [constant(1, 3, 1, 1)], {}, (3, 4, 4)),
    "divide": ("Div", [np.abs(constant(4)) + 1], {}, (3, 4)),
    "clip": ("Clip", [np.float32(-0.5), np.float32(0.5)], {}, (5,)),
    "leaky": ("LeakyRelu", [], {"alpha": 0.3}, (5,)),
    "prelu": ("PRelu", [constant(3, 1, 1)], {}, (3, 4, 4)),
    "elu": ("Elu", [], {"alpha": 0.7}, (5,)),
    "hard sigmoid": ("HardSigmoid", [], {"alpha": 1 / 6, "beta": 0.5}, (5,)),
    "softmax": ("Softmax", [], {"axis": 1}, (5, 3)),
    "average pool": (
        "AveragePool",
        [],
        {"kernel_shape": [3, 2], "strides": [2, 1], "pads": [1, 0, 1, 1]},
        (2, 7, 6),
    ),
    "max pool": ("MaxPool", [], {"kernel_shape": [2, 2], "strides": [2, 2]}, (2, 6, 6)),
    "global pool": ("GlobalAveragePool", [], {}, (3, 4, 5)),
    "mean": ("ReduceMean", [], {"axes": [2, 3], "keepdims": 0}, (3, 4, 5)),
    "transpose": ("Transpose", [], {"perm": [0, 3, 1, 2]}, (3, 4, 5)),
    "flatten": ("Flatten", [], {}, (3, 4, 5)),
    "pad": ("Pad", [np.array([0, 0, 1, 2, 0, 0, 0, 1])], {}, (3, 4, 5)),
    "norm": (
        "BatchNormalization",
        [constant(3), constant(3), constant(3), np.abs(constant(3)) + 0.1],
        {"epsilon": 1e-3},
        (3, 4, 4),
    ),
}


@pytest.mark.parametrize("name", OPS)
def test_every_op_means_what_onnx_says(name, tmp_path):
    kind, constants, attributes, shape = OPS[name]
    names = [f"c{place}" for place in range(len(constants))]
    node = helper.make_node(kind, ["x", *names], ["y"], **attributes)
    graph = helper.make_graph(
        [node],
        name,
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, *shape])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.asarray(c), n) for c, n in zip(constants, names, strict=True)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    path = tmp_path / "op.onnx"
    path.write_bytes(model.SerializeToString())
    x = RNG.normal(size=(1, *shape)).astype("f4")
    (expected,) = ReferenceEvaluator(model).run(None, {"x": x})
    network = network_of_file(with_shapes(read_graph(path, "onnx"), path), "onnx")
    assert [node.op for node in network.nodes if node.op == "opaque"] == []
    found = evaluate_network(network, {"x": x})["y"]
    np.testing.assert_allclose(found, expected, rtol=CLOSE, atol=CLOSE)


@pytest.mark.parametrize("runtime", ["litert", "onnxruntime"])
def test_a_whole_file_means_what_it_computes(coarse_export, runtime):
    suffix = {"litert": "tflite", "onnxruntime": "onnx"}[runtime]
    path = coarse_export / f"tiny.float32.{suffix}"
    network = network_of_file(with_shapes(read_graph(path, suffix), path), suffix)
    x = RNG.normal(size=(1, 8, 8, 1)).astype("f4")
    with make_runner(Target(runtime), path) as runner:
        given = runner.infer({runner.inputs[0].name: x})
    found = evaluate_network(network, {next(iter(network.inputs)): x})
    for name, array in given.items():
        np.testing.assert_allclose(found[name], array, rtol=CLOSE, atol=CLOSE)


def test_what_has_no_form_is_opaque_only_where_an_output_needs_it(tmp_path):
    nodes = [
        helper.make_node("Shape", ["x"], ["s"]),
        helper.make_node("Relu", ["x"], ["y"]),
        helper.make_node("CumSum", ["x", "axis"], ["z"]),
    ]
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, 3]) for n in ("x", "y", "z")]

    def kinds(outputs):
        axis = numpy_helper.from_array(np.array(1), "axis")
        graph = helper.make_graph(nodes, "g", ends[:1], outputs, [axis])
        (tmp_path / "g.onnx").write_bytes(helper.make_model(graph).SerializeToString())
        network = network_of_file(read_graph(tmp_path / "g.onnx", "onnx"), "onnx")
        return [node.op for node in network.nodes]

    assert kinds(ends[1:2]) == ["relu"]
    assert kinds(ends[1:]) == ["relu", "opaque"]
