"""Protects quantization-aware training: equal to inference, saved, resumed and frozen."""

from pathlib import Path

import keras
import numpy as np
import pytest
import renormlite as rl
from keras import layers as kl
from renormlite.models.data import handwritten_digits

RNG = np.random.default_rng(0)


def network(norm=rl.BatchRenormalization) -> keras.Model:
    """Return a network of a conv, a depthwise, an addition, a pool, a mean and a dense layer."""

    def linear(layer, x):
        return layer(x) if norm is None else norm()(layer(x))

    image = keras.Input((8, 8, 1), name="image")
    bias = norm is None
    x = kl.ReLU()(linear(kl.Conv2D(6, 3, padding="same", use_bias=bias, name="stem"), image))
    y = linear(kl.DepthwiseConv2D(3, padding="same", use_bias=bias, name="depth"), x)
    x = kl.Activation("relu")(kl.Add(name="sum")([x, y]))
    x = kl.MaxPooling2D()(x)
    x = kl.ReLU(6.0)(linear(kl.Conv2D(8, 1, name="point"), x))
    x = kl.GlobalAveragePooling2D(name="mean")(x)
    return keras.Model(image, kl.Dense(10, name="scores")(x))


def compiled(model: keras.Model, optimizer: str = "adam") -> keras.Model:
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    # Compiling a graph takes longer than these few steps.
    model.compile(optimizer, loss, run_eagerly=True)
    return model


@pytest.fixture(scope="module")
def digits():
    return handwritten_digits().train


def fit(model: keras.Model, digits, samples: slice) -> list[float]:
    x, y = digits.x[samples], digits.y[samples]
    return model.fit(x, y, batch_size=16, shuffle=False, verbose=0).history["loss"]


def test_names_and_weights_of_the_network_are_kept(digits) -> None:
    model = network()
    quantized = rl.quantize_aware(model)
    np.testing.assert_array_equal(
        quantized.get_layer("stem").layer.kernel, model.get_layer("stem").kernel
    )
    assert [tensor.name for tensor in quantized.inputs] == ["image"]
    assert quantized.output_names == ["scores"]
    assert len(quantized.trainable_variables) == len(model.trainable_variables)


@pytest.mark.parametrize("norm", [rl.BatchRenormalization, kl.BatchNormalization, None])
def test_training_begins_with_the_outputs_of_the_float_network(digits, norm) -> None:
    """They differ by the 8-bit rounding of a network that was not trained for it."""
    model = network(norm)
    fit(compiled(model), digits, slice(0, 320))
    before = np.array(model(digits.x[:256]))
    after = rl.quantize_aware(model, samples=digits.x[:256])(digits.x[:256])
    # About seven roundings to 1/255 of a range, each range about six standard deviations wide.
    assert np.std(after - before) < 0.07 * np.std(before)


def test_training_outputs_equal_inference_where_nothing_is_clipped(digits) -> None:
    """Batch renormalization without bounds: the same integers, batch after batch."""

    def norm():
        return rl.BatchRenormalization(r_max=None, d_max=None, momentum=1.0)

    quantized = rl.quantize_aware(network(norm), samples=digits.x[:64])
    x = digits.x[64:96]
    ranges = [layer.output_range for layer in quantized.layers if hasattr(layer, "output_range")]
    for observed in ranges:
        observed.freeze()
    trained = keras.ops.convert_to_numpy(quantized(x, training=True))
    inferred = keras.ops.convert_to_numpy(quantized(x, training=False))
    # float32 rarely rounds z / (s_x s_w) to the other side of a tie: one step of an early layer.
    step = np.diff(np.unique(inferred)).min()
    assert np.mean(np.abs(trained - inferred) > step / 2) < 0.03


