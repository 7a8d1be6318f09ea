"""Protects the readers of files: equal to the schema's own reader, and no file fills the memory."""

from __future__ import annotations

import itertools
import warnings

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from renormlite import UserError
from renormlite.artifacts.flatbuffer import operator_name, pack, parse
from renormlite.artifacts.graphs import TooLargeError, read_graph
from renormlite.artifacts.graphs.tflite_graph import _DTYPES, _unpacked


@pytest.fixture(scope="module", params=["float32", "int8", "float16"])
def file(request, tmp_path_factory):
    """A file with strides, padding, activations and, for integers, quantization."""
    import tensorflow as tf

    weights = np.random.default_rng(0).normal(size=(3, 3, 2, 4)).astype(np.float32)

    @tf.function(input_signature=[tf.TensorSpec((1, 8, 8, 2), tf.float32)])
    def network(x):
        return tf.nn.softmax(tf.nn.relu(tf.nn.conv2d(x, weights, 2, "SAME")))

    converter = tf.lite.TFLiteConverter.from_concrete_functions([network.get_concrete_function()])
    if request.param != "float32":
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
    if request.param == "float16":
        converter.target_spec.supported_types = [tf.float16]
    if request.param == "int8":
        converter.representative_dataset = lambda: [[np.ones((1, 8, 8, 2), np.float32)]]
    path = tmp_path_factory.mktemp("files") / f"{request.param}.tflite"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # warnings of the converter
        path.write_bytes(converter.convert())
    return path


def test_graphs_equal_those_of_the_schema(file):
    graph, model = read_graph(file, "tflite"), parse(file.read_bytes())
    main = model.subgraphs[0]
    assert graph.inputs == tuple(str(i) for i in main.inputs)
    assert graph.outputs == tuple(str(i) for i in main.outputs)
    assert len(graph.tensors) == len(main.tensors)
    for tensor, expected in zip(graph.tensors.values(), main.tensors, strict=True):
        assert tensor.name == expected.name.decode()
        assert tensor.shape == tuple(expected.shape)
        assert tensor.dtype == np.dtype(_DTYPES[expected.type])
        data = model.buffers[expected.buffer].data
        assert (tensor.data is None) == (data is None)
        if data is not None:
            assert tensor.data.tobytes() == bytes(bytearray(data))
        scales = expected.quantization.scale if expected.quantization else None
        assert (tensor.quantization is None) == (scales is None)
        if scales is not None:
            np.testing.assert_array_equal(tensor.quantization.scales, scales)
            np.testing.assert_array_equal(
                tensor.quantization.zero_points, expected.quantization.zeroPoint
            )
    for op, expected in zip(graph.ops, main.operators, strict=True):
        assert op.kind == operator_name(model.operatorCodes[expected.opcodeIndex])
        assert op.inputs == tuple(str(i) if i >= 0 else "" for i in expected.inputs)
        assert op.outputs == tuple(str(i) for i in expected.outputs)
        options = vars(expected.builtinOptions) if expected.builtinOptions else {}
        assert op.attributes == {
            k: v for k, v in options.items() if isinstance(v, (int, float, bool, str))
        }


def test_constants_are_views_of_the_file(file):
    assert all(not constant.data.flags.owndata for constant in read_graph(file, "tflite").constants)


@pytest.mark.parametrize("size", [0, 3, 40, 500])
def test_damage_is_reported_in_one_sentence(file, size, tmp_path):
    path = tmp_path / "cut.tflite"
    path.write_bytes(file.read_bytes()[:size])
    with pytest.raises(UserError, match="cannot be read as a TFLite file"):
        read_graph(path, "tflite").ops  # noqa: B018 (ops are read when asked for)


