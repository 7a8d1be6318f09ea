"""Rounds the weights of a network to 8 bits with a smaller error of the outputs, layer by layer.

A quantizer rounds each weight to the nearest step. But an output is a sum, in which the errors of
several weights can cancel. With the rows x of a layer's input on samples and H = mean(x x'), the
mean squared error of an output channel with the weight error e is e' H e.

Adaptive rounding rounds one weight after the other and adjusts the remaining weights to compensate
its error (Frantar et al. 2022, arXiv:2210.17323):

    e_i = w_i - s q_i,   w_j -= e_i U_ij / U_ii  for j > i,   U = cholesky(H^-1), upper

Bias correction removes the remaining mean error: b += mean(x)' (w - s q)
(Nagel et al. 2019, arXiv:1906.04721). Re-estimated statistics also restore the standard deviation
of each channel, as a norm after the layer would with the statistics of the rounded weights (Sun et
al. 2019, arXiv:1904.12101): w' = f s q and b' = b + mean(x)' (w - f s q), with the ratio f of the
standard deviations of w' x before and after rounding. The integers q remain.

The steps s are those that quantizers choose, max|w| / 127 of each channel. The largest weight of
each channel is not changed, so a converter computes the same steps and integers.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Sequence
from typing import Any

import keras
import numpy as np
from keras import layers as kl

from ..fold.build import build
from ..fold.keras_graph import read_graph
from ..fold.linear_layers.einsum import EinsumKind

_RECURRENT = (kl.LSTM, kl.GRU, kl.SimpleRNN)
_SAMPLES = 32
_ROWS = 4096  # of a layer's input, evenly spaced
_MOST_TERMS = 2400  # of a sum; the cost is cubic
_DAMPING = 0.01  # relative to the mean diagonal of H; bounds directions absent from the samples


def with_rounded_weights(
    model: keras.Model,
    inputs: Sequence[np.ndarray],
    *,
    adaptive: bool,
    correct_bias: bool,
    statistics: bool = False,
    exclude: Collection[str] = (),
) -> keras.Model:
    """Return the network with weights rounded to 8 bits.

    Args:
        model: The folded network, in float32; not changed.
        inputs: Real samples, one (N, …) array per input, in the model's order.
        adaptive: Whether to round adaptively; otherwise each weight is rounded to the nearest step.
        correct_bias: Whether to correct biases by the mean error.
        statistics: Whether to correct the standard deviation of each channel as well.
        exclude: Names of layers whose weights are not changed.
    """
    result = build(read_graph(model), "float32")
    excluded = [
        id(inner)
        for layer in result._flatten_layers(include_self=False)
        if layer.name in exclude
        for inner in layer._flatten_layers()
    ]
    layers = [
        layer
        for layer in result._flatten_layers(include_self=False)
        if _known(layer) and id(layer) not in excluded
    ]
    few = [np.unique(np.linspace(0, len(a) - 1, min(len(a), _SAMPLES)).astype(int)) for a in inputs]
    batch = [array[index] for array, index in zip(inputs, few, strict=True)]
    for layer, values in _recorded(result, layers, batch):
        # Layers with several calls are left out, since the best rounding depends on the input.
        if len(values) == 1:
            _round(layer, values[0], adaptive, correct_bias or statistics, statistics)
    return result


def _recorded(
    model: keras.Model, layers: Sequence[Any], batch: Sequence[np.ndarray]
) -> list[tuple[Any, list[np.ndarray]]]:
    """Return every layer with the inputs of its calls, inside of other layers too."""
    values: list[list[np.ndarray]] = [[] for _ in layers]

    def recording(call: Callable[..., Any], found: list[np.ndarray]) -> Callable[..., Any]:
        @functools.wraps(call)
        def recorded(value: Any, *args: Any, **kwargs: Any) -> Any:
            found.append(keras.ops.convert_to_numpy(value))
            return call(value, *args, **kwargs)

        return recorded

    calls = [layer.call for layer in layers]
    try:
        for layer, call, found in zip(layers, calls, values, strict=True):
            layer.call = recording(call, found)
        model(keras.tree.pack_sequence_as(model.input, batch), training=False)
    finally:
        for layer, call in zip(layers, calls, strict=True):
            layer.call = call
    return list(zip(layers, values, strict=True))


def _known(layer: Any) -> bool:
    if type(layer) in _RECURRENT:
        return bool(getattr(layer, "reset_after", True))  # otherwise a gate multiplies the state
    if type(layer) is kl.EinsumDense:
        return bool(_contracted(layer))
    if type(layer) not in (kl.Conv2D, kl.Conv1D, kl.DepthwiseConv2D, kl.Dense):
        return False
    plain = getattr(layer, "data_format", "channels_last") == "channels_last"
    return plain and getattr(layer, "padding", "same") in ("same", "valid")


def _contracted(layer: Any) -> int:
    """Return the number of axes that an EinsumDense sums over.

    It is 0 unless these are the last axes of the input and the first ones of the kernel, as in all
    projections of attention, and the remaining axes of the kernel are the last ones of the output.
    """
    value, kernel, right = EinsumKind().letters(layer)
    count = sum(axis not in right for axis in kernel)
    matches = value.endswith(kernel[:count]) and right.endswith(kernel[count:])
    return count if matches and 0 < count < len(kernel) else 0


def _round(
    layer: Any, value: np.ndarray, adaptive: bool, correct_bias: bool, statistics: bool
) -> None:
    """Round the weights of one layer, given its input."""
    if type(layer) in _RECURRENT:
        _round_recurrent(layer, value, adaptive)
        return
    kernel = np.asarray(layer.kernel, np.float64)
    rows, weights = _as_sums(layer, value, kernel)  # (G, N, K), (G, K, O)
    rounded = _rounded(weights, rows, adaptive)
    if statistics:
        before, after = (
            np.std(rows @ array, axis=1, keepdims=True) for array in (weights, rounded)
        )
        rounded = rounded * np.divide(before, after, out=np.ones_like(after), where=after > 0)
    layer.kernel.assign(_as_kernel(layer, rounded, kernel.shape).astype(np.float32))
    if correct_bias and layer.bias is not None:
        error = np.einsum("gk,gko->go", rows.mean(axis=1), weights - rounded)
        bias = np.asarray(layer.bias)
        if bias.size < error.size:  # an EinsumDense may have one bias for several outputs
            return
        layer.bias.assign(bias + error.reshape(bias.shape).astype(np.float32))


def _round_recurrent(layer: Any, sequences: np.ndarray, adaptive: bool) -> None:
    """Round the weights of a recurrent layer: one sum of the inputs, and one of the states."""
    config = {**layer.get_config(), "return_sequences": True, "return_state": False}
    twin = type(layer).from_config({**config, "stateful": False, "unroll": False})
    twin.build(sequences.shape)
    twin.set_weights(layer.get_weights())
    states = keras.ops.convert_to_numpy(twin(sequences))
    given = sequences[:, ::-1] if layer.go_backwards else sequences
    before = np.concatenate([np.zeros_like(states[:, :1]), states[:, :-1]], axis=1)
    cell = layer.cell
    for variable, values in ((cell.kernel, given), (cell.recurrent_kernel, before)):
        rows = _spread(values.reshape(-1, values.shape[-1])).astype(np.float64)
        weights = np.asarray(variable, np.float64)
        variable.assign(_rounded(weights[None], rows[None], adaptive)[0].astype(np.float32))


def _rounded(weights: np.ndarray, rows: np.ndarray, adaptive: bool) -> np.ndarray:
    """Return weights (G, K, O) rounded to 8 bits, for rows (G, N, K) of the input."""
    steps = np.abs(weights).max(axis=1, keepdims=True) / 127
    steps = np.where(steps > 0, steps, 1.0)
    if adaptive and rows.shape[2] <= _MOST_TERMS:
        return np.asarray(steps * _adapted(weights, steps, rows))
    return np.asarray(steps * np.rint(weights / steps))


def _adapted(weights: np.ndarray, steps: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Return adaptively rounded integers of weights (G, K, O), for rows (G, N, K)."""
    products = np.einsum("gni,gnj->gij", rows, rows, optimize=True) / rows.shape[1]
    terms = weights.shape[1]
    size = np.trace(products, axis1=1, axis2=2)[:, None, None] / terms
    damped = products + np.eye(terms) * (_DAMPING * size + np.finfo(np.float32).tiny)
    upper = np.swapaxes(np.linalg.cholesky(np.linalg.inv(damped)), 1, 2)
    left = weights.copy()
    integers = np.zeros_like(weights)
    largest = np.abs(weights).argmax(axis=1)[:, None]
    for i in range(terms):
        nearest = np.clip(np.rint(left[:, i : i + 1] / steps), -127, 127)
        kept = largest == i
        integers[:, i : i + 1] = np.where(kept, np.rint(weights[:, i : i + 1] / steps), nearest)
        error = (left[:, i] - (steps * integers[:, i : i + 1])[:, 0]) / upper[:, i, i, None]
        left[:, i + 1 :] -= upper[:, i, i + 1 :, None] * error[:, None, :]
    return integers


