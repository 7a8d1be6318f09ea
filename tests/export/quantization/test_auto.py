"""Protects the search for a better int8 file: what stays measured better, and can be replayed."""

from __future__ import annotations

import dataclasses
import json

import keras
import numpy as np
import pytest
import renormlite as rl
from click.testing import CliRunner
from keras import layers
from renormlite.cli.export import command
from renormlite.cli.recipes import read_recipe
from renormlite.export.fold import fold
from renormlite.export.quantization.budget import Budget
from renormlite.export.quantization.pareto import pareto
from renormlite.export.quantization.range_choice import Histogram
from renormlite.export.quantization.recipe import Recipe
from renormlite.export.quantization.search import CostlyLayer, Search, Trial
from renormlite.export.quantization.weight_rounding import with_rounded_weights


def _network() -> keras.Model:
    """Every kind of layer whose weights are rounded, with unlike channels."""
    keras.utils.set_random_seed(0)
    x = keras.Input((12, 12, 3), name="image")
    y = layers.Conv2D(8, 3, padding="same", activation="relu", name="first")(x)
    y = layers.DepthwiseConv2D(3, strides=2, padding="same", activation="relu", name="depth")(y)
    y = layers.Conv2D(8, 3, groups=2, activation="relu", name="grouped")(y)
    y = layers.Reshape((-1, 8))(y)
    y = layers.Conv1D(8, 3, padding="valid", activation="relu", name="line")(y)
    model = keras.Model(x, layers.Dense(5, name="scores")(layers.Flatten()(y)))
    spread = 10 ** np.random.default_rng(0).uniform(-1, 1, 8).astype(np.float32)
    model.get_layer("first").kernel.assign(model.get_layer("first").kernel * spread)
    return model


def _ratio(model: keras.Model, other: keras.Model, data: np.ndarray) -> float:
    wanted, got = np.asarray(model(data)), np.asarray(other(data))
    return float(10 * np.log10(np.sum(wanted**2) / np.sum((got - wanted) ** 2)))


def test_adaptive_rounding_helps_on_held_out_samples(images):
    model = fold(_network()).model
    nearest, adaptive = (
        with_rounded_weights(model, [images[:32]], adaptive=chosen, correct_bias=False)
        for chosen in (False, True)
    )
    gain = _ratio(model, adaptive, images[32:]) - _ratio(model, nearest, images[32:])
    assert gain > 3


def test_recurrent_layers_are_rounded_adaptively_in_both_directions():
    keras.utils.set_random_seed(0)
    data = np.random.default_rng(0).normal(size=(64, 8, 12)).cumsum(2).astype(np.float32)
    x = keras.Input((8, 12), name="steps")
    for layer in (
        layers.LSTM(12, return_sequences=True),
        layers.GRU(12, go_backwards=True),
        layers.Bidirectional(layers.SimpleRNN(12)),
    ):
        model = keras.Model(x, layer(x))
        nearest, adaptive = (
            with_rounded_weights(model, [data[:32]], adaptive=chosen, correct_bias=False)
            for chosen in (False, True)
        )
        assert not np.array_equal(nearest.get_weights()[1], model.get_weights()[1])
        gain = _ratio(model, adaptive, data[32:]) - _ratio(model, nearest, data[32:])
        assert gain > 2, (layer.name, gain)


def test_projections_of_attention_are_rounded_adaptively():
    keras.utils.set_random_seed(0)
    x = keras.Input((8, 16), name="tokens")
    model = keras.Model(x, layers.MultiHeadAttention(2, 8, name="attention")(x, x))
    data = np.random.default_rng(0).normal(size=(64, 8, 16)).cumsum(2).astype(np.float32)
    nearest, adaptive = (
        with_rounded_weights(model, [data[:32]], adaptive=chosen, correct_bias=False)
        for chosen in (False, True)
    )
    gain = _ratio(model, adaptive, data[32:]) - _ratio(model, nearest, data[32:])
    assert gain > 3
    kept = with_rounded_weights(
        model, [data], adaptive=True, correct_bias=True, exclude=("attention",)
    )
    for before, after in zip(model.get_weights(), kept.get_weights(), strict=True):
        np.testing.assert_array_equal(before, after)


