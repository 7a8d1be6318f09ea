"""The rules of layers that commute with an affine, possibly with a change of its axis.

With f acting on each channel separately:

    f(s·x + t) = s·f(x) + t     if f averages, selects, repeats or reorders positions
    f(s·x) = s·f(x)             if f also pads with zeros: no shift
    max(s·x + t) = s·max(x) + t for s >= 0
"""

# ruff: noqa: D102 - the base class documents the methods
from __future__ import annotations

import dataclasses
import math
from typing import Any

import keras
import numpy as np
from keras import layers as kl

from ..affine import Affine
from ..graph import Call, Extra, Kept, Shape
from ..keras_graph import kind_of
from ..plan import Plan, Refusal, Rule


class _Passing(Rule):
    """Base class of rules for layers that commute with an affine."""

    layers: tuple[type, ...] = ()

    def matches(self, op: Any) -> bool:
        return isinstance(op, Kept) and type(op.operation) in self.layers

    def backward(self, plan: Plan, call: Call, affine: Affine) -> Refusal | None:
        refusal = self.refuses(call, affine)
        moved = refusal or self.to_input(call, affine)
        return moved if isinstance(moved, Refusal) else plan.backward(call.inputs[0], moved, call)

    def forward(self, plan: Plan, call: Call, slot: int, affine: Affine) -> Refusal | None:
        refusal = self.refuses(call, affine)
        moved = refusal or self.to_output(call, affine)
        return moved if isinstance(moved, Refusal) else plan.forward(call.output, moved)

    # Whether a constant channel is unchanged, including the borders.
    constant_passes = True
    # Whether the layer is linear, so that a shift may differ by position.
    is_linear = True

    def provide(self, plan: Plan, call: Call, wanted: Extra) -> Extra | Refusal:
        axes = range(call.inputs[0].rank)
        inner = next((a for a in axes if self.axis_out(call, a) == wanted.axis), None)
        if inner is None or (wanted.constant and not self.constant_passes):
            return super().provide(plan, call, wanted)
        extra = plan.provide(call.inputs[0], dataclasses.replace(wanted, axis=inner), call)
        if isinstance(extra, Refusal):
            return extra
        return dataclasses.replace(extra, axis=wanted.axis)

    def ignore(self, plan: Plan, call: Call, slot: int, extra: Extra) -> Refusal | None:
        axis = self.axis_out(call, extra.axis)
        if axis is None:
            return super().ignore(plan, call, slot, extra)
        return plan.ignore(call.output, dataclasses.replace(extra, axis=axis))

    def carry(
        self, plan: Plan, call: Call, slot: int, affine: Affine, extra: Extra
    ) -> Refusal | None:
        # The layer affects the constant in the same way as the shift, including zero padding.
        refusal = self.refuses(call, affine if self.constant_passes else affine.scale_only)
        moved = refusal or self.to_output(call, affine)
        if isinstance(moved, Refusal):
            return moved
        axis = self.axis_out(call, extra.axis)
        if axis is None or (extra.padded and not self.is_linear):
            return super().carry(plan, call, slot, affine, extra)
        padded = extra.padded or not self.constant_passes
        return plan.carry(call.output, moved, dataclasses.replace(extra, axis=axis, padded=padded))

    def axis_out(self, call: Call, axis: int) -> int | None:
        """Return the output axis that grows with an axis of the input.

        Returns:
            The axis, or None if additional entries would change the others or the layout.
        """
        return axis

    def refuses(self, call: Call, affine: Affine) -> Refusal | None:
        """Return why an affine on any axis cannot move through; None if it may."""
        return None

    def to_input(self, call: Call, affine: Affine) -> Affine | Refusal:
        """Convert an affine of the output to one of the input."""
        return affine

    def to_output(self, call: Call, affine: Affine) -> Affine | Refusal:
        """Convert an affine of the input to one of the output."""
        return affine


class SameAxis(_Passing):
    """Dropout and similar layers, Identity: they return their input at inference."""

    layers = (
        kl.Dropout,
        kl.SpatialDropout1D,
        kl.SpatialDropout2D,
        kl.SpatialDropout3D,
        kl.AlphaDropout,
        kl.GaussianDropout,
        kl.GaussianNoise,
        kl.ActivityRegularization,
        kl.Identity,
    )

    def matches(self, op: Any) -> bool:
        return super().matches(op) or (
            isinstance(op, Kept)
            and isinstance(op.operation, kl.Activation)
            and op.operation.activation is keras.activations.linear
        )

    def refuses(self, call: Call, affine: Affine) -> Refusal | None:
        if (call.kwargs or {}).get("training"):
            return Refusal(f"{call.name!r} is called with training=True")
        return None


