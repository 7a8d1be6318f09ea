"""Protects that ONNX files of one batch size compute no sizes."""

from __future__ import annotations

from pathlib import Path

import keras
import numpy as np
import onnx
import pytest
import renormlite as rl
from keras import layers as kl
from keras import ops

PLACES = np.arange(14, dtype=np.float32).reshape(7, 2)


def _export(model: keras.Model, folder: Path) -> onnx.ModelProto:
    manifest = rl.export_model(model, folder / "net", formats=("onnx",))
    return onnx.load(folder / "net" / manifest.artifacts[0].file)


@pytest.mark.parametrize(
    "product",
    [
        lambda x, y: ops.einsum("bpk,pc->bkc", x, PLACES),
        lambda x, y: ops.einsum("bpk,bpc->bkc", x, y),
        lambda x, y: ops.einsum("bik,bjk->bij", x, y),
    ],
)
def test_an_einsum_has_constant_sizes(product, tmp_path):
    """Without them, the sizes of an output are unknown and the file is refused."""
    x, y = keras.Input((7, 5), name="x"), keras.Input((7, 5), name="y")
    model = keras.Model([x, y], product(x, y))
    graph = _export(model, tmp_path).graph
    sizes = [size.dim_value for size in graph.output[0].type.tensor_type.shape.dim]
    assert sizes == [1, *model.output.shape[1:]]
    assert not {node.op_type for node in graph.node} & {"Shape", "Gather", "Concat", "Max"}
    assert rl.check_parity(tmp_path / "net", targets=["onnxruntime", "onnx-reference"]).passed


def test_onnx_reference_runs_a_one_hot(tmp_path):
    """It takes the number of classes as a scalar only, not as a vector of one number."""
    x = keras.Input((1,), name="x")
    bins = kl.Discretization(bin_boundaries=[1.0, 2.0, 3.0], output_mode="one_hot")(x)
    graph = _export(keras.Model(x, kl.Dense(2)(bins)), tmp_path).graph
    depths = {node.input[1] for node in graph.node if node.op_type == "OneHot"}
    assert [list(t.dims) for t in graph.initializer if t.name in depths] == [[]]
    assert rl.check_parity(tmp_path / "net", targets=["onnx-reference"]).passed


def test_a_bias_reaches_a_product_that_ignored_one(tmp_path):
    """tf2onnx writes an einsum as a Gemm whose third operand has the factor 0."""
    x = keras.Input((8, 4), name="x")
    model = keras.Model(x, kl.EinsumDense("abc,bz->azc", (5, 4), bias_axes="z")(x))
    model.layers[-1].bias.assign(np.arange(1, 6, dtype=np.float32)[:, None])
    graph = _export(model, tmp_path).graph
    (product,) = (node for node in graph.node if node.op_type == "Gemm")
    (bias,) = (t for t in graph.initializer if t.name == product.input[2])
    np.testing.assert_array_equal(onnx.numpy_helper.to_array(bias), np.arange(1, 6))
    assert "beta" not in {attribute.name for attribute in product.attribute}
    assert rl.check_parity(tmp_path / "net", targets=["onnxruntime"]).passed