def test_re_estimated_statistics_restore_mean_and_deviation_of_every_channel(images):
    x = keras.Input((12, 12, 3), name="image")
    model = keras.Model(x, layers.Conv2D(6, 3, padding="same", name="only")(x))
    data = images[:16]
    rounded = with_rounded_weights(
        model, [data], adaptive=False, correct_bias=False, statistics=True
    )
    wanted, got = (np.asarray(m(data)).reshape(-1, 6) for m in (model, rounded))
    np.testing.assert_allclose(got.std(axis=0), wanted.std(axis=0), rtol=1e-5)
    np.testing.assert_allclose(got.mean(axis=0), wanted.mean(axis=0), atol=1e-5)


def test_a_corrected_bias_leaves_no_mean_error(images):
    x = keras.Input((12, 12, 3), name="image")
    model = keras.Model(x, layers.Conv2D(6, 3, padding="same", name="only")(x))
    means = []
    for correct in (False, True):
        rounded = with_rounded_weights(model, [images[:16]], adaptive=False, correct_bias=correct)
        error = np.asarray(rounded(images[:16])) - np.asarray(model(images[:16]))
        means.append(np.abs(error.mean(axis=(0, 1, 2))).max())
    assert means[1] < means[0] / 100


def test_rounded_weights_are_on_the_steps_that_quantizers_choose(images):
    model = fold(_network()).model
    rounded = with_rounded_weights(
        model, [images], adaptive=True, correct_bias=False, exclude=("line",)
    )
    for name, axes in {
        "first": (0, 1, 2),
        "depth": (0, 1),
        "grouped": (0, 1, 2),
        "scores": 0,
    }.items():
        kernel = np.asarray(rounded.get_layer(name).kernel, np.float64)
        before = np.asarray(model.get_layer(name).kernel, np.float64)
        steps = np.abs(before).max(axis=axes, keepdims=True) / 127
        integers = kernel / steps
        np.testing.assert_allclose(integers, np.rint(integers), atol=1e-3)
        np.testing.assert_allclose(np.abs(kernel).max(axis=axes, keepdims=True) / 127, steps, 1e-5)
        assert np.abs(kernel - before).max() < 20 * steps.max()
    np.testing.assert_array_equal(rounded.get_layer("line").kernel, model.get_layer("line").kernel)


def test_the_best_range_equals_that_of_an_exhaustive_search():
    generator = np.random.default_rng(0)
    values = np.concatenate([generator.normal(size=1_000_000), [12.0]]).astype(np.float32)
    values = np.maximum(values, 0)
    histogram = Histogram(0.0, 12.0)
    histogram.add(values)

    def error(high: float) -> float:
        step = high / 255
        return float(np.mean((np.clip(np.rint(values / step), 0, 255) * step - values) ** 2))

    low, high = histogram.range("mse")
    tried = {end: error(end) for end in np.linspace(3, 12, 40)}
    assert low == 0
    assert error(high) < 1.05 * min(tried.values())
    assert error(high) < error(12.0) / 1.5
    assert histogram.range("min-max") == (0.0, 12.0)
    assert histogram.range("percentile")[1] < 6


def _search(snr, budget="", wide=True, costly=("a", "b", "c")):
    """Search with files whose ratio and size follow from the recipe."""

    def attempt(recipe: Recipe) -> Trial:
        kept = len(recipe.keep_int16) + len(recipe.keep_float)
        return Trial(recipe, 1000 + 20 * kept, 1.0 + kept, snr(recipe))

    found = [CostlyLayer(name, 9.0, "its channels differ by 200x") for name in costly]
    return Search(attempt, lambda: found, Budget.parse(budget), wide=wide, base=Recipe()).run()


def test_changes_that_do_not_improve_the_measurement_are_dropped():
    found = _search(lambda recipe: 30.0 - 5 * (recipe != Recipe()))
    assert found.chosen.recipe == Recipe()
    assert "no change improved" in found.sentence


def test_cheap_repairs_are_tried_before_layers_are_kept_in_float():
    def snr(recipe: Recipe) -> float:
        return 20 + 4 * (recipe.equalize == 0.25) + 5 * len(recipe.keep_int16)

    found = _search(snr)
    assert found.chosen.recipe == Recipe(equalize=0.25, keep_int16=("a", "b"))
    assert "equalizing channels (strength 0.25) gained 4.0 dB" in found.sentence
    assert "layer 'a' cost 9.0 dB: its channels differ by 200x" in found.sentence
    assert found.trials[0].recipe == Recipe()


