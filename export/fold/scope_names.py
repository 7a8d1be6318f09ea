"""Layer names that TensorFlow refuses as scopes of a graph, out of the way while one is traced."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from typing import Any

import keras

from .keras_graph import layers_inside

_ACCEPTED = re.compile(r"[A-Za-z0-9.][A-Za-z0-9_.\\/>-]*")


@contextlib.contextmanager
def accepted_names(operation: Any) -> Iterator[None]:
    """Give layers inside an operation names that TensorFlow accepts, for the time of a trace.

    Keras would not clean up behind a refused one: it leaves the name in front of the weights of
    every layer that is built later.
    """
    layers = refused_layers(operation) if isinstance(operation, keras.Layer) else []
    names = [layer.name for layer in layers]
    try:
        for number, layer in enumerate(layers):
            layer.name = f"layer_{number}"
        yield
    finally:
        for layer, name in zip(layers, names, strict=True):
            layer.name = name


def refused_layers(layer: keras.Layer) -> list[keras.Layer]:
    """Return the layers inside one, itself included, whose names TensorFlow refuses."""
    return [inner for inner in layers_inside(layer) if not _ACCEPTED.fullmatch(inner.name)]
