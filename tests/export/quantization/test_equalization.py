"""Protects equalization across layers: exact, measured, and used only where it helps."""

from __future__ import annotations

import json

import keras
import numpy as np
import pytest
import renormlite as rl
from keras import layers
from renormlite.export.fold import fold
from renormlite.export.fold.proof import relative_error
from renormlite.export.host import run_artifact
from renormlite.export.quantization.equalization import STRENGTHS, Equalizer
from renormlite.export.variants import Variant, choose


def uneven(activation: str = "relu", seed: int = 0) -> keras.Model:
    """A network whose channels differ by a thousand, as folded norms leave them."""
    generator = np.random.default_rng(seed)
    x = keras.Input((12, 12, 3), name="image")
    y = layers.Conv2D(16, 3, padding="same", activation=activation, name="first")(x)
    y = layers.MaxPooling2D()(y)
    y = layers.DepthwiseConv2D(3, padding="same", activation=activation, name="depth")(y)
    y = layers.Conv2D(16, 1, activation=activation, name="second")(y)
    y = layers.Dense(8, name="scores")(layers.Flatten()(y))
    model = keras.Model(x, y)
    for name, axis in (("first", -1), ("second", -1)):
        layer = model.get_layer(name)
        spread = 10 ** generator.uniform(-1.5, 1.5, layer.kernel.shape[axis])
        layer.kernel.assign(layer.kernel * spread)
    return model


def _same(one: keras.Model, other: keras.Model, data: np.ndarray) -> bool:
    """Equal but for float32 rounding: 2^-24 a multiplication, a few hundred of them a sum."""
    return relative_error(np.asarray(one(data)), np.asarray(other(data))) < 1e-5


@pytest.mark.parametrize("strength", STRENGTHS)
@pytest.mark.parametrize("activation", ["relu", "leaky_relu", "linear"])
def test_equalization_does_not_change_the_outputs(activation, strength, images):
    model = uneven(activation)
    equalized = Equalizer(model, [images]).equalized(strength)
    assert equalized is not None
    assert _same(model, equalized, images)
    # Strength 0 looks at rows of weights, and a depthwise layer has but one a channel: there it is
    # the pair behind that changes.
    changed = "second" if strength == 0 else "first"
    assert not np.allclose(model.get_layer(changed).kernel, equalized.get_layer(changed).kernel)


def test_a_network_with_one_pair_of_layers(images):
    x = keras.Input((12, 12, 3), name="image")
    y = layers.Conv2D(4, 3, activation="relu", name="first")(x)
    model = keras.Model(x, layers.Conv2D(2, 3, name="scores")(y))
    spread = np.array([1, 10, 100, 1000], np.float32)
    model.get_layer("first").kernel.assign(model.get_layer("first").kernel * spread)
    equalized = Equalizer(model, [images]).equalized(0.5)
    assert equalized is not None
    assert _same(model, equalized, images)


def test_scales_move_through_the_addition_that_a_norm_leaves(images):
    x = keras.Input((12, 12, 3), name="image")
    y = layers.Conv2D(4, 3, activation="relu", name="first")(x)
    y = layers.BatchNormalization(beta_initializer="ones")(y)
    y = layers.DepthwiseConv2D(3, padding="same", name="depth")(y)
    model = fold(keras.Model(x, layers.Conv2D(2, 3, name="scores")(y))).model
    assert "ChannelAffine" in [type(layer).__name__ for layer in model.layers]
    spread = np.array([1, 10, 100, 1000], np.float32)
    model.get_layer("first").kernel.assign(model.get_layer("first").kernel * spread)
    equalized = Equalizer(model, [images]).equalized(1.0)  # activations alone
    assert equalized is not None
    assert _same(model, equalized, images)

    def largest(network: keras.Model) -> np.ndarray:
        kernel = np.abs(network.get_layer("first").kernel)
        return kernel.max((0, 1, 2))

    unlike, alike = (np.ptp(np.log(largest(network))) for network in (model, equalized))
    assert unlike > 6
    assert alike < 2


@pytest.mark.parametrize("activation", ["relu6", "sigmoid", "gelu"])
def test_scales_are_not_moved_through_functions_that_are_not_homogeneous(activation, images):
    assert not Equalizer(uneven(activation), [images]).possible


def test_ranges_of_channels_become_more_similar(images):
    model = uneven()
    equalized = Equalizer(model, [images]).equalized(0.5)
    assert equalized is not None

    def unevenness(network: keras.Model) -> float:
        inner = keras.Model(network.input, network.get_layer("first").output)
        ranges = np.abs(np.asarray(inner(images))).max(axis=(0, 1, 2))
        return float(np.std(np.log(ranges[ranges > 0])))

    assert unevenness(equalized) < 0.7 * unevenness(model)


