"""Protects ghost batches: each has its own statistics, r and d; the last may be smaller."""

import numpy as np
import pytest
import renormlite as rl
import tensorflow as tf

BOUNDS = {"r_max": 1.3, "d_max": 0.4}
EXACT = {"rtol": 1e-5, "atol": 1e-5}


def random_array(shape, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=shape) * np.exp(rng.normal(size=(shape[0],) + (1,) * (len(shape) - 1)))
    return (x + 1).astype("float32")


def expected(paper_renorm, oracle, parts):
    """Return the outputs of each part from the same statistics, then update to the average."""
    outputs, mus, sigmas, weights = [], [], [], []
    for rows in parts:
        ghost = paper_renorm(3, momentum=0.9, **BOUNDS)
        ghost.mu, ghost.var = oracle.mu, oracle.var
        outputs.append(ghost.train(rows))
        mus.append(rows.reshape(-1, 3).astype("float64").mean(0))
        sigmas.append(ghost.sigma_b)
        weights.append(rows.reshape(-1, 3).shape[0])
    mu, sigma = (np.average(v, axis=0, weights=weights) for v in (mus, sigmas))
    moved = np.sqrt(oracle.var + 1e-3)
    oracle.mu = oracle.mu + oracle.alpha * (mu - oracle.mu)
    oracle.var = (moved + oracle.alpha * (sigma - moved)) ** 2 - 1e-3
    oracle.steps += 1
    return outputs


@pytest.mark.parametrize("samples", [8, 7, 3], ids=["even", "uneven", "less than one"])
@pytest.mark.parametrize("static", [True, False], ids=["static", "dynamic"])
@pytest.mark.parametrize("axis", [-1, 1])
@pytest.mark.parametrize("warm_up", [False, True], ids=["paper", "warm-up"])
def test_ghosts_equal_the_oracle(paper_renorm, samples, static, axis, warm_up):
    common = {"momentum": 0.9, "warm_up": warm_up}
    layer = rl.BatchRenormalization(axis=axis, virtual_batch_size=4, **common, **BOUNDS)
    oracle = paper_renorm(3, **common)
    shape = (samples, 3, 5) if axis == 1 else (samples, 5, 3)
    layer.build(shape)
    signature = None if static else [tf.TensorSpec((None, *shape[1:]))]
    step = tf.function(lambda x: layer(x, training=True), input_signature=signature)
    for seed in range(3):
        x = random_array((samples, 5, 3), seed)
        y = np.array(step(tf.constant(np.moveaxis(x, -1, axis))))
        truth = expected(paper_renorm, oracle, [x[i : i + 4] for i in range(0, samples, 4)])
        np.testing.assert_allclose(np.moveaxis(y, axis, -1), np.concatenate(truth), **EXACT)
        np.testing.assert_allclose(layer.moving_mean, oracle.mu, **EXACT)
        np.testing.assert_allclose(layer.moving_variance, oracle.var, **EXACT)
    assert int(layer.step) == 3


@pytest.mark.parametrize("samples", [8, 6])
def test_masked_ghosts_are_weighted_by_their_valid_elements(paper_renorm, samples):
    layer = rl.BatchRenormalization(virtual_batch_size=4, momentum=0.9, **BOUNDS)
    oracle = paper_renorm(3, momentum=0.9, warm_up=True)
    x = random_array((samples, 5, 3))
    mask = np.random.default_rng(1).random((samples, 5)) < 0.6
    y = np.array(layer(x, training=True, mask=tf.constant(mask)))
    parts = [(x[i : i + 4][mask[i : i + 4]]) for i in range(0, samples, 4)]
    truth = expected(paper_renorm, oracle, parts)
    np.testing.assert_allclose(y[mask], np.concatenate(truth), **EXACT)
    np.testing.assert_allclose(layer.moving_variance, oracle.var, **EXACT)


def test_gradients_stay_within_a_ghost():
    layer = rl.BatchRenormalization(virtual_batch_size=2, r_max=None, d_max=None)
    x = tf.constant(random_array((5, 3)))
    with tf.GradientTape() as tape:
        tape.watch(x)
        first = tf.reduce_sum(layer(x, training=True)[:2] ** 3)
    gradient = tape.gradient(first, x).numpy()
    assert np.abs(gradient[:2]).max() > 1e-3
    np.testing.assert_array_equal(gradient[2:], 0.0)


def test_a_fully_masked_batch_of_ghosts_changes_nothing():
    layer = rl.BatchRenormalization(virtual_batch_size=2)
    layer(random_array((4, 5, 3)), training=True)
    before = layer.get_weights()[2:4]
    layer(random_array((4, 5, 3), 1), training=True, mask=tf.zeros((4, 5), bool))
    for old, new in zip(before, layer.get_weights()[2:4], strict=True):
        np.testing.assert_allclose(old, new, rtol=1e-6)


def test_contradicting_settings_are_refused():
    with pytest.raises(rl.UserError, match="virtual_batch_size to be at least 1"):
        rl.BatchRenormalization(virtual_batch_size=0)
    with pytest.raises(rl.UserError, match="either synchronized or virtual_batch_size"):
        rl.BatchRenormalization(virtual_batch_size=4, synchronized=True)
