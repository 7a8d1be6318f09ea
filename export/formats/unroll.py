"""Recurrent layers without a loop, for quantizers that cannot look into one.

TensorFlow's calibrator ends its process on a loop, and onnxruntime's quantizer leaves the weights
in its body as they are. A sequence of known length needs no loop: Keras can write one step after
the other into the graph.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any

import keras

from ...errors import UserError
from ..fold.keras_graph import layers_inside

#: Most steps that are written out, those of all recurrent layers of a network together. At 256
#: steps of an LSTM an int8 TFLite file has 4,000 operators and takes half a minute to convert, an
#: ONNX file 13,000 and five minutes.
MOST_STEPS = 256

_WITHOUT_LOOPS = {
    ("tflite", "int8"),
    ("tflite", "int16x8"),
    ("onnx", "dynamic"),
    ("onnx", "int8"),
}


def must_unroll(model: keras.Model, format_name: str, precision: str) -> bool:
    """Tell whether a model has recurrent layers that a kind of file cannot hold as loops."""
    return (format_name, precision) in _WITHOUT_LOOPS and any(_recurrent_layers(model))


@contextlib.contextmanager
def unrolled(model: keras.Layer) -> Iterator[dict[str, int]]:
    """Make every recurrent layer write its steps out for the time of a trace.

    Args:
        model: The model or layer; the layers inside it are changed and put back.

    Yields:
        Name of each recurrent layer to its number of steps, filled while the model is traced.

    Raises:
        UserError: A sequence has no known length, or there are more than `MOST_STEPS` steps.
    """
    steps: dict[str, int] = {}
    layers = list(_recurrent_layers(model))
    before = [layer.unroll for layer in layers]
    try:
        for layer in layers:
            layer.inner_loop = functools.partial(_counted, layer.inner_loop, layer.name, steps)
            layer.unroll = True
        yield steps
    finally:
        for layer, unroll in zip(layers, before, strict=True):
            layer.unroll = unroll
            del layer.inner_loop  # the class's own shows again


def _recurrent_layers(model: keras.Layer) -> Iterator[Any]:
    return (layer for layer in layers_inside(model) if isinstance(layer, keras.layers.RNN))


def _counted(
    inner_loop: Callable[..., Any],
    name: str,
    steps: dict[str, int],
    sequences: Any,
    *args: Any,
    **kwargs: Any,
) -> Any:
    """Run a layer's loop unless that would take too many steps."""
    length = sequences.shape[1]
    if length is None:
        raise UserError(
            f"Layer {name!r} reads sequences of unknown length. Files with integers hold one step "
            "after the other: build the model with the length that it will be deployed at."
        )
    steps[name] = steps.get(name, 0) + length
    if sum(steps.values()) > MOST_STEPS:
        raise UserError(
            f"Expected recurrent layers of at most {MOST_STEPS} steps together in files whose "
            f"quantizer cannot read loops. Received: {steps[name]} at layer {name!r}. Export "
            "float16 or a dynamic TFLite file, which keep the loop, or build the model with a "
            "shorter sequence."
        )
    return inner_loop(sequences, *args, **kwargs)