def test_a_dead_channel_is_not_changed(images):
    model = uneven()
    first = model.get_layer("first")
    kernel = np.asarray(first.kernel).copy()
    kernel[..., 3] = 0
    first.kernel.assign(kernel)
    first.bias.assign(np.where(np.arange(16) == 3, -1.0, 0.1))
    equalized = Equalizer(model, [images]).equalized(0.5)
    assert equalized is not None
    assert _same(model, equalized, images)
    assert float(equalized.get_layer("first").bias[3]) == -1.0


def test_a_layer_called_twice_is_not_changed(images):
    x = keras.Input((12, 12, 3), name="image")
    shared = layers.Conv2D(3, 3, padding="same", activation="relu", name="shared")
    model = keras.Model(x, layers.Conv2D(4, 1, name="scores")(shared(shared(x))))
    assert not Equalizer(model, [images]).possible


def test_folded_residual_networks_stay_exact(images, settled):
    x = keras.Input((12, 12, 3), name="image")
    y = layers.Conv2D(8, 3, padding="same", activation="relu")(x)
    z = rl.BatchRenormalization()(layers.Conv2D(8, 3, padding="same", activation="relu")(y))
    z = rl.BatchRenormalization()(layers.Conv2D(8, 3, padding="same")(z))
    y = layers.ReLU()(layers.Add()([y, z]))
    model = keras.Model(x, layers.Dense(4)(layers.GlobalAveragePooling2D()(y)))
    folded = fold(settled(model)).model
    for strength in STRENGTHS:
        equalized = Equalizer(folded, [images]).equalized(strength)
        assert equalized is not None
        assert _same(folded, equalized, images)


def test_auto_equalizes_if_that_measures_better_and_reports_it(images, export):
    manifest, folder = export(uneven(), formats=("tflite",), precisions=("int8",), inputs=images)
    (chosen,) = manifest.artifacts
    assert "equalized" in chosen.notes[0]
    assert chosen.network is not None
    assert (folder / chosen.network.file).exists()
    record = json.loads((folder / "manifest.json").read_text())
    assert record["artifacts"][0]["network"]["file"] == chosen.network.file
    plain, _ = export(
        uneven(), formats=("tflite",), precisions=("int8",), inputs=images, equalize="never"
    )
    assert chosen.snr_db["scores"] > plain.artifacts[0].snr_db["scores"] + 1
    # The export without it takes away the network only the other's file needed.
    assert not (folder / chosen.network.file).exists()


def test_float_files_are_never_made_from_equalized_weights(images, export):
    manifest, _ = export(uneven(), precisions=("float32", "float16"), inputs=images)
    assert all(not a.notes and a.network is None for a in manifest.artifacts)


def test_random_samples_decide_nothing(export):
    manifest, _ = export(uneven(), formats=("tflite",), precisions=("int8",), calibration="random")
    assert manifest.artifacts[0].network is None


@pytest.mark.parametrize(
    ("ratios", "expected"),
    [
        ({"": 30.0, "equalized-0.5": 30.9}, ""),
        ({"": 30.0, "equalized-0.5": 31.1}, "equalized-0.5"),
        ({"": 30.0, "equalized-0.0": 33.0, "equalized-0.5": 32.0}, "equalized-0.0"),
        ({"equalized-0.0": 20.0, "equalized-0.5": 20.1}, "equalized-0.5"),
    ],
)
def test_less_than_a_decibel_decides_nothing(ratios, expected):
    model = uneven()
    chosen = choose([(Variant(name, model), ratio) for name, ratio in ratios.items()])
    assert chosen.name == expected


def clipping() -> keras.Model:
    """A network like MobileNetV2, with relu6; the next layer compensates unlike channels."""
    keras.utils.set_random_seed(0)
    x = keras.Input((12, 12, 3), name="image")
    y = layers.Conv2D(16, 3, padding="same", activation="relu6", name="first")(x)
    z = layers.ReLU(6.0, name="clip")(layers.Conv2D(24, 1, name="expand")(y))
    z = layers.DepthwiseConv2D(3, padding="same", name="depth")(z)
    z = layers.Conv2D(16, 1, name="project")(layers.Activation("relu6")(z))
    model = keras.Model(x, layers.Conv2D(5, 3, name="scores")(layers.Add()([y, z])))
    factors = np.geomspace(0.005, 20, 24)
    for name, factor in (("expand", factors), ("depth", 1 / factors[:, None])):
        model.get_layer(name).kernel.assign(model.get_layer(name).kernel * factor)
    return model


