"""Protects algorithm 1: outputs, state and gradients equal an independent float64 NumPy oracle.

The tolerances are for float32. Sums of a few hundred terms and a few roundings, each at most 6e-8
of values of order one, leave errors of about 1e-6. 1e-5 leaves a margin of ten, and an error in the
algorithm would be 1e4 times larger. In the float64 policy the same comparison holds to 1e-12.
"""

import keras
import numpy as np
import pytest
import renormlite as rl
import tensorflow as tf
from keras import ops

FLOAT32 = {"rtol": 1e-5, "atol": 1e-5}
FLOAT64 = {"rtol": 1e-12, "atol": 1e-12}
WARM_UP = pytest.mark.parametrize("warm_up", [False, True], ids=["paper", "warm-up"])
SHAPES = [(32, 5), (16, 7, 5), (8, 6, 4, 5), (4, 3, 4, 2, 5)]


def batches(shape, steps, axis=-1, seed=0):
    """Return batches whose mean and spread differ per channel and drift from step to step."""
    rng = np.random.default_rng(seed)
    channels = shape[-1]
    center = rng.normal(size=channels) * 3
    spread = np.exp(rng.normal(size=channels))
    for step in range(steps):
        x = rng.normal(size=shape) * spread * (1 + 0.1 * step) + center + 0.2 * step
        yield np.moveaxis(x, -1, axis).astype("float32")


def random_affine(channels, seed=3):
    """Return a gamma with negative, zero and tiny channels, and a beta."""
    rng = np.random.default_rng(seed)
    gamma = rng.normal(size=channels)
    gamma[0], gamma[1], gamma[2] = 0.0, 1e-6, -0.7
    return gamma.astype("float32"), rng.normal(size=channels).astype("float32")


def build(layer, x, gamma, beta):
    layer.build(x.shape)
    layer.gamma.assign(gamma)
    layer.beta.assign(beta)
    return layer


@WARM_UP
@pytest.mark.parametrize("axis", [-1, 1])
@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: f"{len(s)}d")
@pytest.mark.parametrize(
    ("r_max", "d_max"), [(None, None), (1.2, 0.3), (1.0, 0.0)], ids=["free", "clipped", "batchnorm"]
)
def test_many_steps_equal_the_oracle(kernel, paper_renorm, shape, axis, r_max, d_max, warm_up):
    common = {"momentum": 0.9, "warm_up": warm_up}
    oracle = paper_renorm(
        5, r_max=r_max or np.inf, d_max=np.inf if d_max is None else d_max, **common
    )
    layer = rl.BatchRenormalization(axis=axis, r_max=r_max, d_max=d_max, **common)
    oracle.gamma, oracle.beta = random_affine(5)
    for step, x in enumerate(batches(shape, 12, axis)):
        if step == 0:
            build(layer, x, oracle.gamma, oracle.beta)
        y = layer(x, training=True)
        truth = oracle.train(np.moveaxis(x, axis, -1))
        np.testing.assert_allclose(np.moveaxis(ops.convert_to_numpy(y), axis, -1), truth, **FLOAT32)
        np.testing.assert_allclose(layer.moving_mean, oracle.mu, **FLOAT32)
        np.testing.assert_allclose(layer.moving_variance, oracle.var, **FLOAT32)
        assert int(layer.step) == oracle.steps
    inferred = np.moveaxis(ops.convert_to_numpy(layer(x, training=False)), axis, -1)
    np.testing.assert_allclose(inferred, oracle.infer(np.moveaxis(x, axis, -1)), **FLOAT32)


@WARM_UP
@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: f"{len(s)}d")
def test_float64_policy_equals_the_oracle_to_float64(paper_renorm, shape, warm_up):
    common = {"momentum": 0.9, "r_max": 1.5, "d_max": 0.5, "warm_up": warm_up}
    oracle = paper_renorm(5, **common)
    layer = rl.BatchRenormalization(**common, dtype="float64")
    for x in batches(shape, 5):
        y = layer(x.astype("float64"), training=True)
        np.testing.assert_allclose(y, oracle.train(x), **FLOAT64)
        np.testing.assert_allclose(layer.moving_mean, oracle.mu, **FLOAT64)
        np.testing.assert_allclose(layer.moving_variance, oracle.var, **FLOAT64)


def test_a_step_uses_the_statistics_from_before_its_update():
    """The first output must come from the initial statistics, not from those of its own step."""
    x = np.full((4, 1), 10.0, "float32")
    layer = rl.BatchRenormalization(momentum=0.0, epsilon=1.0, r_max=None, d_max=None)
    np.testing.assert_allclose(layer(x, training=True), np.full((4, 1), 10 / np.sqrt(2)), rtol=1e-6)
    np.testing.assert_allclose(layer.moving_mean, [10.0])
    np.testing.assert_allclose(layer.moving_variance, [0.0], atol=1e-6)


