"""Protects the fold of a norm into the linear layer before it, for every type of linear layer."""

import keras
import pytest
from keras import layers as kl
from renormlite import BatchRenormalization, fold

NORMS = [kl.BatchNormalization, BatchRenormalization]

BEFORE = {
    "conv1d": ((9, 4), lambda **k: kl.Conv1D(6, 3, **k)),
    "conv1d causal dilated": (
        (9, 4),
        lambda **k: kl.Conv1D(6, 3, padding="causal", dilation_rate=2, **k),
    ),
    "conv2d same strided": ((9, 8, 4), lambda **k: kl.Conv2D(6, 3, strides=2, padding="same", **k)),
    "conv2d grouped": ((9, 8, 4), lambda **k: kl.Conv2D(6, 3, groups=2, **k)),
    "conv2d dilated": ((9, 8, 4), lambda **k: kl.Conv2D(6, 3, dilation_rate=2, **k)),
    "conv3d": ((5, 6, 5, 2), lambda **k: kl.Conv3D(3, 3, padding="same", **k)),
    "depthwise1d": ((9, 4), lambda **k: kl.DepthwiseConv1D(3, depth_multiplier=2, **k)),
    "depthwise2d": ((9, 8, 4), lambda **k: kl.DepthwiseConv2D(3, depth_multiplier=3, **k)),
    "separable1d": ((9, 4), lambda **k: kl.SeparableConv1D(6, 3, padding="same", **k)),
    "separable2d": ((9, 8, 4), lambda **k: kl.SeparableConv2D(6, 3, depth_multiplier=2, **k)),
    "transposed1d": ((9, 4), lambda **k: kl.Conv1DTranspose(6, 3, strides=2, **k)),
    "transposed2d": ((5, 6, 4), lambda **k: kl.Conv2DTranspose(6, 3, padding="same", **k)),
    "transposed3d": ((3, 4, 3, 2), lambda **k: kl.Conv3DTranspose(3, 2, strides=2, **k)),
    "dense": ((7,), lambda **k: kl.Dense(5, **k)),
    "dense on rank 4": ((3, 4, 7), lambda **k: kl.Dense(5, **k)),
    "einsum": (
        (6, 7),
        lambda use_bias: kl.EinsumDense(
            "abc,cde->abde", (6, 2, 5), bias_axes="de" if use_bias else None
        ),
    ),
    "einsum with a partial bias": (
        (6, 7),
        lambda use_bias: kl.EinsumDense(
            "abc,cde->abde", (6, 2, 5), bias_axes="d" if use_bias else None
        ),
    ),
    "einsum with an ellipsis": (
        (3, 6, 7),
        lambda use_bias: kl.EinsumDense("...c,cd->...d", 4, bias_axes="d" if use_bias else None),
    ),
    "time distributed dense": ((6, 7), lambda **k: kl.TimeDistributed(kl.Dense(5, **k))),
    "time distributed conv": (
        (3, 6, 5, 2),
        lambda **k: kl.TimeDistributed(kl.Conv2D(5, 3, padding="same", **k)),
    ),
}


@pytest.mark.parametrize("use_bias", [True, False])
@pytest.mark.parametrize("case", BEFORE)
def test_norm_folds_into_the_layer_before(case, use_bias, folded):
    shape, make = BEFORE[case]
    model = keras.Sequential([kl.Input(shape), make(use_bias=use_bias), kl.BatchNormalization()])
    result = folded(model)
    (record,) = result.report.records
    assert record.outcome == "folded"
    assert record.into == (model.layers[0].name,)
    assert not record.remaining_ops
    assert [type(x) for x in result.model.layers[1:2]] == [type(model.layers[0])]


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("options", [{}, {"center": False}, {"scale": False}])
def test_every_form_of_norm(norm, options, folded):
    layers = [kl.Input((9, 8, 4)), kl.Conv2D(6, 3), norm(**options), kl.ReLU()]
    result = folded(keras.Sequential(layers))
    assert [record.outcome for record in result.report.records] == ["folded"]


def test_channels_first(folded):
    layers = [
        kl.Input((3, 8, 9)),
        kl.Permute((2, 3, 1)),
        kl.Conv2D(4, 3),
        kl.Permute((3, 1, 2)),
        kl.BatchNormalization(axis=1),
    ]
    assert folded(keras.Sequential(layers)).report.folded == 1


def test_norm_on_another_axis_than_the_layers_is_refused(folded):
    model = keras.Sequential([kl.Input((6, 5)), kl.Dense(5), kl.BatchNormalization(axis=1)])
    (record,) = folded(model).report.records
    assert record.outcome == "kept"
    assert "on axis 1" in record.reason
    assert record.remaining_ops == ("MUL", "ADD")


def test_names_of_layers_inputs_and_outputs_are_kept(folded):
    x = keras.Input((8, 8, 3), name="photo")
    y = kl.Conv2D(4, 3, activation="relu", name="stem")(x)
    y = kl.Conv2D(4, 3, name="body")(y)
    y = kl.BatchNormalization(name="features")(y)
    z = kl.Dense(3, name="logits")(kl.GlobalAveragePooling2D(name="pool")(y))
    model = keras.Model({"photo": x}, {"features": y, "scores": z})
    result = folded(model)
    assert result.model.get_layer("stem").activation is keras.activations.relu
    assert set(result.model.output) == {"features", "scores"}
    assert result.model.output_names == model.output_names
    assert {x.name for x in result.model.layers} == {x.name for x in model.layers}


def test_mixed_precision_is_folded_to_float32():
    policy = "mixed_float16"
    layers = [
        kl.Input((8, 8, 3)),
        kl.Conv2D(4, 3, dtype=policy),
        kl.BatchNormalization(dtype=policy),
        kl.ReLU(dtype=policy),
        kl.TimeDistributed(kl.Dense(4, dtype=policy), dtype=policy),
    ]
    result = fold(keras.Sequential(layers))
    assert result.proof.passed
    assert {x.compute_dtype for x in result.model.layers} == {"float32"}