def _clip(model: keras.Model, data: np.ndarray) -> np.ndarray:
    """Return which channels of the relu6 after `expand` reach 6."""
    inner = keras.Model(model.input, model.get_layer("expand").output)
    return (np.asarray(inner(data)) >= 6).any(axis=(0, 1, 2))


@pytest.mark.parametrize("strength", STRENGTHS)
def test_channels_before_relu6_are_equalized_without_changing_the_samples(strength, images):
    model, data = clipping(), 3 * images
    reached = _clip(model, data)
    assert 0 < reached.sum() < len(reached)
    assert not Equalizer(model, [data]).possible
    equalized = Equalizer(model, [data], clipped=True).equalized(strength)
    assert equalized is not None
    assert _same(model, equalized, data)
    # Channels that are clipped, and the limit, stay as they are.
    assert equalized.get_layer("clip").max_value == 6
    ratio = np.asarray(equalized.get_layer("expand").kernel / model.get_layer("expand").kernel)
    assert (_clip(equalized, data) == reached).all()
    (row,) = ratio[0, 0, :1]  # the channels of the input are scaled, too
    assert np.ptp(row[reached]) < 1e-5 * row[reached].mean()
    # A depthwise layer has one weight per channel, so weights alone (0) ask for no scale.
    assert (row[~reached].max() > 2 * row[reached].max()) == (strength > 0)


def test_a_relu6_that_clips_no_sample_is_replaced_by_relu(images):
    model, data = clipping(), 0.1 * images
    assert not _clip(model, data).any()
    equalized = Equalizer(model, [data], clipped=True).equalized(0.5)
    assert equalized is not None
    assert _same(model, equalized, data)
    assert equalized.get_layer("clip").max_value is None
    # This is said wherever it is offered: larger inputs are no longer clipped.
    assert not _same(model, equalized, 30 * images)


def test_a_removed_limit_of_an_activation_stays_in_its_layer(images):
    """A layer of its own would have a name that recipes for the trained network do not know."""
    x = keras.Input((12, 12, 3), name="image")
    y = layers.Conv2D(8, 3, activation="relu6", name="first")(x)
    model = keras.Model(x, layers.Conv2D(4, 1, name="scores")(y))
    data = 0.1 * images
    equalized = Equalizer(model, [data], clipped=True).equalized(0.5)
    assert equalized is not None
    assert [layer.name for layer in equalized.layers] == [layer.name for layer in model.layers]
    assert equalized.get_layer("first").activation is keras.activations.relu
    assert _same(model, equalized, data)
    assert not _same(model, equalized, 1000 * images)


def test_nothing_is_offered_for_clipped_relus_where_there_are_none(images):
    assert not Equalizer(uneven(), [images], clipped=True).possible


def test_one_of_two_layers_before_an_addition_with_relu6_is_scaled(images):
    x = keras.Input((12, 12, 3), name="image")
    a, b = (layers.Conv2D(8, 3, padding="same", name=name)(x) for name in "ab")
    y = layers.ReLU(6.0)(layers.Add()([a, b]))
    model = keras.Model(x, layers.Conv2D(4, 1, name="scores")(y))
    for name in "ab":
        kernel = model.get_layer(name).kernel
        kernel.assign(kernel * np.geomspace(0.1, 10, 8))
    equalized = Equalizer(model, [3 * images], clipped=True).equalized(0.5)
    assert equalized is not None
    assert _same(model, equalized, 3 * images)


def test_an_int8_file_with_relu6_gains_on_samples_that_were_not_used(images, export):
    model, data = clipping(), 3 * images
    truth = np.asarray(model(data[1::2]), np.float64)
    noise = []
    for recipe in (rl.Recipe(), rl.Recipe(equalize=0.5, across_relu6=True)):
        manifest, folder = export(
            model,
            formats=("tflite",),
            precisions=("int8",),
            calibration=data[::2],
            equalize="never",
            recipe=recipe,
        )
        (artifact,) = manifest.artifacts
        outputs = run_artifact(artifact, folder, {"image": data[1::2]})
        noise.append(np.mean((outputs["scores"] - truth) ** 2))
    assert 10 * np.log10(noise[0] / noise[1]) > 10


def test_a_recipe_for_relu6_is_refused_where_it_says_nothing(images, export):
    with pytest.raises(rl.UserError, match="across_relu6 of a recipe extends its equalization"):
        rl.Recipe(across_relu6=True)
    recipe = rl.Recipe(equalize=0.5, across_relu6=True)
    with pytest.raises(rl.UserError, match="or across_relu6 to false"):
        export(uneven(), precisions=("int8",), calibration=images, recipe=recipe)
