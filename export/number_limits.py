"""Limits of number formats and file sizes: refuses weights and reports activations beyond them."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import keras
import numpy as np

from ..artifacts.precisions import precision_named
from ..artifacts.ranges import GREATEST_HALF
from ..errors import UserError
from .fold.backend import view_of

# Quantizers multiply scales; the product of two larger numbers overflows float32.
_LARGEST_QUANTIZED = 2.0**63

# Offsets in a flatbuffer and lengths in a protocol buffer are signed 32-bit numbers. Both
# converters pass the weights in float32 through a protocol buffer, whatever the file's precision.
_LARGEST_FILE = 2**31 - 1
_WEIGHTS_AS_CONVERTED = 4  # bytes each

_BATCH = 4  # samples whose activations are in memory at the same time


def refuse_size(model: keras.Model, files: Sequence[tuple[str, str]]) -> None:
    """Refuse a model that is too large for a file format, before any work is done.

    Args:
        model: The model.
        files: Format and precision of the files to write.

    Raises:
        UserError: Its weights exceed 2 GB; the message says which files have that limit.
    """
    size = _WEIGHTS_AS_CONVERTED * model.count_params()
    limited = [
        f"{name} {p}"
        for name, p in files
        if name == "tflite" or (name == "onnx" and p != "float32")
    ]
    if limited and size > _LARGEST_FILE:
        raise UserError(
            f"Files of {', '.join(limited)} are written from at most {_LARGEST_FILE / 1e9:.1f} GB "
            f"of weights in float32. Received: {size / 1e9:.1f} GB. Export --to onnx in float32, "
            "whose weights are then in a second file, or --to saved_model; or split the model into "
            "models that run one after another."
        )


def refuse_weights(
    model: keras.Model, precisions: Sequence[str], exact: Collection[str] = ()
) -> None:
    """Refuse weights that are not finite or too large for a precision.

    Args:
        model: The folded model.
        precisions: The precisions to write.
        exact: Layers that compute in float32 in every precision.

    Raises:
        UserError: A weight is NaN, infinite or too large; the message names it.
    """
    quantized = [p for p in precisions if precision_named(p).quantized]
    for weight in model.weights:
        values = view_of(weight)
        if values.dtype.kind != "f" or not values.size:
            continue
        wrong = int(np.count_nonzero(~np.isfinite(values)))
        if wrong:
            raise UserError(
                f"Expected weights that are finite. Received: {wrong} of {values.size} numbers of "
                f"{weight.path!r} are NaN or infinite. Export a model from before its training "
                "diverged."
            )
        largest = float(np.abs(values).max()) if _layer_of(weight) not in exact else 0.0
        if quantized and largest > _LARGEST_QUANTIZED:
            raise UserError(
                f"{quantized[0]} supports weights up to {_LARGEST_QUANTIZED:.0e}. Received: "
                f"{largest:.1e} in {weight.path!r}. Export float32, or train the model so that its "
                "weights do not diverge."
            )
        if "float16" in precisions and largest > GREATEST_HALF:
            raise UserError(
                f"float16 holds numbers up to {GREATEST_HALF:.0f}. Received: {largest:.1e} in "
                f"{weight.path!r}. Export float32 or an integer precision."
            )


def _layer_of(weight: keras.Variable) -> str:
    path: str = weight.path
    return path.rpartition("/")[0]


def activations_beyond_half(
    model: keras.Model,
    names: Sequence[str],
    samples: Mapping[str, np.ndarray],
    *,
    exact: Collection[str] = (),
) -> tuple[str, ...]:
    """Return a note on layers whose outputs exceed half precision.

    Args:
        model: The folded model, functional.
        names: Names of its inputs in the samples, in order.
        samples: Finite samples by input name.
        exact: Layers that compute in float32 in any case.

    Returns:
        One sentence, or an empty tuple.
    """
    layers = [
        layer
        for layer in model.layers
        if len(layer._inbound_nodes) == 1 and layer.name not in exact
    ]
    outputs = {
        layer.name: [t for t in keras.tree.flatten(layer.output) if "float" in str(t.dtype)]
        for layer in layers
    }
    flat = [(name, tensor) for name, tensors in outputs.items() for tensor in tensors]
    if not flat:
        return ()
    watcher = keras.Model(model.inputs, [tensor for _, tensor in flat])
    largest: dict[str, float] = {}
    count = len(next(iter(samples.values())))
    for start in range(0, count, _BATCH):
        values = watcher([samples[name][start : start + _BATCH] for name in names], training=False)
        for (name, _), value in zip(flat, keras.tree.flatten(values), strict=True):
            peak = float(keras.ops.max(keras.ops.abs(value))) if 0 not in value.shape else 0.0
            largest[name] = max(largest.get(name, 0.0), peak)
    beyond = {name: peak for name, peak in largest.items() if peak > GREATEST_HALF}
    if not beyond:
        return ()
    listed = ", ".join(f"{name} ({peak:.1e})" for name, peak in beyond.items())
    return (
        f"activations exceed {GREATEST_HALF:.0f} on the samples: {listed}; they overflow to "
        "infinity on runtimes that compute in half precision",
    )
