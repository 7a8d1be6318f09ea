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
    "pad reflected": ("Pad", [np.array([0, 0, 1, 2, 0, 0, 0, 1])], {"mode": "reflect"}, (3, 4, 5)),
    "transposed conv": (
        "ConvTranspose",
        [constant(3, 4, 3, 2), constant(4)],
        {"strides": [2, 1], "pads": [1, 0, 0, 1], "output_padding": [1, 0]},
        (3, 4, 5),
    ),
    "scaled gemm": ("Gemm", [constant(5, 4), constant(4)], {"alpha": 0.5, "beta": 2.0}, (5,)),
    "stack of matrices": ("MatMul", [constant(2, 5, 4)], {}, (2, 3, 5)),
    "resize nearest": (
        "Resize",
        [np.empty(0, "f4"), np.array([1, 1, 2, 1.5], "f4")],
        {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"},
        (2, 3, 4),
    ),
    "resize linear": (
        "Resize",
        [np.empty(0, "f4"), np.empty(0, "f4"), np.array([1, 2, 5, 3])],
        {"mode": "linear"},
        (2, 3, 4),
    ),
    "resize corners": (
        "Resize",
        [np.empty(0, "f4"), np.array([1, 1, 3, 2], "f4")],
        {"mode": "linear", "coordinate_transformation_mode": "align_corners"},
        (2, 3, 4),
    ),
    "gather": ("Gather", [np.array([2, 0, 0])], {"axis": 2}, (3, 4)),
    "gather one": ("Gather", [np.array(1)], {"axis": 1}, (3, 4)),
    "slice": ("Slice", [np.array([1, -3]), np.array([9, 4]), np.array([1, 2])], {}, (3, 4)),
    "slice backward": (
        "Slice",
        [np.array([-1]), np.array([-99]), np.array([2]), np.array([-2])],
        {},
        (3, 5),
    ),
    "whole batch": ("Transpose", [], {"perm": [2, 0, 1]}, (3, 4)),
    "rows of all": ("Reshape", [np.array([-1, 2])], {}, (3, 4)),
    "expand": ("Expand", [np.array([1, 3, 4])], {}, (1, 4)),
    "tile": ("Tile", [np.array([1, 2, 3])], {}, (3, 4)),
    "depth to space": ("DepthToSpace", [], {"blocksize": 2, "mode": "CRD"}, (8, 2, 3)),
    "space to depth": ("SpaceToDepth", [], {"blocksize": 2}, (2, 4, 6)),
    "square": ("Pow", [np.float32(2)], {}, (3, 4)),
    "where": ("Greater", [np.float32(0.1)], {}, (5,)),
    "log softmax": ("LogSoftmax", [], {"axis": -1}, (3, 5)),
    "arg max": ("ArgMax", [], {"axis": 1, "keepdims": 0}, (3, 5)),
    "all summed": ("ReduceSum", [], {"keepdims": 1}, (3, 5)),
    "length": ("ReduceL2", [], {"axes": [1], "keepdims": 1}, (3, 5)),
    "layer norm": ("LayerNormalization", [constant(5), constant(5)], {"axis": -1}, (3, 5)),
    "instance norm": ("InstanceNormalization", [constant(3), constant(3)], {}, (3, 4, 4)),
    "steep hard sigmoid": ("HardSigmoid", [], {"alpha": 0.2, "beta": 0.4}, (5,)),
    "selu": ("Selu", [], {}, (5,)),
    "norm": (
        "BatchNormalization",
        [constant(3), constant(3), constant(3), np.abs(constant(3)) + 0.1],
        {"epsilon": 1e-3},
        (3, 4, 4),
    ),
}


_RESULTS = {"ArgMax": TensorProto.INT64, "Greater": TensorProto.BOOL}


@pytest.mark.parametrize("name", OPS)
def test_every_op_is_evaluated_as_onnx_defines_it(name, tmp_path):
    kind, constants, attributes, shape = OPS[name]
    names = [f"c{place}" for place in range(len(constants))]
    node = helper.make_node(kind, ["x", *names], ["y"], **attributes)
    graph = helper.make_graph(
        [node],
        name,
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, *shape])],
        [helper.make_tensor_value_info("y", _RESULTS.get(kind, TensorProto.FLOAT), None)],
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
    np.testing.assert_allclose(np.ravel(found), np.ravel(expected), rtol=CLOSE, atol=CLOSE)


