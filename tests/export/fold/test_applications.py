"""Protects the result of folding well-known networks; benchmarks/fold_applications.py has all."""

from collections import Counter

import keras
import pytest
from keras import layers as kl
from renormlite import BatchRenormalization, export_model, fold
from renormlite.models.mlperf_tiny import NETWORKS

APPLICATIONS = {
    "MobileNetV2": {"alpha": 0.35},
    "MobileNetV3Small": {"include_preprocessing": False},
    "EfficientNetB0": {},
    "ResNet50V2": {},
    "DenseNet121": {},
}
# One ADD, fused with the relu behind it, where a norm stands before a relu and behind what cannot
# absorb: 59 of DenseNet's (its concatenations feed every later norm) and the first of ResNetV2's.
LEFT = {"ResNet50V2": {("ADD",): 1}, "DenseNet121": {("ADD",): 59}}


@pytest.mark.parametrize("name", APPLICATIONS)
def test_applications(name, randomized):
    keras.backend.clear_session()
    make = getattr(keras.applications, name)
    model = make(weights=None, input_shape=(32, 32, 3), classes=10, **APPLICATIONS[name])
    result = fold(randomized(model, positive=True))
    assert result.proof.passed
    assert not result.proof.rolled_back
    left = Counter(r.remaining_ops for r in result.report.records if r.remaining_ops)
    assert dict(left) == LEFT.get(name, {})


@pytest.mark.parametrize("after_activation", [False, True])
def test_norms_of_vgg(after_activation, randomized):
    """VGG has no norms. After the activation, only a positive scale can pass a maximum.

    There, a shift in front of zero padding becomes a channel of ones behind 8 channels, where that
    costs least, and one addition behind 16 and 32.
    """
    stack = [kl.Input((32, 32, 3))]

    def add(layer):
        norm = BatchRenormalization()
        stack.extend([layer, kl.ReLU(), norm] if after_activation else [layer, norm, kl.ReLU()])

    for filters in (8, 16, 32):
        for _ in range(2):
            add(kl.Conv2D(filters, 3, padding="same", use_bias=False))
        stack.append(kl.MaxPooling2D())
    stack.append(kl.Flatten())
    add(kl.Dense(64))
    result = fold(randomized(keras.Sequential([*stack, kl.Dense(10)]), positive=True))
    left = [record.remaining_ops for record in result.report.records]
    assert left == [(), (), *[("ADD",) if after_activation else ()] * 3, (), ()]
    assert result.proof.worst < 1e-10


@pytest.mark.parametrize("name", NETWORKS)
def test_exported_operations_are_those_of_the_network_without_norms(name, randomized, tmp_path):
    model = randomized(NETWORKS[name](BatchRenormalization))
    twin = NETWORKS[name](None)
    folded, plain = (
        export_model(network, tmp_path / label) for label, network in (("f", model), ("p", twin))
    )
    for ours, theirs in zip(folded.artifacts, plain.artifacts, strict=True):
        assert ours.format == theirs.format
        assert ours.ops == theirs.ops
