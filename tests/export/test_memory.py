"""Protects that an export holds few copies of large weights."""

from __future__ import annotations

import gc
import sys
import tempfile
from collections import Counter
from pathlib import Path

import keras
import numpy as np
import onnx
import pytest
from ai_edge_litert.interpreter import Interpreter
from keras import layers
from renormlite import BatchRenormalization, export_model
from renormlite.artifacts.flatbuffer import pack, parse
from renormlite.artifacts.graphs import read_graph as parsed_graph
from renormlite.export import golden_set
from renormlite.export.auto import RecipeNetworks
from renormlite.export.fold import build, fold, weight_files
from renormlite.export.fold.backend import view_of
from renormlite.export.fold.keras_graph import read_graph
from renormlite.export.formats import onnx as onnx_format
from renormlite.export.formats import onnx_external, stand_ins
from renormlite.export.formats import tflite as tflite_format
from renormlite.export.formats.freeze import FrozenGraph, freeze
from renormlite.export.quantization import onnx_quantize
from renormlite.export.signature import signature_of
from renormlite.export.variants import Variants


@pytest.fixture
def model():
    keras.utils.set_random_seed(1)
    x = data = keras.Input((6, 6, 3))
    x = layers.Conv2D(4, 3, padding="same", use_bias=False)(x)
    x = layers.ReLU()(BatchRenormalization()(x))
    x = layers.Flatten()(x)
    return keras.Model(data, layers.Dense(5, activation="softmax", name="head")(x))


def test_untouched_weights_share_memory(model):
    folded = fold(model).model
    before, after = (view_of(m.get_layer("head").kernel) for m in (model, folded))
    assert np.shares_memory(before, after)


def test_shared_weights_can_be_trained_apart(model):
    folded = fold(model).model
    kernel = folded.get_layer("head").kernel
    before, copied = view_of(kernel), np.array(kernel)
    model.get_layer("head").kernel.assign_add(np.ones_like(copied))
    assert np.array_equal(view_of(kernel), copied)
    assert np.array_equal(before, copied)
    assert np.array_equal(view_of(model.get_layer("head").kernel), copied + 1)


def mapped_files() -> list[str]:
    """Return the files without names that this process maps, such as `/tmp/#1234 (deleted)`."""
    return [line for line in Path("/proc/self/maps").read_text().splitlines() if "(del" in line]


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_large_folded_weights_are_in_files_during_an_export(model, monkeypatch, tmp_path):
    """Their values are those of a fold in memory; small ones stay there, and no file is left."""
    expected = fold(model).model.get_weights()
    monkeypatch.setattr(weight_files, "LARGE", 200)
    before = len(mapped_files())
    with weight_files.weights_in_files(tmp_path / "not" / "there"):
        folded = fold(model).model
    assert len(mapped_files()) == before + 1
    for value, wanted in zip(folded.get_weights(), expected, strict=True):
        np.testing.assert_array_equal(value, wanted)
    kernel = folded.layers[1].kernel
    kernel.assign_add(np.ones((3, 3, 3, 4)))
    np.testing.assert_array_equal(kernel, expected[0] + 1)
    assert list(tmp_path.iterdir()) == []
    del folded, kernel, value
    gc.collect()
    assert len(mapped_files()) == before
    assert np.array_equal(fold(model).model.get_weights()[0], expected[0])
    assert len(mapped_files()) == before


@pytest.mark.parametrize("space", [0, 2000])
def test_weights_are_in_memory_if_there_is_no_space_for_files(model, space, monkeypatch, tmp_path):
    """The system limits the size of files: 0 bytes, or as many as some of the weights need."""
    resource = pytest.importorskip("resource")
    expected = fold(model).model.get_weights()
    monkeypatch.setattr(weight_files, "LARGE", 200)
    monkeypatch.setattr(weight_files, "_FILE", 1000)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    with weight_files.weights_in_files(tmp_path):
        resource.setrlimit(resource.RLIMIT_FSIZE, (space, before[1]))
        try:
            folded = fold(model).model
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
    for value, wanted in zip(folded.get_weights(), expected, strict=True):
        np.testing.assert_array_equal(value, wanted)


