"""Chooses the range of an activation from a histogram of its values.

The widest range clips nothing and has the largest step. A narrower one clips a few values and
represents all others better.

    min-max      every calibration value is represented
    percentile   0.005 % of the values may lie beyond either end
    mse          the ends with the least mean squared error of rounding and clipping together

Rounding to steps of s has the mean squared error s²/12; clipping has the squared distance to the
end. (Banner et al. 2019, arXiv:1810.05723, choose by the same sum under an assumed density; here
the density is the histogram.)
"""

from __future__ import annotations

import numpy as np

RANGES = ("min-max", "percentile", "mse")

_BINS = 2048
_STEPS = 255  # between the ends, in 8 bits
_BEYOND = 5e-5  # share of the values beyond either end under `percentile`
_SHRUNK = np.linspace(0.1, 1.0, 91)  # shares of an end that `mse` tries


class Histogram:
    """Counts of values between two ends that are known before."""

    def __init__(self, low: float, high: float) -> None:
        """Count nothing yet.

        Args:
            low: The least value.
            high: The greatest.
        """
        self.low, self.high = float(low), float(high)
        self._counts = np.zeros(_BINS)
        self._zeros = 0

    def add(self, values: np.ndarray) -> None:
        """Count more values; those beyond the ends belong to the last bin on their side."""
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
        """Return the ends with the least error; zero is always represented exactly.

        Exact zeros, of which a relu gives many, have no error with any ends.
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
