"""Unrolls recurrent layers for tools that do not support loops.

TensorFlow's calibrator crashes on a loop, onnxruntime's quantizers do not quantize the weights in
its body, and OpenVINO and ONNX's reference evaluator do not run the loops that tf2onnx writes. For
sequences of known length, Keras can trace the steps one after the other.
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

#: Greatest total number of unrolled steps in a network. With 256 steps of an LSTM, an int8 TFLite
#: file has 4,000 operators and takes half a minute to convert, an ONNX file 13,000 operators and
#: five minutes.
MOST_STEPS = 256


class Loops(enum.Enum):
    """Treatment of the loops of recurrent layers."""

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
    """Return the treatment of a model's loops for a format and precision."""
    if not any(_recurrent_layers(model)):
        return Loops.KEPT  # without loops, all files can be made from one trace
    return _LOOPS.get((format_name, precision), Loops.KEPT)


@contextlib.contextmanager
def unrolled(model: keras.Layer, loops: Loops) -> Iterator[dict[str, int]]:
    """Unroll recurrent layers while a graph is traced.

    Args:
        model: The model or layer; its inner layers are changed and restored.
        loops: The treatment of its loops.

    Yields:
        Name of each layer that is unrolled to its number of steps, filled while the model is
        traced.

    Raises:
        UserError: All loops must be unrolled, but a sequence has no known length or there are more
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
            del layer.inner_loop  # restores the method of the class
    # Raised after the trace, since Keras and TensorFlow wrap errors raised during a trace.
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
    """Run a layer's loop, unrolled if the treatment and the number of steps allow it."""
    length = sequences.shape[1]
    refusal = _refusal(name, length, sum(steps.values()))
    was_unrolled, layer.unroll = layer.unroll, not refusal
    run = type(layer).inner_loop
    if refusal:
        refusals.append(refusal)
    else:
        steps[name] = steps.get(name, 0) + length
        if layer.go_backwards and kwargs["mask"] is not None and not was_unrolled:
            run = _forward_on_flipped
    return run(layer, sequences, *args, **kwargs)


def _forward_on_flipped(layer: Any, sequences: Any, *, mask: Any, **kwargs: Any) -> Any:
    """Run the steps of a layer that goes backwards on a flipped sequence.

    Keras' own unrolled steps set masked outputs to zero in the order of the sequence, and its loop
    does so in the order of the outputs, which is the reverse.
    """
    sequences, *masks = (keras.ops.flip(x, axis=1) for x in (sequences, *keras.tree.flatten(mask)))
    layer.go_backwards = False
    try:
        return type(layer).inner_loop(layer, sequences, mask=masks[0], **kwargs)
    finally:
        layer.go_backwards = True


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
