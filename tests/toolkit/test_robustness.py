"""Protects training on edge-case batches: masked, empty, constant, overflowing, half precision."""

import keras
import numpy as np
import pytest
import renormlite as rl
import tensorflow as tf

EXACT = {"rtol": 1e-5, "atol": 1e-5}


def random_array(shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


def stepper(layer, *, compiled=False, signature=None):
    """Return a step with loss sum(y²) / 1000: (x, mask) to outputs, gradients of x and weights."""

    def step(x, mask=None):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = layer(x, training=True, mask=mask)
            loss = tf.reduce_sum(tf.square(tf.cast(y, "float32"))) * 1e-3
        return y, tape.gradient(loss, [x, *(w.value for w in layer.trainable_weights)])

    if compiled or signature:
        spec = (signature,) if signature else None
        step = tf.function(step, jit_compile=compiled, input_signature=spec)

    def run(x, mask=None):
        if not layer.built:
            layer.build(x.shape)
        x = tf.convert_to_tensor(x)
        return step(x) if mask is None else step(x, tf.convert_to_tensor(mask))

    return run


def train(layer, x, mask=None, *, compiled=False):
    """Return the outputs of one training step, and the gradients of input and weights."""
    return stepper(layer, compiled=compiled)(x, mask)


def state(layer):
    return [np.array(w) for w in layer.weights]


def assert_finite(*things):
    for thing in tf.nest.flatten(things):
        assert np.isfinite(np.array(thing, "float64")).all()


# ---------------------------------------------------------------------------------------- masks


@pytest.mark.parametrize("channels", [1, 4])
@pytest.mark.parametrize("compiled", [False, True], ids=["graph", "xla"])
def test_a_masked_batch_equals_its_unpadded_subset(channels, compiled):
    x = random_array((6, 9, channels)) * 2 + 3
    lengths = np.array([9, 1, 4, 0, 7, 2])
    mask = np.arange(9) < lengths[:, None]
    x[~mask] = 1e4  # the values of the padding must not matter
    masked, unpadded = (rl.BatchRenormalization(r_max=1.5, d_max=0.5) for _ in range(2))
    step = stepper(masked, compiled=compiled)
    for _ in range(3):
        y, _ = step(x, mask)
        expected, _ = train(unpadded, x[mask])
        np.testing.assert_allclose(np.array(y)[mask], expected, **EXACT)
        for ours, theirs in zip(state(masked), state(unpadded), strict=True):
            np.testing.assert_allclose(ours, theirs, **EXACT)


def test_gradients_through_a_mask_equal_those_of_the_unpadded_subset():
    x = random_array((6, 9, 4))
    mask = np.arange(9) < np.array([9, 1, 4, 0, 7, 2])[:, None]
    dy = random_array((6, 9, 4), 1) * mask[..., None]

    def gradient(layer, x, dy, mask):
        layer.build(x.shape)
        x = tf.convert_to_tensor(x)
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = layer(x, training=True, mask=mask)
        return tape.gradient(y, [x, layer.gamma.value, layer.beta.value], dy)

    bounds = {"r_max": 1.5, "d_max": 0.1}
    masked = gradient(rl.BatchRenormalization(**bounds), x, dy, tf.constant(mask))
    unpadded = gradient(rl.BatchRenormalization(**bounds), x[mask], dy[mask], None)
    np.testing.assert_allclose(masked[0].numpy()[mask], unpadded[0], **EXACT)
    np.testing.assert_array_equal(masked[0].numpy()[~mask], 0.0)
    for ours, theirs in zip(masked[1:], unpadded[1:], strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-4)


def test_a_mask_of_batch_and_time_covers_the_remaining_axes():
    x = random_array((3, 4, 5, 2))
    mask = np.arange(4) < np.array([4, 2, 1])[:, None]
    layer, unpadded = rl.BatchRenormalization(), rl.BatchRenormalization()
    train(layer, x, mask)
    train(unpadded, x[mask])
    np.testing.assert_allclose(layer.moving_variance, unpadded.moving_variance, **EXACT)


def test_a_mask_with_channels_first():
    x = random_array((3, 2, 6))
    mask = (np.arange(6) < np.array([6, 3, 1])[:, None])[:, None, :]
    layer, unpadded = rl.BatchRenormalization(axis=1), rl.BatchRenormalization()
    train(layer, x, mask)
    train(unpadded, np.moveaxis(x, 1, -1)[mask[:, 0]])
    np.testing.assert_allclose(layer.moving_mean, unpadded.moving_mean, **EXACT)
    np.testing.assert_allclose(layer.moving_variance, unpadded.moving_variance, **EXACT)


def test_a_mask_over_the_channel_axis_counts_each_channel_separately():
    x = random_array((8, 3, 5))  # axis 1 is the channels, and the mask is (batch, channels)
    mask = np.random.default_rng(1).random((8, 3)) < 0.5
    layer = rl.BatchRenormalization(axis=1, momentum=0.0)
    train(layer, x, mask)
    means = [x[mask[:, c], c].mean() for c in range(3)]
    np.testing.assert_allclose(layer.moving_mean, means, **EXACT)


def test_a_fully_masked_batch_infers_and_changes_nothing():
    layer = rl.BatchRenormalization()
    train(layer, random_array((8, 5, 3)) + 1)
    before, x = state(layer), random_array((4, 5, 3), 1)
    y, gradients = train(layer, x, np.zeros((4, 5), bool))
    np.testing.assert_allclose(y, layer(x, training=False), **EXACT)
    assert_finite(gradients)
    for old, new in zip(before[:-1], state(layer)[:-1], strict=True):
        np.testing.assert_array_equal(old, new)


def test_masks_of_embeddings_reach_the_layer_in_a_model():
    layer = rl.BatchRenormalization(momentum=0.0)
    model = keras.Sequential(
        [keras.layers.Input((6,)), keras.layers.Embedding(9, 4, mask_zero=True), layer]
    )
    tokens = np.array([[3, 1, 4, 0, 0, 0], [5, 2, 0, 0, 0, 0]])
    model(tokens, training=True)
    embedded = np.array(model.layers[0].embeddings)[[3, 1, 4, 5, 2]]
    np.testing.assert_allclose(layer.moving_mean, embedded.mean(0), **EXACT)


def test_a_mask_of_the_wrong_shape_is_refused():
    layer = rl.BatchRenormalization(axis=1)
    with pytest.raises(rl.UserError, match="mask of shape"):
        train(layer, random_array((4, 3, 6)), np.ones((4, 6), bool))


# ------------------------------------------------------------------------------ degenerate batches


@pytest.mark.parametrize("compiled", [False, True], ids=["graph", "xla"])
@pytest.mark.parametrize("shape", [(0, 3), (0, 4, 4, 3)])
def test_an_empty_batch_changes_nothing_and_has_finite_gradients(kernel, shape, compiled):
    layer = rl.BatchRenormalization()
    train(layer, random_array((8, *shape[1:])) + 1)
    before = state(layer)
    y, gradients = train(layer, random_array(shape), compiled=compiled)
    assert y.shape == shape
    assert_finite(gradients, state(layer))
    for old, new in zip(before[:-1], state(layer)[:-1], strict=True):
        np.testing.assert_array_equal(old, new)


def test_an_empty_last_batch_of_unknown_size_changes_nothing(kernel):
    layer = rl.BatchRenormalization()
    step = stepper(layer, signature=tf.TensorSpec((None, 4, 4, 3)))
    step(random_array((8, 4, 4, 3)) + 1)
    before = state(layer)
    _, gradients = step(random_array((0, 4, 4, 3)))
    assert_finite(gradients)
    for old, new in zip(before[:-1], state(layer)[:-1], strict=True):
        np.testing.assert_array_equal(old, new)


@pytest.mark.parametrize("compiled", [False, True], ids=["graph", "xla"])
def test_a_single_element_is_finite_and_the_mean_moves_to_its_value(kernel, compiled):
    layer = rl.BatchRenormalization(momentum=0.5, r_max=3.0, d_max=5.0)
    x = np.array([[7.0, -2.0]], "float32")
    step = stepper(layer, compiled=compiled)
    for _ in range(40):
        y, gradients = step(x)
        assert_finite(y, gradients, state(layer))
    np.testing.assert_allclose(layer.moving_mean, x[0], rtol=1e-4)
    np.testing.assert_allclose(layer.moving_variance, 0.0, atol=1e-6)


@pytest.mark.parametrize("compiled", [False, True], ids=["graph", "xla"])
def test_constant_channels_are_finite(kernel, compiled):
    x = random_array((16, 5, 5, 3))
    x[..., 0], x[..., 1] = 0.0, 1e6
    layer = rl.BatchRenormalization(r_max=3.0, d_max=5.0)
    step = stepper(layer, compiled=compiled)
    for _ in range(5):
        y, gradients = step(x)
        assert_finite(y, gradients, state(layer))
    assert (np.array(layer.moving_variance) >= 0).all()


@pytest.mark.parametrize("compiled", [False, True], ids=["graph", "xla"])
@pytest.mark.parametrize("ratio", [10.0, 3000.0])
def test_a_mean_far_above_the_spread_keeps_the_variance(kernel, ratio, compiled):
    """A one-pass variance is off by 4e-4 at ratio 10, 5 % at 100 and 400 % at 1000."""
    x = random_array((16, 9, 9, 3)) + ratio
    layer = rl.BatchRenormalization(momentum=0.0, r_max=None, d_max=None)
    y, gradients = train(layer, x, compiled=compiled)
    # The inputs themselves carry rounding errors of ratio * 6e-8 against a spread of 1.
    allowed = 1e-5 + 2 * ratio * 2**-24
    truth = x.astype("float64").var((0, 1, 2))
    np.testing.assert_allclose(layer.moving_variance, truth, rtol=10 * allowed)
    np.testing.assert_allclose(layer.moving_mean, x.astype("float64").mean((0, 1, 2)), rtol=1e-5)
    assert_finite(y, gradients)


@pytest.mark.parametrize("bad", [np.nan, np.inf, 3e38])
def test_one_overflowing_batch_does_not_spoil_the_statistics(kernel, bad):
    layer = rl.BatchRenormalization()
    x = random_array((16, 3))
    train(layer, x)
    before = state(layer)
    spoiled = 2 * x
    spoiled[3:5, 1] = bad
    train(layer, spoiled)
    after = state(layer)
    assert_finite(after)
    for old, new in zip(before[2:4], after[2:4], strict=True):
        assert old[1] == new[1]  # this channel is not updated
        assert old[0] != new[0]  # the others are
    y, gradients = train(layer, x)
    assert_finite(y, gradients)


# ------------------------------------------------------------------------------------- precision


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16", "float16", "bfloat16"])
@pytest.mark.parametrize("compiled", [False, True], ids=["graph", "xla"])
def test_half_precision_keeps_float32_statistics(kernel, policy, compiled):
    half = policy.removeprefix("mixed_")
    x = tf.cast(random_array((64, 6, 6, 3)) * 0.3 + 20.0, half)
    layer = rl.BatchRenormalization(dtype=policy, momentum=0.999, r_max=None, d_max=None)
    twin = rl.BatchRenormalization(momentum=0.999, r_max=None, d_max=None)
    step, reference = stepper(layer, compiled=compiled), stepper(twin)
    for _ in range(20):
        y, gradients = step(x)
        expected, _ = reference(tf.cast(x, "float32"))
    assert y.dtype == half
    assert layer.moving_mean.dtype == layer.moving_variance.dtype == "float32"
    # In half precision 0.999 * m + 0.001 * x would not move at all.
    np.testing.assert_allclose(layer.moving_mean, twin.moving_mean, rtol=1e-4)
    np.testing.assert_allclose(layer.moving_variance, twin.moving_variance, rtol=1e-4)
    one_rounding = 2**-11 if half == "float16" else 2**-8
    np.testing.assert_allclose(
        tf.cast(y, "float32"), expected, rtol=2 * one_rounding, atol=2 * one_rounding
    )
    assert_finite(gradients)


def test_large_half_precision_values_do_not_overflow_the_variance(kernel):
    x = tf.cast(random_array((32, 3)) * 1e4, "float16")
    layer = rl.BatchRenormalization(dtype="mixed_float16", momentum=0.0)
    train(layer, x)
    truth = tf.cast(x, "float64").numpy().var(0)
    np.testing.assert_allclose(layer.moving_variance, truth, rtol=1e-4)


# ---------------------------------------------------------------------------------- jit, autodiff


@pytest.mark.parametrize("axis", [-1, 1, 2])
@pytest.mark.parametrize("shape", [(16, 5), (8, 4, 5), (4, 6, 5, 5), (4, 3, 5, 2, 5)])
def test_compiled_steps_equal_eager_ones(kernel, shape, axis):
    if axis >= len(shape):
        axis = -1
    outcomes = []
    for compiled in (False, True):
        layer = rl.BatchRenormalization(axis=axis, r_max=1.2, d_max=0.2)
        step = stepper(layer, compiled=compiled)
        for seed in range(3):
            outcome = step(random_array(shape, seed))
        outcomes.append([*tf.nest.flatten(outcome), *state(layer)])
    for eager, xla in zip(*outcomes, strict=True):
        np.testing.assert_allclose(eager, xla, rtol=1e-4, atol=1e-4)


def test_unknown_batch_and_image_sizes(kernel):
    x = random_array((4, 6, 7, 3))
    known, unknown = rl.BatchRenormalization(), rl.BatchRenormalization()
    y, _ = train(known, x)
    z, _ = stepper(unknown, signature=tf.TensorSpec((None, None, None, 3)))(x)
    np.testing.assert_allclose(y, z, **EXACT)
    np.testing.assert_allclose(known.moving_variance, unknown.moving_variance, **EXACT)


def test_second_derivatives_on_the_fused_kernels_equal_the_reference(monkeypatch):
    """A gradient penalty differentiates the backward pass."""
    from renormlite.toolkit import fused_tensorflow, kernels

    monkeypatch.setattr(fused_tensorflow, "SMALLEST_TENSOR", 0)
    x = tf.convert_to_tensor(random_array((8, 3, 3, 4)))

    def penalty():
        layer = rl.BatchRenormalization(r_max=1.2, d_max=0.3)
        layer.build(x.shape)
        with tf.GradientTape() as outer:
            outer.watch(x)
            with tf.GradientTape() as inner:
                inner.watch(x)
                y = tf.reduce_sum(tf.sin(layer(x, training=True)))
            size = tf.reduce_sum(tf.square(inner.gradient(y, x)))
        return outer.gradient(size, [x, layer.gamma.value])

    ours = penalty()
    monkeypatch.setattr(kernels, "fused_kernels", lambda x: None)
    for fast, plain in zip(ours, penalty(), strict=True):
        np.testing.assert_allclose(fast, plain, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("jit", [False, True])
def test_fit_runs_with_and_without_jit(jit):
    model = keras.Sequential(
        [
            keras.layers.Input((8, 8, 3)),
            keras.layers.Conv2D(4, 3),
            rl.BatchRenormalization(),
            keras.layers.GlobalAveragePooling2D(),
            keras.layers.Dense(1),
        ]
    )
    model.compile(keras.optimizers.SGD(0.05), "mse", jit_compile=jit)
    x = random_array((50, 8, 8, 3))
    losses = model.fit(x, x.mean((1, 2, 3)), batch_size=16, epochs=3, verbose=0).history["loss"]
    assert losses[-1] < losses[0]
    assert int(model.layers[1].step) == 12  # the last batch of each epoch is smaller


def test_separate_momenta_have_separate_statistics():
    layer = rl.BatchRenormalization(
        momentum=0.5, renorm_momentum=0.9, r_max=1.5, d_max=0.5, warm_up=False
    )
    peer = keras.layers.BatchNormalization(
        momentum=0.5,
        renorm=True,
        renorm_momentum=0.9,
        renorm_clipping={"rmin": 1 / 1.5, "rmax": 1.5, "dmax": 0.5},
    )
    peer.build((16, 3))
    peer.renorm_stddev.assign(np.full(3, np.sqrt(1.001), "float32"))
    peer.moving_stddev.assign(np.full(3, np.sqrt(1.001), "float32"))
    for seed in range(5):
        x = random_array((16, 3), seed) * 2 + 1
        np.testing.assert_allclose(layer(x, training=True), peer(x, training=True), **EXACT)
    names = [w.name for w in layer.weights]
    assert names[4:] == ["step", "renorm_mean", "renorm_variance"]
    np.testing.assert_allclose(layer.moving_variance, peer.moving_variance, **EXACT)
    np.testing.assert_allclose(layer.renorm_mean, peer.renorm_mean, **EXACT)
    np.testing.assert_allclose(layer(x), peer(x), **EXACT)


def test_small_tensors_use_plain_operations_and_large_ones_fused_kernels():
    from renormlite.toolkit import kernels

    chosen = {}

    @tf.function(
        input_signature=[tf.TensorSpec((None, 8, 8, 24)), tf.TensorSpec((None, 56, 56, 64))]
    )
    def trace(small, large):
        chosen.update(small=kernels.fused_kernels(small), large=kernels.fused_kernels(large))
        return small

    trace.get_concrete_function()
    assert chosen["small"] is None
    assert chosen["large"] is not None
    assert kernels.fused_kernels(tf.zeros((128, 512))) is None
    assert kernels.fused_kernels(tf.zeros((64, 7, 7, 512))) is not None
