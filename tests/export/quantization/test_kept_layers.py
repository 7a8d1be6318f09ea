"""Protects layers that an int8 file computes in float or with 16 bits: chosen by name, and true."""

from __future__ import annotations

import keras
import numpy as np
import onnx
import onnxruntime
import pytest
import renormlite as rl
from renormlite.artifacts.flatbuffer import operator_kind, parse
from renormlite.export.quantization.layer_selection import belongs, select

LAYERS = ("stem", "down", "down_relu", "depth", "point", "flat", "scores", "block/conv", "conv")
LAYERS += ("conv#2",)


@pytest.fixture(scope="module")
def data() -> np.ndarray:
    return np.random.default_rng(5).normal(size=(32, 8, 8, 1)).astype(np.float32)


@pytest.fixture(scope="module")
def exported(tmp_path_factory, build_network, data):
    """Return a function that exports the network in int8 and gives the manifest and the folder."""

    def export(**options):
        folder = tmp_path_factory.mktemp("kept") / "tiny"
        manifest = rl.export_model(
            build_network(),
            folder,
            precisions=("int8",),
            calibration=data,
            inputs=data[:16],
            equalize="never",
            **options,
        )
        return manifest, folder

    return export


def _types(folder) -> list[tuple[str, int]]:
    """Return kind and type of the data input of every op of the TFLite file."""
    model = parse((folder / "tiny.int8.tflite").read_bytes())
    graph = model.subgraphs[0]
    return [(operator_kind(model, op), graph.tensors[op.inputs[0]].type) for op in graph.operators]


FLOAT32, INT16, INT8 = 0, 7, 9


def test_a_layer_in_float(exported):
    manifest, folder = exported(keep_float=("dep*",))
    types = _types(folder)
    assert ("DEPTHWISE_CONV_2D", FLOAT32) in types
    assert [kind for kind, dtype in types if kind == "CONV_2D" and dtype == INT8] == ["CONV_2D"] * 3
    assert all("kept in float32: depth" in artifact.notes for artifact in manifest.artifacts)
    assert rl.check_parity(folder, per_op=True).passed


def test_onnxruntime_does_not_quantize_it_again(exported, data):
    """A Conv in float between quantizers is made a QLinearConv by the optimizer, unless fenced."""
    _, folder = exported(keep_float=("depth", "down"), formats=("onnx",))
    path = folder / "tiny.int8.onnx"
    model = onnx.load(path)
    kept = [node for node in model.graph.node if node.op_type == "Max"]
    assert kept
    outputs = []
    for level in (
        onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL,
        onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL,
    ):
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = level
        options.optimized_model_filepath = str(folder / "optimized.onnx")
        options.log_severity_level = 3
        session = onnxruntime.InferenceSession(str(path), options)
        outputs.append(session.run(None, {"image": data[:1]})[0])
    quantized = [
        node
        for node in onnx.load(folder / "optimized.onnx").graph.node
        if "QLinear" in node.op_type
    ]
    assert not any("depth" in node.name or "down" in node.name for node in quantized)
    # The other layers round alike but for ties, each of which is one step of the softmax.
    assert np.abs(outputs[0] - outputs[1]).max() <= 1 / 255


def test_a_layer_with_16_bits(exported):
    manifest, folder = exported(keep_int16=("depth", "point"), opset=21)
    types = _types(folder)
    assert {("DEPTHWISE_CONV_2D", INT16), ("CONV_2D", INT16)} <= set(types)
    weights = onnx.load(folder / "tiny.int8.onnx").graph.initializer
    assert onnx.TensorProto.UINT16 in {weight.data_type for weight in weights}
    plain, _ = exported()
    for wide, narrow in zip(manifest.artifacts, plain.artifacts, strict=True):
        assert wide.snr_db["scores"] > narrow.snr_db["scores"]
    assert rl.check_parity(folder, per_op=True).passed


def test_first_and_last_layer_with_integer_inputs_and_outputs(exported):
    _, folder = exported(keep_float=("stem", "scores"), quantized_io="integer", formats=("tflite",))
    assert rl.check_parity(folder, per_op=True).passed


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"keep_float": ("dept",)}, "no layer of the folded network is called 'dept'.*depth"),
        ({"keep_float": ("depth",), "precisions": ("float32",)}, "for int8 and auto files"),
        ({"keep_int16": ("depth",), "opset": 17}, "needs opset 21. Received: 17"),
    ],
)
def test_a_wrong_choice_is_refused_in_one_sentence(build_network, data, tmp_path, options, message):
    options = {"precisions": ("int8",), "calibration": data, "equalize": "never"} | options
    with pytest.raises(rl.UserError, match=message):
        rl.export_model(build_network(), tmp_path / "tiny", **options)