@pytest.mark.parametrize(
    ("budget", "kept"), [("1010B", 0), ("1025B", 1), ("2.5ms", 1), ("25dB", 1), ("", 2)]
)
def test_a_budget_holds(budget, kept):
    found = _search(lambda r: 20.0 + 5 * len(r.keep_int16), budget, costly=("a", "b"))
    assert len(found.chosen.recipe.keep_int16) == kept


def test_a_layer_that_cannot_be_kept_does_not_block_others():
    def attempt(recipe: Recipe) -> Trial | None:
        if "a" in recipe.keep_int16:
            return None
        return Trial(recipe, 1000, 1.0, 20.0 + 14 * ("b" in recipe.keep_int16))

    costly = [CostlyLayer(name, 5.0, "why") for name in "abc"]
    search = Search(attempt, lambda: costly, Budget(), wide=True, base=Recipe())
    assert search.run().chosen.recipe == Recipe(keep_int16=("b",))


def test_the_cause_of_the_most_expensive_layer_is_treated_first():
    order: list[Recipe] = []

    def attempt(recipe: Recipe) -> Trial:
        order.append(recipe)
        return Trial(recipe, 1000, 1.0, 20.0)

    for cause, field in (("ranges", "ranges"), ("weights", "rounding"), ("channels", "equalize")):
        order.clear()
        costly = [CostlyLayer("a", 5.0, "why", cause)]
        Search(attempt, lambda c=costly: c, Budget(), wide=False, base=Recipe()).run()
        first = next(recipe for recipe in order[1:] if recipe.fold)
        assert getattr(first, field) != getattr(Recipe(), field)


def test_all_layers_get_16_bits_and_weights_are_rounded_again_if_they_limit_the_file():
    def attempt(recipe: Recipe) -> Trial:
        wide = recipe.keep_int16 == ("*",)
        gain = 8 * wide + 6 * (wide and recipe.rounding == "adaptive")
        return Trial(recipe, 1000, 1.0, 20.0 + gain)

    found = Search(attempt, list, Budget(), wide=True, base=Recipe()).run()
    assert found.chosen.recipe == Recipe(keep_int16=("*",), rounding="adaptive")
    assert "16-bit activations for all layers gained 8.0 dB" in found.sentence


def test_the_equalization_is_reconsidered_once_activations_have_16_bits():
    def attempt(recipe: Recipe) -> Trial:
        wide, equalized = recipe.keep_int16 == ("*",), recipe.equalize is not None
        return Trial(recipe, 1000, 1.0, 20.0 + 12 * wide + (-5 if wide else 4) * equalized)

    found = Search(attempt, list, Budget(), wide=True, base=Recipe()).run()
    assert found.chosen.recipe == Recipe(keep_int16=("*",))
    assert "leaving out the equalization of channels again gained 5.0 dB" in found.sentence


def test_channels_are_equalized_for_the_weights_once_activations_have_16_bits():
    def attempt(recipe: Recipe) -> Trial:
        wide, weights = recipe.keep_int16 == ("*",), recipe.equalize == 0.0
        return Trial(recipe, 1000, 1.0, 20.0 + 5 * wide + (8 if wide else -3) * weights)

    found = Search(attempt, list, Budget(), wide=True, base=Recipe()).run()
    assert found.chosen.recipe == Recipe(keep_int16=("*",), equalize=0.0)
    assert "equalizing channels for the weights alone gained 8.0 dB" in found.sentence


def test_weights_may_hide_what_16_bit_activations_gain():
    def attempt(recipe: Recipe) -> Trial:
        wide, adaptive = recipe.keep_int16 == ("*",), recipe.rounding == "adaptive"
        return Trial(recipe, 1000, 1.0, 20.0 - 2 * wide + 9 * (wide and adaptive))

    found = Search(attempt, list, Budget(), wide=True, base=Recipe()).run()
    assert found.chosen.recipe == Recipe(keep_int16=("*",), rounding="adaptive")
    assert "16-bit activations for all layers (-2.0 dB); adaptive rounding" in found.sentence
    # If the file with the most layers gains nothing, the best one is tried.
    found = _search(lambda r: 20 + (len(r.keep_int16) > 1) * (5 + 4 * (r.rounding != "nearest")))
    assert found.chosen.recipe == Recipe(keep_int16=("a", "b"), rounding="adaptive")
    found = Search(
        lambda r: Trial(r, 1000, 1.0, 20.0 - 2 * bool(r.keep_int16)),
        list,
        Budget(),
        wide=True,
        base=Recipe(),
    ).run()
    assert found.chosen.recipe == Recipe()
    assert "16-bit" not in found.sentence


