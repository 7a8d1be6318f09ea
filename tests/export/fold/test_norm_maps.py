"""Protects the map that is read from each norm: its formula, and what the layer itself returns."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from keras import layers as kl
from renormlite import BatchRenormalization, LearnedRenormalization, UserError, fold
from renormlite.export.fold.norms import _READINGS, is_norm

MEAN, VARIANCE = np.array([1.0, -2.0, 0.5]), np.array([4.0, 0.25, 1.0])
X = np.random.default_rng(0).normal(size=(5, 3)).astype("float32")


def built(layer: keras.Layer, **values) -> keras.Layer:
    if not layer.built:
        layer.build((None, 3))
    layer.moving_mean.assign(MEAN)
    layer.moving_variance.assign(VARIANCE)
    for name, value in values.items():
        getattr(layer, name).assign(value)
    return layer


GAMMA, BETA = np.array([2.0, -1.0, 3.0]), np.array([0.5, 1.0, -4.0])
NORMS = {
    "whole": (lambda t: t(epsilon=0.1), {"gamma": GAMMA, "beta": BETA}, GAMMA, BETA),
    "no scale": (lambda t: t(epsilon=0.1, scale=False), {"beta": BETA}, 1.0, BETA),
    "no center": (lambda t: t(epsilon=0.1, center=False), {"gamma": GAMMA}, GAMMA, 0.0),
}


@pytest.mark.parametrize("kind", [kl.BatchNormalization, BatchRenormalization])
@pytest.mark.parametrize("name", NORMS)
def test_batch_norms(kind, name):
    make, values, gamma, beta = NORMS[name]
    layer = built(make(kind), **values)
    affine = _READINGS[kind](layer)
    expected = gamma * (X - MEAN) / np.sqrt(VARIANCE + layer.epsilon) + beta
    np.testing.assert_allclose(affine.scale * X + affine.shift, expected, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(layer(X, training=False), expected, rtol=1e-5, atol=1e-5)
    # The mean square of a number is its variance and the square of its mean.
    np.testing.assert_allclose(affine.magnitude**2, MEAN**2 + VARIANCE + layer.epsilon)


def test_learned_r_and_d_are_used_within_their_bounds():
    layer = LearnedRenormalization(epsilon=0.1, r_max=2.0, d_max=1.5)
    built(layer, r=np.array([0.5, 9.0, -1.0]), d=np.array([-9.0, 1.0, 9.0]))
    affine = _READINGS[LearnedRenormalization](layer)
    r, d = np.array([0.5, 2.0, 0.0]), np.array([-1.5, 1.0, 1.5])
    expected = r * (X - MEAN) / np.sqrt(VARIANCE + layer.epsilon) + d
    np.testing.assert_allclose(affine.scale * X + affine.shift, expected, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(layer(X, training=False), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("invert", [False, True])
def test_normalization_and_its_inverse(invert):
    layer = kl.Normalization(mean=MEAN, variance=VARIANCE, invert=invert)
    layer.build((None, 3))
    affine = _READINGS[kl.Normalization](layer)
    deviation = np.sqrt(VARIANCE)
    expected = X * deviation + MEAN if invert else (X - MEAN) / deviation
    np.testing.assert_allclose(affine.scale * X + affine.shift, expected, rtol=1e-6, atol=1e-6)
    assert affine.axis == 1
    if not invert:
        np.testing.assert_allclose(affine.magnitude**2, MEAN**2 + VARIANCE)


def test_a_variance_of_zero_is_normalized_as_keras_does():
    layer = kl.Normalization(mean=[1.0, 2.0], variance=[0.0, 1.0])
    layer.build((None, 2))
    affine = _READINGS[kl.Normalization](layer)
    expected = np.asarray(layer(np.array([[3.0, 3.0]], "float32")))
    np.testing.assert_allclose(affine.scale * 3.0 + affine.shift, expected[0], rtol=1e-5)


@pytest.mark.parametrize(
    ("scale", "offset"), [(2.0, -1.0), ([1.0, 2.0, 3.0], 0.5), (3.0, [1.0, 2.0, 4.0])]
)
def test_rescaling(scale, offset):
    affine = _READINGS[kl.Rescaling](kl.Rescaling(scale, offset))
    expected = X * np.asarray(scale) + np.asarray(offset)
    np.testing.assert_allclose(affine.scale * X + affine.shift, expected, rtol=1e-6)


@pytest.mark.parametrize(("variance", "right"), [(0.0, True), (-0.125, False)])
def test_a_negative_variance_is_refused(variance, right):
    layer = built(kl.BatchNormalization(epsilon=0.0), moving_variance=[1.0, variance, 1.0])
    if right:  # 1 / 0 is what Keras computes as well
        with np.errstate(divide="ignore", invalid="ignore"):
            assert np.isinf(_READINGS[kl.BatchNormalization](layer).scale[1])
        return
    with pytest.raises(UserError, match=r"at least 0. Received: -0.125"):
        _READINGS[kl.BatchNormalization](layer)


@pytest.mark.parametrize(
    ("layer", "right"),
    [
        (kl.BatchNormalization(), True),
        (kl.LayerNormalization(), True),
        (kl.TimeDistributed(kl.BatchNormalization()), True),
        (kl.Dense(3), False),
        (kl.TimeDistributed(kl.Dense(3)), False),
    ],
)
def test_what_a_norm_is(layer, right):
    assert is_norm(layer) is right


def test_a_learned_norm_folds_into_the_layer_before_it():
    x = keras.Input((4,))
    dense, norm = kl.Dense(3), LearnedRenormalization()
    model = keras.Model(x, kl.ReLU()(norm(dense(x))))
    built(norm, r=np.array([0.5, 2.0, 1.0]), d=np.array([-1.0, 1.0, 0.5]))
    result = fold(model)
    assert result.report.remaining_ops == 0
    data = np.random.default_rng(1).normal(size=(6, 4)).astype("float32")
    np.testing.assert_allclose(result.model(data), model(data), rtol=1e-4, atol=1e-5)
