"""The ways in which the inputs of a file, and the order of its outputs, may be wrong.

Each says what is wrong and how to mend it, and converts the model's own inputs to those that such a
file takes. The likely ones are also combined, such as BGR for RGB with pixels of 0..255 for 0..1.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..artifacts.golden_set import Arrays
from ..artifacts.manifest import TensorSpec
from ..reference.value_changes import Change, value_changes
from ..runtimes.base import TensorInfo
from ..runtimes.session import dequantize, quantize

# With more tensors or channels there are too many orders to try.
_MOST_EXCHANGED, _MOST_CHANNELS, _MOST_AXES = 4, 4, 3

# Kinds of changes; those of different kinds are combined.
_ORDER, _LAYOUT, _VALUES, _BYTES = "order", "layout", "values", "bytes"


@dataclass(frozen=True)
class InterfaceChange:
    """A possible fault of the inputs or of the order of the outputs.

    Attributes:
        says: What is wrong and how to mend it.
        change: Converts the model's inputs to those that the file needs, or the file's outputs to
            those of the model.
        device: What is wrong if a device gives the outputs for changed inputs.
        kind: "order" of the tensors, "layout" of one, its "values" or its "bytes".
        likely: Whether it is common enough to be combined with others.
    """

    says: str
    change: Callable[[Arrays], Arrays]
    device: str = ""
    kind: str = _ORDER
    likely: bool = False

    def after(self, first: InterfaceChange) -> InterfaceChange:
        """Return the change that consists of another one and this one."""
        return InterfaceChange(
            f"{first.says}; and {self.says}",
            lambda arrays: self.change(first.change(arrays)),
            f"{first.device}; and {self.device}",
        )


def changes_of_inputs(
    inputs: Arrays, specs: Sequence[TensorSpec], preprocessing: Mapping[str, Any] | None
) -> Iterator[InterfaceChange]:
    """Yield possible faults of the inputs: of one alone, of all that are alike, and of two kinds.

    Args:
        inputs: The model's inputs, by Keras name.
        specs: The manifest's entries of the file's inputs.
        preprocessing: The mean and scale that turn pixels into the model's inputs; None if unknown.
    """
    single = []
    for change in _single_changes(inputs, specs, preprocessing):
        single.append(change)
        yield change
    values = [change for change in single if change.kind == _VALUES]
    for kind in (_LAYOUT, _ORDER):
        for other in single:
            if other.kind == kind and other.likely:
                for change in values:
                    yield change.after(other)
                    if kind == _LAYOUT and "ImageNet" in change.says:  # a number for each channel
                        yield other.after(change)


def _single_changes(
    inputs: Arrays, specs: Sequence[TensorSpec], preprocessing: Mapping[str, Any] | None
) -> Iterator[InterfaceChange]:
    kinds = {name: (array.shape, array.dtype) for name, array in inputs.items()}
    for order in _orders(kinds):
        what = _exchange("input", order)
        yield InterfaceChange(
            f"{what} in the file: feed them in that order, or convert the model again",
            _renamed(order),
            device=f"{what} on the device: feed them in that order",
            likely=True,
        )
    groups: dict[object, list[TensorSpec]] = {}
    for spec in specs:
        groups.setdefault(kinds[spec.keras_name], []).append(spec)
    for alike in groups.values():
        yield from _of_alike(alike, inputs, preprocessing)
        for spec in alike if len(alike) > 1 else ():
            yield from _of_alike([spec], inputs, preprocessing)


def orders_of_outputs(given: Arrays) -> Iterator[InterfaceChange]:
    """Yield the other orders of the outputs."""
    for order in _orders({name: array.shape for name, array in given.items()}):
        yield InterfaceChange(
            f"{_exchange('output', order)} in the file: read them in that order, or convert the "
            "model again",
            _renamed(order),
        )


def _of_alike(
    specs: Sequence[TensorSpec], inputs: Arrays, preprocessing: Mapping[str, Any] | None
) -> Iterator[InterfaceChange]:
    """Yield possible faults that some inputs of one shape and type share."""
    names = [spec.keras_name for spec in specs]
    listed = " and ".join(f"'{name}'" for name in names)
    the = f"input{'s' * (len(names) > 1)} {listed}"
    array = inputs[names[0]]
    for says, device, change, likely in _layouts(the, array.shape):
        yield InterfaceChange(says, _changed(names, change), device, _LAYOUT, likely)
    (spec, *_) = specs
    if spec.scale is not None and np.dtype(spec.dtype).itemsize == 1:
        yield InterfaceChange(
            f"the bytes of {the} have the wrong sign: the zero point is off by 128",
            _each(specs, other_sign),
            f"the device takes the bytes of {the} with the wrong sign",
            _BYTES,
        )
    if spec.scale is not None and np.dtype(spec.dtype).kind in "iu":
        yield from _of_steps(the, specs)
    if np.dtype(spec.dtype).itemsize > 1:
        order = f"the bytes of {the} are taken in the other order (big-endian for little-endian)"
        yield InterfaceChange(
            f"{order}: exchange them before", _each(specs, other_order), f"on the device {order}",
            _BYTES,
        )  # fmt: skip
    if array.dtype.kind == "f":
        for says, change in (*_unprocessed(preprocessing), *value_changes(array, rare=True)):
            yield InterfaceChange(
                f"the file takes {the} {says}: use that range, or convert again",
                _changed(names, change),
                f"the device takes {the} {says}",
                _VALUES,
            )


def _of_steps(the: str, specs: Sequence[TensorSpec]) -> Iterator[InterfaceChange]:
    """Yield changes of inputs of integers that are made with another scale or zero point."""
    (spec, *_) = specs
    own = spec.scale, spec.zero_point or 0
    for scale, point in _other_steps(spec):
        other = replace(_steps(spec), scale=scale, zero_point=point)
        says = (
            f"the integers of {the} are made with the scale {scale:.6g} and zero point {point}; "
            f"manifest.json has {own[0]:.6g} and {own[1]}"
        )
        yield InterfaceChange(
            f"{says}: use these",
            _each(specs, functools.partial(_made_with, other=other)),
            f"on the device {says}",
            _BYTES,
        )


def _other_steps(spec: TensorSpec) -> Iterator[tuple[float, int]]:
    """Yield scales and zero points that are used instead of a file's own."""
    assert spec.scale is not None
    scale, point, limits = spec.scale, spec.zero_point or 0, np.iinfo(spec.dtype)
    points = dict.fromkeys((point, 0, -point, int(limits.min), 128))
    scales = (scale, 1.0, 1 / 255, 1 / 127.5, 1 / 127, 1 / 128, 1 / 256, 2 / 255, 1 / scale)
    for other in dict.fromkeys(scales):
        for zero in points:
            if (other, zero) != (scale, point) and limits.min <= zero <= limits.max:
                yield other, zero


