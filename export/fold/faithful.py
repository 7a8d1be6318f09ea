"""Compares a network as it was read with the Keras model itself, which the proof does not run."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
from keras import tree

from ...errors import UserError
from .build import build
from .keras_graph import call_structure, layers_inside, read_graph
from .original import Original

# A wrong network differs in many elements. Single ones may differ where a function is not
# continuous, such as rounding or a maximum.
_LARGEST = 0.01  # RMS of the difference, relative to the RMS of the output
_NEAR = 0.001  # relative to the greatest output
_LARGEST_SHARE = 0.1


def in_half_precision(model: keras.Model) -> bool:
    """Return whether a layer computes in half precision, as under mixed_float16."""
    return any(layer.compute_dtype in ("float16", "bfloat16") for layer in layers_inside(model))


def require_faithful(model: keras.Model, names: list[str], original: Original) -> None:
    """Refuse a model that was read as a network that computes something else.

    A model that is not deterministic, or computes in half precision, is not compared.

    Args:
        model: The Keras model.
        names: Names of its outputs.
        original: The network that was read from it, with its outputs in float64.

    Raises:
        UserError: The outputs differ by more than rounding.
    """
    if in_half_precision(model):
        return
    rebuilt: keras.Model | None = None
    for (kind, inputs), truth in zip(original.batches, original.truth, strict=True):
        if kind == "extreme":  # rounding is large there
            continue
        got = _called(model, inputs)
        wrong = [
            place
            for place, (found, expected) in enumerate(zip(got, truth, strict=False))
            if found.dtype.kind == "f" and _differs(found, expected)
        ]
        if wrong:
            again = _called(model, inputs)
            wrong = [place for place in wrong if np.array_equal(got[place], again[place])]
        if wrong:
            # A network that amplifies rounding agrees with itself in one precision.
            rebuilt = build(read_graph(model), "float32") if rebuilt is None else rebuilt
            other = _called(rebuilt, inputs) or truth
            wrong = [place for place in wrong if _differs(got[place], other[place])]
        if wrong:
            raise UserError(
                f"The output {names[wrong[0]]!r} of the network read from the layers of "
                f"{model.name!r} differs from what the model itself returns, so that its files "
                "would be wrong. A layer that is composed of other layers may depend on something "
                "that they do not get when they are called one by one: use its parts in the "
                "functional model directly, or give the layer a `call` of keras.ops only."
            )


def _called(model: keras.Model, inputs: list[Any]) -> list[np.ndarray]:
    """Return the outputs of a model, whose state stays as it is; empty if it cannot be called."""
    structure = call_structure(model)
    leaves = tree.flatten(structure)
    given = [
        keras.ops.cast(array, leaf.dtype) if leaf.dtype != "string" else array
        for leaf, array in zip(leaves, inputs, strict=True)
    ]
    state = [keras.ops.convert_to_numpy(v) for v in model.non_trainable_variables]
    try:
        outputs = model(tree.pack_sequence_as(structure, given), training=False)
        return [keras.ops.convert_to_numpy(x) for x in tree.flatten(outputs)]
    except Exception:  # a layer that this backend cannot run eagerly; the proof reports its own
        return []
    finally:
        for variable, value in zip(model.non_trainable_variables, state, strict=True):
            variable.assign(value)


def _differs(got: np.ndarray, expected: np.ndarray) -> bool:
    if got.shape != expected.shape or not expected.size:
        return False
    if not (np.isfinite(got).all() and np.isfinite(expected).all()):
        return False  # beyond float32
    off = np.abs(got - expected)
    far = off > _NEAR * np.abs(expected).max(initial=0.0)
    large = np.square(off).mean() > _LARGEST**2 * np.square(expected).mean()
    return bool(large and far.mean() > _LARGEST_SHARE)
