"""Names, shapes and dtypes of the inputs and outputs of a Keras model, in the model's order."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import keras

from ..artifacts.manifest import TensorSpec
from ..errors import UserError, is_printable
from .fold.keras_graph import input_name


@dataclasses.dataclass(frozen=True)
class Signature:
    """The inputs and outputs of a model.

    Attributes:
        inputs: In the order of `model.inputs`; shapes include the free batch dimension.
        outputs: In the order of `model.outputs`.
    """

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


def signature_of(model: keras.Model) -> Signature:
    """Read the signature of a Functional or Sequential model.

    Inputs have the name of their `keras.Input`, or of its layer if it has none. Outputs have the
    name of their key if the model returns a dict, else of the layer that computes them. `_1`, `_2`,
    … is appended to repeated names.

    Args:
        model: A built model with symbolic inputs.

    Raises:
        UserError: The model has no symbolic inputs: it is subclassed, or not built.
    """
    if not is_symbolic(model):
        raise UserError(
            f"Expected a built model with known inputs. Received: {model.name!r} of type "
            f"{type(model).__name__}, which has none. Call it once, or add a keras.Input."
        )
    model = as_functional(model)
    input_names = _keys(model.input) or [input_name(tensor) for tensor in model.inputs]
    return Signature(
        _describe(model.inputs, input_names),
        _describe(model.outputs, _keys(model.output) or list(model.output_names)),
    )


def refuse_unprintable_names(model: keras.Model) -> None:
    """Refuse names with control characters, which no reader of the files accepts.

    Raises:
        UserError: A layer, an input or an output has one.
    """
    names = [layer.name for layer in model._flatten_layers()]
    if is_symbolic(model):
        signature = signature_of(model)
        names += [tensor.name for tensor in (*signature.inputs, *signature.outputs)]
    wrong = next((name for name in names if not is_printable(name)), None)
    if wrong is not None:
        raise UserError(
            f"Expected names of layers without control characters. Received: {wrong!r}. Rename it."
        )


def is_symbolic(model: keras.Model) -> bool:
    """Return whether a model is Functional or a built Sequential, with symbolic inputs."""
    if isinstance(model, keras.Sequential):
        return bool(model.built)
    return hasattr(model, "inputs") and hasattr(model, "output_names")


def built_for(model: keras.Model) -> int | None:
    """Return the batch size that a model is built for; None for a model that takes any."""
    if not is_symbolic(model):
        return None
    return next((t.shape[0] for t in model.inputs if t.shape and t.shape[0] is not None), None)


def as_functional(model: keras.Model) -> keras.Model:
    """Convert a Sequential model to the Functional model of the same layers.

    A Sequential model has no `output_names` and no input structure. Other models are returned
    unchanged.
    """
    if isinstance(model, keras.Sequential):
        return keras.Model(model.inputs, model.outputs, name=model.name)
    return model


def _keys(structure: object) -> list[str] | None:
    """Return the keys of a flat dict of tensors in Keras' flattening order, else None."""
    if isinstance(structure, dict) and all(
        isinstance(value, keras.KerasTensor) for value in structure.values()
    ):
        return [str(key) for key in sorted(structure)]
    return None


def _describe(tensors: Sequence[keras.KerasTensor], names: Sequence[str]) -> tuple[TensorSpec, ...]:
    return tuple(
        TensorSpec(name, (None, *tensor.shape[1:]), keras.backend.standardize_dtype(tensor.dtype))
        for tensor, name in zip(tensors, unique_names(names), strict=True)
    )


def unique_names(names: Sequence[str]) -> list[str]:
    """Return `names` with `_1`, `_2`, … appended to repeated ones, in order."""
    taken: set[str] = set()
    unique = []
    for name in names:
        candidate, number = name, 0
        while candidate in taken:
            number += 1
            candidate = f"{name}_{number}"
        taken.add(candidate)
        unique.append(candidate)
    return unique