def _made_with(array: np.ndarray, spec: TensorSpec, other: TensorInfo) -> np.ndarray:
    """Return the numbers that a file reads in integers made with other steps."""
    return dequantize(quantize(array, other), _steps(spec))


# What is wrong in a file and on a device, the change, and whether it is likely.
_Layout = tuple[str, str, Change, bool]


def _layouts(the: str, shape: tuple[int, ...]) -> Iterator[_Layout]:
    """Yield other orders of the numbers of an input: of channels, axes, and along axes."""
    rank = len(shape)
    if rank > 2 and shape[-1] in range(2, _MOST_CHANNELS + 1):
        for places in _channel_orders(shape[-1]):
            known = " (BGR for RGB)" if places == (2, 1, 0) else ""
            yield (
                f"the channels of {the} are in the order {places}{known} in the file: use that "
                "order, or convert the model again",
                f"the device takes the channels of {the} in the order {places}{known}",
                functools.partial(np.take, indices=places, axis=-1),
                bool(known),
            )
    for axes in axes_orders(shape, shape):
        yield (
            f"the axes of {the} are in another order in the file: transpose what it is fed by "
            f"{axes}",
            f"the device takes the axes of {the} in the order {axes}",
            functools.partial(np.transpose, axes=axes),
            axes == (0, 2, 1, *range(3, rank)),
        )
    for backwards in _reversals(shape):
        which = f"axis {backwards[0]}" if len(backwards) == 1 else f"axes {backwards}"
        yield (
            f"the file takes {the} reversed along {which}: reverse what it is fed, or convert the "
            "model again",
            f"the device takes {the} reversed along {which}",
            functools.partial(np.flip, axis=backwards),
            False,
        )
    if rank > 3 and shape[1] == shape[2]:
        for turns in (1, 3):
            yield (
                f"the file takes {the} turned by {90 * turns} degrees: turn what it is fed",
                f"the device takes {the} turned by {90 * turns} degrees",
                functools.partial(np.rot90, k=turns, axes=(1, 2)),
                False,
            )
    if rank == 3:
        for steps in (1, -1):
            later = f"{'later' if steps > 0 else 'earlier'} by one step along axis 1"
            yield (
                f"the file takes {the} {later}: shift what it is fed",
                f"the device takes {the} {later}",
                functools.partial(np.roll, shift=steps, axis=1),
                False,
            )
    if rank > 2 and shape[-1] > 1:
        first, last = (0, rank - 1, *range(1, rank - 1)), (0, *range(2, rank), 1)
        moved = tuple(shape[axis] for axis in first)
        yield (
            f"the file reads the numbers of {the} with channels first, in memory of the same "
            "shape: transpose the memory that it is fed (NHWC to NCHW), or convert again",
            f"the device reads the numbers of {the} with channels first",
            lambda x: np.transpose(x, first).reshape(x.shape),
            True,
        )
        yield (
            f"the file reads the numbers of {the} with channels last, in memory of the same "
            "shape: transpose the memory that it is fed (NCHW to NHWC), or convert again",
            f"the device reads the numbers of {the} with channels last",
            lambda x: np.transpose(x.reshape(len(x), *moved[1:]), last).reshape(x.shape),
            True,
        )


