"""``Dense``."""

# ruff: noqa: D102 - the base class documents the methods
from __future__ import annotations

from typing import Any

from ..graph import Function
from ..linear import Array, Linear, needs_bias
from .base import ChannelKind, finish, kernel_of, wide_bias


class DenseKind(ChannelKind):
    """``Dense``: kernel (in, out), on the last axis of any rank."""

    def axis(self, layer: Any, rank: int) -> int:
        return rank - 1

    def sizes(self, layer: Any) -> tuple[int, int]:
        fan_in, units = layer.kernel.shape
        return fan_in, units

    def groups(self, layer: Any) -> int:
        return 1

    def adapt(self, config: dict[str, Any], op: Linear, activation: Function | None) -> None:
        super().adapt(config, op, activation)
        config["units"] += op.gives.blocks if op.gives else 0

    def arrays(self, op: Linear) -> list[Array]:
        kernel = kernel_of(op.layer)
        shift: Array | None = None
        if op.before is not None:
            shift = op.before.shift @ kernel
            kernel = kernel * op.before.scale[:, None]
        kernel = finish(op, kernel, fan_in=0, out=1)
        if not (op.layer.use_bias or needs_bias(op)):
            return [kernel]
        return [kernel, wide_bias(op, shift)]
