"""Refuses samples and labels that do not fit the inputs of a network."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from ..errors import UserError
from .axes import transposition
from .manifest import TensorSpec
from .sample_stream import LABEL

_LAST_CLASS = 2**31 - 1  # no output is longer
_MOST_NUMBERS = 2**28  # of one sample; 1 GB in float32, and every stage holds several samples


def refuse_large_samples(name: str, shape: Sequence[int | None]) -> None:
    """Refuse an input of which one sample, of a shape without the batch, fills the memory.

    Raises:
        UserError: It does.
    """
    count = math.prod(size or 1 for size in shape)
    if count > _MOST_NUMBERS:
        raise UserError(
            f"One sample of the input {name!r} has {count:.3g} numbers, and at most "
            f"{_MOST_NUMBERS:.1e} are supported. Check its shape, {tuple(shape)}."
        )


def check_samples(
    arrays: Mapping[str, np.ndarray], inputs: Sequence[TensorSpec], *, finite: bool = True
) -> None:
    """Refuse samples that do not fit the inputs.

    Raises:
        UserError: An input has no samples or samples of a wrong shape, the numbers of samples
            differ, or they contain NaN or infinity and `finite` is set.
    """
    expected = {tensor.name: tensor.shape[1:] for tensor in inputs}
    if set(arrays) != set(expected):
        raise UserError(
            f"Expected samples for the inputs {', '.join(sorted(expected))}. "
            f"Received: {', '.join(sorted(arrays)) or 'none'}."
        )
    for name, shape in expected.items():
        array = np.asarray(arrays[name])
        fits = array.ndim == len(shape) + 1 and all(
            want in (None, have) for want, have in zip(shape, array.shape[1:])
        )
        if not fits or not len(array) or array.dtype.kind not in "fiub":
            axes = transposition(array.shape, (None, *shape))
            raise UserError(
                f"Expected numbers of shape (N, {', '.join(map(str, shape))}) with N at least 1 "
                f"for input {name!r}. Received: {array.dtype} of shape {array.shape}."
                + (f" Their axes are in another order: transpose them by {axes}." if axes else "")
            )
        if finite and not np.all(np.isfinite(array)):
            raise UserError(f"The samples for input {name!r} hold NaN or infinity. Remove those.")
    if len({len(arrays[name]) for name in expected}) > 1:
        counts = ", ".join(f"{name}: {len(arrays[name])}" for name in sorted(expected))
        raise UserError(f"Expected equally many samples for every input. Received: {counts}.")


def check_whole(arrays: Mapping[str, np.ndarray], inputs: Sequence[TensorSpec]) -> None:
    """Refuse numbers that the integer type of an input cannot hold.

    Raises:
        UserError: There is one.
    """
    for tensor in inputs:
        array, dtype = np.asarray(arrays[tensor.name]), np.dtype(tensor.dtype)
        if dtype.kind not in "iu" or np.can_cast(array.dtype, dtype):
            continue
        limits = np.iinfo(dtype)
        if np.any((array < limits.min) | (array > limits.max) | (array != np.rint(array))):
            pixels = "; give raw pixels" if dtype == np.uint8 else ""
            raise UserError(
                f"Expected whole numbers from {limits.min} to {limits.max} ({dtype}) for input "
                f"{tensor.name!r}{pixels}. Received: {array.dtype} from {array.min():.4g} to "
                f"{array.max():.4g}."
            )


def check_labels(labels: np.ndarray | None, count: int, source: str) -> None:
    """Refuse labels that are not one class number for each sample.

    Raises:
        UserError: They are not.
    """
    if labels is None:
        return
    if labels.shape != (count,) or labels.dtype.kind not in "iu":
        raise UserError(
            f"{source}: '{LABEL}' must hold one class number for each of {count} samples. "
            f"Received: {labels.dtype} of shape {labels.shape}."
        )
    wrong = labels[(labels < -1) | (labels > _LAST_CLASS)]
    if wrong.size:
        raise UserError(
            f"{source}: '{LABEL}' must hold class numbers from 0, and -1 if the class "
            f"is not known. Received: {wrong[0]}."
        )
