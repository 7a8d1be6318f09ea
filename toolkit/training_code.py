"""Leaves out code of the user that a saved model needs for its training only.

Initializers, regularizers and constraints have no effect on a model whose weights are loaded. Keras
refuses a model with one that it cannot load, such as a lambda or a class of another program.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import keras

_GET: Mapping[str, Callable[[Any], Any]] = {
    "initializer": keras.initializers.get,
    "regularizer": keras.regularizers.get,
    "constraint": keras.constraints.get,
}
_INSTEAD = {"initializer": "zeros", "regularizer": None, "constraint": None}


def without_training_code(config: Any, left_out: list[str], layer: str = "") -> Any:
    """Return the configuration of a model without the training code that Keras cannot load.

    Args:
        config: The configuration, or a part of it; not changed.
        left_out: Gets a clause such as `the kernel_regularizer of layer 'conv'` for each.
        layer: The name of the innermost layer around it.
    """
    if isinstance(config, list):
        return [without_training_code(part, left_out, layer) for part in config]
    if not isinstance(config, dict):
        return config
    layer = config["name"] if isinstance(config.get("name"), str) else layer
    changed = {}
    for key, part in config.items():
        kind = str(key).rpartition("_")[2]
        saved = isinstance(part, dict) and "class_name" in part  # no option of a custom layer
        if kind in _GET and saved and not _loads(_GET[kind], part):
            left_out.append(f"the {key} of layer {layer!r}")
            changed[key] = _INSTEAD[kind]
        else:
            changed[key] = without_training_code(part, left_out, layer)
    return changed


def _loads(get: Callable[[Any], Any], part: Any) -> bool:
    try:
        get(part)
    except Exception:  # code that it names can raise anything
        return False
    return True


def lambda_activation(config: Any, layer: str = "") -> str:
    """Return the name of the first layer whose activation is a lambda, which Keras cannot load."""
    if isinstance(config, list):
        return next((name for part in config if (name := lambda_activation(part, layer))), "")
    if not isinstance(config, dict):
        return ""
    layer = config["name"] if isinstance(config.get("name"), str) else layer
    for key, part in config.items():
        # Keras stores the code of other functions with a class name.
        if str(key).endswith("activation") and isinstance(part, dict) and [*part] == ["value"]:
            return layer
        if name := lambda_activation(part, layer):
            return name
    return ""
