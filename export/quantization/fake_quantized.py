"""Keras layers with TensorFlow's fake quantizations, of which integer networks are made."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras import ops

from ...toolkit.quantize_aware.kernels import Kernel
from ...toolkit.quantize_aware.quantized import ends_of
from ...toolkit.quantize_aware.steps import limits


@dataclasses.dataclass(frozen=True)
class Weights:
    """The integer weights of one call of a linear layer.

    Attributes:
        layer: Name of the layer.
        kernel: Integers, in Keras' order of axes.
        channels: Axes of the kernel that form the output channels.
        steps: Step of each output channel, float32.
        bias: Integer bias of each output channel.
        input_step: Step of the input, float32.
        mark: The number that stands for the steps in the graph.
        bits: Number of bits of the kernel's integers.
    """

    layer: str
    kernel: np.ndarray
    channels: tuple[int, ...]
    steps: np.ndarray
    bias: np.ndarray
    input_step: np.float32
    mark: np.float32
    bits: int


@dataclasses.dataclass(frozen=True)
class Grid:
    """Step and zero point of a value."""

    step: np.float32
    zero: int
    bits: int

    @property
    def ends(self) -> tuple[float, float]:
        """The least and the greatest value, exact in float32."""
        least, most = limits(self.bits, narrow=self.bits > 8)
        return float((least - self.zero) * self.step), float((most - self.zero) * self.step)


class FakeQuantized(keras.layers.Layer):
    """An operation, an activation and TensorFlow's fake quantization; never saved."""

    def __init__(
        self, grid: Grid | None, activation: str | None = None, before: Any = None, **options: Any
    ) -> None:
        super().__init__(dtype="float32", **options)
        self._grid, self._activation, self._before = grid, activation, before

    def call(self, x: Any) -> Any:
        """Return the fake-quantized values."""
        return fake_quantized(
            x if self._before is None else self._before(x), self._activation, self._grid
        )


class IntegerLinear(keras.layers.Layer):
    """A linear layer with integer weights and TensorFlow's fake quantizations; never saved."""

    def __init__(
        self,
        layer: Any,
        kernel_type: Kernel,
        weights: Weights,
        activation: str | None,
        grid: Grid | None,
        repeated: Grid | None = None,
        **options: Any,
    ) -> None:
        super().__init__(dtype="float32", **options)
        self._repeated = repeated
        self._applied: Callable[[Any, Any], Any] = functools.partial(
            kernel_type.apply, _Framing(layer)
        )
        self._weights, self._activation, self._grid = weights, activation, grid

    def call(self, x: Any) -> Any:
        """Return the fake-quantized output; its steps are marks until the file is finished."""
        import tensorflow as tf

        weights = self._weights
        bias = (weights.bias.astype(np.float64) * weights.input_step * weights.mark).astype("f4")
        sums = tf.nn.bias_add(self._applied(self._planes(x), self._kernel()), bias)
        return fake_quantized(sums, self._activation, self._grid)

    def _planes(self, x: Any) -> Any:
        """Return the input; the grid of a shared sequence is repeated on its form as an image.

        A convolution of sequences is one of images, and converters do not pass the grid of a
        sequence on to several images.
        """
        import tensorflow as tf

        if self._repeated is None or len(x.shape) != 3:
            return x
        return tf.squeeze(fake_quantized(tf.expand_dims(x, 1), None, self._repeated), 1)

    def _kernel(self) -> Any:
        import tensorflow as tf

        weights = self._weights
        return tf.quantization.fake_quant_with_min_max_vars(
            tf.constant(weights.kernel * weights.mark),
            -127 * weights.mark,
            127 * weights.mark,
            narrow_range=True,
        )


class IntegerDense(IntegerLinear):
    """A dense layer as a convolution of kernel size 1, which rounds like other convolutions.

    TFLite's reference kernels compute FULLY_CONNECTED in double precision, and so do all kernels
    for 16-bit activations, but TFLite Micro's; all compute CONV_2D in fixed point.
    """

    def __init__(
        self, layer: Any, kernel_type: Kernel, weights: Weights, *rest: Any, **options: Any
    ) -> None:
        placed = dataclasses.replace(weights, kernel=weights.kernel[None, None])
        super().__init__(layer, kernel_type, placed, *rest, **options)
        self._applied = lambda x, kernel: ops.conv(x, kernel)

    def call(self, x: Any) -> Any:
        """Return the fake quantized output."""
        import tensorflow as tf

        shape = x.shape[1:]
        places = math.prod(shape[:-1])
        rows = tf.reshape(x, (-1, 1, places, shape[-1]))
        if self._repeated is not None:
            rows = fake_quantized(rows, None, self._repeated)
        y = super().call(rows)
        return tf.reshape(y, (-1, *shape[:-1], y.shape[-1]))


class _Framing:
    """The attributes of a Keras layer that determine how a kernel is applied, without weights."""

    def __init__(self, layer: Any) -> None:
        config = layer.get_config()
        for name in ("strides", "padding", "dilation_rate", "data_format", "output_padding"):
            self.__dict__[name] = config.get(name)
        self.kernel_size = config.get("kernel_size")


def fake_quantized(x: Any, activation: str | None, grid: Grid | None) -> Any:
    """Return an activation of a value on a grid; in floats if there is none."""
    import tensorflow as tf

    # The range of the output clips to any other end of an activation.
    clips = tf.nn.relu if ends_of(activation)[0] == 0.0 else tf.identity
    values = tf.nn.relu6(x) if activation == "relu6" else clips(x)
    if grid is None:
        return values
    return tf.quantization.fake_quant_with_min_max_vars(
        values, *grid.ends, num_bits=grid.bits, narrow_range=grid.bits > 8
    )
