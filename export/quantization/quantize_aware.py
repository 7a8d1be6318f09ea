"""`quantize_aware`: converts a Keras model for quantization-aware training.

The network is read and folded as by `fold`, except for norms that stay trainable (`fold.live`).
Then every call is replaced by a layer that computes what the operator of the integer file computes;
layers that only move integers are kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras

from ...errors import UserError
from ...toolkit.quantize_aware.ranges import Range
from ...toolkit.quantize_aware.rounding import rounding_named
from ..fold.graph import Graph
from ..fold.keras_graph import read_graph
from ..fold.live import take_out_live_norms
from ..fold.passes import run
from ..fold.recognize import recognize
from ..fold.settle import settle
from .dense_form import dense_form
from .quantized_build import build_quantized
from .quantized_graph import Choices


def quantize_aware(
    model: keras.Model,
    *,
    weight_bits: int = 8,
    activation_bits: int = 8,
    float_layers: Sequence[str] = (),
    rounding: str = "float",
    ranges: str = "average",
    momentum: float = 0.99,
    percentile: float = 99.99,
    samples: Any = None,
    freeze_ranges_after: int | None = None,
    freeze_statistics_after: int | None = None,
) -> keras.Model:
    """Convert a model for quantization-aware training.

    Linear layers (each with the norm and the activation after it), additions, concatenations, means
    and pooling are replaced by layers that compute what the operators of the integer file compute.
    The result trains with ``compile`` and ``fit``, and can be saved and loaded like any model.
    ``renormlite.export_model(..., precisions=("int8",))`` needs no calibration for it.

    A norm directly after a linear layer stays trainable: in every step it is folded into the
    weights *before* they are quantized. Any other norm is folded once, as by `renormlite.fold`; if
    that is not possible, it becomes a separate operator.

    Args:
        model: Any built Keras model that `renormlite.fold` reads, trained or not. Not changed.
        weight_bits: Number of bits of the weights, from 2 to 8.
        activation_bits: Number of bits of the activations: 8, or 16 for int16x8.
        float_layers: Names of layers that stay in floating point.
        rounding: Arithmetic of the target: ``"float"`` is that of LiteRT (XNNPACK) and ONNX
            Runtime, ``"double"`` that of TFLite's reference kernels and TFLite Micro.
        ranges: Method that determines the ranges of activations: ``"average"`` (moving averages of
            the least and greatest value of each batch), ``"percentile"``, or ``"learned"``, which
            needs `samples`.
        momentum: Momentum of the moving averages.
        percentile: For ``"percentile"``: the percentage of values below the upper end.
        samples: Real inputs that determine the initial ranges: an array, or a list or dict of
            arrays. By default the first training batch determines them.
        freeze_ranges_after: Training steps after which the ranges are constant.
        freeze_statistics_after: Training steps after which norms run in inference mode.

    Returns:
        A functional model with the inputs and outputs of ``model``, not compiled.

    Raises:
        UserError: An option is out of range, or a layer has no integer operator; the message names
            the layer, which can be added to `float_layers`.

    Examples:
        >>> quantized = rl.quantize_aware(model)
        >>> quantized.compile("adam", "sparse_categorical_crossentropy")
        >>> quantized.fit(x, y, batch_size=32, epochs=5)
        >>> rl.export_model(quantized, "build/mine", precisions=("int8",))
    """
    if activation_bits not in (8, 16):
        raise UserError(f"Expected activation_bits to be 8 or 16. Received: {activation_bits}.")
    if not 2 <= weight_bits <= 8:
        raise UserError(f"Expected weight_bits from 2 to 8. Received: {weight_bits}.")
    if ranges == "learned" and samples is None:
        raise UserError(
            "Learned ranges need real inputs for their initial values. Give samples=…, or use "
            "ranges='average'."
        )
    rounding_named(rounding)
    example = Range(activation_bits, ranges, momentum, percentile, freeze_ranges_after)
    graph, live = _placed(model, frozenset(float_layers))
    known = {call.name for call in graph.calls()}
    unknown = sorted(set(float_layers) - known)
    if unknown:
        raise UserError(
            f"Expected float_layers to be names of layers of the folded network: "
            f"{', '.join(sorted(known))}. Received: {', '.join(unknown)}."
        )
    choices = Choices(
        weight_bits=weight_bits,
        rounding=rounding,
        output_range=example,
        freeze_statistics_after=freeze_statistics_after,
        float_layers=frozenset(float_layers),
    )
    quantized = build_quantized(graph, live, choices)
    if samples is not None:
        observe(quantized, samples)
    return quantized


def observe(model: keras.Model, samples: Any) -> None:
    """Run a model so that all of its ranges observe the values of real inputs.

    Args:
        model: A model made by `quantize_aware`.
        samples: Inputs of ``model``.
    """
    ranges = [layer for layer in model._flatten_layers() if isinstance(layer, Range)]
    for found in ranges:
        found.observing = True
    try:
        model(keras.tree.map_structure(keras.ops.convert_to_tensor, samples), training=False)
    finally:
        for found in ranges:
            found.observing = False


def _placed(model: keras.Model, float_layers: frozenset[str]) -> tuple[Graph, dict[Any, Any]]:
    """Return the folded graph, and the norms that stay trainable by call of a linear layer."""
    excluded: set[str] = set()
    while True:
        graph = read_graph(model, time_in_batch=lambda layer: layer.name not in float_layers)
        recognize(graph)
        live = take_out_live_norms(graph, excluded)
        run(graph, widen=False)
        settle(graph)
        # A layer with an extra channel for a constant, or with several axes that become the
        # channels of one matrix, cannot keep its norm.
        wider = [norm.name for call, norm in live.items() if _outgrows_norm(call.op)]
        if not wider:
            return graph, live
        excluded.update(wider)


def _outgrows_norm(op: Any) -> bool:
    form = dense_form(op)
    return op.gives is not None or (form is not None and len(form.outputs) > 1)


__all__ = ["observe", "quantize_aware"]
