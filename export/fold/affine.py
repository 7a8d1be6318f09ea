"""The algebra of the fold: per-channel affine maps in float64, NumPy only.

An affine ``A`` is ``x -> s * x + t`` with one ``s`` and one ``t`` per index of a single axis. Every
norm is one at inference, and the fold does nothing but compose, invert, split and move them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

Vector = NDArray[np.float64]

# Two affines that are the same by algebra differ by the rounding of the few operations that made
# them; this is 8 such roundings, four orders below what the proof allows.
_SAME = 8 * np.finfo(np.float64).eps

# Undoing a map costs precision where its shift is large against what it is added to: of an x of the
# usual magnitude m, `(s*x + t - t) / s` loses log2(|t| / |s*m|) bits, in float32 of 24 and in int8
# of 8. Four is where we stop: one operation left in the network is better than that.
_MOST_LOST = 2.0**4

# Beyond this a number, multiplied by an ordinary weight, can leave the range of float32.
LARGEST = 2.0**60


@dataclass(frozen=True, eq=False)
class Affine:
    """The map ``x -> scale * x + shift`` along one axis.

    Attributes:
        scale: float64, shape (channels,).
        shift: float64, shape (channels,).
        axis: The axis of the tensor the vectors run along, the batch included. Inside the fold it
            is counted from 0; who registers a norm may count from the end (-1).
        magnitude: Root mean square of the x of each channel, which the moving statistics of a norm
            tell; None stands for 1. It decides only whether undoing the map would lose precision.
    """

    scale: Vector
    shift: Vector
    axis: int
    magnitude: Vector | None = None

    def __post_init__(self) -> None:
        if self.scale.shape != self.shift.shape or self.scale.ndim != 1:
            raise ValueError(
                "scale and shift must be vectors of the same length. "
                f"Received shapes: {self.scale.shape} and {self.shift.shape}"
            )

    @classmethod
    def of(
        cls,
        scale: ArrayLike,
        shift: ArrayLike,
        axis: int = -1,
        size: int | None = None,
        magnitude: ArrayLike | None = None,
    ) -> Affine:
        """Build an affine from vectors or scalars of any dtype.

        Args:
            scale: One factor a channel, or one for all.
            shift: One summand a channel, or one for all.
            axis: The channel axis.
            size: Number of channels; by default as many as the longer vector has.
            magnitude: Root mean square of the channels that it is applied to, where it is known.
        """
        s, t = (np.asarray(v, np.float64).reshape(-1) for v in (scale, shift))
        channels = (max(len(s), len(t)) if size is None else size,)
        if magnitude is not None:
            magnitude = np.broadcast_to(np.asarray(magnitude, np.float64).reshape(-1), channels)
        return cls(np.broadcast_to(s, channels), np.broadcast_to(t, channels), axis, magnitude)

    @classmethod
    def identity(cls, axis: int, size: int) -> Affine:
        """Return the map that changes nothing."""
        return cls.of(1.0, 0.0, axis, size)

    @property
    def size(self) -> int:
        """Number of channels."""
        return len(self.scale)

    @property
    def scales(self) -> bool:
        """Whether a multiplication would be needed to compute this map."""
        return bool((self.scale != 1).any())

    @property
    def shifts(self) -> bool:
        """Whether an addition would be needed to compute this map."""
        return bool((self.shift != 0).any())

    @property
    def is_identity(self) -> bool:
        """Whether the map changes nothing at all."""
        return not (self.scales or self.shifts)

    @property
    def is_uniform(self) -> bool:
        """Whether every channel is mapped alike, so that the axis does not matter."""
        same = (self.scale == self.scale[0]) & (self.shift == self.shift[0])
        return bool(same.all())

    @property
    def scale_only(self) -> Affine:
        """The multiplication of this map alone."""
        return replace(self, shift=np.zeros_like(self.shift))

    @property
    def shift_only(self) -> Affine:
        """The addition of this map alone, to what the multiplication gives."""
        magnitude = np.abs(self.scale) * self._magnitude
        return Affine(np.ones_like(self.scale), self.shift, self.axis, magnitude)

    @property
    def _magnitude(self) -> Vector:
        return np.ones_like(self.scale) if self.magnitude is None else self.magnitude

    def after(self, first: Affine, *, known: bool = False) -> Affine:
        """Compose: ``x -> self(first(x))``.

        Args:
            first: The map that comes first.
            known: Whether what this map reads has the better known magnitude of both.
        """
        if first.axis != self.axis or first.size != self.size:
            raise ValueError(
                "Only affines on the same axis compose. "
                f"Received: axis {self.axis} of {self.size} after axis {first.axis} of {first.size}"
            )
        scale, shift = self.scale * first.scale, self.scale * first.shift + self.shift
        magnitude = first.magnitude
        if known and self.magnitude is not None:
            divisor = np.where(first.scale == 0, 1.0, np.abs(first.scale))
            magnitude = self.magnitude / divisor
        return Affine(scale, shift, self.axis, magnitude).snapped()

    def snapped(self) -> Affine:
        """Return this map with what rounding left of a plain identity put right.

        ``s * (1 / s)`` may be 1 plus one rounding; kept, it would stay in the network as an
        operation that does nothing.
        """
        scale = np.where(np.abs(self.scale - 1) <= _SAME, 1.0, self.scale)
        return replace(self, scale=scale)

    def inverse(self) -> Affine | None:
        """Return the map that undoes this one, or None where none does without loss."""
        with np.errstate(all="ignore"):
            scale = 1 / self.scale
            shift = -self.shift * scale
            little = np.abs(shift) <= _MOST_LOST * self._magnitude
        # Written so that a NaN counts as too large.
        if not (np.abs(scale) <= LARGEST).all() or not little.all():
            return None
        return Affine(scale, shift + 0.0, self.axis, np.abs(self.scale) * self._magnitude)

    def moved(self, axis: int) -> Affine:
        """Return the same vectors along another axis."""
        return replace(self, axis=axis)

    def on_axis(self, axis: int, size: int | None) -> Affine | None:
        """Return the same map written along another axis, or None where the axis matters."""
        if axis == self.axis and size == self.size:
            return self
        if not self.is_uniform or size is None:
            return None
        return Affine.of(self.scale[0], self.shift[0], axis, size, self._magnitude.min())

    def split(self, sizes: Sequence[int]) -> list[Affine]:
        """Cut the channels into consecutive pieces, as Concatenate joined them."""
        edges = np.cumsum(sizes)[:-1]
        vectors = self.scale, self.shift, self._magnitude
        parts = zip(*(np.split(vector, edges) for vector in vectors), strict=True)
        return [Affine(scale, shift, self.axis, magnitude) for scale, shift, magnitude in parts]

    def matches(self, other: Affine) -> bool:
        """Whether both are the same map up to the rounding of the algebra."""
        return (
            self.axis == other.axis
            and self.size == other.size
            and bool(np.all(np.abs(self.scale - other.scale) <= _SAME * np.abs(other.scale)))
            and bool(
                np.all(
                    np.abs(self.shift - other.shift)
                    <= _SAME * np.maximum(np.abs(self.shift), np.abs(other.shift))
                )
            )
        )

    def apply(self, x: NDArray[np.float64]) -> NDArray[np.float64]:
        """Compute the map on an array whose axis ``self.axis`` has ``self.size`` entries."""
        shape = [1] * x.ndim
        shape[self.axis] = self.size
        result: NDArray[np.float64] = x * self.scale.reshape(shape) + self.shift.reshape(shape)
        return result


def join(parts: Sequence[Affine]) -> Affine:
    """Join affines channel after channel: the inverse of `Affine.split`."""
    return Affine(
        np.concatenate([part.scale for part in parts]),
        np.concatenate([part.shift for part in parts]),
        parts[0].axis,
        np.concatenate([part._magnitude for part in parts]),
    )
