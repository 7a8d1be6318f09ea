"""Protects what Netron and Model Explorer show: operators carry the names of their Keras layers."""

import pytest
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
