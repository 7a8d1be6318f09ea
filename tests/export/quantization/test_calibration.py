"""Protects calibration: noise is refused, batches are as a file takes them."""

from __future__ import annotations

import numpy as np
import pytest
import renormlite as rl
from renormlite.artifacts.manifest import TensorSpec
from renormlite.export.fold import InputValues
from renormlite.export.quantization.calibration import load_calibration, looks_like_noise

IMAGE = (TensorSpec("image", (None, 12, 12, 3), "float32"),)
FREE = (InputValues.free((12, 12, 3), "float32"),)


def test_noise_is_refused_as_calibration_and_real_images_are_not(images):
    noise = np.random.default_rng(0).random((48, 12, 12, 3), np.float32)
    with pytest.raises(rl.UserError, match="random noise"):
        load_calibration(noise, IMAGE, FREE, limit=48)
    assert load_calibration(images, IMAGE, FREE, limit=48).random is False


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("kind", ["uniform", "normal", "bytes"])
def test_noise_of_any_kind_is_recognised(kind, seed):
    generator = np.random.default_rng(seed)
    shape = (20, 16, 16, 1)
    made = {
        "uniform": generator.random(shape),
        "normal": generator.standard_normal(shape),
        "bytes": generator.integers(0, 256, shape),
    }
    assert looks_like_noise(made[kind])


def test_handwritten_digits_are_not_taken_for_noise():
    from renormlite.models.data import handwritten_digits

    assert not looks_like_noise(handwritten_digits().test.x)


def test_random_calibration_must_be_asked_for_by_name():
    calibration = load_calibration("random", IMAGE, FREE, limit=7)
    assert calibration.random is True
    assert calibration.samples.count == 7
    assert calibration.to_json()["source"].startswith("standard normal")


def test_random_calibration_is_recorded(small, export):
    manifest, _ = export(small, precisions=("int8",), calibration="random")
    assert manifest.calibration["random"] is True


def test_batches_have_the_files_size_and_order(images):
    calibration = load_calibration(images, IMAGE, FREE, limit=48)
    file = (TensorSpec("image", (10, 3, 12, 12), "float32", axes=(0, 3, 1, 2)),)
    batches = list(calibration.batches(file))
    assert [batch["image"].shape for batch in batches] == [(10, 3, 12, 12)] * 4
    np.testing.assert_array_equal(batches[1]["image"][0, 2], images[10, :, :, 2])


def test_too_few_samples_for_a_batch_are_repeated(images):
    calibration = load_calibration(images[:3], IMAGE, FREE, limit=48)
    (batch,) = calibration.batches((TensorSpec("image", (4, 12, 12, 3), "float32"),))
    np.testing.assert_array_equal(batch["image"][3], images[0])
