"""Recurrent layers without a loop, for what cannot look into one.

TensorFlow's calibrator ends its process on a loop, onnxruntime's quantizers leave the weights in
its body as they are, and OpenVINO and ONNX's reference evaluator do not run the loops that tf2onnx
writes. A sequence of known length needs none: Keras can write one step after the other.
"""

from __future__ import annotations

import contextlib
import enum
import functools
from collections.abc import Iterator
from typing import Any

import keras

from ...errors import UserError
from ..fold.keras_graph import layers_inside

#: Most steps that are written out, those of all recurrent layers of a network together. At 256
#: steps of an LSTM an int8 TFLite file has 4,000 operators and takes half a minute to convert, an
#: ONNX file 13,000 and five minutes.
MOST_STEPS = 256


class Loops(enum.Enum):
    """What becomes of the loop of a recurrent layer."""

    KEPT = "every layer keeps its loop"
    SHORT_UNROLLED = "layers are unrolled as long as there are at most `MOST_STEPS` steps"
    UNROLLED = "all layers are unrolled, and more steps are refused"


_LOOPS = {
    ("tflite", "int8"): Loops.UNROLLED,
    ("tflite", "int16x8"): Loops.UNROLLED,
    ("onnx", "int8"): Loops.UNROLLED,
    ("tflite", "auto"): Loops.UNROLLED,
    ("onnx", "auto"): Loops.UNROLLED,
    ("onnx", "dynamic"): Loops.SHORT_UNROLLED,
    ("onnx", "float16"): Loops.SHORT_UNROLLED,
    ("onnx", "float32"): Loops.SHORT_UNROLLED,
}


def loops_for(model: keras.Model, format_name: str, precision: str) -> Loops:
    """Return what is to become of a model's loops in a kind of file."""
    if not any(_recurrent_layers(model)):
        return Loops.KEPT  # none: files of both kinds can be made from one trace
    return _LOOPS.get((format_name, precision), Loops.KEPT)


@contextlib.contextmanager
def unrolled(model: keras.Layer, loops: Loops) -> Iterator[dict[str, int]]:
    """Make recurrent layers write their steps out for the time of a trace.

    Args:
        model: The model or layer; the layers inside it are changed and put back.
        loops: Which of them.

    Yields:
        Name of each layer that is unrolled to its number of steps, filled while the model is
        traced.

    Raises:
        UserError: All are to be unrolled, and a sequence has no known length or there are more
            than `MOST_STEPS` steps.
    """
    steps: dict[str, int] = {}
    refusals: list[str] = []
    if loops is Loops.KEPT:
        yield steps
        return
    layers = list(_recurrent_layers(model))
    before = [layer.unroll for layer in layers]
    try:
        for layer in layers:
            layer.inner_loop = functools.partial(_inner_loop, layer, layer.name, steps, refusals)
        yield steps
    finally:
        for layer, unroll in zip(layers, before, strict=True):
            layer.unroll = unroll
            del layer.inner_loop  # the class's own shows again
    # Not sooner: Keras and TensorFlow wrap what is raised in a trace in pages of their own.
    if loops is Loops.UNROLLED and refusals:
        raise UserError(refusals[0])


def _recurrent_layers(model: keras.Layer) -> Iterator[Any]:
    return (layer for layer in layers_inside(model) if isinstance(layer, keras.layers.RNN))


def _inner_loop(
    layer: Any,
    name: str,
    steps: dict[str, int],
    refusals: list[str],
    sequences: Any,
    *args: Any,
    **kwargs: Any,
) -> Any:
    """Run a layer's loop, step by step where that is wanted and not too long."""
    length = sequences.shape[1]
    refusal = _refusal(name, length, sum(steps.values()))
    layer.unroll = not refusal
    if refusal:
        refusals.append(refusal)
    else:
        steps[name] = steps.get(name, 0) + length
    return type(layer).inner_loop(layer, sequences, *args, **kwargs)


def _refusal(name: str, length: int | None, before: int) -> str:
    """Return why a layer cannot be unrolled; empty if it can."""
    if length is None:
        return (
            f"Layer {name!r} reads sequences of unknown length, and files with integers hold one "
            "step after the other. Build the model with the length that it will be deployed at."
        )
    if before + length > MOST_STEPS:
        return (
            f"Expected recurrent layers of at most {MOST_STEPS} steps together in a file whose "
            f"quantizer cannot read loops. Received: {length} steps in layer {name!r}, {before} "
            "before it. Build the model with shorter sequences, or export float16 or a dynamic "
            "TFLite file, which keep the loop."
        )
    return ""