def _as_sums(layer: Any, value: np.ndarray, kernel: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return a layer's input as rows (G, N, K) and its kernel as (G, K, O), with G groups."""
    if type(layer) is kl.EinsumDense:
        terms = int(np.prod(kernel.shape[: _contracted(layer)]))
        return _spread(value.reshape(-1, terms))[None].astype(np.float64), kernel.reshape(
            1, terms, -1
        )
    if type(layer) is kl.Dense:
        flat = value.reshape(-1, value.shape[-1])
        return _spread(flat)[None].astype(np.float64), kernel[None]
    found = _spread(_patches(layer, value))  # (N, places of the kernel, C)
    patches: np.ndarray = found.astype(np.float64)
    if type(layer) is kl.DepthwiseConv2D:
        weights = np.transpose(kernel.reshape(-1, *kernel.shape[2:]), (1, 0, 2))
        return np.transpose(patches, (2, 0, 1)), weights
    groups = layer.groups
    split = patches.reshape(*patches.shape[:2], groups, -1)
    rows = np.moveaxis(split, 2, 0).reshape(groups, len(patches), -1)
    by_group = kernel.reshape(-1, groups, kernel.shape[-1] // groups)
    return rows, np.moveaxis(by_group, 1, 0)


def _as_kernel(layer: Any, weights: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Return weights (G, K, O) in the layout of a layer's kernel."""
    if type(layer) in (kl.Dense, kl.EinsumDense):
        return weights[0].reshape(shape)
    if type(layer) is kl.DepthwiseConv2D:
        return np.transpose(weights, (1, 0, 2)).reshape(shape)
    return np.moveaxis(weights, 0, 1).reshape(shape)


def _patches(layer: Any, value: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Return the input patches of a convolution: (N, kernel positions, C)."""
    import tensorflow as tf

    size, strides, rates = layer.kernel_size, layer.strides, layer.dilation_rate
    if value.ndim == 3:
        value = np.expand_dims(value, 1)
        size, strides, rates = ((1, *entry) for entry in (size, strides, rates))
    found = tf.image.extract_patches(
        value, [1, *size, 1], [1, *strides, 1], [1, *rates, 1], layer.padding.upper()
    )
    return np.asarray(found).reshape(-1, int(np.prod(size)), value.shape[-1])


def _spread(rows: np.ndarray) -> np.ndarray:
    """Return at most `_ROWS` rows, evenly spaced."""
    if len(rows) <= _ROWS:
        return rows
    return rows[np.linspace(0, len(rows) - 1, _ROWS).astype(int)]
