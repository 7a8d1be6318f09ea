"""Protects the detection of own samples that do not suit the network."""

from __future__ import annotations

import numpy as np
import pytest
from renormlite import Preprocessing, check_parity, export_model

CLASSES = 3


def colours(count: int, seed: int):
    """Images whose strongest channel is their class, in 0..1."""
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.arange(count) % CLASSES)
    images = rng.uniform(0, 0.4, (count, 6, 6, 3))
    images[np.arange(count), :, :, labels] += 0.5
    return images.astype("f4"), labels


@pytest.fixture(scope="module")
def export(tmp_path_factory):
    """A network that is right on every one of these images."""
    import keras
    from keras import layers

    image = keras.Input((6, 6, 3), name="image")
    x = layers.GlobalAveragePooling2D()(image)
    scores = layers.Dense(CLASSES, activation="softmax", name="scores")(x)
    model = keras.Model(image, scores)
    model.get_layer("scores").set_weights([20 * np.eye(CLASSES), np.zeros(CLASSES)])
    folder = tmp_path_factory.mktemp("colours") / "colours"
    export_model(
        model,
        folder,
        formats=("onnx",),
        inputs=colours(16, 1)[0],
        preprocessing=Preprocessing(mean=0.0, scale=1 / 255),
    )
    return folder


WRONG = {
    "blue first bytes": (
        lambda x, y: (255 * x[..., ::-1], y),
        "exchanging channels 0 and 2 and values divided by 255 of 'image'",
    ),
    "channels first in memory": (
        lambda x, y: (np.moveaxis(x, -1, 1).reshape(x.shape), y),
        "reading the memory with channels first (NCHW) of 'image'",
    ),
    "labels one late": (
        lambda x, y: (x, np.roll(y, 1)),
        "labels of the sample before (shifted by one) would make it right on 100 %",
    ),
    "bytes": (
        lambda x, y: (255 * x, y),
        "229.5, the export's real ones in 3.842e-05..0.8996; 99 %",
    ),
    "centred": (lambda x, y: (2 * x - 1, y), "% of the values are outside"),
    "narrow": (lambda x, y: (x / 255, y), "preprocess them as in training"),
    "blue first": (
        lambda x, y: (x[..., ::-1], y),
        "right on 33 % of 60 own samples (output 'scores'), chance is 33 %: labels in another "
        "order (0 is 2, 2 is 0) or exchanging channels 0 and 2 of 'image' would make it right on "
        "100 %",
    ),
    "labels": (
        lambda x, y: (x, (y + 1) % CLASSES),
        "labels in another order (0 is 2, 1 is 0, 2 is 1) would make it right on 100 %",
    ),
    "nothing finite": (
        lambda x, y: (np.where(x == x[:, :1, :1], np.nan, x), y),
        "every own sample of 'image' contains NaN or infinity",
    ),
    "inverted": (
        lambda x, y: (0.9 - x, y),
        "values subtracted from 1 of 'image' would make it right on 100 %",
    ),
}


def findings(export, images, labels):
    report = check_parity(export, inputs={"image": images, "label": labels})
    assert all(result.passed for result in report.results)  # the files are right in any case
    assert report.passed == all(finding.passed for finding in report.findings)
    return report.findings


def test_samples_of_training_are_fine(export):
    assert findings(export, *colours(60, 2)) == ()


@pytest.mark.parametrize("case", WRONG)
def test_samples_that_do_not_suit_the_network_fail(export, case):
    change, sentence = WRONG[case]
    found = findings(export, *change(*colours(60, 2)))
    assert any(not finding.passed for finding in found)
    assert any(sentence in finding.message for finding in found), found


def test_unexplained_labels_give_a_note(export):
    images, labels = colours(60, 2)
    found = findings(export, images, np.random.default_rng(0).permutation(labels))
    assert [finding.passed for finding in found] == [True]
    assert "check the preprocessing and the order of the labels" in found[0].message


def test_preprocessing_against_the_manifest(export, tmp_path):
    from PIL import Image

    images, _ = colours(4, 3)
    for place, image in enumerate(images):
        Image.fromarray((255 * image).astype("u1")).save(tmp_path / f"{place}.png")

    def failed(preprocessing):
        report = check_parity(export, inputs=tmp_path, preprocessing=preprocessing)
        return {finding.subject for finding in report.findings if not finding.passed}

    assert failed(None) == set()
    assert failed(Preprocessing(mean=0.0, scale=1 / 255)) == set()
    assert failed(Preprocessing(mean=127.5, scale=1 / 127.5)) == {"mean", "scale", "image"}
