"""Changes the configuration of a model of Keras 2 so that Keras 3 reads it.

Keras 3 reads the HDF5 files of Keras 2, with these exceptions:

- It refuses `/` in the names of layers, as in `conv1/bn` of DenseNet. Weights are stored by the
  order of the layers, so that the names can be changed.
- A nested model had a first node of its own, from which the calls were counted. Keras 3 counts
  from zero.
- A nested model with one output returned it without a list.
- Layers of a model inside a Sequential have the form of Keras 3, with the options of Keras 2.
"""

from __future__ import annotations

from typing import Any

_MODELS = ("Functional", "Model", "Sequential")
# Keys of a layer that Keras 3 takes for the sign of its own form.
_OF_KERAS_3 = ("module", "registered_name", "build_config")


def upgraded(config: Any) -> Any:
    """Return the configuration of a model, changed at any depth; not changed itself."""
    changed = _with_plain_calls(config, is_nested=False)
    return _renamed(changed, _new_names(_names_of_layers(changed)))


def _new_names(names: dict[str, None]) -> dict[str, str]:
    """Return names without `/` for those that have it, all unique."""
    new: dict[str, str] = {}
    for name in names:
        if "/" in name:
            candidate = name.replace("/", "_")
            while candidate in names or candidate in new.values():
                candidate += "_"
            new[name] = candidate
    return new


def _names_of_layers(config: Any) -> dict[str, None]:
    if isinstance(config, list):
        return {name: None for item in config for name in _names_of_layers(item)}
    if not isinstance(config, dict):
        return {}
    own = config.get("name")
    inner = {name: None for item in config.values() for name in _names_of_layers(item)}
    return {own: None, **inner} if isinstance(own, str) else inner


def _renamed(config: Any, names: dict[str, str]) -> Any:
    if isinstance(config, dict):
        return {key: _renamed(item, names) for key, item in config.items()}
    if isinstance(config, list):
        return [_renamed(item, names) for item in config]
    return names.get(config, config) if isinstance(config, str) else config


def _with_plain_calls(config: Any, is_nested: bool) -> Any:
    """Return a configuration in which calls of nested models are counted from zero."""
    if isinstance(config, list):
        return [_with_plain_calls(item, is_nested) for item in config]
    if not isinstance(config, dict):
        return config
    inner = is_nested or "layers" in config
    config = {key: _with_plain_calls(item, inner) for key, item in config.items()}
    layers = config.get("layers")
    if not isinstance(layers, list) or "output_layers" not in config:
        return config
    kinds = {layer.get("name"): layer.get("class_name") for layer in layers}
    nested = {name for name, kind in kinds.items() if kind in _MODELS}
    # Keras 3 itself subtracts one for outputs of a Functional model.
    sequential = {name for name in nested if kinds[name] == "Sequential"}
    for layer in layers:
        layer["inbound_nodes"] = _counted_from_zero(layer.get("inbound_nodes", []), nested)
        for key in _OF_KERAS_3:
            layer.pop(key, None)
    for key in ("input_layers", "output_layers"):
        ends = _counted_from_zero(config[key], sequential)
        single = is_nested and isinstance(ends, list) and len(ends) == 1
        config[key] = ends[0] if single else ends
    return config


def _counted_from_zero(nodes: Any, nested: set[str]) -> Any:
    """Return references to tensors, `[layer, node, tensor]`, with the nodes counted from zero."""
    if isinstance(nodes, dict):
        return {key: _counted_from_zero(item, nested) for key, item in nodes.items()}
    if not isinstance(nodes, list):
        return nodes
    if len(nodes) in (3, 4) and isinstance(nodes[0], str) and isinstance(nodes[1], int):
        return [nodes[0], nodes[1] - (nodes[0] in nested), *nodes[2:]]
    return [_counted_from_zero(item, nested) for item in nodes]
