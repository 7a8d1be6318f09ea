"""Products with zero, as in residual networks before training: nothing depends on their inputs."""

from __future__ import annotations

from dataclasses import replace

import keras
import numpy as np
import pytest
import renormlite as rl
from keras import layers, ops
from renormlite.artifacts.network import Network, Node
from renormlite.reference.constant_values import constant_nodes, needless_nodes


def residual() -> keras.Model:
    """A block whose last norm has the scale 0 and a shift: its branch is constant."""
    image = keras.Input((8, 8, 3), name="image")
    x = layers.Conv2D(8, 3, padding="same", activation="relu", name="stem")(image)
    y = layers.Conv2D(8, 3, padding="same")(x)
    y = layers.ReLU()(rl.BatchRenormalization()(y))
    y = layers.Conv2D(8, 3, padding="same")(y)
    y = rl.BatchRenormalization(gamma_initializer="zeros", name="zero")(y)
    x = layers.GlobalAveragePooling2D()(layers.Add()([x, y]))
    model = keras.Model(image, layers.Dense(4, name="scores")(x))
    model.get_layer("zero").beta.assign(np.random.default_rng(0).normal(0, 0.1, 8))
    return model


def constant_output() -> keras.Model:
    image = keras.Input((6, 5, 2), name="image")
    x = layers.UpSampling2D(2)(image)
    x = layers.GlobalAveragePooling2D()(layers.Dense(4, activation="hard_sigmoid")(x))
    x = layers.BatchNormalization(gamma_initializer="zeros", name="zero")(x)
    model = keras.Model(image, layers.GroupNormalization(2)(x))
    model.get_layer("zero").beta.assign([0.1, 0.7, -0.4, 0.2])
    return model


@pytest.mark.parametrize("build", [residual, constant_output])
def test_files_of_networks_with_zero_scales_pass(build, tmp_path):
    keras.utils.set_random_seed(0)
    precisions = ("float32", "dynamic", "int8")
    rl.export_model(build(), tmp_path / "net", precisions=precisions, calibration="random")
    targets = ("litert", "litert+reference", "onnxruntime", "onnxruntime+disabled")
    for result in rl.check_parity(tmp_path / "net", targets, per_op=True).results:
        assert result.passed, (result.artifact, result.target, result.reason)


def test_what_depends_on_the_inputs():
    def node(name, op, *inputs, **weights):
        return Node(name, op, name, inputs, (None, 2), {}, weights, {}, {})

    ones, zeros = np.ones(2, np.float32), np.zeros(2, np.float32)
    network = Network(
        {"x": (None, 2)},
        {"y": "sum"},
        (
            node("scaled", "affine", "x", scale=ones, shift=zeros),
            node("shifted", "affine", "scaled", scale=zeros, shift=ones),
            node("dense", "dense", "shifted", kernel=np.eye(2, dtype=np.float32)),
            node("product", "multiply", "x", constant=zeros),
            node("ones", "constant", "x", constant=ones),
            node("sum", "add", "scaled", "dense"),
        ),
    )
    assert constant_nodes(network) == {"shifted", "dense", "product", "ones"}
    assert needless_nodes(network) == {"shifted", "dense", "product", "ones"}
    ends = replace(network, outputs={"y": "dense"})
    assert needless_nodes(ends) == {"shifted", "dense", "product", "ones"}
    alone = replace(ends, nodes=ends.nodes[:3])
    assert needless_nodes(alone) == {"scaled", "shifted", "dense"}


def test_the_first_step_of_a_recurrent_layer_is_not_clipped(tmp_path):
    """The file has the forget gate of the later steps alone, whose range is another one."""
    keras.utils.set_random_seed(0)
    x = keras.Input((2, 4, 4, 3), name="x")
    y = layers.ConvLSTM2D(3, 2, padding="same", name="recurrent")(
        ops.concatenate([x[:, :1], 0.01 * x[:, 1:]], 1)
    )
    rl.export_model(
        keras.Model(x, y),
        tmp_path / "n",
        formats=("tflite",),
        precisions=("int8",),
        calibration="random",
    )
    (result,) = rl.check_parity(tmp_path / "n", ("litert",)).results
    (clipped,) = [f for f in result.findings if f.check == "clipped"]
    assert clipped.passed, clipped.message
