"""Yields faults that may lie between the right numbers of a file and its wrong outputs.

Each fault comes with the change that corrects it. `interface_suspects` tries these changes.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from ..artifacts.manifest import TensorSpec
from .interface_changes import axes_orders, other_order, other_sign

# What is wrong with one output, and the change that corrects it.
Reading = tuple[str, Callable[[np.ndarray], np.ndarray]]


def row_orders(count: int, size: int) -> Iterator[tuple[str, np.ndarray]]:
    """Yield other orders of rows, and the row of each sample's output; -1 where it is lost."""
    place = np.arange(count)
    for step, which in ((1, "before"), (-1, "after")):
        source = place + step
        source[(source < 0) | (source >= count)] = -1
        yield f"the outputs of each sample are those of the one {which} (shifted by one)", source
    start, whole = place // size * size, place // size * size + size <= count
    for step, which in ((1, "before"), (-1, "after")) if size > 1 else ():
        source = np.where(whole, start + (place - start + step) % size, -1)
        yield f"the rows of each batch of {size} are those of the sample {which}", source
    if size > 1:
        yield (
            f"the rows of each batch of {size} are in reversed order",
            np.where(whole, start + size - 1 - (place - start), -1),
        )


def output_readings(given: np.ndarray, expected: np.ndarray, spec: TensorSpec) -> Iterator[Reading]:
    """Yield possible faults of one output."""
    name = spec.keras_name
    for axes in axes_orders(given.shape, expected.shape):
        says = f"the axes of output '{name}' are in another order: transpose it by {axes}"
        yield says, functools.partial(np.transpose, axes=axes)
    if given.shape != expected.shape:
        return
    places = _columns(given, expected)
    if places is not None:
        yield (
            f"{_entries(places)} of output '{name}' (last axis): labels or rows of its layer "
            "are in another order than in training: use that order, or convert again",
            functools.partial(np.take, indices=places, axis=-1),
        )
    yield (
        f"the bytes of output '{name}' are in the other order (big-endian for little-endian): "
        "exchange them where it is read",
        functools.partial(other_order, spec=spec),
    )
    if spec.scale is not None and np.dtype(spec.dtype).itemsize == 1:
        says = f"the bytes of output '{name}' have the wrong sign: its zero point is off by 128"
        yield says, functools.partial(other_sign, spec=spec)
    yield from _scaled(given, expected, spec)
    yield from _of_scores(expected, spec)


def _of_scores(expected: np.ndarray, spec: TensorSpec) -> Iterator[Reading]:
    """Yield a softmax or sigmoid that is missing or one too many."""
    name = spec.keras_name
    softmax = (("softmax", _softmax, np.log),) if expected.shape[-1] > 1 else ()
    for function, forward, inverse in (*softmax, ("sigmoid", _sigmoid, _logit)):
        yield (
            f"output '{name}' lacks the {function} of the trained model: apply it where the output "
            "is read, or convert the whole model",
            forward,
        )

        def back(
            y: np.ndarray,
            of: Callable[[np.ndarray], np.ndarray] = inverse,
            centred: bool = function == "softmax",
        ) -> np.ndarray:
            x = of(y.astype(np.float64))
            # A softmax loses what all classes have in common.
            common = expected.mean(-1, keepdims=True) - x.mean(-1, keepdims=True)
            return x + common if centred else x

        yield (
            f"output '{name}' has a {function} that the trained model lacks: read it as such, or "
            "convert again without",
            back,
        )


def _softmax(x: np.ndarray) -> np.ndarray:
    powers = np.exp(x.astype(np.float64) - x.max(-1, keepdims=True))
    return np.asarray(powers / powers.sum(-1, keepdims=True))


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return np.asarray(1 / (1 + np.exp(-x.astype(np.float64))))


def _logit(y: np.ndarray) -> np.ndarray:
    return np.asarray(np.log(y) - np.log1p(-y))


def _columns(given: np.ndarray, truth: np.ndarray) -> list[int] | None:
    """Return where each entry of the last axis is found in the given output; None if nowhere."""
    count = truth.shape[-1]
    y = given.reshape(-1, count).astype(np.float64)
    t = truth.reshape(-1, count)
    if count < 2 or len(t) < 2 or not (np.isfinite(y).all() and np.isfinite(t).all()):
        return None
    distances = np.square(t[:, :, None] - y[:, None, :]).sum(axis=0)
    places = [int(place) for place in distances.argmin(axis=1)]
    return places if sorted(places) == list(range(count)) != places else None


def _entries(places: Sequence[int]) -> str:
    """Describe which entries are exchanged."""
    moved = [place for place, found in enumerate(places) if place != found]
    if len(moved) == 2:
        return f"entries {moved[0]} and {moved[1]} are exchanged"
    return f"entries are in another order, corrected by {tuple(places)},"


def _scaled(given: np.ndarray, expected: np.ndarray, spec: TensorSpec) -> Iterator[Reading]:
    """Yield the factor, the offset, and both, that explain an output best."""
    y, t = (array.reshape(-1).astype(np.float64) for array in (given, expected))
    usable = np.isfinite(y) & np.isfinite(t)
    y, t = y[usable], t[usable]
    if not usable.any() or np.ptp(t) == 0:
        return
    factor, offset = float(y @ t) / float(t @ t), float(np.median(y - t))
    if offset:
        says = f"the trained model's plus {offset:.4g}"
        yield _mapped(says, spec, 1.0, offset), lambda y: y - offset
    if factor:
        yield _mapped(f"{factor:.4g} times the trained model's", spec, factor), lambda y: y / factor
    slope, start = (float(v) for v in np.polyfit(t, y, 1))
    if slope:
        says = f"{slope:.4g} times the trained model's plus {start:.4g}"
        yield _mapped(says, spec, slope, start), lambda y: (y - start) / slope


def _mapped(says: str, spec: TensorSpec, slope: float, start: float = 0.0) -> str:
    """Describe an output that is mapped linearly, and how to mend it.

    Integers are read with the scale s' = slope s and the zero point z' = z - start / s' then.
    """
    undo = "undo that where it is read, or convert again"
    if spec.scale is not None and np.dtype(spec.dtype).kind in "iu":
        scale, point = slope * spec.scale, spec.zero_point or 0
        undo = (
            f"its integers are read with the scale {scale:.4g} and zero point "
            f"{point - start / scale:.0f}, manifest.json has {spec.scale:.4g} and {point}: use "
            "these, or convert again"
        )
    return f"output '{spec.keras_name}' is {says}: {undo}"