@pytest.mark.parametrize("ranges", ["average", "percentile", "learned"])
def test_training_from_a_saved_model_continues_with_the_same_numbers(
    digits, tmp_path: Path, ranges: str
) -> None:
    model = compiled(rl.quantize_aware(network(), ranges=ranges, samples=digits.x[:64]))
    fit(model, digits, slice(0, 80))
    model.save(tmp_path / "half.keras")
    resumed = keras.models.load_model(tmp_path / "half.keras")
    losses = [fit(m, digits, slice(160, 240)) for m in (model, resumed)]
    assert losses[0] == losses[1]
    for one, other in zip(model.weights, resumed.weights, strict=True):
        np.testing.assert_array_equal(one, other, err_msg=one.path)


def test_learned_ranges_change_in_training(digits) -> None:
    model = compiled(rl.quantize_aware(network(), ranges="learned", samples=digits.x[:64]))
    observed = model.get_layer("stem").output_range
    before = float(observed.high)
    fit(model, digits, slice(0, 80))
    assert float(observed.high) != before


def test_ranges_and_statistics_freeze_at_the_given_step(digits) -> None:
    model = compiled(rl.quantize_aware(network(), freeze_ranges_after=3, freeze_statistics_after=5))
    stem = model.get_layer("stem")
    seen = []
    for start in range(0, 160, 16):  # ten steps
        fit(model, digits, slice(start, start + 16))
        seen.append((float(stem.output_range.high), np.array(stem.norm.moving_mean).tolist()))
    highs, means = zip(*seen, strict=True)
    assert len(set(highs[:3])) == 3
    assert len(set(highs[2:])) == 1
    assert len({tuple(mean) for mean in means[:5]}) == 5
    assert len({tuple(mean) for mean in means[4:]}) == 1


def test_the_callback_freezes_them_at_the_given_epoch(digits) -> None:
    model = compiled(rl.quantize_aware(network()))
    stem = model.get_layer("stem")
    seen = []
    watch = keras.callbacks.LambdaCallback(
        on_epoch_end=lambda epoch, logs: seen.append(
            (float(stem.output_range.high), np.array(stem.norm.moving_mean).tolist())
        )
    )
    freeze = rl.FreezeQuantization(ranges=1, statistics=2)
    model.fit(digits.x[:32], digits.y[:32], epochs=4, verbose=0, callbacks=[freeze, watch])
    highs, means = zip(*seen, strict=True)
    assert len(set(highs)) == 1
    assert [mean == means[1] for mean in means] == [False, True, True, True]
    plain = compiled(network())
    with pytest.raises(rl.UserError, match=r"Expected a model made by quantize_aware\."):
        plain.fit(digits.x[:32], digits.y[:32], verbose=0, callbacks=[freeze])


def test_percentiles_exclude_outliers() -> None:
    """1,000 numbers between 0 and 1, and one of 100, have a range of about 1."""
    image = keras.Input((1001,), name="image")
    model = keras.Model(image, kl.Dense(2)(image))
    samples = np.append(np.linspace(0, 1, 1000), 100.0).astype("f4")[None]
    highs = {
        ranges: float(
            rl.quantize_aware(model, ranges=ranges, percentile=99.0, samples=samples)
            .get_layer("image_quantizer")
            .output_range.high
        )
        for ranges in ("average", "percentile")
    }
    assert highs["average"] == 100
    assert highs["percentile"] == pytest.approx(0.99, abs=0.01)


def test_a_channel_with_gamma_0_still_learns(digits) -> None:
    model = network()
    quantized = compiled(rl.quantize_aware(model))
    norm = quantized.get_layer("stem").norm
    gamma = np.array(norm.gamma)
    gamma[0] = 0
    norm.gamma.assign(gamma)
    losses = fit(quantized, digits, slice(0, 160))
    assert np.isfinite(losses).all()
    assert float(norm.gamma[0]) != 0


@pytest.mark.parametrize("epoch", ["1", -1, 0.5])
def test_freezing_requires_whole_epochs(epoch) -> None:
    with pytest.raises(rl.UserError, match="Expected ranges to be None or an epoch"):
        rl.FreezeQuantization(ranges=epoch)
