"""Changes of values that preprocessing commonly confuses, such as pixels of 0..255 for 0..1."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

# Mean and deviation of ImageNet's pixels of 0..1 (PyTorch), and its mean pixel (Caffe).
_MEAN, _DEVIATION = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
_MEAN_PIXEL = np.array([103.939, 116.779, 123.68])

Change = Callable[[np.ndarray], np.ndarray]

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


def value_changes(array: np.ndarray) -> Iterator[tuple[str, Change]]:
    """Yield the changes that apply to an input, with their names.

    Args:
        array: (N, …) values of the input.
    """
    yield from _OF_ANY
    if array.ndim > 2 and array.shape[-1] == len(_MEAN):
        yield from _OF_COLOURS