class _Spatial(_Passing):
    """Layers that act on positions, for which the affine must be on the channel axis."""

    def refuses(self, call: Call, affine: Affine) -> Refusal | None:
        axis = channel_axis(call)
        if affine.axis == axis or affine.is_uniform:
            return None
        return Refusal(
            f"{call.name!r} mixes the entries of axis {affine.axis}, the axis of the norm"
        )

    def axis_out(self, call: Call, axis: int) -> int | None:
        return axis if axis == channel_axis(call) else None


class Spatial(_Spatial):
    """AveragePooling (Keras excludes padding from the mean), UpSampling, Cropping."""

    layers: tuple[type, ...] = (
        kl.AveragePooling1D,
        kl.AveragePooling2D,
        kl.AveragePooling3D,
        kl.UpSampling1D,
        kl.UpSampling2D,
        kl.UpSampling3D,
        kl.Cropping1D,
        kl.Cropping2D,
        kl.Cropping3D,
    )

    def to_input(self, call: Call, affine: Affine) -> Affine | Refusal:
        return _on_channels(call, affine, call.inputs[0].shape)

    def to_output(self, call: Call, affine: Affine) -> Affine | Refusal:
        return _on_channels(call, affine, call.output.shape)


class MaxPool(Spatial):
    """MaxPooling, which commutes with scales that are not negative."""

    layers = (kl.MaxPooling1D, kl.MaxPooling2D, kl.MaxPooling3D)
    is_linear = False

    def refuses(self, call: Call, affine: Affine) -> Refusal | None:
        return _negative(call, affine) or super().refuses(call, affine)


class ZeroPad(Spatial):
    """ZeroPadding, which commutes with scales but not with shifts."""

    layers = (kl.ZeroPadding1D, kl.ZeroPadding2D, kl.ZeroPadding3D)
    constant_passes = False

    def refuses(self, call: Call, affine: Affine) -> Refusal | None:
        if affine.shifts:
            return Refusal(f"{call.name!r} pads with zeros, which a shift would change")
        return super().refuses(call, affine)


class GlobalPool(_Spatial):
    """GlobalAveragePooling: one mean per channel; the channel axis becomes axis 1."""

    layers: tuple[type, ...] = (
        kl.GlobalAveragePooling1D,
        kl.GlobalAveragePooling2D,
        kl.GlobalAveragePooling3D,
    )

    def refuses(self, call: Call, affine: Affine) -> Refusal | None:
        # The channel axis of the output differs, and the output has no other axes.
        return None

    def to_input(self, call: Call, affine: Affine) -> Affine | Refusal:
        return _on_channels(call, affine, call.inputs[0].shape, self._output_axis(call))

    def to_output(self, call: Call, affine: Affine) -> Affine | Refusal:
        source, target = channel_axis(call), self._output_axis(call)
        there = affine.on_axis(source, call.inputs[0].shape[source])
        if there is None:
            return Refusal(
                f"{call.name!r} mixes the entries of axis {affine.axis}, the axis of the norm"
            )
        return there.moved(target)

    def axis_out(self, call: Call, axis: int) -> int | None:
        return self._output_axis(call) if axis == channel_axis(call) else None

    @staticmethod
    def _output_axis(call: Call) -> int:
        return channel_axis(call) if call.op.operation.keepdims else 1


class GlobalMaxPool(GlobalPool):
    """GlobalMaxPooling: like GlobalAveragePooling, for scales that are not negative."""

    layers = (kl.GlobalMaxPooling1D, kl.GlobalMaxPooling2D, kl.GlobalMaxPooling3D)
    is_linear = False

    def refuses(self, call: Call, affine: Affine) -> Refusal | None:
        return _negative(call, affine)


class Permute(_Passing):
    """Permute: the axis of the affine is permuted."""

    layers = (kl.Permute,)

    def axis_out(self, call: Call, axis: int) -> int:
        return (0, *call.op.operation.dims).index(axis)

    def to_input(self, call: Call, affine: Affine) -> Affine | Refusal:
        return affine.moved(call.op.operation.dims[affine.axis - 1])

    def to_output(self, call: Call, affine: Affine) -> Affine | Refusal:
        return affine.moved(self.axis_out(call, affine.axis))


