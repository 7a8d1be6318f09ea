"""Dense layers among the einsum layers: a product of the last axes with a matrix."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
from keras import layers as kl
from keras import ops

from ..fold.linear import Array, Linear
from ..fold.linear_layers.einsum import EinsumKind


@dataclasses.dataclass(frozen=True)
class DenseForm:
    """The matrix form of an ``EinsumDense`` such as ``abc,cde->abde``.

    Attributes:
        inputs: Sizes of the axes that are summed over: the last ones of the input.
        outputs: Sizes of the axes that replace them.
    """

    inputs: tuple[int, ...]
    outputs: tuple[int, ...]

    def rows(self, x: Any) -> Any:
        """Return the input with the summed axes joined."""
        axes = len(self.inputs)
        return x if axes == 1 else ops.reshape(x, (-1, *x.shape[1:-axes], math.prod(self.inputs)))

    def unrows(self, y: Any) -> Any:
        """Return the output of the dense layer with the axes of the original output."""
        axes = len(self.outputs)
        return y if axes == 1 else ops.reshape(y, (-1, *y.shape[1:-1], *self.outputs))

    def config(self, name: str, arrays: list[Array]) -> dict[str, Any]:
        """Return the config of the dense layer."""
        units, bias = math.prod(self.outputs), len(arrays) > 1
        return {"units": units, "use_bias": bias, "name": name, "dtype": "float32"}

    def arrays(self, arrays: list[Array]) -> list[Array]:
        """Return the weights of the dense layer."""
        kernel, *biases = arrays
        shape = math.prod(self.inputs), math.prod(self.outputs)
        wide = (np.broadcast_to(bias, self.outputs).reshape(-1) for bias in biases)
        return [kernel.reshape(shape), *wide]


def dense_form(op: Linear) -> DenseForm | None:
    """Return the matrix form of an einsum layer; None for other layers and other equations."""
    kind = op.kind
    if not isinstance(kind, EinsumKind) or type(op.layer) is not kl.EinsumDense:
        return None
    data, kernel, output = kind.letters(op.layer)
    summed = "".join(letter for letter in kernel if letter not in output)
    free, made = data.removesuffix(summed), kernel.removeprefix(summed)
    plain = data == free + summed and kernel == summed + made and output == free + made
    layer: Any = op.layer
    if not (plain and free and summed and made) or set(layer.bias_axes or "") - set(made):
        return None
    sizes = tuple(layer.kernel.shape)
    return DenseForm(sizes[: len(summed)], sizes[len(summed) :])
