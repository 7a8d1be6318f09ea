"""Protects what Netron and Model Explorer show: operators carry the names of their Keras layers."""

import keras
import pytest
import renormlite as rl
from renormlite.artifacts.graphs import read_graph

LINEAR = {"CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED", "Conv", "Gemm", "MatMul"}
LINEAR |= {"ConvInteger", "MatMulInteger"}


@pytest.mark.parametrize("precision", ["float32", "float16", "dynamic", "int8"])
@pytest.mark.parametrize("suffix", ["tflite", "onnx"])
def test_operators_with_weights_carry_the_name_of_their_layer(
    coarse_export, build_network, precision, suffix
):
    layers = [layer.name for layer in build_network().layers if hasattr(layer, "kernel")]
    graph = read_graph(coarse_export / f"tiny.{precision}.{suffix}", suffix)
    linear = [op for op in graph.ops if op.kind in LINEAR]
    assert len(layers) == len(linear) > 2
    for layer, op in zip(layers, linear, strict=True):
        # TFLite has no names of operators: readers show the name of the output tensor.
        parts = op.name.replace(";", "/").split("/")
        assert layer in parts, (layer, op.name)


def test_a_name_with_control_characters_is_refused_before_any_work(tmp_path):
    inner = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2, name="\x1b[31mred")])
    model = keras.Sequential([keras.Input((3,)), inner])
    with pytest.raises(rl.UserError, match=r"without control characters.*x1b\[31mred"):
        rl.export_model(model, tmp_path / "out")
    assert not list(tmp_path.iterdir())
