"""Zeros become pads of a convolution exactly where that computes the same."""

from __future__ import annotations

import keras
import numpy as np
import onnx
import onnxruntime
import pytest
import renormlite as rl
from keras import layers
from onnx import helper, numpy_helper
from renormlite.export.formats.onnx_external import Held
from renormlite.export.formats.onnx_rewrites import simplify


def test_causal_convolutions_have_no_pad_and_run_on_openvino(tmp_path):
    keras.utils.set_random_seed(0)
    x = keras.Input((16, 3), name="x")
    y = layers.Conv1D(4, 3, padding="causal", activation="relu")(x)
    y = layers.Conv1D(4, 3, padding="causal", dilation_rate=2)(y)
    y = layers.Conv1D(2, 3)(layers.ZeroPadding1D((1, 2))(y))
    rl.export_model(
        keras.Model(x, y),
        tmp_path,
        formats=("onnx",),
        precisions=("float32", "int8"),
        calibration="random",
    )
    report = rl.check_parity(tmp_path, targets=("onnxruntime", "openvino"))
    assert report.passed, [result.reason for result in report.results]
    for path in tmp_path.glob("*.onnx"):
        nodes = onnx.load(path).graph.node
        assert "Pad" not in {node.op_type for node in nodes}
        convolutions = [node for node in nodes if node.op_type == "Conv"]
        pads = [list(a.ints) for node in convolutions for a in node.attribute if a.name == "pads"]
        # Before and after the added axis and the steps: kernel - 1, times the dilation.
        assert pads == [[0, 2, 0, 0], [0, 4, 0, 0], [0, 1, 0, 2]]


def graph(pads: list[int], *, mode: str = "constant", fill: float = 0.0, readers: int = 1):
    """Return Pad, Transpose, Unsqueeze and Conv, whose own pads are 1, 0, 2 and 1."""
    rng = np.random.default_rng(0)
    constants = {
        "pads": np.array(pads, np.int64),
        "fill": np.array(fill, np.float32),
        "axes": np.array([2], np.int64),
        "kernel": rng.normal(size=(2, 3, 2, 3)).astype(np.float32),
    }
    nodes = [
        helper.make_node("Pad", ["x", "pads", "fill"], ["padded"], mode=mode),
        helper.make_node("Transpose", ["padded"], ["first"], perm=[0, 2, 1]),
        helper.make_node("Unsqueeze", ["first", "axes"], ["deep"]),
        helper.make_node("Conv", ["deep", "kernel"], ["y"], pads=[1, 0, 2, 1]),
    ]
    outputs = ["y", "z"][:readers]
    if readers > 1:
        nodes.append(helper.make_node("ReduceSum", ["padded"], ["z"], keepdims=0))
    model = helper.make_model(
        helper.make_graph(
            nodes,
            "g",
            [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, (1, 6, 3))],
            [helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, None) for n in outputs],
            [numpy_helper.from_array(value, name) for name, value in constants.items()],
        ),
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=8,
    )
    return onnx.shape_inference.infer_shapes(model)


@pytest.mark.parametrize(
    ("settings", "removed"),
    [
        ({"pads": [0, 2, 0, 0, 1, 0]}, True),
        ({"pads": [0, 2, 0, 0, -1, 0]}, False),
        ({"pads": [0, 2, 0, 0, 1, 0], "fill": 1.0}, False),
        ({"pads": [0, 2, 0, 0, 1, 0], "mode": "reflect"}, False),
        ({"pads": [0, 2, 0, 0, 1, 0], "readers": 2}, False),
    ],
)
def test_only_zeros_of_one_reader_are_removed(settings, removed):
    model = graph(**settings)
    x = np.random.default_rng(1).normal(size=(1, 6, 3)).astype(np.float32)

    def run() -> list[np.ndarray]:
        return onnxruntime.InferenceSession(model.SerializeToString()).run(None, {"x": x})

    before = run()
    simplify(model, Held())
    assert ("Pad" not in {node.op_type for node in model.graph.node}) == removed
    for found, known in zip(run(), before, strict=True):
        np.testing.assert_allclose(found, known, rtol=1e-5)


def test_zeros_of_other_channels_stay():
    model = graph([0, 0, 0, 0, 0, 1])
    model.graph.initializer.remove(next(i for i in model.graph.initializer if i.name == "kernel"))
    kernel = np.ones((2, 4, 2, 3), np.float32)
    model.graph.initializer.append(numpy_helper.from_array(kernel, "kernel"))
    simplify(model, Held())
    assert "Pad" in {node.op_type for node in model.graph.node}


@pytest.mark.parametrize("pad", [layers.ZeroPadding1D((1, 2)), layers.Cropping1D((1, 2))])
def test_integers_are_padded_as_integers(pad, tmp_path):
    """OpenVINO pads dequantized integers on one axis wrongly if their zero point is not 0."""
    keras.utils.set_random_seed(0)
    x = keras.Input((8, 3), name="x")
    y = pad(layers.Conv1D(4, 3, activation="tanh")(x))
    y = layers.Dense(3, activation="tanh")(layers.Average()([y, keras.ops.flip(y, 1)]))
    rl.export_model(
        keras.Model(x, y),
        tmp_path,
        formats=("onnx",),
        precisions=("int8",),
        calibration="random",
    )
    targets = ("onnxruntime", "onnxruntime+disabled", "openvino")
    report = rl.check_parity(tmp_path, targets=targets, per_op=True)
    assert report.passed, [result.reason for result in report.results]
    (path,) = tmp_path.glob("*.onnx")
    nodes = onnx.load(path).graph.node
    makers = {name: node.op_type for node in nodes for name in node.output}
    padded = [makers[node.input[0]] for node in nodes if node.op_type == "Pad"]
    if isinstance(pad, layers.ZeroPadding1D):
        assert padded == ["QuantizeLinear"]


def test_integers_of_a_quantization_aware_model_are_padded_as_integers(tmp_path):
    """A function follows, which reads floats."""
    keras.utils.set_random_seed(0)
    x = keras.Input((8, 3), name="x")
    y = layers.ZeroPadding1D(2)(layers.ZeroPadding1D(1)(layers.Conv1D(4, 3)(x)))
    y = layers.Dense(3)(layers.ReLU()(y))
    model = rl.quantize_aware(keras.Model(x, y))
    model.compile("sgd", "mse")
    samples = np.random.default_rng(0).normal(size=(32, 8, 3)).astype(np.float32)
    model.fit(samples, np.zeros((32, 12, 3)), verbose=0)
    rl.export_model(
        model, tmp_path / "net", formats=("onnx",), precisions=("int8",), inputs=samples
    )
    report = rl.check_parity(tmp_path / "net", targets=("onnxruntime", "openvino"), per_op=True)
    assert report.passed, [result.reason for result in report.results]