LSTM = {"hidden_size": 3, "direction": "bidirectional"}
GRU = {"hidden_size": 3, "linear_before_reset": 1, "direction": "reverse"}
# Ops of which ONNX' reference evaluator has parts only: op, constants, attributes, shape.
OF_RUNTIME = {
    "lstm": ("LSTM", [constant(2, 12, 4), constant(2, 12, 3), constant(2, 24)], LSTM, (1, 4)),
    "gru": (
        "GRU",
        [constant(1, 9, 4), constant(1, 9, 3), constant(1, 18)],
        {"hidden_size": 3},
        (1, 4),
    ),
    "gru reset after": ("GRU", [constant(1, 9, 4), constant(1, 9, 3)], GRU, (1, 4)),
    "transposed conv of groups": (
        "ConvTranspose",
        [constant(4, 3, 2, 2)],
        {"strides": [2, 2], "group": 2},
        (4, 3, 3),
    ),
}


@pytest.mark.parametrize("name", OF_RUNTIME)
def test_every_op_is_evaluated_as_the_runtime_computes_it(name, tmp_path):
    kind, constants, attributes, shape = OF_RUNTIME[name]
    names = [f"c{place}" for place in range(len(constants))]
    outputs = ["y"] if kind == "ConvTranspose" else ["y", "last"]
    turned = helper.make_node("Squeeze", ["x", "zero"], ["t"])  # the batch moves: (1, T, …)
    start = [turned] if len(shape) == 2 else []
    node = helper.make_node(kind, ["t" if start else "x", *names], outputs, **attributes)
    constants = [*constants, np.array([0])]
    graph = helper.make_graph(
        [*start, node],
        name,
        [
            helper.make_tensor_value_info(
                "x", TensorProto.FLOAT, [1, *([5] if start else []), *shape]
            )
        ],
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in outputs],
        [numpy_helper.from_array(c, n) for c, n in zip(constants, [*names, "zero"], strict=True)],
    )
    opsets = [helper.make_opsetid("", 17)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    path = tmp_path / "op.onnx"
    path.write_bytes(model.SerializeToString())
    x = RNG.normal(size=[size.dim_value for size in graph.input[0].type.tensor_type.shape.dim])
    x = x.astype("f4")
    with make_runner(Target("onnxruntime"), path) as runner:
        expected = runner.infer({"x": x})
    found = evaluate_network(network_of_file(read_graph(path, "onnx"), "onnx"), {"x": x})
    for key, array in expected.items():
        np.testing.assert_allclose(np.ravel(found[key]), np.ravel(array), rtol=CLOSE, atol=CLOSE)


IMAGE = (1, 4, 6, 4)
PADS = [[0, 0], [1, 2], [2, 0], [0, 0]]
KERNEL_3D = constant(3, 2, 1, 2, 4)
TABLE = constant(3, 7)


def _bilinear(**how):
    return lambda tf, x: tf.compat.v1.image.resize_bilinear(x, (7, 9), **how)


def _blocks(tf, x):
    return tf.space_to_batch(x, (2, 2), [[0, 0], [1, 1]]) + 1


# Kind of op that TensorFlow's converter writes for a function, the function, shape of its input.
FUNCTIONS = {
    "RESIZE_BILINEAR centres": (_bilinear(half_pixel_centers=True), IMAGE),
    "RESIZE_BILINEAR corners": (_bilinear(align_corners=True), IMAGE),
    "RESIZE_NEAREST_NEIGHBOR": (lambda tf, x: tf.image.resize(x, (8, 9), "nearest"), IMAGE),
    "STRIDED_SLICE": (lambda tf, x: x[:, 1::2, ::-1, 0], IMAGE),
    "STRIDED_SLICE of the batch": (lambda tf, x: x[0, :, 1:], IMAGE),
    "SPLIT": (lambda tf, x: tf.concat(tf.split(x, 2, axis=3)[::-1], axis=3), IMAGE),
    "SPLIT_V": (lambda tf, x: tf.split(x, (1, 3), axis=-1)[1], IMAGE),
    "UNPACK": (lambda tf, x: tf.stack(tf.unstack(x, axis=1)[::-1], axis=0), IMAGE),
    "GATHER": (lambda tf, x: tf.gather(x, [2, 0], axis=2), IMAGE),
    "TRANSPOSE": (lambda tf, x: tf.transpose(x, (2, 0, 3, 1)), IMAGE),
    "SPACE_TO_DEPTH": (lambda tf, x: tf.nn.space_to_depth(x, 2), IMAGE),
    "DEPTH_TO_SPACE": (lambda tf, x: tf.nn.depth_to_space(x, 2), IMAGE),
    "SPACE_TO_BATCH_ND": (_blocks, IMAGE),
    "BATCH_TO_SPACE_ND": (
        lambda tf, x: tf.batch_to_space(_blocks(tf, x), (2, 2), [[0, 1], [1, 0]]),
        IMAGE,
    ),
    "MIRROR_PAD": (lambda tf, x: tf.pad(x, PADS, "SYMMETRIC"), IMAGE),
    "PADV2": (lambda tf, x: tf.pad(x, PADS, constant_values=3), IMAGE),
    "TILE": (lambda tf, x: tf.tile(x, (1, 2, 1, 1)), IMAGE),
    "CONV_3D": (
        lambda tf, x: tf.nn.conv3d(x, KERNEL_3D, (1, 1, 2, 1, 1), "SAME"),
        (1, 4, 5, 3, 2),
    ),
    "BATCH_MATMUL": (lambda tf, x: tf.matmul(x, x, transpose_b=True), (1, 4, 6)),
    "FULLY_CONNECTED": (lambda tf, x: tf.tensordot(x, TABLE, 1), (1, 4, 5, 3)),
    "SQUARED_DIFFERENCE": (lambda tf, x: tf.math.squared_difference(x, x[:, :1]), IMAGE),
    "SELECT": (lambda tf, x: tf.where(x > 0.1, x * x, -x), IMAGE),
    "L2_NORMALIZATION": (lambda tf, x: tf.nn.l2_normalize(x, axis=-1), (1, 6)),
    "LOG_SOFTMAX": (lambda tf, x: tf.nn.log_softmax(3 * x), (1, 6)),
    "GELU": (lambda tf, x: tf.nn.gelu(x, approximate=True), (1, 6)),
    "CUMSUM": (lambda tf, x: tf.cumsum(x, axis=1, reverse=True), (1, 6)),
    "SUM": (lambda tf, x: tf.reduce_sum(x, axis=(0, 2)), IMAGE),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_every_op_is_evaluated_as_tensorflow_computes_it(name, tmp_path):
    import tensorflow as tf

    function, shape = FUNCTIONS[name]
    traced = tf.function(lambda x: function(tf, x)).get_concrete_function(
        tf.TensorSpec(shape, tf.float32, "x")
    )
    path = tmp_path / "op.tflite"
    converter = tf.lite.TFLiteConverter.from_concrete_functions([traced], tf.Module())
    path.write_bytes(converter.convert())
    graph = read_graph(path, "tflite")
    assert name.split()[0] in {op.kind for op in graph.ops}
    x = RNG.normal(size=shape).astype("f4")
    network = network_of_file(graph, "tflite")
    assert [node.attributes for node in network.nodes if node.op == "opaque"] == []
    (found,) = evaluate_network(network, {next(iter(network.inputs)): x}).values()
    expected = function(tf, tf.constant(x)).numpy()
    np.testing.assert_allclose(np.ravel(found), np.ravel(expected), rtol=CLOSE, atol=CLOSE)


@pytest.mark.parametrize("runtime", ["litert", "onnxruntime"])
def test_a_whole_file_is_evaluated_as_the_runtime_computes_it(coarse_export, runtime):
    suffix = {"litert": "tflite", "onnxruntime": "onnx"}[runtime]
    path = coarse_export / f"tiny.float32.{suffix}"
    network = network_of_file(with_shapes(read_graph(path, suffix), path), suffix)
    x = RNG.normal(size=(1, 8, 8, 1)).astype("f4")
    with make_runner(Target(runtime), path) as runner:
        given = runner.infer({runner.inputs[0].name: x})
    found = evaluate_network(network, {next(iter(network.inputs)): x})
    for name, array in given.items():
        np.testing.assert_allclose(found[name], array, rtol=CLOSE, atol=CLOSE)


def test_unknown_ops_are_opaque_only_if_an_output_needs_them(tmp_path):
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


def test_shapes_that_a_file_computes_are_constants(tmp_path):
    """As exporters write `x.reshape(x.shape[0], -1)` of inputs with free sizes."""
    nodes = [
        helper.make_node("Shape", ["x"], ["shape"]),
        helper.make_node("Gather", ["shape", "zero"], ["batch"]),
        helper.make_node("Unsqueeze", ["batch", "first"], ["row"]),
        helper.make_node("Concat", ["row", "rest"], ["wanted"], axis=0),
        helper.make_node("Reshape", ["x", "wanted"], ["y"]),
    ]
    kept = {"zero": np.array(0), "first": np.array([0]), "rest": np.array([-1])}
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
        for name, shape in (("x", ["n", 3, "t"]), ("y", ["n", "k"]))
    ]
    graph = helper.make_graph(
        nodes, "g", ends[:1], ends[1:], [numpy_helper.from_array(v, k) for k, v in kept.items()]
    )
    (tmp_path / "g.onnx").write_bytes(helper.make_model(graph).SerializeToString())
    network = network_of_file(read_graph(tmp_path / "g.onnx", "onnx"), "onnx", {"x": (3, 5)})
    x = RNG.normal(size=(2, 3, 5))
    np.testing.assert_array_equal(evaluate_network(network, {"x": x})["y"], x.reshape(2, -1))
