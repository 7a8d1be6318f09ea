"""Protects that norms of samples in float16 files of ONNX are computed in float32."""

from __future__ import annotations

import keras
import numpy as np
import onnxruntime
import pytest
import renormlite as rl
from ai_edge_litert.interpreter import Interpreter
from keras import layers as kl
from onnx.reference import ReferenceEvaluator
from renormlite.artifacts.flatbuffer import parse
from renormlite.artifacts.graphs import read_graph
from renormlite.artifacts.graphs.base import GraphOp
from renormlite.artifacts.graphs.norms import norms_of

NORMS = {
    "unit": lambda: kl.UnitNormalization(),
    "layer": lambda: kl.LayerNormalization(epsilon=1e-12),
    "group": lambda: kl.GroupNormalization(2),
    "rms": lambda: kl.RMSNormalization(),
}


@pytest.fixture(scope="module", params=NORMS)
def exported(request, tmp_path_factory):
    """A network of one norm, its float16 file, and samples whose squares exceed half precision."""
    keras.utils.set_random_seed(0)
    x = keras.Input((4, 8), name="x")
    model = keras.Model(x, kl.Dense(3, name="y")(NORMS[request.param]()(x)))
    samples = 600 * np.random.default_rng(0).normal(size=(16, 4, 8)).astype(np.float32)
    folder = tmp_path_factory.mktemp("half") / "net"
    rl.export_model(model, folder, inputs=samples, formats=("onnx",), precisions=("float16",))
    return model, folder, samples


def test_large_and_zero_samples_are_right(exported):
    model, folder, samples = exported
    session = onnxruntime.InferenceSession(folder / "net.float16.onnx")
    for given in (samples[:1], np.zeros_like(samples[:1]), np.full_like(samples[:1], 1e-6)):
        (found,) = session.run(None, {"x": given})
        expected = np.asarray(model(given))
        # Half precision rounds a product of eight numbers of about 1 by less than 2^-8.
        assert np.abs(found - expected).max() < 2.0**-8 * max(1, np.abs(expected).max())


def test_the_check_passes_though_squares_exceed_half_precision(exported):
    _, folder, samples = exported
    assert np.square(samples).max() > 65504
    assert rl.check_parity(folder).passed


def test_zero_samples_are_right_in_half_arithmetic(exported):
    """Of zeros, the reciprocal of a root is up to 1e6; ONNX Runtime hides that half has none."""
    model, folder, samples = exported
    session = ReferenceEvaluator(str(folder / "net.float16.onnx"))
    (found,) = session.run(None, {"x": np.zeros_like(samples[:1])})
    assert np.abs(found - np.asarray(model(np.zeros_like(samples[:1])))).max() < 2.0**-8


def test_logarithms_of_zero_are_bounded_as_in_the_model(tmp_path):
    """1e-10 is zero in half precision, and the spectrum of silence has no logarithm."""
    x = keras.Input((4,), name="x")
    levels = keras.ops.log(keras.ops.maximum(kl.ReLU()(kl.Dense(3, use_bias=False)(x)), 1e-10))
    model = keras.Model(x, kl.Dense(2, use_bias=False)(levels))
    rl.export_model(model, tmp_path / "net", precisions=("float16",))
    zeros = np.zeros((1, 4), np.float32)
    expected = np.full((1, 3), np.log(1e-10)) @ np.asarray(model.layers[-1].kernel)
    session = ReferenceEvaluator(str(tmp_path / "net" / "net.float16.onnx"))
    interpreter = Interpreter(str(tmp_path / "net" / "net.float16.tflite"))
    interpreter.allocate_tensors()
    interpreter.set_tensor(interpreter.get_input_details()[0]["index"], zeros)
    interpreter.invoke()
    lite = interpreter.get_tensor(interpreter.get_output_details()[0]["index"])
    for found in (*session.run(None, {"x": zeros}), lite):
        assert np.abs(found - expected).max() < 2.0**-8 * np.log(1e10)