def test_a_file_with_its_weights_put_in_keeps_no_other_copy(model, monkeypatch):
    """A bytearray can only be resized while nothing refers to its bytes."""
    monkeypatch.setattr(stand_ins, "LARGE", 100)
    found = []

    def put(parsed, weights):
        data = bytearray(pack(parsed))
        again = parse(data)
        with pytest.raises(BufferError):
            data.clear()
        assert stand_ins.put_weights(again, weights)
        data.clear()
        found.append(parsed)
        return stand_ins.put_weights(parsed, weights)

    monkeypatch.setattr(tflite_format, "put_weights", put)
    with tempfile.TemporaryDirectory() as folder:
        export_model(model, folder, formats=("tflite",))
    assert len(found) == 1


def test_float64_layers_are_freed_after_their_last_call(model):
    weighted = []
    for call, layer in build.build_layers(read_graph(model)):
        if call.name in ("conv2d", "head"):
            weighted.append(layer)
    for layer in weighted:
        with pytest.raises(TypeError):
            np.array(layer.kernel)
    assert np.isfinite(np.array(model.get_layer("head").kernel)).all()


def test_layer_by_layer_equals_the_whole_network(model, monkeypatch):
    signature, x = signature_of(model), np.random.default_rng(0).random((11, 6, 6, 3))
    inputs = {signature.inputs[0].name: x}
    whole = golden_set.float64_function(model, signature)(inputs)
    monkeypatch.setattr(golden_set, "_LARGE", 0)
    parts = golden_set.float64_function(model, signature)(inputs)
    assert list(parts) == list(whole)
    for name, values in whole.items():
        assert values.dtype == parts[name].dtype == np.float64
        np.testing.assert_allclose(parts[name], values, rtol=1e-13)


def images() -> keras.Model:
    x = data = keras.Input((8, 8, 3))
    x = layers.Conv2D(16, 3, padding="same")(x)
    x = layers.ReLU()(BatchRenormalization()(x))
    x = layers.DepthwiseConv2D(3)(x)
    x = layers.Conv2D(16, 1, groups=4)(x)
    x = layers.SeparableConv2D(8, 3, padding="same")(x)
    x = layers.Conv2DTranspose(8, 3, strides=2)(x)
    x = layers.Flatten()(layers.Conv2D(8, 3, dilation_rate=2)(x))
    x = layers.Dense(20)(layers.Dense(20, activation="relu")(x))
    return keras.Model(data, layers.Dense(10, activation="softmax")(x))


def sequences() -> keras.Model:
    data = keras.Input((6,), dtype="int32")
    x = layers.LSTM(16, return_sequences=True)(layers.Embedding(50, 16)(data))
    x = layers.Dense(16)(layers.Conv1D(16, 3, padding="causal")(x))
    x = layers.LayerNormalization()(layers.MultiHeadAttention(2, 8)(x, x))
    return keras.Model(data, layers.Dense(16)(layers.GRU(8)(x)))


def products() -> keras.Model:
    data = keras.Input((16,))
    shared = layers.Dense(16)
    x = shared(shared(data))
    x = layers.Dense(16, kernel_initializer="zeros")(layers.Multiply()([x, x]))
    x = layers.EinsumDense("ab,bc->ac", 16)(layers.Add()([x, data]))
    x = layers.Dense(16, kernel_initializer="ones")(x)
    return keras.Model(data, layers.Rescaling(2.0)(x))


class ScaledConv(layers.Layer):
    """The fold does not look into it; the converter multiplies the numbers into the kernel."""

    def build(self, shape):
        self.kernel = self.add_weight(shape=(3, 3, shape[-1], 16))

    def call(self, x):
        return keras.ops.conv(x, self.kernel) * keras.ops.arange(1.0, 17.0)


def scaled() -> keras.Model:
    data = keras.Input((8, 8, 4))
    return keras.Model(data, ScaledConv()(data))


class Masked(layers.Layer):
    """Adds a mask that is a weight; in integers it gets numbers near the scores."""

    def build(self, shape):
        self.mask = self.add_weight(shape=shape[1:], trainable=False)
        self.mask.assign(np.where(np.tri(*shape[1:]), 0, -5e4))

    def call(self, x):
        return keras.ops.softmax(x + self.mask)


def attention() -> keras.Model:
    data = keras.Input((16, 16))
    return keras.Model(data, layers.Dense(16)(Masked()(layers.Dense(16)(data))))


def volumes() -> keras.Model:
    data = keras.Input((6, 6, 6, 2))
    return keras.Model(data, layers.Conv3D(4, 2, groups=2)(layers.Conv3D(4, 3)(data)))


