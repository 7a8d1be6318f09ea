"""Reads samples for a network's inputs from any source, for export and checks alike.

A source is an array, a dict of arrays by input name, a `.npz` or `.npy` file, a folder of images,
a `tf.data.Dataset`, any other iterable of samples or batches, or `module:function`, the name of a
Python function that returns one of these. A dict or `.npz` may also hold the true classes, as
`label`; in a folder of images, sub-folders that have the names of the classes are the labels.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import UserError
from ..user_code import import_user_module
from .archive import DamageError, load_array, load_arrays
from .images import Preprocessing, read_images
from .manifest import TensorSpec

Source = np.ndarray | Mapping[str, np.ndarray] | str | os.PathLike[str] | Iterable[Any]

LABEL = "label"
_LAST_CLASS = 2**31 - 1  # no output is longer

# Images read from a folder unless a limit is given; it may hold millions.
IMAGES = 200


@dataclasses.dataclass(frozen=True)
class SampleSet:
    """Samples for every input of a model.

    Attributes:
        arrays: Input name to (N, …) array.
        source: Their origin, for the manifest.
        chosen: Which of them were chosen, for the manifest.
        labels: (N,) true classes, -1 where unknown; None where none is known.
    """

    arrays: dict[str, np.ndarray]
    source: str
    chosen: str
    labels: np.ndarray | None = None

    @property
    def count(self) -> int:
        """Number of samples."""
        return len(next(iter(self.arrays.values())))

    def take(self, limit: int | None) -> SampleSet:
        """Return at most `limit` samples, evenly spread over all of them."""
        if limit is None or self.count <= limit:
            return self
        spread = np.linspace(0, self.count - 1, limit).round().astype(int)
        return SampleSet(
            {name: values[spread] for name, values in self.arrays.items()},
            self.source,
            f"{limit} evenly spread over {self.count}",
            None if self.labels is None else self.labels[spread],
        )

    def to_json(self) -> dict[str, Any]:
        """Return the record for the manifest: source, choice, number and hash of the samples."""
        digest = hashlib.sha256()
        for name in sorted(self.arrays):
            digest.update(name.encode())
            digest.update(np.ascontiguousarray(self.arrays[name]).tobytes())
        return {
            "source": self.source,
            "chosen": self.chosen,
            "samples": self.count,
            "sha256": digest.hexdigest(),
        }


def load_samples(
    source: Source,
    inputs: Sequence[TensorSpec],
    *,
    limit: int | None = None,
    preprocessing: Preprocessing | None = None,
    classes: Sequence[str] = (),
    finite: bool = True,
) -> SampleSet:
    """Read samples from any source the module's docstring lists.

    Args:
        source: The source.
        inputs: The model's inputs, shapes with the batch dimension.
        limit: At most this many samples, evenly spread where the source tells its length, the first
            ones where it does not; by default all, and `IMAGES` of a folder.
        preprocessing: Applied to the pixels of a folder of images only; every other source already
            holds inputs of the network.
        classes: Names of the model's classes; an image's folder of that name is its label.
        finite: Whether NaN and infinity are refused.

    Returns:
        The samples in the inputs' types.

    Raises:
        UserError: The source is missing, empty, of no known kind, or does not fit the inputs.
    """
    samples = _read(source, inputs, limit, preprocessing, classes)
    check_samples(samples.arrays, inputs, finite=finite)
    _check_whole(samples.arrays, inputs)
    _check_labels(samples)
    arrays = {t.name: samples.arrays[t.name].astype(t.dtype, copy=False) for t in inputs}
    return dataclasses.replace(samples, arrays=arrays).take(limit)


def check_samples(
    arrays: Mapping[str, np.ndarray], inputs: Sequence[TensorSpec], *, finite: bool = True
) -> None:
    """Refuse samples that do not fit the inputs.

    Raises:
        UserError: An input without samples, a wrong shape, unequal numbers, none; or NaN or
            infinity where they are refused.
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
            raise UserError(
                f"Expected numbers of shape (N, {', '.join(map(str, shape))}) with N at least 1 "
                f"for input {name!r}. Received: {array.dtype} of shape {array.shape}."
            )
        if finite and not np.all(np.isfinite(array)):
            raise UserError(f"The samples for input {name!r} hold NaN or infinity. Remove those.")
    if len({len(arrays[name]) for name in expected}) > 1:
        counts = ", ".join(f"{name}: {len(arrays[name])}" for name in sorted(expected))
        raise UserError(f"Expected equally many samples for every input. Received: {counts}.")


def _check_whole(arrays: Mapping[str, np.ndarray], inputs: Sequence[TensorSpec]) -> None:
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


def _check_labels(samples: SampleSet) -> None:
    labels = samples.labels
    if labels is None:
        return
    if labels.shape != (samples.count,) or labels.dtype.kind not in "iu":
        raise UserError(
            f"{samples.source}: '{LABEL}' must hold one class number for each of {samples.count} "
            f"samples. Received: {labels.dtype} of shape {labels.shape}."
        )
    wrong = labels[(labels < -1) | (labels > _LAST_CLASS)]
    if wrong.size:
        raise UserError(
            f"{samples.source}: '{LABEL}' must hold class numbers from 0, and -1 where the class "
            f"is not known. Received: {wrong[0]}."
        )