@pytest.mark.parametrize("small", [False, True])
def test_zeros_of_functions_stay_zeros_in_half_precision(small, tmp_path):
    """A selu compares with 0, which is no number such as 1e-10 that became zero."""
    x = keras.Input((4,), name="x")
    y = kl.Dense(8, activation="selu", name="y")(x)
    outputs = [y, keras.ops.log(keras.ops.maximum(y, 1e-9))] if small else [y]
    model = keras.Model(x, kl.Concatenate(name="all")([*outputs, kl.Dense(8)(y)]))
    rl.export_model(model, tmp_path / "net", precisions=("float16",), formats=("tflite",))
    path = tmp_path / "net" / "net.float16.tflite"
    graph = read_graph(path, "tflite")
    weights = [t for t in graph.tensors.values() if t.data is not None and t.data.size > 8]
    assert {t.data.dtype.name for t in weights} == {"float16"}
    interpreter = Interpreter(str(path))
    interpreter.allocate_tensors()
    samples = np.random.default_rng(0).normal(size=(16, 4)).astype(np.float32)
    for sample in samples:
        interpreter.set_tensor(interpreter.get_input_details()[0]["index"], sample[None])
        interpreter.invoke()
        found = interpreter.get_tensor(interpreter.get_output_details()[0]["index"])
        expected = np.asarray(model(sample[None]))
        assert np.abs(found - expected).max() < 2.0**-8 * max(1, np.abs(expected).max())


def test_a_file_with_a_small_number_holds_weights_once(tmp_path):
    """As halves, and no longer in float32 as well: 2 bytes for each of 4,096 weights."""
    x = keras.Input((64,), name="x")
    levels = keras.ops.log(keras.ops.maximum(kl.Dense(64, activation="sigmoid")(x), 1e-10))
    model = keras.Model(x, levels)
    rl.export_model(model, tmp_path / "net", precisions=("float16",), formats=("tflite",))
    path = tmp_path / "net" / "net.float16.tflite"
    model = parse(path.read_bytes())
    stored = [len(buffer.data) for buffer in model.buffers if buffer.data is not None]
    assert [size for size in stored if size > 2048] == [2 * 64 * 64]
    assert path.stat().st_size < 3 * 64 * 64


def test_squares_to_divisions_are_in_float32(exported):
    _, folder, _ = exported
    ops = read_graph(folder / "net.float16.onnx", "onnx").ops
    makers = {key: op for op in ops for key in op.outputs}
    (norm,) = norms_of(ops)
    assert {op.kind for op in norm.inside} >= {"Mul", "Sqrt"}
    for op in norm.squares:  # the input of the file is float32, everything else is cast to it
        maker = makers.get(op.inputs[0])
        assert maker is None or (maker.kind, maker.attributes["to"]) == ("Cast", 1)


def test_values_outside_norms_still_need_half_precision(tmp_path):
    """The norm itself may, the sum of its inputs may not, exceed half precision."""
    x = keras.Input((4,), name="x")
    wide = kl.Rescaling(1000.0, name="wide")(x)
    model = keras.Model(x, kl.Dense(2, name="y")(kl.UnitNormalization()(wide)))
    samples = 200 * np.random.default_rng(0).normal(size=(8, 4)).astype(np.float32)
    model.get_layer("y").kernel.assign(np.ones((4, 2)))
    activation = keras.Model(x, kl.Activation("relu")(kl.Add()([wide, model.output[:, :1]])))
    rl.export_model(
        activation, tmp_path / "net", inputs=samples, formats=("onnx",), precisions=("float16",)
    )
    report = rl.check_parity(tmp_path / "net")
    failed = [f for result in report.results for f in result.findings if not f.passed]
    assert "headroom" in {finding.check for finding in failed}


def ops(*entries):
    return [GraphOp(i, kind, f"n{i}", ins, (out,)) for i, (kind, ins, out) in enumerate(entries)]


def test_a_root_without_squares_is_no_norm():
    assert not list(norms_of(ops(("Add", ("x", "c"), "a"), ("Sqrt", ("a",), "r"))))


def test_the_parts_of_a_norm():
    graph = ops(
        ("Sub", ("x", "m"), "d"),
        ("Mul", ("d", "d"), "s"),
        ("ReduceMean", ("s",), "v"),
        ("Add", ("v", "e"), "w"),
        ("Sqrt", ("w",), "r"),
        ("Reciprocal", ("r",), "i"),
        ("Mul", ("d", "i"), "y"),
        ("Add", ("y", "b"), "z"),
    )
    (norm,) = norms_of(graph)
    assert sorted(op.index for op in norm.inside) == [1, 2, 3, 4, 5]
    assert [op.index for op in norm.divisions] == [6]