def made_with_and_without_stand_ins(make, folder, monkeypatch, **options):
    """Return the hashes of files from the whole converters, and from stand-ins for weights."""
    made = []
    for large in (1 << 40, 100):
        for module in (stand_ins, onnx_format):
            monkeypatch.setattr(module, "LARGE", large)
        keras.backend.clear_session()
        keras.utils.set_random_seed(0)
        manifest = export_model(make(), folder / str(large) / "net", **options)
        made.append({artifact.file: artifact.sha256 for artifact in manifest.artifacts})
    return made


@pytest.mark.parametrize("make", [images, sequences, products, scaled, volumes])
def test_files_are_those_that_converters_make_from_the_weights(make, monkeypatch, tmp_path):
    """Stand-ins for weights change no byte of a file; here all but the smallest weights have them.

    The expected bytes are those of the whole converters, which get every weight.
    """
    made = made_with_and_without_stand_ins(make, tmp_path, monkeypatch)
    assert len(made[0]) == 2
    assert made[0] == made[1]


@pytest.mark.parametrize("make", [images, sequences, attention])
def test_lower_precisions_in_onnx_are_made_from_all_weights(make, monkeypatch, tmp_path):
    """As above; onnxruntime's quantizers read a file with the weights."""
    made = made_with_and_without_stand_ins(
        make,
        tmp_path,
        monkeypatch,
        formats=("onnx",),
        precisions=("float16", "dynamic", "int8"),
        calibration="random",
    )
    assert len(made[0]) == 3
    assert made[0] == made[1]


@pytest.mark.parametrize("make", [images, sequences, attention])
def test_shapes_are_inferred_without_large_weights(make, monkeypatch, tmp_path):
    """The expected file is that of a model whose shapes are inferred with all weights."""
    keras.utils.set_random_seed(0)
    export_model(make(), tmp_path / "net", formats=("onnx",))
    made = []
    for large in (1 << 40, 100):
        monkeypatch.setattr(onnx_quantize, "LARGE", large)
        made.append(onnx_quantize.quantize(tmp_path / "net/net.float32.onnx", "float16", None))
    assert made[0] == made[1]


@pytest.mark.parametrize("make", [images, sequences, products, scaled])
def test_halves_in_tflite_are_those_of_the_converter(make, monkeypatch, tmp_path):
    """TensorFlow's converter makes the expected file from the weights."""
    made_with_and_without_stand_ins(
        make, tmp_path, monkeypatch, formats=("tflite",), precisions=("float16",)
    )
    files = [tmp_path / str(large) / "net/net.float16.tflite" for large in (1 << 40, 100)]
    halves, operators, outputs = [], [], []
    for file in files:
        graph = parsed_graph(file, "tflite")
        constants = [t.data for t in graph.tensors.values() if t.data is not None]
        halves.append(sorted(d.tobytes() for d in constants if d.dtype == np.float16))
        operators.append(Counter(op.kind for op in graph.ops))
        interpreter = Interpreter(str(file))
        interpreter.allocate_tensors()
        (entry,) = interpreter.get_input_details()
        x = np.random.default_rng(0).uniform(0, 9, entry["shape"]).astype(entry["dtype"])
        interpreter.set_tensor(entry["index"], x)
        interpreter.invoke()
        (entry,) = interpreter.get_output_details()
        outputs.append(interpreter.get_tensor(entry["index"]))
    assert halves[0] == halves[1]
    assert operators[0] == operators[1]
    np.testing.assert_array_equal(*outputs)
    sizes = [file.stat().st_size for file in files]
    assert abs(sizes[1] - sizes[0]) < 0.1 * sizes[0]


def test_large_weights_are_not_in_the_graph(model, monkeypatch):
    monkeypatch.setattr(stand_ins, "LARGE", 100)
    folded = fold(model).model
    graph = freeze(folded, signature_of(model))
    sizes = [len(node.attr["value"].tensor.tensor_content) for node in graph.graph_def.node]
    assert max(sizes) < 100
    kernels = {folded.get_layer(name).kernel.shape for name in ("conv2d", "head")}
    assert {value.shape for value in graph.weights.values()} == kernels
    whole = graph.with_weights().graph_def
    sizes = sorted(len(node.attr["value"].tensor.tensor_content) for node in whole.node)
    assert sizes[-2:] == sorted(4 * int(np.prod(shape)) for shape in kernels)