def test_sparse_weights_are_read_with_their_zeros():
    """The rows are dense, the columns compressed."""
    from ai_edge_litert import schema_py_generated as schema
    from renormlite.artifacts.flatbuffer import pack

    expected = np.array([[0, 1.5, 0, 2], [0, 0, 0, 0], [3, 0, 0, -4]], "f4")
    dense, compressed = schema.DimensionMetadataT(), schema.DimensionMetadataT()
    dense.format, dense.denseSize = 0, 3
    compressed.format = 1
    compressed.arraySegmentsType = compressed.arrayIndicesType = 3  # Uint8Vector
    compressed.arraySegments, compressed.arrayIndices = (schema.Uint8VectorT() for _ in range(2))
    compressed.arraySegments.values, compressed.arrayIndices.values = [0, 2, 2, 4], [1, 3, 0, 3]
    tensor, buffer, main, model = (
        getattr(schema, name)() for name in ("TensorT", "BufferT", "SubGraphT", "ModelT")
    )
    tensor.shape, tensor.name, tensor.buffer = [3, 4], b"kernel", 1
    tensor.sparsity = schema.SparsityParametersT()
    tensor.sparsity.traversalOrder, tensor.sparsity.dimMetadata = [0, 1], [dense, compressed]
    buffer.data = expected[expected != 0].view("u1")
    main.tensors, main.inputs, main.outputs, main.operators = [tensor], [], [], []
    model.version, model.subgraphs, model.operatorCodes = 3, [main], []
    model.buffers = [schema.BufferT(), buffer]
    graph = read_graph(None, "tflite", pack(model))
    np.testing.assert_array_equal(graph.tensors["0"].data, expected)


def test_numbers_of_two_and_four_bits_are_unpacked():
    raw = np.array([0b11_10_01_00, 0b1111_0111], np.uint8)
    assert _unpacked(raw, (7,), 2).tolist() == [0, 1, -2, -1, -1, 1, -1]
    assert _unpacked(raw, (4,), 4).tolist() == [4, -2, 7, -1]


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("net.onnx", b"\x1c\0\0\0TFL3" + bytes(40), "a TFLite file. Rename it to net.tflite"),
        ("net.tflite", b"\x08\x08\x12\x07tf2onnx", "an ONNX file. Rename it to net.onnx"),
        ("net.onnx", b"PK\x03\x04", "a ZIP archive, such as a .keras"),
        ("net.tflite", b"version https://git-lfs.github.com/spec/v1", "git lfs pull"),
        ("net.tflite", b"<!DOCTYPE html>", "a web page"),
        ("net.onnx", b"", "it is empty"),
    ],
)
def test_a_file_of_another_kind_is_named(tmp_path, name, content, says):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match="cannot be read as") as error:
        read_graph(tmp_path / name, name.rpartition(".")[2])
    assert says in str(error.value)


def onnx_file(path, *nodes, sizes=(2,)):
    """Write nodes that may read the input x and the constant c of two numbers."""
    value = onnx.helper.make_tensor_value_info
    constant = onnx.TensorProto(name="c", data_type=1, dims=sizes, raw_data=bytes(8))
    graph = onnx.helper.make_graph(
        nodes, "g", [value("x", 1, [2])], [value("y", 1, [2])], [constant]
    )
    path.write_bytes(onnx.helper.make_model(graph).SerializeToString())
    return path


ADD = onnx.helper.make_node("Add", ["x", "c"], ["y"])


def test_a_cycle_is_damage_and_an_odd_order_is_not(tmp_path):
    late = onnx.helper.make_node("Add", ["c", "z"], ["y"])
    early = onnx.helper.make_node("Add", ["x", "c"], ["z"])
    graph = read_graph(onnx_file(tmp_path / "late.onnx", late, early), "onnx")
    assert [op.outputs for op in graph.ops] == [("y",), ("z",)]
    early.input[1] = "y"
    with pytest.raises(UserError, match=r"op 0 \(Add\) reads what is computed from it"):
        _ = read_graph(onnx_file(tmp_path / "cycle.onnx", late, early), "onnx").ops


def test_a_negative_size_of_a_constant_is_damage(tmp_path):
    assert read_graph(onnx_file(tmp_path / "a.onnx", ADD), "onnx").tensors["c"].shape == (2,)
    with pytest.raises(UserError, match=r"'c' has the shape \(-2,\)"):
        read_graph(onnx_file(tmp_path / "b.onnx", ADD, sizes=[-2]), "onnx")


def test_bytes_behind_a_constant_are_not_read(file, tmp_path):
    """TensorFlow's quantizer leaves some behind a single number; runtimes ignore them."""
    model = parse(file.read_bytes())
    main = model.subgraphs[0]
    place = next(i for i, t in enumerate(main.tensors) if model.buffers[t.buffer].data is not None)
    buffer = model.buffers[main.tensors[place].buffer]
    before = read_graph(file, "tflite").tensors[str(place)].data
    buffer.data = np.concatenate([np.asarray(buffer.data, np.uint8), np.ones(16, np.uint8)])
    (tmp_path / "longer.tflite").write_bytes(pack(model))
    after = read_graph(tmp_path / "longer.tflite", "tflite").tensors[str(place)].data
    np.testing.assert_array_equal(after, before)


