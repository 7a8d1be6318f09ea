"""Protects the golden set: it has samples of every kind, and expectations for unusual ones."""

from __future__ import annotations

from collections import Counter

import keras
import numpy as np
import renormlite as rl
from renormlite.artifacts.manifest import TensorSpec
from renormlite.export.fold import InputValues
from renormlite.export.golden_set import choose_samples
from renormlite.runtime_checks.end_to_end.bounds import SMALLEST_NORMAL

IMAGE = (TensorSpec("image", (None, 12, 12, 3), "float32"),)
FREE = (InputValues.free((12, 12, 3), "float32"),)


def test_every_kind(images):
    samples = choose_samples(IMAGE, FREE, {"image": images})
    assert Counter(samples.kind) == {
        "real": 16,
        "random": 8,
        "border": 4,
        "extreme": 2,
        "denormal": 2,
        "nonfinite": 2,
    }


def test_denormals_are_mixed_with_ordinary_numbers_and_alone(images):
    samples = choose_samples(IMAGE, FREE, {"image": images})
    kind = np.array(samples.kind)
    mixed, alone = np.abs(samples.inputs["image"][kind == "denormal"])
    assert mixed.dtype == np.float32
    for values in (mixed, alone):
        tiny = (values > 0) & (values < SMALLEST_NORMAL)
        assert 0.2 < tiny.mean() < 0.8
        assert (values == 0).any()
    assert (mixed > SMALLEST_NORMAL).any()
    assert not (alone >= SMALLEST_NORMAL).any()


def test_one_nan_and_both_infinities(images):
    nan, infinite = choose_samples(IMAGE, FREE, {"image": images}).inputs["image"][-2:]
    assert np.isnan(nan).sum() == 1
    assert (infinite == np.inf).sum() == (infinite == -np.inf).sum() == 1
    assert not np.isnan(infinite).any()


def test_integer_inputs_get_no_nan_and_no_infinity():
    one = (TensorSpec("tokens", (None, 5), "int32"),)
    values = (InputValues.free((5,), "int32"),)
    assert not {"denormal", "nonfinite"} & set(choose_samples(one, values, None).kind)
    both = choose_samples((*one, *IMAGE), (*values, *FREE), None)
    assert len(both.inputs["tokens"]) == len(both.inputs["image"]) == len(both.kind)
    assert {"denormal", "nonfinite"} < set(both.kind)


def test_a_whole_export_with_a_nan_that_stays_local(export):
    """A map keeps its finite places, and every file and precision passes on them."""
    keras.utils.set_random_seed(1)
    layers = keras.layers
    image = keras.Input((12, 12, 3), name="image")
    x = layers.ReLU()(layers.Conv2D(8, 3, padding="same")(image))
    model = keras.Model(image, layers.Conv2D(2, 3, padding="same", name="map")(x))
    data = np.random.default_rng(0).normal(size=(16, 12, 12, 3)).astype(np.float32)
    _, directory = export(model, inputs=data, precisions=("float32", "dynamic"))
    with np.load(directory / "golden.npz") as golden:
        odd = golden["reference:map"][golden["kind"] == "nonfinite"]
    assert 0 < np.isnan(odd).mean() < 0.5
    report = rl.check_parity(directory, ("litert", "litert+reference", "onnxruntime"), per_op=True)
    failed = [f.message for r in report.results for f in r.findings if not f.passed]
    assert report.passed, failed
    assert "nonfinite (2)" in report.to_html()


def test_the_reference_of_a_model_in_half_precision_is_computed_in_float32(export):
    """Its error is a part of the noise that float32 files may have."""
    x = keras.Input((4,), name="x")
    hidden = keras.layers.Dense(8, activation="relu", dtype="mixed_float16")(x)
    model = keras.Model(x, keras.layers.Dense(3, dtype="mixed_float16", name="y")(hidden))
    _, folder = export(model, formats=("tflite",))
    with np.load(folder / "golden.npz") as golden:
        usual = golden["kind"] == "random"
        truth, reference = golden["truth:y"][usual], golden["reference:y"][usual]
    assert 0 < np.abs(reference - truth).max() < 1e-5 * np.abs(truth).max()
