"""Converts layers quantized by `model.quantize` to float layers with the same weights.

Keras divides the stored integers q by a scale s when the layer is called; the float layer has the
weights q/s. Keras also quantizes the *activations* of such a layer, row by row. That is not
reproduced: the arithmetic of an exported file depends on its precision.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from ....errors import UserError
from ..graph import Graph, Kept
from ..keras_graph import layers_inside


def dequantize(graph: Graph) -> list[str] | None:
    """Replace every layer with quantized weights, in place.

    Args:
        graph: The network.

    Returns:
        One sentence per mode; None if no layer is quantized.

    Raises:
        UserError: The type of a layer or its mode is not supported.
    """
    made: dict[int, Kept] = {}
    modes: dict[str, int] = {}
    for call in graph.calls():
        op = call.op
        if not isinstance(op, Kept) or not isinstance(op.operation, keras.Layer):
            continue
        inside = [layer for layer in layers_inside(op.operation) if _mode(layer)]
        if not inside:
            continue
        if id(op) not in made:
            made[id(op)] = Kept(_float_layer(op.operation, inside), op.name)
            for layer in inside:
                modes[_mode(layer)] = modes.get(_mode(layer), 0) + 1
        call.op = made[id(op)]
    if not made:
        return None
    return [
        f"{count} layer{'s' if count > 1 else ''} had {mode} weights (model.quantize({mode!r})): "
        "the files are made from floats of the same values, without Keras' quantization of "
        "activations"
        for mode, count in modes.items()
    ]


def _mode(layer: Any) -> str:
    return str(getattr(layer, "quantization_mode", None) or "")


def _float_layer(layer: keras.Layer, quantized: list[Any]) -> keras.Layer:
    """Return a layer with the same configuration and float weights of the same values."""
    twin = type(layer).from_config(_without_quantization(layer.get_config()))
    twin.build_from_config(layer.get_build_config())
    for old, new in zip(layers_inside(layer), layers_inside(twin), strict=True):
        if old in quantized:
            arrays = _weights_of(old)
        else:
            arrays = [keras.ops.convert_to_numpy(variable) for variable in _own(old)]
        for variable, array in zip(_own(new), arrays, strict=True):
            variable.assign(array)
    return twin


def _own(layer: Any) -> list[keras.Variable]:
    """Return the variables of a layer without those of its inner layers."""
    return [*layer._trainable_variables, *layer._non_trainable_variables]


def _without_quantization(config: Any) -> Any:
    """Return a config in which every quantized dtype policy is replaced by its float source."""
    if isinstance(config, dict):
        inner = config.get("config")
        if isinstance(inner, dict) and "source_name" in inner:
            return inner["source_name"]
        return {
            key: None if key == "quantization_config" else _without_quantization(item)
            for key, item in config.items()
        }
    if isinstance(config, list):
        return [_without_quantization(item) for item in config]
    if isinstance(config, str) and "_from_" in config:
        return config.rpartition("_from_")[2]
    return config


def _weights_of(layer: Any) -> list[NDArray[np.float32]]:
    """Return the float weights of a quantized layer, in the order of a float layer.

    Raises:
        UserError: The type of the layer or its mode is not supported.
    """
    read = _READERS.get(type(layer))
    if read is None or _mode(layer) not in ("int8", "int4", "float8"):
        raise UserError(
            f"The layer {layer.name!r} ({type(layer).__name__}) has {_mode(layer)} weights, which "
            "cannot be converted to floats. Export the model from before model.quantize."
        )
    bias = getattr(layer, "bias", None)
    kernels = read(layer)
    return [*kernels] if bias is None else [*kernels, _bias(layer)]


def _bias(layer: Any) -> NDArray[np.float32]:
    bias = _array(layer.bias)
    # Keras adds the bias of a float8 layer as bfloat16.
    return bias.astype(ml_dtypes.bfloat16).astype(np.float32) if _mode(layer) == "float8" else bias


def _dense(layer: Any) -> list[NDArray[np.float32]]:
    return [_dequantized(layer, -1)]


def _einsum(layer: Any) -> list[NDArray[np.float32]]:
    if _mode(layer) == "int8":
        return [_array(layer.kernel) / _array(layer._adjust_scale_for_dequant(layer.kernel_scale))]
    return [_dequantized(layer, -1)]


def _dequantized(layer: Any, axis: int) -> NDArray[np.float32]:
    """Return a dequantized kernel, with one scale per column, or per column and row group."""
    kernel, scale = _array(layer.kernel), _array(layer.kernel_scale)
    if _mode(layer) == "float8":
        return _through_float8(kernel, scale)
    table = kernel.reshape(-1, scale.shape[axis])
    if scale.ndim == 1:
        return (table / scale).reshape(kernel.shape)
    group = _array(layer.g_idx).astype(int)
    table = (table - _array(layer.kernel_zero)[group]) * scale[group]
    return table.reshape(kernel.shape)


def _through_float8(kernel: NDArray[np.float32], scale: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return a kernel rounded to float8, as Keras does in every call."""
    most = float(ml_dtypes.finfo(ml_dtypes.float8_e4m3fn).max)
    steps = np.clip(kernel / scale, -most, most).astype(ml_dtypes.float8_e4m3fn)
    return steps.astype(np.float32) * scale


def _embedding(layer: Any) -> list[NDArray[np.float32]]:
    """Return the rows of an embedding table, dequantized by looking them up."""
    return [_array(layer(np.arange(layer.input_dim, dtype="int32")))]


def _array(value: Any) -> NDArray[Any]:
    array = np.asarray(keras.ops.convert_to_numpy(value))
    return array.astype(np.float32)


_READERS: dict[type, Callable[[Any], list[NDArray[np.float32]]]] = {
    keras.layers.Dense: _dense,
    keras.layers.EinsumDense: _einsum,
    keras.layers.Embedding: _embedding,
}