def test_the_operator_that_computes_an_output_belongs_to_its_layer(images, tmp_path):
    """TensorFlow calls that tensor by the output's name, not by the layer's."""
    x = keras.Input((12, 12, 3), name="image")
    y = keras.layers.Conv2D(4, 3, activation="relu", name="first")(x)
    y = keras.layers.GlobalAveragePooling2D(name="pool")(y)
    model = keras.Model(x, keras.layers.Dense(5, name="scores")(y))
    rl.export_model(
        model, tmp_path / "tiny", precisions=("int8",), calibration=images, keep_float=("scores",)
    )
    assert ("FULLY_CONNECTED", FLOAT32) in _types(tmp_path / "tiny")


def test_names_paths_and_patterns():
    assert select(["conv"], LAYERS, "keep_float") == ("block/conv", "conv")
    assert select(["block/*"], LAYERS, "keep_float") == ("block/conv",)
    assert select(["down*", "stem"], LAYERS, "keep_float") == ("down", "down_relu", "stem")


def test_operators_belong_to_the_layers_that_they_were_fused_from():
    assert belongs("down_relu/Relu;down/BiasAdd;down/convolution", ("down",))
    assert belongs("block/conv#2/convolution", ("block/conv",))
    assert belongs("block/conv/Relu", ("block",))
    assert not belongs("down_relu/Relu", ("down",))


ODD = ("conv#1", "a;b,c", "star*[1]?", "größe 2.0")


@pytest.mark.parametrize("name", ODD)
def test_layers_with_any_name_can_be_selected(name, tmp_path, data):
    x = y = keras.Input((8, 8, 1), name="x")
    for other in ODD:
        y = keras.layers.Conv2D(2, 1, name=other)(y)
    rl.export_model(
        keras.Model(x, y),
        tmp_path / "tiny",
        precisions=("int8",),
        calibration=data,
        equalize="never",
        keep_float=(name,),
    )
    kinds = _types(tmp_path / "tiny")
    assert kinds.count(("CONV_2D", FLOAT32)) == 1
    assert kinds.count(("CONV_2D", INT8)) == len(ODD) - 1
    graph = onnx.load(tmp_path / "tiny" / "tiny.int8.onnx").graph
    makers = {out: node for node in graph.node for out in node.output}
    read = [makers.get(n.input[1]) for n in graph.node if n.op_type == "Conv"]
    assert sum(maker is None for maker in read) == 1  # the others read DequantizeLinear


def test_second_calls_are_not_layers():
    assert select(["*"], ["conv", "conv#2", "other#1"], "keep_float") == ("conv", "other#1")


def test_a_layer_of_a_nested_model_is_proposed():
    with pytest.raises(rl.UserError, match=r"'model/stem'; .* Name one of: 'stem'"):
        select(["model/stem"], ["conv", "stem"], "keep_float")


def test_layers_of_nested_models_are_selected_by_path(tmp_path, data):
    def block(name):
        x = keras.Input((8, 8, 1))
        y = keras.layers.Conv2D(1, 3, padding="same", name="conv")(x)
        return keras.Model(x, keras.layers.Conv2D(1, 1, name="last")(y), name=name)

    x = keras.Input((8, 8, 1), name="x")
    model = keras.Model(x, block("two")(block("one")(x)))
    for selected, count in {"two/conv": 1, "one": 2, "t*": 2, "*/last": 2, "conv": 1}.items():
        rl.export_model(
            model, tmp_path / "tiny", formats=("tflite",), precisions=("int8",), calibration=data,
            equalize="never", keep_float=(selected,),
        )  # fmt: skip
        assert _types(tmp_path / "tiny").count(("CONV_2D", FLOAT32)) == count, selected


def test_constants_of_16_bit_nodes_have_16_bits_in_onnx(tmp_path, data):
    """The operations that remain of a norm may have channels of very different magnitude."""
    x = keras.Input((8, 8, 1), name="x")
    y = keras.layers.Conv2D(4, 3, activation="tanh", name="stem")(x)
    model = keras.Model(x, rl.ChannelAffine(name="left")(y))
    model.get_layer("left").scale.assign([1.0, 0.1, 0.02, 0.005])
    model.get_layer("left").shift.assign([0.0, 0.1, -0.03, 8.0])
    manifest = rl.export_model(
        model,
        tmp_path / "n",
        formats=("onnx",),
        precisions=("int8",),
        calibration=data,
        equalize="never",
        keep_int16=("left",),
        opset=21,
    )
    graph = onnx.load(tmp_path / "n" / manifest.artifacts[0].file).graph
    types = {weight.name: weight.data_type for weight in graph.initializer}
    scaled = {node.output[0]: node.input[0] for node in graph.node if len(node.input) == 3}
    operands = [
        types[scaled[name]]
        for node in graph.node
        if node.op_type in ("Add", "Mul")
        for name in node.input
        if scaled.get(name) in types
    ]
    assert operands
    assert set(operands) == {onnx.TensorProto.UINT16}
