"""Replaces layer names that TensorFlow refuses as graph scopes while a graph is traced."""

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
    """Give the layers inside an operation names that TensorFlow accepts, within the block.

    If a name is refused, Keras does not clean up: the name remains a prefix of the weights of all
    layers that are built later.
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
    """Return the layers, among a layer and its inner layers, whose names TensorFlow refuses."""
    return [inner for inner in layers_inside(layer) if not _ACCEPTED.fullmatch(inner.name)]
