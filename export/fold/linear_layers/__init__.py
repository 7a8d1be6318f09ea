"""The types of linear layers that absorb affines, one file per family.

The formulas are in `linear.py`; these files define the axes of the kernels.
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

# Looked up by exact type, since a subclass may compute something else.
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
    """Return the description of a layer's type; None if it is not a known linear layer."""
    if type(layer) is kl.TimeDistributed:
        inner = KINDS.get(type(layer.layer))
        return TimeDistributedKind(inner) if inner and find(layer.layer) else None
    kind = KINDS.get(type(layer))
    if kind is None or layer.quantization_mode is not None:
        return None
    return kind
