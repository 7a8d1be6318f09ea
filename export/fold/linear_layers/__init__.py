"""Every type of linear layer that absorbs affines, one family a file, and how each does.

The formulas are those of `linear.py`; here is only which axis of which kernel is which.
"""

from __future__ import annotations

from typing import Any

import keras
from keras import layers as kl

from ..linear import Kind
from .conv import ConvKind, ConvTransposeKind
from .dense import DenseKind
from .depthwise import DepthwiseKind, SeparableKind
from .einsum import EinsumKind
from .wrapped import TimeDistributedKind

# By exact type: a subclass may compute anything.
KINDS: dict[type[keras.Layer], Kind] = {
    kl.Dense: DenseKind(),
    kl.EinsumDense: EinsumKind(),
    kl.Conv1D: ConvKind(),
    kl.Conv2D: ConvKind(),
    kl.Conv3D: ConvKind(),
    kl.DepthwiseConv1D: DepthwiseKind(),
    kl.DepthwiseConv2D: DepthwiseKind(),
    kl.SeparableConv1D: SeparableKind(),
    kl.SeparableConv2D: SeparableKind(),
    kl.Conv1DTranspose: ConvTransposeKind(),
    kl.Conv2DTranspose: ConvTransposeKind(),
    kl.Conv3DTranspose: ConvTransposeKind(),
}


def find(layer: Any) -> Kind | None:
    """Return what is known about a layer, or None where it is no linear layer that can absorb."""
    if type(layer) is kl.TimeDistributed:
        inner = KINDS.get(type(layer.layer))
        return TimeDistributedKind(inner) if inner and find(layer.layer) else None
    kind = KINDS.get(type(layer))
    if kind is None or layer.quantization_mode is not None:
        return None
    return kind
