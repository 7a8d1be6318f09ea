"""Protects which norms stay trainable in quantization-aware training: those of one linear layer."""

from __future__ import annotations

import keras
import pytest
from keras import layers as kl
from renormlite import BatchRenormalization
from renormlite.export.fold.keras_graph import read_graph
from renormlite.export.fold.live import take_out_live_norms
from renormlite.export.fold.recognize import recognize


def live(outputs, excluded=()) -> dict[str, str]:
    """Return the linear layers whose norms stay, and these norms, of a model of 8 x 8 pixels."""
    x = keras.Input((8, 8, 3))
    model = keras.Model(x, outputs(x))
    graph = read_graph(model)
    recognize(graph)
    found = take_out_live_norms(graph, excluded)
    left = {call.name for call in graph.calls()}
    assert not left & {norm.name for norm in found.values()}
    return {call.name: norm.name for call, norm in found.items()}


def conv(name="conv", **options):
    return kl.Conv2D(3, 3, padding="same", name=name, **options)


@pytest.mark.parametrize("norm", [kl.BatchNormalization, BatchRenormalization])
def test_a_norm_of_one_convolution_stays(norm):
    assert live(lambda x: kl.ReLU()(norm(name="norm")(conv()(x)))) == {"conv": "norm"}


def test_excluded_norms_do_not():
    def two(x):
        return kl.BatchNormalization(name="n2")(
            conv("c2")(kl.BatchNormalization(name="n1")(conv("c1")(x)))
        )

    assert live(two) == {"c1": "n1", "c2": "n2"}
    assert live(two, excluded=("n1",)) == {"c2": "n2"}


def test_norms_of_anything_else_do_not():
    norm = kl.BatchNormalization
    assert live(lambda x: norm()(kl.ReLU()(conv()(x)))) == {}
    assert live(lambda x: norm()(conv(activation="relu")(x))) == {}
    assert live(lambda x: norm()(x)) == {}
    assert live(lambda x: norm()(kl.Add()([conv("a")(x), conv("b")(x)]))) == {}
    assert live(lambda x: kl.Rescaling(2.0)(conv()(x))) == {}


def test_a_convolution_with_another_reader_keeps_its_numbers():
    def branches(x):
        y = conv()(x)
        return [kl.BatchNormalization()(y), kl.ReLU()(y)]

    assert live(branches) == {}


def test_layers_and_norms_that_are_called_twice_do_not():
    def shared_layer(x):
        layer = conv()
        return kl.BatchNormalization()(layer(layer(x)))

    def shared_norm(x):
        norm = kl.BatchNormalization()
        return kl.Concatenate()([norm(conv("a")(x)), norm(conv("b")(x))])

    assert live(shared_layer) == {}
    assert live(shared_norm) == {}
