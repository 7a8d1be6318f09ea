"""Protects the fold against a convolution written down in NumPy, which shares nothing with it."""

import itertools

import keras
import numpy as np
import pytest
from keras import layers as kl
from renormlite import fold


def convolve(x, kernel, bias, *, stride, dilation, padding):
    """The definition: a sum over the window at every position, zeros outside the image."""
    n, *size, _ = x.shape
    window = kernel.shape[:2]
    out_size, before = [], []
    for length, width in zip(size, window, strict=True):
        reach = (width - 1) * dilation + 1
        if padding == "same":
            out = -(-length // stride)
            before.append(max((out - 1) * stride + reach - length, 0) // 2)
        else:
            out = (length - reach) // stride + 1
            before.append(0)
        out_size.append(out)
    y = np.zeros((n, *out_size, kernel.shape[-1])) + bias
    for i, j, a, b in itertools.product(*map(range, (*out_size, *window))):
        row = i * stride + a * dilation - before[0]
        column = j * stride + b * dilation - before[1]
        if 0 <= row < size[0] and 0 <= column < size[1]:
            y[:, i, j] += x[:, row, column] @ kernel[a, b]
    return y


@pytest.mark.parametrize("padding", ["same", "valid"])
@pytest.mark.parametrize(("stride", "dilation"), [(1, 1), (2, 1), (1, 2), (3, 1)])
@pytest.mark.parametrize("window", [(3, 3), (2, 4), (1, 1)])
def test_norm_between_two_convolutions(padding, stride, dilation, window, randomized):
    options = {"padding": padding, "strides": stride, "dilation_rate": dilation}
    layers = [
        kl.Input((9, 8, 2)),
        kl.Conv2D(3, 2, activation="relu"),
        kl.BatchNormalization(),
        kl.Conv2D(4, window, **options),
    ]
    model = randomized(keras.Sequential(layers))
    first, norm, second = model.layers
    result = fold(model)
    assert result.report.remaining_ops == 0

    x = np.random.default_rng(0).normal(size=(2, 9, 8, 2))
    hidden = convolve(
        x, first.kernel.numpy(), first.bias.numpy(), stride=1, dilation=1, padding="valid"
    )
    mean, variance = norm.moving_mean.numpy(), norm.moving_variance.numpy()
    hidden = (np.maximum(hidden, 0) - mean) / np.sqrt(variance + norm.epsilon)
    hidden = hidden * norm.gamma.numpy() + norm.beta.numpy()
    kernel, bias = second.kernel.numpy(), second.bias.numpy()
    expected = convolve(hidden, kernel, bias, stride=stride, dilation=dilation, padding=padding)
    # Float32 against float64: sums of at most 37 products of numbers near 1.
    np.testing.assert_allclose(result.model(x.astype("f4")), expected, atol=1e-4)