class Repeat(_Passing):
    """RepeatVector: (batch, features) becomes (batch, n, features)."""

    layers = (kl.RepeatVector,)

    def axis_out(self, call: Call, axis: int) -> int | None:
        return 2

    def to_input(self, call: Call, affine: Affine) -> Affine | Refusal:
        if affine.axis == 2:
            return affine.moved(1)
        uniform = affine.as_uniform(1, call.inputs[0].shape[1])
        return uniform or Refusal(f"{call.name!r} repeats along axis {affine.axis}")

    def to_output(self, call: Call, affine: Affine) -> Affine | Refusal:
        return affine.moved(2)


class Reshape(_Passing):
    """Flatten and Reshape: the channels are repeated according to the memory layout.

    An additional channel would add an entry at every position, so constant channels are refused.
    """

    layers = (kl.Flatten, kl.Reshape)

    def matches(self, op: Any) -> bool:
        return super().matches(op) or (isinstance(op, Kept) and kind_of(op.operation) == "Reshape")

    def axis_out(self, call: Call, axis: int) -> int | None:
        return None

    def to_input(self, call: Call, affine: Affine) -> Affine | Refusal:
        return self._moved(call, affine, call.output.shape, call.inputs[0].shape)

    def to_output(self, call: Call, affine: Affine) -> Affine | Refusal:
        return self._moved(call, affine, call.inputs[0].shape, call.output.shape)

    @staticmethod
    def _moved(call: Call, affine: Affine, source: Shape, target: Shape) -> Affine | Refusal:
        if getattr(call.op.operation, "data_format", None) == "channels_first":
            return Refusal(f"{call.name!r} reorders the channels")
        moved = through_reshape(affine, source, target)
        return moved or Refusal(f"{call.name!r} would need a factor for every element")


def through_reshape(affine: Affine, source: Shape, target: Shape) -> Affine | None:
    """Convert an affine of a tensor to an affine of the reshaped tensor.

    Args:
        affine: An affine on an axis of ``source``.
        source: Shape before, including the batch axis.
        target: Shape after.

    Returns:
        The affine on one axis of ``target``, or None if it would vary along several axes or a size
        is unknown.
    """
    if affine.axis == 0:
        return None
    if affine.axis == len(source) - 1 and source[-1] == target[-1]:
        return affine.moved(len(target) - 1)
    if None in source[1:] or None in target[1:]:
        return affine.as_uniform(len(target) - 1, target[-1])
    if math.prod(source[1:]) != math.prod(target[1:]):  # type: ignore[arg-type]
        return None  # the batch is reshaped too
    before = math.prod(source[1 : affine.axis])  # type: ignore[arg-type]
    behind = math.prod(source[affine.axis + 1 :])  # type: ignore[arg-type]
    both = np.stack([affine.scale, affine.shift])
    full = np.tile(np.repeat(both, behind, axis=1), (1, before)).reshape(2, *target[1:])
    for axis in range(1, len(target)):
        vectors = np.moveaxis(full, axis, 1).reshape(2, target[axis], -1)  # type: ignore[arg-type]
        if (vectors == vectors[:, :, :1]).all():
            return Affine(vectors[0, :, 0].copy(), vectors[1, :, 0].copy(), axis)
    return None


def channel_axis(call: Call) -> int:
    """Return the channel axis of the input of a spatial layer."""
    rank = call.inputs[0].rank
    data_format = getattr(call.op.operation, "data_format", "channels_last")
    return 1 if data_format == "channels_first" else rank - 1


def _on_channels(
    call: Call, affine: Affine, shape: Shape, seen_on: int | None = None
) -> Affine | Refusal:
    """Express an affine on the channel axis of a tensor of the given shape."""
    axis = channel_axis(call)
    if affine.axis == (axis if seen_on is None else seen_on):
        return affine.moved(axis)
    there = affine.as_uniform(axis, shape[axis])
    return there or Refusal(
        f"{call.name!r} mixes the entries of axis {affine.axis}, the axis of the norm"
    )


def _negative(call: Call, affine: Affine) -> Refusal | None:
    count = int((affine.scale < 0).sum())
    if not count:
        return None
    return Refusal(
        f"{call.name!r} takes the maximum, which only scales that are not negative preserve: "
        f"{count} of {affine.size} are negative"
    )
