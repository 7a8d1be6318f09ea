"""Protects `batch_renorm`: the same numbers as the layer, with the state kept by the caller."""

import numpy as np
import pytest
import renormlite as rl
import tensorflow as tf


def random_array(shape, seed=0):
    return (np.random.default_rng(seed).normal(size=shape) * 2 + 1).astype("float32")


@pytest.mark.parametrize("axis", [-1, 1])
@pytest.mark.parametrize("warm_up", [False, True], ids=["paper", "warm-up"])
def test_steps_equal_the_layers_and_the_oracles(paper_renorm, axis, warm_up):
    schedule = rl.LinearRamp(1.0, 2.0, 1, 5)
    common = {"momentum": 0.9, "d_max": 0.3, "warm_up": warm_up}
    layer = rl.BatchRenormalization(axis=axis, r_max=schedule, **common)
    oracle = paper_renorm(4, r_max=lambda t: 1 + np.clip((t - 1) / 4, 0, 1), **common)
    oracle.gamma = np.array([1.0, -2.0, 0.0, 0.5])
    oracle.beta = np.array([0.0, 1.0, 2.0, -1.0])
    affine = {"gamma": oracle.gamma.astype("float32"), "beta": oracle.beta.astype("float32")}
    state = None
    for seed in range(7):
        x = random_array((6, 4, 4), seed)
        if seed == 0:
            layer.build(x.shape)
            layer.gamma.assign(affine["gamma"])
            layer.beta.assign(affine["beta"])
        y, state = rl.batch_renorm(
            tf.constant(x), state, axis=axis, r_max=schedule, **common, **affine
        )
        np.testing.assert_array_equal(y, layer(x, training=True))
        truth = oracle.train(np.moveaxis(x, axis, -1))
        np.testing.assert_allclose(np.moveaxis(y, axis, -1), truth, rtol=1e-5, atol=1e-5)
    assert int(state.step) == 7
    np.testing.assert_allclose(state.variance, oracle.var, rtol=1e-5)
    y, after = rl.batch_renorm(tf.constant(x), state, axis=axis, training=False, **affine)
    np.testing.assert_array_equal(y, layer(x))
    assert after is state


def test_the_state_passes_through_a_compiled_loop():
    x = random_array((12, 8, 3))

    @tf.function
    def loop(x):
        state = rl.RenormState.initial(3)
        for part in tf.split(x, 4):
            _, state = rl.batch_renorm(part, state, momentum=0.5, r_max=None, d_max=None)
        return state

    state = None
    for part in np.split(x, 4):
        _, state = rl.batch_renorm(tf.constant(part), state, momentum=0.5, r_max=None, d_max=None)
    for compiled, eager in zip(loop(x), state, strict=True):
        np.testing.assert_allclose(compiled, eager, rtol=1e-6)


def test_half_precision_inputs_give_half_precision_outputs():
    y, state = rl.batch_renorm(tf.cast(random_array((6, 3)), "float16"))
    assert (y.dtype, state.mean.dtype) == ("float16", "float32")


def test_ghost_batches_and_masks_equal_those_of_the_layer():
    x, mask = random_array((6, 5, 3)), np.random.default_rng(0).random((6, 5)) < 0.6
    for arguments in ({"virtual_batch_size": 2}, {"mask": tf.constant(mask)}):
        layer = rl.BatchRenormalization(
            virtual_batch_size=arguments.get("virtual_batch_size"), r_max=None, d_max=0.1
        )
        expected = layer(x, training=True, mask=arguments.get("mask"))
        y, _ = rl.batch_renorm(tf.constant(x), r_max=None, d_max=0.1, **arguments)
        np.testing.assert_array_equal(y, expected)