def _reversals(shape: tuple[int, ...]) -> list[tuple[int, ...]]:
    """Return axes after the samples along which numbers may be reversed; of an image, also both.

    Few channels have orders of their own.
    """
    rank = len(shape)
    channels = rank > 2 and shape[-1] <= _MOST_CHANNELS
    axes = [axis for axis in range(1, rank - channels) if shape[axis] > 1]
    return [(axis,) for axis in axes] + [(1, 2)] * (rank > 3 and min(shape[1:3]) > 1)


def _unprocessed(preprocessing: Mapping[str, Any] | None) -> Iterator[tuple[str, Change]]:
    """Yield the changes of a file that has the preprocessing, or that needs it twice."""
    if preprocessing is None:
        return
    mean, scale = (np.asarray(preprocessing[key], np.float64) for key in ("mean", "scale"))
    yield "before the preprocessing of the export (raw pixels)", lambda x: x / scale + mean
    yield "after a second preprocessing like that of the export", lambda x: (x - mean) * scale


def other_order(array: np.ndarray, spec: TensorSpec) -> np.ndarray:
    """Return numbers whose bytes in a file are in the other order."""
    if spec.scale is None or np.dtype(spec.dtype).kind == "f":
        return array.byteswap() if array.dtype.itemsize > 1 else array
    steps = _steps(spec)
    return dequantize(quantize(array, steps).byteswap(), steps)


def other_sign(array: np.ndarray, spec: TensorSpec) -> np.ndarray:
    """Return numbers whose bytes in a file are signed where they were unsigned, or reversed."""
    steps = _steps(spec)
    turned = quantize(array, steps).view(np.uint8) ^ np.uint8(128)
    return dequantize(turned.view(steps.dtype), steps)


def _steps(spec: TensorSpec) -> TensorInfo:
    """Return the integers of an input or output."""
    return TensorInfo(spec.name, (), np.dtype(spec.dtype), spec.scale, spec.zero_point)


def _orders(kinds: Mapping[str, object]) -> Iterator[dict[str, str]]:
    """Yield every permutation of tensors of one kind, as name to name."""
    groups: dict[object, list[str]] = {}
    for name, kind in kinds.items():
        groups.setdefault(kind, []).append(name)
    for names in groups.values():
        if len(names) <= _MOST_EXCHANGED:
            for order in itertools.permutations(names):
                if order != tuple(names):
                    yield dict(zip(names, order))


def _exchange(what: str, order: Mapping[str, str]) -> str:
    """Describe which tensors are exchanged."""
    moved = {name: other for name, other in order.items() if name != other}
    if len(moved) == 2:
        first, second = moved
        return f"{what}s '{first}' and '{second}' are exchanged"
    pairs = ", ".join(f"'{name}' is '{other}'" for name, other in moved.items())
    return f"{what}s are in another order ({pairs})"


def _renamed(order: Mapping[str, str]) -> Callable[[Arrays], Arrays]:
    return lambda arrays: {name: arrays[order.get(name, name)] for name in arrays}


def _changed(names: Sequence[str], change: Change) -> Callable[[Arrays], Arrays]:
    """Return a change of some tensors."""

    def apply(arrays: Arrays) -> Arrays:
        changed = {name: change(arrays[name]) for name in names}
        return {
            name: changed[name].astype(array.dtype, copy=False) if name in changed else array
            for name, array in arrays.items()
        }

    return apply


def _each(
    specs: Sequence[TensorSpec], change: Callable[..., np.ndarray]
) -> Callable[[Arrays], Arrays]:
    """Return a change of some tensors that depends on their numbers in the file."""

    def apply(arrays: Arrays) -> Arrays:
        for spec in specs:
            arrays = _changed([spec.keras_name], functools.partial(change, spec=spec))(arrays)
        return arrays

    return apply


def axes_orders(shape: tuple[int, ...], wanted: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
    """Yield orders of the axes after the samples that turn one shape into another."""
    count = len(shape) - 1
    if len(shape) != len(wanted) or not 2 <= count <= _MOST_AXES:
        return
    for order in itertools.permutations(range(1, count + 1)):
        axes = (0, *order)
        if axes != tuple(range(count + 1)) and tuple(shape[a] for a in axes) == wanted:
            yield axes


def _channel_orders(count: int) -> list[tuple[int, ...]]:
    """Return the orders of channels, the reversed one first."""
    backwards = tuple(reversed(range(count)))
    rest = set(itertools.permutations(range(count))) - {backwards, tuple(range(count))}
    return [backwards, *sorted(rest)]
