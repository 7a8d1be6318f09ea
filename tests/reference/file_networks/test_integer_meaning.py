"""Protects what the integer operators of .onnx files compute in real numbers."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from renormlite.artifacts.graphs import read_graph
from renormlite.reference.file_networks import network_of_file
from renormlite.reference.network import evaluate_network
from renormlite.runtimes import Target, make_runner

STEP, POINT = 0.02, 3
RNG = np.random.default_rng(0)
X, OTHER, GIVEN = ["q", "s", "z"], ["o", "os", "oz"], ["ys", "yz"]
BY_CHANNEL = np.array([0.01, 0.02, 0.015], "f4")


def integers(*shape):
    return RNG.integers(-90, 90, shape).astype(np.int8)


# Op: kind, inputs, what "o" holds, its scales, attributes, shape of the input.
OPS = {
    "convolution": ("QLinearConv", [*X, *OTHER, *GIVEN, "b"], integers(3, 2, 3, 3), BY_CHANNEL, {}),
    "matrix": ("QLinearMatMul", [*X, *OTHER, *GIVEN], integers(5, 3), BY_CHANNEL, {}),
    "sum": ("QLinearAdd", [*X, *OTHER, *GIVEN], integers(1, 2, 5, 5), 0.03, {}),
    "product": ("QLinearMul", [*X, *OTHER, *GIVEN], integers(1, 2, 5, 5), 0.03, {}),
    "joined": ("QLinearConcat", [*GIVEN, *X, *OTHER], integers(1, 2, 5, 5), 0.03, {"axis": 1}),
    "mean": ("QLinearGlobalAveragePool", [*X, *GIVEN], integers(1), 0.03, {"channels_last": 0}),
    "means": ("QLinearAveragePool", [*X, *GIVEN], integers(1), 0.03, {"kernel_shape": [2, 2]}),
    "leaky": ("QLinearLeakyRelu", [*X, *GIVEN], integers(1), 0.03, {"alpha": 0.3}),
    "sigmoid": ("QLinearSigmoid", [*X, *GIVEN], integers(1), 0.03, {}),
    "softmax": ("QLinearSoftmax", [*X, *GIVEN], integers(1), 0.03, {"axis": 1, "opset": 13}),
    "gemm": (
        "QGemm",
        [*X, *OTHER, "b", *GIVEN],
        integers(3, 50),
        BY_CHANNEL,
        {"transB": 1, "alpha": 1.0},
    ),
}
OUTPUT_STEPS = {"mean": 0.005, "sigmoid": 1 / 256, "softmax": 1 / 256, "matrix": 0.08, "gemm": 0.2}


def one_op(name):
    """A model of one integer operator, which takes and gives floats."""
    kind, inputs, other, scales, attributes = OPS[name]
    scales = np.asarray(scales, "f4")
    standard = kind in ("QLinearConv", "QLinearMatMul")
    domain = "" if standard else "com.microsoft"
    flat = kind == "QGemm"
    step = OUTPUT_STEPS.get(name, 0.05)
    kept = {
        "s": np.float32(STEP),
        "z": np.int8(POINT),
        "o": other,
        "os": scales,
        "oz": np.zeros(scales.shape, np.int8),
        "ys": np.float32(step),
        "yz": np.int8(-128 if name in ("sigmoid", "softmax") else -5),
        "b": np.array([90, -700, 300], np.int32),
    }
    nodes = [
        helper.make_node("QuantizeLinear", ["f" if flat else "x", "s", "z"], ["q"]),
        helper.make_node(kind, inputs, ["r"], domain=domain, **attributes),
        helper.make_node("DequantizeLinear", ["r", *GIVEN], ["y"]),
    ]
    if flat:
        nodes.insert(0, helper.make_node("Flatten", ["x"], ["f"]))
    graph = helper.make_graph(
        nodes,
        name,
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 2, 5, 5])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.asarray(value), key) for key, value in kept.items()],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10), step


@pytest.mark.parametrize("name", OPS)
def test_integer_operators_in_real_numbers(name, tmp_path):
    model, step = one_op(name)
    onnx.save(model, tmp_path / "op.onnx")
    x = (RNG.integers(-100, 100, (1, 2, 5, 5)) * np.float32(STEP)).astype("f4")
    with make_runner(Target("onnxruntime"), tmp_path / "op.onnx") as runner:
        given = runner.infer({"x": x})["y"]
    graph = read_graph(tmp_path / "op.onnx", "onnx")
    network = network_of_file(graph, "onnx")
    assert [node.op for node in network.nodes if node.op == "opaque"] == []
    found = evaluate_network(network, {"x": x})["y"]
    assert given.std() > 5 * step  # neither constant nor saturated
    # One rounding to the output's steps; a table or a mean may round once more.
    assert np.abs(found - given.reshape(found.shape)).max() <= 1.01 * step
    assert {op.kind for op in graph.as_filed.ops} >= {OPS[name][0]}


@pytest.fixture(scope="module")
def dynamic(tmp_path_factory):
    """A convolution and a product that ONNX Runtime's quantizer made dynamic."""
    from onnxruntime.quantization import quantize_dynamic

    folder = tmp_path_factory.mktemp("dynamic")
    kept = {
        "k": RNG.normal(size=(3, 2, 3, 3)).astype("f4"),
        "b": RNG.normal(size=3).astype("f4"),
        "m": RNG.normal(size=(27, 4)).astype("f4"),
    }
    graph = helper.make_graph(
        [
            helper.make_node("Conv", ["x", "k", "b"], ["c"]),
            helper.make_node("Flatten", ["c"], ["f"]),
            helper.make_node("MatMul", ["f", "m"], ["y"]),
        ],
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 2, 5, 5])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 4])],
        [numpy_helper.from_array(value, key) for key, value in kept.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)
    onnx.save(model, folder / "float.onnx")
    quantize_dynamic(folder / "float.onnx", folder / "dynamic.onnx")
    return folder / "dynamic.onnx"


def test_dynamic_ranges_in_real_numbers(dynamic):
    """The kernels are those that the integers represent; only the rounding of inputs is left."""
    graph = read_graph(dynamic, "onnx")
    assert {"ConvInteger", "MatMulInteger"} <= {op.kind for op in graph.ops}
    network = network_of_file(graph, "onnx")
    assert [node.op for node in network.nodes] == ["conv", "add", "reshape", "dense"]
    held = {t.name: t.real(t.data) for t in graph.constants if t.quantization is not None}
    kernel = next(real for name, real in held.items() if real.ndim == 2)
    np.testing.assert_array_equal(network.nodes[-1].weights["kernel"], kernel)
    x = RNG.normal(size=(1, 2, 5, 5)).astype("f4")
    with make_runner(Target("onnxruntime"), dynamic) as runner:
        given = runner.infer({"x": x})["y"]
    error = evaluate_network(network, {"x": x})["y"] - given
    assert np.linalg.norm(error) < 0.02 * np.linalg.norm(given)


def test_another_scale_than_the_kernels_is_not_known(dynamic, tmp_path):
    model = onnx.load(dynamic)
    last = next(node for node in reversed(model.graph.node) if node.op_type == "Mul")
    last.input[1] = "half"
    model.graph.initializer.append(numpy_helper.from_array(np.float32(0.5), "half"))
    onnx.save(model, tmp_path / "odd.onnx")
    network = network_of_file(read_graph(tmp_path / "odd.onnx", "onnx"), "onnx")
    (unknown,) = (node for node in network.nodes if node.attributes.get("why"))
    assert unknown.attributes["why"] == "a kernel without a constant scale"