def test_a_changed_stand_in_is_noticed(monkeypatch, tmp_path):
    """If the converter computes something from a weight, it gets the weight."""
    monkeypatch.setattr(stand_ins, "LARGE", 100)
    found = []

    def put(*args):
        found.append(stand_ins.put_weights(*args))
        return found[-1]

    monkeypatch.setattr(tflite_format, "put_weights", put)
    manifest = export_model(scaled(), tmp_path / "net", formats=("tflite",))
    assert found == [False]  # the second conversion has no stand-ins
    assert "MUL" not in manifest.artifacts[0].ops


@pytest.mark.parametrize("number", [0, 1, 127, 128, 300, 2**31, 2**40 + 5])
def test_a_model_is_written_as_protobuf_writes_it(number, tmp_path):
    values = np.arange(300, dtype=np.float32).reshape(20, 15)
    held = onnx_external.Held()
    model = onnx.ModelProto(ir_version=8, producer_name="n" * (number % 1000))
    model.opset_import.add(version=17)
    model.graph.name = "main"
    model.graph.node.add(op_type="MatMul", input=["x", "w"], output=["y"])
    model.graph.value_info.add(name="z")
    whole = onnx.ModelProto()
    whole.CopyFrom(model)
    for proto, tensor in ((whole, onnx.numpy_helper.from_array), (model, held.tensor)):
        proto.graph.initializer.append(onnx.numpy_helper.from_array(np.array(number), "n"))
        proto.graph.initializer.append(tensor(values.T, "w"))
        proto.metadata_props.add(key="k", value="v")
    onnx_external.write_model(model, tmp_path / "m.onnx", held)
    assert (tmp_path / "m.onnx").read_bytes() == whole.SerializeToString(deterministic=True)


def test_nothing_of_an_export_is_left(model, tmp_path):
    """An export of a large model in a service must not keep its networks and graphs."""
    kinds = (Variants, RecipeNetworks, FrozenGraph)
    x = np.random.default_rng(0).random((20, 6, 6, 3), np.float32)
    export_model(model, tmp_path / "net", precisions=("float32", "int8", "auto"), calibration=x)
    gc.collect()
    assert [type(found).__name__ for found in gc.get_objects() if isinstance(found, kinds)] == []


def test_a_model_is_read_without_its_large_weights(tmp_path):
    """The rest is equal to what protobuf reads, whichever fields and sizes it has."""
    model = onnx.ModelProto(ir_version=8, producer_name="n" * 300, model_version=2**40 + 5)
    model.opset_import.add(version=17)
    model.graph.name = "main"
    node = model.graph.node.add(op_type="MatMul", input=["x", "w"], output=["y"])
    node.attribute.append(onnx.helper.make_attribute("f", 1.5))
    big = np.arange(300, dtype=np.float32)
    for name, value in (("a", big[:3]), ("w", big), ("empty", big[:0]), ("v", big[:250])):
        model.graph.initializer.append(onnx.numpy_helper.from_array(value, name))
    model.graph.initializer.append(onnx.TensorProto(name="f", data_type=1, dims=[2]))
    model.graph.initializer[-1].float_data.extend([1.0, -2.0])
    model.graph.initializer[-1].double_data.extend([0.5])
    model.metadata_props.add(key="k", value="v" * 2000)
    path = tmp_path / "m.onnx"
    path.write_bytes(model.SerializeToString())
    assert onnx_external.read_light(path, 1 << 20) == model
    light = onnx_external.read_light(path, 1000)
    assert len(light.SerializeToString()) < len(path.read_bytes()) - 2200 + 20
    for tensor in model.graph.initializer:
        if tensor.name in "wv":
            tensor.ClearField("raw_data")
    assert light == model


def test_float64_layers_of_keras_are_not_drawn_at_random(model, monkeypatch):
    """Random numbers for weights that are copied anyway take several times their memory."""
    drawn = []

    def draw(self, shape, *_, **__):
        drawn.append(shape)
        return np.zeros(shape)

    graph = read_graph(model)
    monkeypatch.setattr(keras.initializers.GlorotUniform, "__call__", draw)
    for call, layer in build.build_layers(graph):
        if call.name == "head":
            np.testing.assert_array_equal(layer.kernel, model.get_layer("head").kernel)
    assert drawn == []
