"""`quantize_aware`: from any Keras model that `fold` reads to one that trains in integers.

The network is read and folded as `fold` does it, except for the norms that stay alive
(`fold.live`). Then every call becomes a layer that computes what the integer file's operator will,
or stays as it is where the operator only moves integers.
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
from ..fold.linear import Linear
from ..fold.live import take_out_live_norms
from ..fold.passes import run
from ..fold.recognize import recognize
from ..fold.settle import settle
from .quantized_build import Choices, build_quantized


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
    """Make a model that trains with the integers that its int8 file will compute with.

    Linear layers, each with the norm and the activation behind it, additions, concatenations, means
    and pools become layers that compute what the integer file's operators compute. The result
    trains with ``compile`` and ``fit``, saves and loads as any model does, and
    ``renormlite.export_model(..., precisions=("int8",))`` needs no calibration for it.

    A norm directly behind a linear layer stays alive: in every step it is folded into the weights
    *before* these are quantized. Any other norm is folded once, as `renormlite.fold` does it, or
    stays as an operator of its own where that finds no place for it.

    Args:
        model: Any built Keras model that `renormlite.fold` reads, trained or not. Not changed.
        weight_bits: Number of bits of the weights, from 2 to 8.
        activation_bits: Number of bits of everything between the layers: 8, or 16 for int16x8.
        float_layers: Names of layers that stay in floating point.
        rounding: Arithmetic of the target: ``"float"`` is that of LiteRT (XNNPACK) and ONNX
            Runtime, ``"double"`` that of TFLite's reference kernels and TFLite Micro.
        ranges: How the ranges of activations are found: ``"average"`` (moving averages of each
            batch's least and greatest number), ``"percentile"``, or ``"learned"``, which needs
            `samples` to begin with.
        momentum: Of the moving averages.
        percentile: For ``"percentile"``: the share of numbers below the upper end, in percent.
        samples: Real inputs that the ranges begin with: an array, a list or a dict of arrays. By
            default the first training batch sets them.
        freeze_ranges_after: Training steps after which the ranges stay as they are.
        freeze_statistics_after: Training steps after which norms infer in training too.

    Returns:
        A functional model with the inputs and outputs of ``model``, not compiled.

    Raises:
        UserError: An option is out of its range, or a layer has no integer operator; the message
            names the layer, which can be one of `float_layers`.

    Example:
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
            "Learned ranges need real inputs to begin with. Give samples=…, or take "
            "ranges='average'."
        )
    rounding_named(rounding)
    example = Range(activation_bits, ranges, momentum, percentile, freeze_ranges_after)
    graph, live = _placed(model)
    known = {call.name for call in graph.calls()}
    unknown = sorted(set(float_layers) - known)
    if unknown:
        raise UserError(
            f"Expected float_layers to be names of layers. Received: {', '.join(unknown)}, which "
            f"the folded network does not have. It has {', '.join(sorted(known))}."
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
    """Let every range of a model take in the values that real inputs lead to.

    Args:
        model: Made by `quantize_aware`.
        samples: Inputs as ``model`` takes them.
    """
    ranges = [layer for layer in model._flatten_layers() if isinstance(layer, Range)]
    for found in ranges:
        found.observing = True
    try:
        model(keras.tree.map_structure(keras.ops.convert_to_tensor, samples), training=False)
    finally:
        for found in ranges:
            found.observing = False


def _placed(model: keras.Model) -> tuple[Graph, dict[Any, Any]]:
    """Return the folded graph, and the norm of each call of a linear layer that keeps one alive."""
    excluded: set[str] = set()
    while True:
        graph = read_graph(model)
        recognize(graph)
        live = take_out_live_norms(graph, excluded)
        run(graph, widen=False)
        settle(graph)
        # A layer that gives one more channel, for a constant, has none for the norm.
        wider = [
            norm.name
            for call, norm in live.items()
            if isinstance(call.op, Linear) and call.op.gives is not None
        ]
        if not wider:
            return graph, live
        excluded.update(wider)


__all__ = ["observe", "quantize_aware"]
