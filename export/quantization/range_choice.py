"""Chooses the range of an activation from a histogram of its values.

The widest range clips nothing and has the largest step. A narrower range clips a few values and
rounds all others more finely.

    min-max      the range of the calibration values
    percentile   0.005 % of the values lie beyond either end
    mse          the range with the least mean squared error of rounding and clipping together

The mean squared error of rounding to a step s is s²/12; the error of clipping is the distance to
the end of the range. Banner et al. 2019 (arXiv:1810.05723) minimize the same sum for an assumed
density; here the density is the histogram.
"""

from __future__ import annotations

import numpy as np

RANGES = ("min-max", "percentile", "mse")

_BINS = 2048
_STEPS = 255  # of an 8-bit range
_BEYOND = 5e-5  # share of the values beyond either end for `percentile`
_SHRUNK = np.linspace(0.1, 1.0, 91)  # fractions of the range that `mse` tries


class Histogram:
    """A histogram of values in a known range."""

    def __init__(self, low: float, high: float) -> None:
        """Create an empty histogram.

        Args:
            low: The least value.
            high: The greatest value.
        """
        self.low, self.high = float(low), float(high)
        self._counts = np.zeros(_BINS)
        self._zeros = 0

    def add(self, values: np.ndarray) -> None:
        """Add values; those outside the range are counted in the first or last bin."""
        finite = np.clip(values[np.isfinite(values)], self.low, self.high)
        self._zeros += int(np.count_nonzero(finite == 0))
        if self.high > self.low and finite.size:
            self._counts += np.histogram(finite, _BINS, (self.low, self.high))[0]

    def range(self, method: str) -> tuple[float, float]:
        """Return the least and the greatest number to represent.

        Args:
            method: One of `RANGES`.
        """
        if method == "min-max" or not self._counts.any():
            return self.low, self.high
        return self._percentile() if method == "percentile" else self._least_error()

    def _percentile(self) -> tuple[float, float]:
        edges = np.linspace(self.low, self.high, _BINS + 1)
        shares = np.cumsum(self._counts) / self._counts.sum()
        low = edges[np.searchsorted(shares, _BEYOND, side="right")]
        high = edges[min(int(np.searchsorted(shares, 1 - _BEYOND)) + 1, _BINS)]
        return min(float(low), 0.0), max(float(high), 0.0)

    def _least_error(self) -> tuple[float, float]:
        """Return the range with the least error.

        Zero is always represented exactly, so exact zeros, which are common after a relu, have no
        error.
        """
        width = (self.high - self.low) / _BINS
        centres = self.low + width * (np.arange(_BINS) + 0.5)
        lows = _SHRUNK * min(self.low, 0.0) if self.low < 0 else np.zeros(1)
        highs = _SHRUNK * max(self.high, 0.0) if self.high > 0 else np.zeros(1)
        below = [np.sum(self._counts * np.square(np.minimum(centres - end, 0))) for end in lows]
        above = [np.sum(self._counts * np.square(np.maximum(centres - end, 0))) for end in highs]
        steps = (highs[None, :] - lows[:, None]) / _STEPS
        errors = np.array(below)[:, None] + np.array(above)[None, :]
        errors = errors + np.square(steps) / 12 * (self._counts.sum() - self._zeros)
        row, column = np.unravel_index(int(np.argmin(errors)), errors.shape)
        return float(lows[row]), float(highs[column])
