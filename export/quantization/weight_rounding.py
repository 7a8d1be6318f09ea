"""Rounds the weights of a network to 8 bits with a smaller error of the outputs, layer by layer.

A quantizer rounds each weight to the nearest step. But an output is a sum, in which the errors of
several weights can cancel. With the rows x of a layer's input on samples and H = mean(x x'), the
mean squared error of an output channel with the weight error e is e' H e.

Adaptive rounding rounds one weight after the other and adjusts the remaining weights to compensate
its error (Frantar et al. 2022, arXiv:2210.17323):

    e_i = w_i - s q_i,   w_j -= e_i U_ij / U_ii  for j > i,   U = cholesky(H^-1), upper

Bias correction removes the remaining mean error: b += mean(x)' (w - s q)
(Nagel et al. 2019, arXiv:1906.04721).

The steps s are those that quantizers choose, max|w| / 127 of each channel. The largest weight of
each channel is not changed, so a converter computes the same steps and integers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from typing import Any

import keras
import numpy as np
from keras import layers as kl

from ..fold.build import build
from ..fold.graph import Call
from ..fold.keras_graph import read_graph
from ..fold.linear import Linear
from ..fold.recognize import recognize

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
    exclude: Collection[str] = (),
) -> keras.Model:
    """Return the network with weights rounded to 8 bits.

    Args:
        model: The folded network, in float32; not changed.
        inputs: Real samples, one (N, …) array per input, in the model's order.
        adaptive: Whether to round adaptively; otherwise each weight is rounded to the nearest step.
        correct_bias: Whether to correct biases by the mean error.
        exclude: Names of layers whose weights are not changed.
    """
    graph = read_graph(model)
    recognize(graph)
    calls = [call for call in graph.calls() if isinstance(call.op, Linear)]
    times = Counter(id(call.op.layer) for call in calls)
    # Shared layers are excluded, since the best rounding depends on the input of the call.
    chosen = [
        call
        for call in calls
        if times[id(call.op.layer)] == 1 and _known(call) and call.op.layer.name not in exclude
    ]
    result = build(graph, "float32")
    if not chosen:
        return result
    watcher = build(graph, "float32", [call.inputs[0] for call in chosen])
    few = [np.unique(np.linspace(0, len(a) - 1, min(len(a), _SAMPLES)).astype(int)) for a in inputs]
    batch = [array[index] for array, index in zip(inputs, few, strict=True)]
    packed = keras.tree.pack_sequence_as(watcher.input, batch)
    values = keras.tree.flatten(watcher.predict(packed, batch_size=8, verbose=0))
    made = {layer.name: layer for layer in result._flatten_layers(include_self=False)}
    for call, value in zip(chosen, values, strict=True):
        layer = made.get(call.op.layer.name)
        if layer is not None and hasattr(layer, "kernel"):
            _round(layer, np.asarray(value), adaptive, correct_bias)
    return result


def _known(call: Call) -> bool:
    layer = call.op.layer
    if type(layer) not in (kl.Conv2D, kl.Conv1D, kl.DepthwiseConv2D, kl.Dense):
        return False
    plain = getattr(layer, "data_format", "channels_last") == "channels_last"
    return plain and getattr(layer, "padding", "same") in ("same", "valid")


def _round(layer: Any, value: np.ndarray, adaptive: bool, correct_bias: bool) -> None:
    """Round the weights of one layer, given its input."""
    kernel = np.asarray(layer.kernel, np.float64)
    rows, weights = _as_sums(layer, value, kernel)  # (G, N, K), (G, K, O)
    steps = np.abs(weights).max(axis=1, keepdims=True) / 127
    steps = np.where(steps > 0, steps, 1.0)
    if adaptive and rows.shape[2] <= _MOST_TERMS:
        integers = _adapted(weights, steps, rows)
    else:
        integers = np.rint(weights / steps)
    rounded = steps * integers
    layer.kernel.assign(_as_kernel(layer, rounded, kernel.shape).astype(np.float32))
    if correct_bias and layer.use_bias:
        error = np.einsum("gk,gko->go", rows.mean(axis=1), weights - rounded).reshape(-1)
        layer.bias.assign(np.asarray(layer.bias) + error.astype(np.float32))


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
    if type(layer) is kl.Dense:
        return weights[0]
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