@pytest.mark.parametrize(
    ("center", "spread", "active"),
    [(0.0, 9.0, "r high"), (0.0, 0.01, "r low"), (9.0, 1.0, "d high"), (-9.0, 1.0, "d low")],
)
def test_each_bound_clips_from_above_and_below(paper_renorm, center, spread, active):
    x = (np.random.default_rng(0).normal(size=(64, 3)) * spread + center).astype("float32")
    oracle = paper_renorm(3, r_max=2.0, d_max=1.5)
    truth = oracle.train(x)
    at_bound = {
        "r high": oracle.r == 2.0,
        "r low": oracle.r == 0.5,
        "d high": oracle.d == 1.5,
        "d low": oracle.d == -1.5,
    }
    assert at_bound[active].all()
    layer = rl.BatchRenormalization(r_max=2.0, d_max=1.5)
    np.testing.assert_allclose(layer(x, training=True), truth, **FLOAT32)


@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: f"{len(s)}d")
@pytest.mark.parametrize("axis", [-1, 1])
def test_gradients_equal_the_closed_form(kernel, paper_renorm, shape, axis):
    rng = np.random.default_rng(7)
    oracle = paper_renorm(5, r_max=1.3, d_max=0.4)
    oracle.gamma, oracle.beta = random_affine(5)
    x = next(batches(shape, 1, axis))
    dy = rng.normal(size=x.shape).astype("float32")
    layer = build(
        rl.BatchRenormalization(axis=axis, r_max=1.3, d_max=0.4), x, oracle.gamma, oracle.beta
    )
    inputs = tf.constant(x)
    with tf.GradientTape() as tape:
        tape.watch(inputs)
        y = layer(inputs, training=True)
    dx, dgamma, dbeta = tape.gradient(y, [inputs, layer.gamma.value, layer.beta.value], dy)
    oracle.train(np.moveaxis(x, axis, -1))
    true_dx, true_dgamma, true_dbeta = oracle.gradients(np.moveaxis(dy, axis, -1))
    np.testing.assert_allclose(np.moveaxis(dx.numpy(), axis, -1), true_dx, **FLOAT32)
    np.testing.assert_allclose(dgamma, true_dgamma, rtol=1e-5, atol=1e-4)  # sums of ~100 terms
    np.testing.assert_allclose(dbeta, true_dbeta, rtol=1e-5, atol=1e-4)
    axes = tuple(i for i in range(x.ndim) if i != axis % x.ndim)
    np.testing.assert_allclose(dx.numpy().sum(axes), np.zeros(5), atol=1e-4)


@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: f"{len(s)}d")
def test_unclipped_training_output_is_inference_before_the_update(shape):
    layer = rl.BatchRenormalization(momentum=0.8, r_max=None, d_max=None)
    for x in batches(shape, 5):
        layer.build(x.shape) if not layer.built else None
        before = layer(x, training=False)
        np.testing.assert_allclose(layer(x, training=True), before, rtol=1e-5, atol=1e-4)


def test_unit_bounds_are_batch_normalization():
    ours = rl.BatchRenormalization(r_max=1.0, d_max=0.0, warm_up=False)
    theirs = keras.layers.BatchNormalization()
    for x in batches((8, 4, 4, 5), 4):
        np.testing.assert_allclose(ours(x, training=True), theirs(x, training=True), **FLOAT32)
        np.testing.assert_allclose(ours.moving_mean, theirs.moving_mean, **FLOAT32)


def set_initial_sigma(peer, shape):
    """Start the other layer from sigma = sqrt(1 + epsilon); its own start has no epsilon."""
    peer.build(shape)
    peer.renorm_stddev.assign(np.full(5, np.sqrt(1.001), "float32"))
    peer.moving_stddev.assign(np.full(5, np.sqrt(1.001), "float32"))


@pytest.mark.parametrize("axis", [-1, 1])
@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: f"{len(s)}d")
def test_parity_with_keras_renorm(shape, axis):
    clipping = {"rmin": 1 / 1.4, "rmax": 1.4, "dmax": 0.5}
    theirs = keras.layers.BatchNormalization(
        axis=axis, momentum=0.9, renorm=True, renorm_clipping=clipping, renorm_momentum=0.9
    )
    ours = rl.BatchRenormalization(axis=axis, momentum=0.9, r_max=1.4, d_max=0.5, warm_up=False)
    set_initial_sigma(theirs, next(batches(shape, 1, axis)).shape)
    for x in batches(shape, 10, axis):
        np.testing.assert_allclose(ours(x, training=True), theirs(x, training=True), **FLOAT32)
        np.testing.assert_allclose(ours.moving_mean, theirs.moving_mean, **FLOAT32)
        np.testing.assert_allclose(ours.moving_variance, theirs.moving_variance, **FLOAT32)
    np.testing.assert_allclose(ours(x), theirs(x), **FLOAT32)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: f"{len(s)}d")
def test_parity_with_tf_keras_renorm(shape):
    import tf_keras

    theirs = tf_keras.layers.BatchNormalization(
        momentum=0.9,
        renorm=True,
        renorm_clipping={"rmin": 1 / 1.4, "rmax": 1.4, "dmax": 0.5},
        renorm_momentum=0.9,
    )
    ours = rl.BatchRenormalization(momentum=0.9, r_max=1.4, d_max=0.5, warm_up=False)
    set_initial_sigma(theirs, shape)
    for x in batches(shape, 10):
        expected = theirs(x, training=True)
        np.testing.assert_allclose(ours(x, training=True), expected, **FLOAT32)
        np.testing.assert_allclose(ours.moving_mean, theirs.moving_mean, **FLOAT32)
        np.testing.assert_allclose(ours.moving_variance, theirs.moving_variance, **FLOAT32)
