"""``TimeDistributed`` around any other linear layer."""

# ruff: noqa: D102 - the base class documents the methods
from __future__ import annotations

import dataclasses
from typing import Any

import keras

from ..affine import Affine
from ..graph import Function, Shape
from ..linear import Array, Kind, Linear


class TimeDistributedKind(Kind):
    """``TimeDistributed`` around another linear layer: the same with axes shifted by one.

    Args:
        inner: The kind of the layer inside.
    """

    def __init__(self, inner: Kind) -> None:
        self.inner = inner

    def inputs(self, layer: Any, rank: int) -> dict[int, int]:
        inner = self.inner.inputs(layer.layer, rank - 1)
        return {axis + 1: size for axis, size in inner.items()}

    def outputs(self, layer: Any, rank: int) -> dict[int, int]:
        inner = self.inner.outputs(layer.layer, rank - 1)
        return {axis + 1: size for axis, size in inner.items()}

    def borders(self, layer: Any, shape: Shape) -> str:
        return self.inner.borders(layer.layer, (shape[0], *shape[2:]))

    def activation(self, layer: Any) -> Any:
        return super().activation(layer.layer)

    def variables(self, layer: Any) -> list[keras.Variable]:
        return self.inner.variables(layer.layer)

    def arrays(self, op: Linear) -> list[Array]:
        inner = self._inner(op)
        return inner.kind.arrays(inner)

    def adapt(self, config: dict[str, Any], op: Linear, activation: Function | None) -> None:
        inner = self._inner(op)
        inner.kind.adapt(config["layer"]["config"], inner, activation)

    def _inner(self, op: Linear) -> Linear:
        def back(affine: Affine | None) -> Affine | None:
            return affine and dataclasses.replace(affine, axis=affine.axis - 1)

        layer: Any = op.layer
        inner = layer.layer
        return Linear(inner, self.inner, inner.name, back(op.before), back(op.after))
