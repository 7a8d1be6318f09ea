"""Changes of values that preprocessing commonly confuses, such as pixels of 0..255 for 0..1."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator

import numpy as np

# Mean and deviation of ImageNet's pixels of 0..1 (PyTorch), and its mean pixel (Caffe).
_MEAN, _DEVIATION = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
_MEAN_PIXEL = np.array([103.939, 116.779, 123.68])

Change = Callable[[np.ndarray], np.ndarray]


def _standardized(x: np.ndarray) -> np.ndarray:
    """Subtract each sample's mean and divide by its deviation, as TensorFlow does for images."""
    places = tuple(range(1, x.ndim))
    mean, deviation = x.mean(axis=places, keepdims=True), x.std(axis=places, keepdims=True)
    return (x - mean) / np.maximum(deviation, 1 / np.sqrt(x[:1].size))


# Name, which continues "values …", and the map from the model's own inputs.
_OF_ANY: tuple[tuple[str, Change], ...] = (
    ("multiplied by 255", lambda x: 255 * x),
    ("divided by 255", lambda x: x / 255),
    ("mapped from 0..1 to -1..1", lambda x: 2 * x - 1),
    ("mapped from -1..1 to 0..1", lambda x: (x + 1) / 2),
    ("mapped from -1..1 to 0..255", lambda x: (x + 1) * 127.5),
    ("mapped from 0..255 to -1..1", lambda x: x / 127.5 - 1),
    ("lowered by 128", lambda x: x - 128),
    ("raised by 128", lambda x: x + 128),
    ("lowered by 0.5", lambda x: x - 0.5),
    ("raised by 0.5", lambda x: x + 0.5),
    ("subtracted from 1", lambda x: 1 - x),
    ("negated", lambda x: -x),
)
_FACTORS = (2, 10, 100, 127.5, 128, 1000)
_OF_RARE: tuple[tuple[str, Change], ...] = (
    *((f"multiplied by {f:g}", functools.partial(np.multiply, f)) for f in _FACTORS),
    *((f"divided by {f:g}", functools.partial(np.multiply, 1 / f)) for f in _FACTORS),
    ("cut to whole numbers", np.trunc),
    ("rounded to whole numbers", np.rint),
    ("of mean 0 and deviation 1 in each sample", _standardized),
)
_OF_COLOURS: tuple[tuple[str, Change], ...] = (
    ("of 0..1 normalized by ImageNet's mean and deviation", lambda x: (x - _MEAN) / _DEVIATION),
    (
        "of 0..255 normalized by ImageNet's mean and deviation",
        lambda x: (x / 255 - _MEAN) / _DEVIATION,
    ),
    ("mapped back from ImageNet's mean and deviation to 0..1", lambda x: x * _DEVIATION + _MEAN),
    (
        "mapped back from ImageNet's mean and deviation to 0..255",
        lambda x: 255 * (x * _DEVIATION + _MEAN),
    ),
    ("in the order BGR and lowered by ImageNet's mean", lambda x: x[..., ::-1] - _MEAN_PIXEL),
    ("raised by ImageNet's mean and in the order RGB", lambda x: (x + _MEAN_PIXEL)[..., ::-1]),
    (
        "multiplied by 255, in the order BGR and lowered by ImageNet's mean",
        lambda x: 255 * x[..., ::-1] - _MEAN_PIXEL,
    ),
    (
        "raised by ImageNet's mean, in the order RGB and divided by 255",
        lambda x: (x + _MEAN_PIXEL)[..., ::-1] / 255,
    ),
)


def value_changes(array: np.ndarray, *, rare: bool = False) -> Iterator[tuple[str, Change]]:
    """Yield the changes that apply to an input, with their names.

    Args:
        array: (N, …) values of the input.
        rare: Whether to yield also those that only a comparison of outputs can tell from others.
    """
    yield from _OF_ANY
    if rare:
        yield from _OF_RARE
    if array.ndim > 2 and array.shape[-1] == len(_MEAN):
        yield from _OF_COLOURS