def _read(
    source: Source,
    inputs: Sequence[TensorSpec],
    limit: int | None,
    preprocessing: Preprocessing | None,
    classes: Sequence[str],
) -> SampleSet:
    if isinstance(source, str) and ":" in source and not Path(source).exists():
        samples = _read(_call(source), inputs, limit, preprocessing, classes)
        return dataclasses.replace(samples, source=f"function {source}")
    if isinstance(source, (str, os.PathLike)):
        path = Path(source)
        if path.is_dir():
            return _from_images(path, inputs, limit or IMAGES, preprocessing, classes)
        return _from_arrays(_loaded(path, inputs), inputs, path.name)
    if isinstance(source, (np.ndarray, Mapping)):
        return _from_arrays(source, inputs, "arrays")
    if isinstance(source, Iterable):
        return _from_iterable(source, inputs, limit)
    raise UserError(
        "Expected samples as arrays, .npz, .npy, a folder of images, a tf.data.Dataset, an "
        f"iterable or 'module:function'. Received: {type(source).__name__}."
    )


def _call(reference: str) -> Source:
    """Call `module:function`, looking for the module in the current folder too."""
    module_name, _, function_name = reference.partition(":")
    module = import_user_module(module_name)
    function: Callable[[], Source] | None = getattr(module, function_name, None)
    if function is None:
        raise UserError(
            f"There is no file {reference}, and the module {module_name!r} has no function "
            f"{function_name!r}."
        )
    return function()


def _loaded(path: Path, inputs: Sequence[TensorSpec]) -> np.ndarray | dict[str, np.ndarray]:
    """Return the arrays of a file; a single array serves the single input under any name."""
    if not path.is_file():
        raise UserError(
            f"There is no file or folder {path}. Expected .npz, .npy, a folder of images or "
            "module:function."
        )
    try:
        if path.suffix == ".npy":
            return load_array(path)
        arrays = load_arrays(path)
    except (DamageError, OSError) as error:
        raise UserError(f"{path} is not a .npz or .npy file of numbers ({error}).") from error
    unnamed = set(arrays) - {LABEL}
    if len(inputs) == 1 and len(unnamed) == 1:
        arrays[inputs[0].name] = arrays.pop(unnamed.pop())
    return arrays


def _from_arrays(
    loaded: np.ndarray | Mapping[str, np.ndarray], inputs: Sequence[TensorSpec], source: str
) -> SampleSet:
    """Take arrays by input name, and labels."""
    names = [tensor.name for tensor in inputs]
    if isinstance(loaded, np.ndarray):
        if len(names) != 1:
            raise UserError(
                f"Expected a dict of arrays by input name ({', '.join(names)}). "
                "Received: one array."
            )
        return SampleSet({names[0]: loaded}, source, "all")
    arrays = {name: np.asarray(values) for name, values in loaded.items()}
    labels = arrays.pop(LABEL, None) if LABEL not in names else None
    if not set(names) <= set(arrays):
        raise UserError(
            f"{source} must hold one array for each input: {', '.join(names)}. Received: "
            f"{', '.join(sorted(arrays))}. Write it with numpy.savez(path, **arrays_by_input_name)."
        )
    return SampleSet({name: arrays[name] for name in names}, source, "all", labels)


def _from_images(
    folder: Path,
    inputs: Sequence[TensorSpec],
    limit: int,
    preprocessing: Preprocessing | None,
    classes: Sequence[str],
) -> SampleSet:
    """Read a folder of images; a sub-folder with the name of a class holds its samples."""
    if len(inputs) != 1:
        raise UserError(
            f"A folder of images ({folder}) serves a model of one input. "
            f"Received: {', '.join(f'{t.name} {list(t.shape)}' for t in inputs)}."
        )
    (tensor,) = inputs
    images = read_images(folder, tensor.shape, tensor.dtype, preprocessing, limit=limit)
    numbers = {str(name): number for number, name in enumerate(classes)}
    labels = np.array([numbers.get(name, -1) for name in images.classes])
    return SampleSet(
        {tensor.name: images.inputs},
        f"images in {folder.name}",
        f"{len(images.inputs)} evenly spread over {images.available} images",
        labels if (labels >= 0).any() else None,
    )


def _from_iterable(
    source: Iterable[Any], inputs: Sequence[TensorSpec], limit: int | None
) -> SampleSet:
    """Read the first samples from an iterable of samples or batches, without labels."""
    parts: dict[str, list[np.ndarray]] = {tensor.name: [] for tensor in inputs}
    count = 0
    for element in source:
        batch = _element(element, inputs)
        for name, values in batch.items():
            parts[name].append(values)
        count += len(next(iter(batch.values())))
        if limit is not None and count >= limit:
            break
    if not count:
        raise UserError("The samples' dataset is empty.")
    arrays = {name: np.concatenate(values)[:limit] for name, values in parts.items()}
    first = count if limit is None else min(count, limit)
    return SampleSet(arrays, type(source).__name__, f"the first {first}")


def _element(element: Any, inputs: Sequence[TensorSpec]) -> dict[str, np.ndarray]:
    """Return one element of a dataset, `x` or `(x, y)`, as a batch by input name."""
    if isinstance(element, (tuple, list)):
        element = element[0]
    named = element if isinstance(element, Mapping) else {inputs[0].name: element}
    batch = {}
    for tensor in inputs:
        if tensor.name not in named:
            raise UserError(
                f"The dataset gives {', '.join(map(str, named))}, the model takes "
                f"{', '.join(t.name for t in inputs)}. Yield dicts by input name."
            )
        values = np.asarray(named[tensor.name])
        batch[tensor.name] = values[None] if values.ndim == len(tensor.shape) - 1 else values
    return batch
