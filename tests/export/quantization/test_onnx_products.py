"""Protects 16-bit activations in ONNX files: no optimizer quantizes them to 8 bits again."""

from __future__ import annotations

import keras
import numpy as np
import onnx
import onnxruntime
import pytest
import renormlite as rl
from keras import layers
from renormlite.export.quantization.onnx_products import keep_activations


@pytest.fixture(scope="module")
def wide_file(tmp_path_factory):
    """A file whose layers all have 16-bit activations: attention, and dense layers of two ranks."""
    keras.utils.set_random_seed(0)
    x = keras.Input((4, 8), name="tokens")
    y = layers.Add()([x, layers.MultiHeadAttention(2, 4)(x, x)])
    y = layers.Flatten()(layers.Dense(8, activation="relu")(y))
    model = keras.Model(x, layers.Dense(3, name="scores")(y))
    data = np.cumsum(np.random.default_rng(0).normal(size=(32, 4, 8)), axis=1).astype("f4")
    folder = tmp_path_factory.mktemp("wide") / "net"
    rl.export_model(
        model,
        folder,
        formats=("onnx",),
        precisions=("int8",),
        calibration=data,
        keep_int16=("*",),
        opset=21,
    )
    return folder / "net.int8.onnx", data


def _run(path, data, tmp_path, level):
    """Return the outputs and the kinds of the ops that ran."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = level
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(path, options)
    outputs = np.concatenate([session.run(None, {"tokens": x[None]})[0] for x in data])
    ran = onnx.load(tmp_path / "optimized.onnx").graph.node
    return outputs, {node.op_type for node in ran}


def test_what_runs_is_what_the_file_says(wide_file, tmp_path):
    levels = onnxruntime.GraphOptimizationLevel
    path, data = wide_file
    plain, _ = _run(path, data, tmp_path, levels.ORT_DISABLE_ALL)
    optimized, kinds = _run(path, data, tmp_path, levels.ORT_ENABLE_ALL)
    assert "MatMulNBits" not in kinds
    assert {"Gemm", "MatMul"} <= kinds
    # Sums of floats in another order: at most a step of 16 bits each, a few steps in a row.
    assert np.abs(plain - optimized).max() < 1e-3 * np.abs(plain).max()


def test_the_optimizer_is_still_prevented_for_a_reason(wide_file, tmp_path):
    """Without the Max, the same file gets MatMulNBits."""
    model = onnx.load(wide_file[0])
    for node in [node for node in model.graph.node if node.op_type == "Max"]:
        for other in model.graph.node:
            for place, name in enumerate(other.input):
                if name == node.output[0]:
                    other.input[place] = node.input[0]
        model.graph.node.remove(node)
    onnx.save(model, tmp_path / "bare.onnx")
    level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    _, kinds = _run(tmp_path / "bare.onnx", wide_file[1], tmp_path, level)
    assert "MatMulNBits" in kinds
    keep_activations(model)
    assert sum(node.op_type == "Max" for node in model.graph.node) > 2


def test_all_layers_means_the_nodes_without_a_layers_name_too(wide_file):
    graph = onnx.load(wide_file[0]).graph
    types = {tensor.name: tensor.data_type for tensor in graph.initializer}
    written = {types[node.input[2]] for node in graph.node if node.op_type == "QuantizeLinear"}
    assert written == {onnx.TensorProto.UINT16}
