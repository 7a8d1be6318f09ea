"""The algebra of the fold: per-channel affine maps in float64, NumPy only.

An affine ``A`` is ``x -> s * x + t`` with one ``s`` and one ``t`` per index of a single axis. At
inference every norm is an affine, and the fold composes, inverts, splits and moves them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

Vector = NDArray[np.float64]

# Relative tolerance for affines that are algebraically equal: 8 roundings, since each results from
# a few operations. It is four orders of magnitude below the tolerance of the proof.
_TOLERANCE = 8 * np.finfo(np.float64).eps

# Inverting a map loses precision if its shift is large: for an x of magnitude m,
# `(s*x + t - t) / s` loses log2(|t| / |s*m|) of the 24 bits of float32 or the 8 bits of int8. More
# than four bits are not given up to save one operation.
_MAX_LOSS = 2.0**4

# A larger number, multiplied by an ordinary weight, can overflow float32.
LARGEST = 2.0**60


@dataclass(frozen=True, eq=False)
class Affine:
    """The map ``x -> scale * x + shift`` along one axis.

    Attributes:
        scale: float64, shape (channels,).
        shift: float64, shape (channels,).
        axis: Axis of the tensor that the vectors apply to, counting the batch axis. Inside the fold
            it is counted from 0; a registered norm may count from the end (-1).
        magnitude: Root mean square of x in each channel, from the moving statistics of a norm; None
            means 1. It is only used to decide whether inverting the map would lose precision.
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
            scale: One factor per channel, or one for all.
            shift: One summand per channel, or one for all.
            axis: The channel axis.
            size: Number of channels; by default the length of the longer vector.
            magnitude: Root mean square of the input channels, if known.
        """
        s, t = (np.asarray(v, np.float64).reshape(-1) for v in (scale, shift))
        channels = (max(len(s), len(t)) if size is None else size,)
        if magnitude is not None:
            magnitude = np.broadcast_to(np.asarray(magnitude, np.float64).reshape(-1), channels)
        return cls(np.broadcast_to(s, channels), np.broadcast_to(t, channels), axis, magnitude)

    @classmethod
    def identity(cls, axis: int, size: int) -> Affine:
        """Return the identity map."""
        return cls.of(1.0, 0.0, axis, size)

    @property
    def size(self) -> int:
        """Number of channels."""
        return len(self.scale)

    @property
    def scales(self) -> bool:
        """Whether computing this map needs a multiplication."""
        return bool((self.scale != 1).any())

    @property
    def shifts(self) -> bool:
        """Whether computing this map needs an addition."""
        return bool((self.shift != 0).any())

    @property
    def is_identity(self) -> bool:
        """Whether this is the identity map."""
        return not (self.scales or self.shifts)

    @property
    def is_uniform(self) -> bool:
        """Whether all channels have the same map, so that the axis does not matter."""
        same = (self.scale == self.scale[0]) & (self.shift == self.shift[0])
        return bool(same.all())

    @property
    def scale_only(self) -> Affine:
        """The multiplication of this map, without its addition."""
        return replace(self, shift=np.zeros_like(self.shift))

    @property
    def shift_only(self) -> Affine:
        """The addition of this map, which follows `scale_only`."""
        magnitude = np.abs(self.scale) * self._magnitude
        return Affine(np.ones_like(self.scale), self.shift, self.axis, magnitude)

    @property
    def _magnitude(self) -> Vector:
        return np.ones_like(self.scale) if self.magnitude is None else self.magnitude

    def after(self, first: Affine, *, known: bool = False) -> Affine:
        """Compose: ``x -> self(first(x))``.

        Args:
            first: The map that is applied first.
            known: Whether the magnitude of this map's input is known better than that of `first`.
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
        """Return this map with scales that equal 1 up to rounding set to 1.

        ``s * (1 / s)`` may differ from 1 by a rounding error, which would leave an operation
        without effect in the network.
        """
        scale = np.where(np.abs(self.scale - 1) <= _TOLERANCE, 1.0, self.scale)
        return replace(self, scale=scale)

    def inverse(self) -> Affine | None:
        """Return the inverse map, or None if inverting would lose precision."""
        with np.errstate(all="ignore"):
            scale = 1 / self.scale
            shift = -self.shift * scale
            small = np.abs(shift) <= _MAX_LOSS * self._magnitude
        # The comparisons are false for NaN, so that NaN counts as too large.
        if not (np.abs(scale) <= LARGEST).all() or not small.all():
            return None
        return Affine(scale, shift + 0.0, self.axis, np.abs(self.scale) * self._magnitude)

    def moved(self, axis: int) -> Affine:
        """Return an affine with the same vectors on another axis."""
        return replace(self, axis=axis)

    def on_axis(self, axis: int, size: int | None) -> Affine | None:
        """Return the same map on another axis of the tensor, or None if that is not possible."""
        return self if (axis, size) == (self.axis, self.size) else self.as_uniform(axis, size)

    def as_uniform(self, axis: int, size: int | None) -> Affine | None:
        """Return the same map on an axis of any other tensor, or None if it is not uniform."""
        if not self.is_uniform or size is None:
            return None
        return Affine.of(self.scale[0], self.shift[0], axis, size, self._magnitude.min())

    def split(self, sizes: Sequence[int]) -> list[Affine]:
        """Split the channels into consecutive parts, the inverse of a concatenation."""
        edges = np.cumsum(sizes)[:-1]
        vectors = self.scale, self.shift, self._magnitude
        parts = zip(*(np.split(vector, edges) for vector in vectors), strict=True)
        return [Affine(scale, shift, self.axis, magnitude) for scale, shift, magnitude in parts]

    def matches(self, other: Affine) -> bool:
        """Return whether both are the same map up to rounding."""
        return (
            self.axis == other.axis
            and self.size == other.size
            and bool(np.all(np.abs(self.scale - other.scale) <= _TOLERANCE * np.abs(other.scale)))
            and bool(
                np.all(
                    np.abs(self.shift - other.shift)
                    <= _TOLERANCE * np.maximum(np.abs(self.shift), np.abs(other.shift))
                )
            )
        )

    def apply(self, x: NDArray[np.float64]) -> NDArray[np.float64]:
        """Apply the map to an array whose axis ``self.axis`` has ``self.size`` entries."""
        shape = [1] * x.ndim
        shape[self.axis] = self.size
        result: NDArray[np.float64] = x * self.scale.reshape(shape) + self.shift.reshape(shape)
        return result


def join(parts: Sequence[Affine]) -> Affine:
    """Concatenate affines along the channels, the inverse of `Affine.split`."""
    return Affine(
        np.concatenate([part.scale for part in parts]),
        np.concatenate([part.shift for part in parts]),
        parts[0].axis,
        np.concatenate([part._magnitude for part in parts]),
    )