N = 2 * 10**9
ONE, SIZE = np.ones(1, np.float32), np.array([N])
FILLED = helper.make_node(
    "ConstantOfShape", ["s"], ["b"], value=numpy_helper.from_array(np.ones(1, np.float32))
)


def chain(kind, length, **attributes):
    """Return ops, each of which reads what the one before computes."""
    names = ["c", *(f"c{k}" for k in range(1, length)), "b"]
    second = ["s"] if kind == "Tile" else []
    return [
        helper.make_node(kind, [a, *(second or [a])], [b], **attributes)
        for a, b in itertools.pairwise(names)
    ]


BOMBS = {
    "a filled shape": ([FILLED], {"s": SIZE}),
    "expansion": ([helper.make_node("Expand", ["c", "s"], ["b"])], {"c": ONE, "s": SIZE}),
    "expansion of the input": (
        [helper.make_node("Expand", ["x", "s"], ["b"])],
        {"s": np.array([N // 4, 4])},
    ),
    "tiles of tiles": (chain("Tile", 3), {"c": ONE, "s": np.array([1300])}),
    "padding": ([helper.make_node("Pad", ["c", "s"], ["b"])], {"c": ONE, "s": np.array([0, N])}),
    "range": (
        [helper.make_node("Range", ["c", "s", "d"], ["b"])],
        {"c": np.array(0), "s": np.array(N), "d": np.array(1)},
    ),
    "resizing": (
        [helper.make_node("Resize", ["c", "", "s"], ["b"], mode="nearest")],
        {"c": ONE.reshape(1, 1, 1, 1), "s": np.array([1, 1, 40000, 40000], np.float32)},
    ),
    "outer product": (
        [helper.make_node("MatMul", ["c", "d"], ["b"])],
        {"c": np.ones((45000, 1), np.float32), "d": np.ones((1, 45000), np.float32)},
    ),
    "doubling": (chain("Concat", 34, axis=0), {"c": np.array([1])}),
}


def written(path, ops, constants):
    """Write a file that adds the greatest number of the tensor `b` to its input."""
    end = [
        helper.make_node("Cast", ["b"], ["f"], to=onnx.TensorProto.FLOAT),
        helper.make_node("ReduceMax", ["f"], ["m"], keepdims=0),
        helper.make_node("Add", ["x", "m"], ["y"]),
    ]
    x, y = (helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, [1, 4]) for n in "xy")
    weights = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    graph = helper.make_graph([*ops, *end], "main", [x], [y], weights)
    opset = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=8), path)
    return path


@pytest.mark.parametrize("name", BOMBS)
def test_a_file_that_computes_gigabytes_from_little_is_not_read(name, tmp_path):
    path = written(tmp_path / "m.onnx", *BOMBS[name])
    with pytest.raises(TooLargeError, match=r"m\.onnx computes .* GB from \d+ bytes"):
        read_graph(path, "onnx")


def test_many_tensors_may_not_be_gigabytes_together(tmp_path):
    parts = [f"b{k}" for k in range(20)]
    ops = [helper.make_node("Expand", ["x", "s"], [part]) for part in parts]
    ops.append(helper.make_node("Sum", parts, ["b"]))
    path = written(tmp_path / "m.onnx", ops, {"s": np.array([10**7, 4])})
    with pytest.raises(TooLargeError):
        read_graph(path, "onnx")


def test_large_tensors_are_read_if_the_weights_are_large_too(tmp_path):
    """A thousand times the bytes of the weights, such as the features of many positions."""
    rows, columns = np.ones((10**6, 1), np.float32), np.ones((1, 500), np.float32)
    ops = [helper.make_node("MatMul", ["c", "d"], ["b"])]
    graph = read_graph(written(tmp_path / "m.onnx", ops, {"c": rows, "d": columns}), "onnx")
    np.testing.assert_array_equal(graph.tensors["c"].data, rows)


def test_a_tflite_file_may_not_compute_gigabytes_from_little_either(file, tmp_path):
    model = parse(file.read_bytes())
    graph = model.subgraphs[0]
    graph.tensors[graph.outputs[0]].shape = np.array([1, N], np.int32)
    path = tmp_path / "m.tflite"
    path.write_bytes(pack(model))
    with pytest.raises(TooLargeError):
        read_graph(path, "tflite")
