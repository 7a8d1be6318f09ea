"""Protects that LiteRT overwrites no tensor of an exported file that is still read."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import renormlite as rl
from keras import layers
from renormlite.artifacts.graphs import read_graph

TARGETS = ("litert+builtin", "litert+reference", "litert")


def _model(writer: str, shape: tuple[int, ...]) -> keras.Model:
    """Return sums that are reshaped, changed by `writer`, and read once more behind it."""
    x, factor, term = (keras.Input((12,), name=name) for name in ("x", "factor", "term"))
    sums = layers.Add()([layers.Multiply()([layers.Dense(12, "tanh")(x), factor]), term])
    parts = layers.Reshape(shape)(sums)
    if writer == "softmax":
        changed = layers.Softmax()(parts)
    else:
        other = layers.Reshape((1, shape[-1]))(layers.Dense(shape[-1])(factor))
        merge = {"add": layers.Add, "subtract": layers.Subtract, "multiply": layers.Multiply}
        changed = merge[writer]()([parts, other])
    product = layers.Dot(axes=1)([layers.Flatten()(changed), sums])
    return keras.Model([x, factor, term], product)


@pytest.mark.parametrize("writer", ["softmax", "add", "subtract", "multiply"])
@pytest.mark.parametrize("precision", ["float32", "int8", "int16x8"])
def test_a_tensor_that_is_read_later_keeps_its_numbers(writer, precision, tmp_path):
    keras.utils.set_random_seed(0)
    _check(_model(writer, (3, 4)), tmp_path, precision)


@pytest.mark.parametrize("shape", [(3, 1, 2, 2), (3, 1, 2, 1, 2), (3, 1, 2, 1, 1, 2)])
def test_reshapes_to_many_axes(shape, tmp_path):
    keras.utils.set_random_seed(0)
    _check(_model("add", shape), tmp_path, "float32")


def test_files_for_any_batch_size(tmp_path):
    keras.utils.set_random_seed(0)
    _check(_model("add", (3, 4)), tmp_path, "float32", batch_size=None)


def _check(model: keras.Model, folder, precision: str, **options) -> None:
    rng = np.random.default_rng(0)
    samples = {x.name: rng.normal(size=(64, 12)).astype(np.float32) for x in model.inputs}
    rl.export_model(
        model, folder, formats=("tflite",), precisions=(precision,), inputs=samples, **options
    )
    report = rl.check_parity(folder, targets=TARGETS)
    failed = [f.message for r in report.results for f in r.findings if not f.passed]
    assert not failed
    assert report.passed


def test_nothing_is_copied_where_nothing_is_overwritten(tmp_path):
    x = keras.Input((12,), name="x")
    sums = layers.Add()([layers.Dense(12, "tanh")(x), layers.Dense(12)(x)])
    y = layers.Softmax()(layers.Reshape((3, 4))(sums))
    rl.export_model(keras.Model(x, [y, layers.Flatten()(y)]), tmp_path, formats=("tflite",))
    (path,) = tmp_path.glob("*.tflite")
    kinds = [op.kind for op in read_graph(path, "tflite", path.read_bytes()).ops]
    assert "SLICE" not in kinds
