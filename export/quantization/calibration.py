"""Calibration samples for quantization, and the check that they are real data."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from ...artifacts.images import Preprocessing
from ...artifacts.manifest import TensorSpec
from ...artifacts.samples import SampleSet, Source, load_samples
from ...errors import UserError
from ..fold import InputValues, check_values

RANDOM = "random"
# Measured by benchmarks/export_int8.py; the table is in docs/export.md.
RANDOM_COST = (
    "it cost three of five reference networks 9 to 16 dB of int8 signal-to-noise ratio, and two "
    "nothing"
)

# The correlation of neighbouring pixels is 0.3 and more in photographs and spectrograms. In white
# noise it is zero, with a standard deviation of 1/sqrt(pairs). Six standard deviations accept no
# noise as data; with fewer pairs than this they exceed 0.1, so that data could be taken for noise.
_NOISE_DEVIATIONS = 6
_NOISE_PAIRS = 3600


def in_file_order(values: np.ndarray, axes: tuple[int, ...] | None) -> np.ndarray:
    """Return Keras values with the axes in the order of a file."""
    return values if axes is None else np.transpose(values, axes)


@dataclasses.dataclass(frozen=True)
class Calibration:
    """Samples to calibrate with.

    Attributes:
        samples: The samples.
        random: Whether they are random numbers, which the user asked for.
    """

    samples: SampleSet
    random: bool = False

    def batches(self, inputs: Sequence[TensorSpec]) -> Iterator[dict[str, np.ndarray]]:
        """Yield the samples in batches of the file's size.

        A last incomplete batch is left out. If there are too few samples for one batch, they are
        repeated.

        Args:
            inputs: The inputs of the file: names, batch size, order of axes.
        """
        size = inputs[0].shape[0] or 1
        for index in range(max(self.samples.count // size, 1)):
            chosen = np.arange(index * size, (index + 1) * size) % self.samples.count
            batch = {tensor.name: self.samples.arrays[tensor.name][chosen] for tensor in inputs}
            yield {
                tensor.name: np.ascontiguousarray(in_file_order(batch[tensor.name], tensor.axes))
                for tensor in inputs
            }

    def to_json(self) -> dict[str, Any]:
        """Return the record for the manifest."""
        return self.samples.to_json() | {"random": self.random}


def load_calibration(
    source: Source | None,
    inputs: Sequence[TensorSpec],
    values: Sequence[InputValues],
    *,
    limit: int,
    preprocessing: Preprocessing | None = None,
) -> Calibration | None:
    """Read calibration samples, and refuse samples that look like noise.

    Args:
        source: Any source that `load_samples` takes, or `"random"` for random numbers.
        inputs: The inputs of the model.
        values: The allowed values of each input.
        limit: Use at most this many samples.
        preprocessing: For folders of images.

    Returns:
        The samples; None if `source` is None.

    Raises:
        UserError: The samples cannot be read, do not fit the inputs, or look like noise.
    """
    if source is None:
        return None
    if isinstance(source, str) and source == RANDOM:
        return Calibration(_random_samples(inputs, values, limit), random=True)
    samples = load_samples(source, inputs, limit=limit, preprocessing=preprocessing)
    check_values(samples.arrays, inputs, values)
    noisy = [tensor.name for tensor in inputs if looks_like_noise(samples.arrays[tensor.name])]
    if noisy:
        raise UserError(
            f"The calibration samples for {', '.join(noisy)} look like random noise (neighbouring "
            "values do not correlate). Give real samples, or "
            f"calibration='{RANDOM}' for random numbers: {RANDOM_COST}."
        )
    return Calibration(samples)


def looks_like_noise(values: np.ndarray) -> bool:
    """Return whether image-like samples are white noise.

    The criterion is the correlation of horizontal neighbours within each channel. Samples that have
    another rank, or are too few, never count as noise.

    Args:
        values: (N, height, width, channels) samples.
    """
    if values.ndim != 4 or values.shape[2] < 2 or values.dtype.kind not in "fui":
        return False
    left, right = values[:, :, :-1].astype(np.float64), values[:, :, 1:].astype(np.float64)
    if left.size < _NOISE_PAIRS:
        return False
    left, right = left - left.mean((0, 1, 2)), right - right.mean((0, 1, 2))
    spread = float(np.sqrt(np.sum(left**2) * np.sum(right**2)))
    if spread == 0:
        return False
    correlation = abs(float(np.sum(left * right)) / spread)
    return correlation < _NOISE_DEVIATIONS / np.sqrt(left.size)


def _random_samples(
    inputs: Sequence[TensorSpec], values: Sequence[InputValues], count: int
) -> SampleSet:
    generator = np.random.default_rng(0)
    arrays = {
        tensor.name: allowed.random(generator, count).astype(tensor.dtype)
        for tensor, allowed in zip(inputs, values, strict=True)
    }
    return SampleSet(arrays, "standard normal random numbers, seed 0", "all")
