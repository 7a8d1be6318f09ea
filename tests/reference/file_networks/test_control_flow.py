"""Protects that loops and branches of files are evaluated as the runtimes run them."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from renormlite.artifacts.graphs import format_of, read_graph, with_shapes
from renormlite.artifacts.precisions import UNIT_ROUNDOFF
from renormlite.reference.file_networks import network_of_file
from renormlite.reference.network import evaluate_network
from renormlite.runtimes import Target, make_runner

RNG = np.random.default_rng(0)
KERNEL = RNG.normal(0, 0.4, (4, 4)).astype("f4")
X = RNG.normal(size=(6, 4)).astype("f4")
# The runtimes compute in float32.
CLOSE = 200 * UNIT_ROUNDOFF["float32"]


def counted(image):
    import tensorflow as tf

    def body(step, x):
        return step + 1, tf.tanh(x @ KERNEL)

    state = (tf.constant(0), image)
    return tf.nn.relu(tf.while_loop(lambda step, x: step < 5, body, state)[1])


def exchanged(image):
    """Every step exchanges the two numbers that it carries."""
    import tensorflow as tf

    def body(step, a, b):
        return step + 1, b, a @ KERNEL

    state = (tf.constant(0), image, image + 1.0)
    _, a, b = tf.while_loop(lambda step, a, b: step < 3, body, state)
    return a - b


def decided(image):
    import tensorflow as tf

    positive = tf.reduce_sum(image) > 0
    return tf.cond(positive, lambda: tf.nn.relu(image @ KERNEL), lambda: image - 1.0)


def until_large(image):
    import tensorflow as tf

    def body(total, x):
        return total + 1.0, tf.tanh(x @ KERNEL)

    state = (tf.reduce_sum(image), image)
    return tf.while_loop(lambda total, x: total < 5.0, body, state)[1]


def tflite(function, path):
    import tensorflow as tf

    traced = tf.function(function)
    concrete = traced.get_concrete_function(tf.TensorSpec((1, 4), tf.float32, name="image"))
    path.write_bytes(tf.lite.TFLiteConverter.from_concrete_functions([concrete]).convert())


def vector(name, shape=(1, 4), kind=TensorProto.FLOAT):
    return helper.make_tensor_value_info(name, kind, shape)


def onnx_loop(path):
    """Four steps whose number is an input of the loop; the rows of all steps are an output too."""
    body = helper.make_graph(
        [
            helper.make_node("MatMul", ["x", "kernel"], ["product"]),
            helper.make_node("Tanh", ["product"], ["after"]),
            helper.make_node("Identity", ["after"], ["row"]),
            helper.make_node("Identity", ["going"], ["goes"]),
        ],
        "body",
        [vector("i", (), TensorProto.INT64), vector("going", (), TensorProto.BOOL), vector("x")],
        [vector("goes", (), TensorProto.BOOL), vector("after"), vector("row")],
    )
    nodes = [
        helper.make_node("Loop", ["steps", "", "image"], ["last", "rows"], body=body),
        helper.make_node("ReduceMax", ["rows"], ["greatest"], axes=[0], keepdims=0),
        helper.make_node("Sub", ["greatest", "last"], ["out"]),
    ]
    save(nodes, path, kernel=KERNEL, steps=np.array(4, "i8"))


def onnx_branch(path):
    def alternative(kind, *more):
        node = helper.make_node(kind, ["image", *more], [f"by {kind}"])
        return helper.make_graph([node], kind, [], [vector(f"by {kind}")])

    nodes = [
        helper.make_node("ReduceSum", ["image"], ["sum"], keepdims=0),
        helper.make_node("Greater", ["sum", "zero"], ["positive"]),
        helper.make_node(
            "If",
            ["positive"],
            ["out"],
            then_branch=alternative("MatMul", "kernel"),
            else_branch=alternative("Neg"),
        ),
    ]
    save(nodes, path, kernel=KERNEL, zero=np.float32(0))


def save(nodes, path, **constants):
    held = [numpy_helper.from_array(np.asarray(v), name) for name, v in constants.items()]
    graph = helper.make_graph(nodes, "net", [vector("image")], [vector("out")], held)
    opset = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=9), path)


def network_at(path):
    graph = with_shapes(read_graph(path, format_of(path)), path)
    return network_of_file(graph, format_of(path))


FILES = {
    "loop.tflite": lambda path: tflite(counted, path),
    "exchange.tflite": lambda path: tflite(exchanged, path),
    "branch.tflite": lambda path: tflite(decided, path),
    "loop.onnx": onnx_loop,
    "branch.onnx": onnx_branch,
}


@pytest.mark.parametrize("name", FILES)
def test_the_runtime_computes_the_same(tmp_path, name):
    path = tmp_path / name
    FILES[name](path)
    (found,) = evaluate_network(network_at(path), {"image": X}).values()
    target = "litert" if name.endswith("tflite") else "onnxruntime"
    with make_runner(Target(target), path) as runner:
        (input_,) = runner.inputs
        rows = [next(iter(runner.infer({input_.name: x[None]}).values())) for x in X]
    np.testing.assert_allclose(found, np.concatenate(rows), rtol=0, atol=CLOSE)


def test_the_number_of_steps_must_not_depend_on_the_input(tmp_path):
    path = tmp_path / "net.tflite"
    tflite(until_large, path)
    (node,) = (node for node in network_at(path).nodes if node.op == "opaque")
    assert node.attributes["kind"] == "WHILE"
    assert node.attributes["why"] == "a number of steps that depends on the inputs"
