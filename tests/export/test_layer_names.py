"""Protects what Netron and Model Explorer show: operators carry the names of their Keras layers."""

import keras
import numpy as np
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


class Net(keras.Model):
    """Two dense layers that read one input, or two."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = keras.layers.Dense(2), keras.layers.Dense(2)

    def call(self, signal):
        pair = signal if isinstance(signal, list) else [signal, signal]
        return self.first(pair[0]) + self.second(pair[1])


def test_inputs_without_a_name_have_that_of_their_layer(tmp_path):
    """So a model exports under the same names before and after it was saved."""
    x, called = keras.Input((3,)), keras.Sequential([keras.layers.Dense(2)])
    called(np.zeros((1, 3)))
    models = [
        keras.Model(x, keras.layers.Dense(2)(x)),
        keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)]),
        called,
    ]
    for number, model in enumerate(models):
        model.save(tmp_path / "net.keras")
        for place, each in enumerate((model, rl.load_model(tmp_path / "net.keras"))):
            exported = rl.export_model(each, tmp_path / f"{number}{place}", formats=("onnx",))
            (spec,) = exported.inputs
            assert spec.keras_name == spec.name == model.inputs[0]._keras_history.operation.name


@pytest.mark.parametrize("several", [False, True])
def test_inputs_of_a_subclassed_model_have_the_name_of_the_parameter(several, tmp_path):
    model, x = Net(), np.zeros((1, 3), np.float32)
    model([x, x] if several else x)
    exported = rl.export_model(model, tmp_path / "net", formats=("onnx",))
    names = ["signal_0", "signal_1"] if several else ["signal"]
    assert [spec.keras_name for spec in exported.inputs] == names