def test_the_network_before_folding_is_used_where_it_is_better():
    def attempt(recipe: Recipe) -> Trial:
        return Trial(recipe, 1000, 1.0, 20.0 + 5 * (not recipe.fold))

    found = Search(attempt, list, Budget(), wide=True, base=Recipe()).run()
    assert found.chosen.recipe == Recipe(fold=False)


def test_the_front_holds_the_files_that_no_other_dominates():
    trials = tuple(
        Trial(Recipe(), size, 1.0, ratio) for size, ratio in ((10, 5.0), (9, 6.0), (12, 8.0))
    )
    assert [trial.bytes for trial in pareto(trials)] == [9, 12]


def test_wrong_recipes_and_budgets_are_refused_in_one_sentence(tmp_path):
    with pytest.raises(rl.UserError, match="Expected a budget such as"):
        Budget.parse("12 apples")
    with pytest.raises(rl.UserError, match="rounding of a recipe"):
        Recipe(rounding="up")
    with pytest.raises(rl.UserError, match="fold: false"):
        Recipe(fold=False, equalize=0.5)
    with pytest.raises(rl.UserError, match="statistics of a recipe to be true or false"):
        Recipe(statistics="yes")
    with pytest.raises(rl.UserError, match="keys of a recipe"):
        Recipe.from_json({"speed": 1})
    (tmp_path / "r.json").write_text("{")
    with pytest.raises(rl.UserError, match="is not a JSON file"):
        read_recipe(tmp_path / "r.json")
    recipe = Recipe(equalize=0.5, keep_float=("a",))
    assert Recipe.from_json(json.loads(json.dumps(recipe.to_json()))) == recipe


def test_an_auto_file_is_better_is_checked_and_its_recipe_is_replayed(images, tmp_path):
    model = _network()
    model.save(tmp_path / "net.keras")
    np.save(tmp_path / "images.npy", images)
    options = ["--to", "tflite", "--calibration", str(tmp_path / "images.npy")]
    out = tmp_path / "net"
    run = CliRunner().invoke(
        command,
        [str(tmp_path / "net.keras"), "-o", str(out), "--precision", "auto", *options],
        catch_exceptions=False,
    )
    assert run.exit_code == 0, run.output
    record = json.loads((out / "net.auto.tflite.recipe.json").read_text())
    plain, best = record["trials"][0], max(t["snr_db"] for t in record["trials"])
    chosen = next(t for t in record["trials"] if t["recipe"] == record["recipe"])
    assert chosen["snr_db"] > plain["snr_db"] + 3
    assert chosen["snr_db"] <= best
    assert chosen["bytes"] <= 1.1 * plain["bytes"]
    assert (out / "net.auto.tflite.svg").read_bytes().startswith(b"<?xml")
    assert rl.check_parity(out, per_op=True).passed
    again = tmp_path / "again"
    recipe = ["--recipe", str(out / "net.auto.tflite.recipe.json")]
    run = CliRunner().invoke(
        command,
        [str(tmp_path / "net.keras"), "-o", str(again), "--precision", "int8", *recipe, *options],
        catch_exceptions=False,
    )
    assert run.exit_code == 0, run.output
    (replayed,) = rl.Manifest.load(again).artifacts
    (searched,) = rl.Manifest.load(out).artifacts
    assert replayed.ops == searched.ops
    assert "made by a recipe" in replayed.notes


def test_auto_needs_real_samples_and_enough_of_them(images, tmp_path):
    for calibration, message in (
        ("random", "real samples"),
        (images[:4], "at least 8 real samples"),
    ):
        with pytest.raises(rl.UserError, match=message):
            rl.export_model(
                _network(), tmp_path / "net", precisions=("auto",), calibration=calibration
            )
    with pytest.raises(rl.UserError, match="budget is for auto"):
        rl.export_model(_network(), tmp_path / "net", budget="1KB")
    assert dataclasses.asdict(Budget.parse("1KiB,3ms")) == {
        "bytes": 1024, "milliseconds": 3.0, "decibels": None,
    }  # fmt: skip
