"""Rebuilds a layer from its config, with its functions, constants, weights and assets.

A config does not contain everything. The rest is copied: functions without a registered name,
tensor attributes of custom layers, and vocabularies.
"""

from __future__ import annotations

import tempfile
from typing import Any

import keras
import numpy as np
from keras import layers as kl

from ...errors import UserError
from .keras_graph import kind_of
from .weight_files import assign

_FLOATS = {"float16", "bfloat16", "float32", "float64"}


def is_float(dtype: str) -> bool:
    """Return whether a dtype is floating point."""
    return dtype in _FLOATS


def remake(layer: Any, name: str, dtype: str | None) -> Any:
    """Rebuild a layer or an operation, without its weights.

    Args:
        layer: The original; not changed.
        name: Name of the new layer.
        dtype: The dtype of every floating-point layer in it; None for the current one.

    Raises:
        UserError: The layer cannot be rebuilt from its config.
    """
    if type(layer) is kl.Activation:
        return kl.Activation(layer.activation, name=name, dtype=dtype or layer.dtype_policy)
    if type(layer) is kl.Lambda:
        # Its config contains code, which Keras does not run by default.
        return kl.Lambda(
            layer.function,
            output_shape=layer._output_shape,
            mask=layer.mask,
            arguments=layer.arguments,
            name=name,
            dtype=dtype or layer.dtype_policy,
        )
    config = config_of(layer) if dtype is None else in_dtype(config_of(layer), dtype)
    if dtype == "float64" and kind_of(layer):
        config = uninitialized(config)
    new = from_config(layer, {**config, **_functions(layer, config), "name": name})
    copy_constants(layer, new)
    return new


def config_of(layer: Any) -> dict[str, Any]:
    """Return the config of a layer.

    Raises:
        UserError: It has none, as a custom layer without `get_config`.
    """
    try:
        config: dict[str, Any] = layer.get_config()
    except NotImplementedError as error:
        raise _not_rebuilt(layer, "it has none") from error
    return config


def from_config(layer: Any, config: dict[str, Any]) -> Any:
    """Create a layer of the same type as another from a config.

    Raises:
        UserError: The layer cannot be rebuilt from its config.
    """
    try:
        return type(layer).from_config(config)
    except (TypeError, ValueError, NotImplementedError) as error:
        reason = str(error).partition(" Full object config")[0]
        # Keras puts the whole config before the reason.
        reason = " ".join(reason.rpartition("Exception encountered: ")[2].split()).rstrip(". ")
        raise _not_rebuilt(layer, reason) from error


def _not_rebuilt(layer: Any, reason: str) -> UserError:
    return UserError(
        f"The layer {layer.name!r} ({type(layer).__name__}) cannot be rebuilt from its config: "
        f"{reason}. {_advice(layer, reason)}"
    )


def _advice(layer: Any, reason: str) -> str:
    if "register_keras_serializable" in reason:  # a custom class inside, such as a cell
        return "Register it."
    if type(layer).__module__.startswith("keras."):
        return "Keras cannot load such a layer either: change its arguments, or remove the layer."
    return (
        "Give it a `get_config` that returns every argument of `__init__`, and register its "
        "functions with keras.saving.register_keras_serializable."
    )


def in_dtype(config: Any, dtype: str) -> Any:
    """Return a config in which every floating-point dtype, at any depth, is set to ``dtype``."""
    if isinstance(config, dict):
        return {
            key: dtype if key == "dtype" and _is_float_policy(item) else in_dtype(item, dtype)
            for key, item in config.items()
        }
    if isinstance(config, list):
        return [in_dtype(item, dtype) for item in config]
    return config


def uninitialized(config: dict[str, Any]) -> dict[str, Any]:
    """Return the config of a layer of Keras without random numbers for its first weights.

    Weights that are copied into it replace them; drawing them takes several times their memory.
    """
    return {key: "zeros" if key.endswith("_initializer") else item for key, item in config.items()}


def copy_state(source: keras.Layer, target: keras.Layer) -> None:
    """Copy the weights, constants and assets of a layer to its rebuilt version.

    Raises:
        UserError: Its weights have other shapes than those of the rebuilt layer.
    """
    shapes, rebuilt = ([tuple(w.shape) for w in layer.weights] for layer in (source, target))
    if source.weights:  # a layer used as an activation may never have been called
        if shapes != rebuilt:
            raise UserError(
                f"The layer {source.name!r} ({type(source).__name__}) cannot be rebuilt: its "
                f"weights have the shapes {shapes}, and {rebuilt} for the input that Keras infers. "
                "Put it behind a layer whose output shape Keras infers rightly, such as Dense in "
                "place of EinsumDense."
            )
        copy_weights(source.weights, target.weights)
    copy_constants(source, target)
    if isinstance(target, kl.Normalization) and target.input_mean is None:
        target.finalize_state()  # recomputes the attributes derived from its weights
    for old, new in zip(_inside(source), _inside(target), strict=False):
        if hasattr(old, "save_assets"):
            with tempfile.TemporaryDirectory() as folder:
                old.save_assets(folder)
                new.load_assets(folder)


def copy_weights(source: list[keras.Variable], target: list[keras.Variable]) -> None:
    """Assign weights in order.

    TensorFlow's variables share the memory of equal types until one of them changes.
    """
    for old, new in zip(source, target, strict=True):
        if new.dtype == old.dtype:
            new.assign(old.value)
        else:
            assign(new, old.value)


def copy_constants(source: Any, target: Any) -> None:
    """Copy the tensor attributes of a custom layer to its rebuilt version.

    Floating-point tensors are cast to the compute dtype of the new layer.
    """
    if kind_of(source) or not isinstance(source, keras.Layer):
        return
    for name, value in vars(source).items():
        if isinstance(value, (keras.Variable, keras.KerasTensor)):
            continue
        if keras.ops.is_tensor(value):
            dtype = keras.backend.standardize_dtype(value.dtype)
            dtype = target.compute_dtype if is_float(dtype) else dtype
            setattr(target, name, keras.ops.cast(value, dtype))
        elif isinstance(value, np.ndarray):
            setattr(target, name, value)


def _functions(layer: Any, config: dict[str, Any]) -> dict[str, Any]:
    """Return the activation functions of a layer, which may have no registered name."""
    return {
        key: getattr(layer, key)
        for key in config
        if key.endswith("activation")
        and callable(getattr(layer, key, None))
        and not isinstance(getattr(layer, key), keras.Layer)
    }


def _inside(layer: keras.Layer) -> list[keras.Layer]:
    return list(layer._flatten_layers())


def _is_float_policy(policy: Any) -> bool:
    if isinstance(policy, dict):
        policy = policy.get("config", {}).get("name")
    return isinstance(policy, str) and is_float(policy.removeprefix("mixed_"))
