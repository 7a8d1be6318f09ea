"""Real data for calibration and for the golden set, from wherever the user keeps it.

A source is an array, a dict of arrays by input name, a `.npz` or `.npy` file, a folder of images,
a `tf.data.Dataset`, any other iterable of samples' batches, or `module:function`, the name of a
Python function that returns one of these.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib
import os
import sys
import zipfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..artifacts.images import Preprocessing, read_images
from ..artifacts.manifest import TensorSpec
from ..errors import UserError

Source = np.ndarray | Mapping[str, np.ndarray] | str | os.PathLike[str] | Iterable[Any]


@dataclasses.dataclass(frozen=True)
class SampleSet:
    """Samples for every input of a model.

    Attributes:
        arrays: Input name to (N, …) array.
        source: Where they came from, for the manifest.
        chosen: Which of them, for the manifest.
    """

    arrays: dict[str, np.ndarray]
    source: str
    chosen: str

    @property
    def count(self) -> int:
        """How many samples there are."""
        return len(next(iter(self.arrays.values())))

    def take(self, limit: int) -> SampleSet:
        """Return at most `limit` samples, evenly spread over all of them."""
        if self.count <= limit:
            return self
        spread = np.linspace(0, self.count - 1, limit).round().astype(int)
        return SampleSet(
            {name: values[spread] for name, values in self.arrays.items()},
            self.source,
            f"{limit} evenly spread over {self.count}",
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
    limit: int,
    preprocessing: Preprocessing | None = None,
) -> SampleSet:
    """Read samples from any source the module's docstring lists.

    Args:
        source: Where from.
        inputs: The model's inputs, shapes with the batch dimension.
        limit: At most so many samples, evenly spread where the source tells its length, the first
            ones where it does not.
        preprocessing: Applied to the pixels of an image folder, and only there: every other
            source already holds what the network takes.

    Raises:
        UserError: The source is missing, empty, of no known kind, or does not fit the inputs.
    """
    samples = _read(source, inputs, limit, preprocessing)
    check_samples(samples.arrays, inputs)
    return samples.take(limit)


def check_samples(arrays: Mapping[str, np.ndarray], inputs: Sequence[TensorSpec]) -> None:
    """Refuse samples that do not fit the inputs.

    Raises:
        UserError: An input without samples, a wrong shape, unequal numbers, none, NaN or infinity.
    """
    expected = {tensor.name: tensor.shape[1:] for tensor in inputs}
    if set(arrays) != set(expected):
        raise UserError(
            f"Expected samples for the inputs {', '.join(sorted(expected))}. "
            f"Received: {', '.join(sorted(arrays)) or 'none'}."
        )
    for name, shape in expected.items():
        got = np.shape(arrays[name])
        fits = len(got) == len(shape) + 1 and all(
            want in (None, have) for want, have in zip(shape, got[1:], strict=True)
        )
        if not fits or not got[0]:
            raise UserError(
                f"Expected samples of shape (N, {', '.join(map(str, shape))}) with N at least 1 "
                f"for input {name!r}. Received: {got}."
            )
        if not np.all(np.isfinite(arrays[name])):
            raise UserError(f"The samples for input {name!r} hold NaN or infinity. Remove those.")
    if len({len(arrays[name]) for name in expected}) > 1:
        counts = ", ".join(f"{name}: {len(arrays[name])}" for name in sorted(expected))
        raise UserError(f"Expected equally many samples for every input. Received: {counts}.")


def _read(
    source: Source, inputs: Sequence[TensorSpec], limit: int, preprocessing: Preprocessing | None
) -> SampleSet:
    if isinstance(source, str) and ":" in source and not Path(source).exists():
        made = _call(source)
        samples = _read(made, inputs, limit, preprocessing)
        return dataclasses.replace(samples, source=f"function {source}")
    if isinstance(source, (str, os.PathLike)):
        return _from_path(Path(source), inputs, limit, preprocessing)
    if isinstance(source, np.ndarray):
        return SampleSet(_named(source, inputs), "array", f"all {len(source)}")
    if isinstance(source, Mapping):
        arrays = {name: np.asarray(values) for name, values in source.items()}
        return SampleSet(arrays, "arrays", "all")
    if isinstance(source, Iterable):
        return _from_iterable(source, inputs, limit)
    raise UserError(
        "Expected samples as arrays, .npz, .npy, a folder of images, a tf.data.Dataset, an "
        f"iterable or 'module:function'. Received: {type(source).__name__}."
    )


def _call(reference: str) -> Source:
    """Call `module:function`, looking for the module in the current folder too."""
    module_name, _, function_name = reference.partition(":")
    sys.path.insert(0, os.getcwd())
    try:
        function: Callable[[], Source] = getattr(
            importlib.import_module(module_name), function_name
        )
    except (ImportError, AttributeError) as error:
        raise UserError(
            f"There is no file {reference}, and as module:function it cannot be imported: {error}."
        ) from error
    finally:
        sys.path.remove(os.getcwd())
    return function()


def _from_path(
    path: Path, inputs: Sequence[TensorSpec], limit: int, preprocessing: Preprocessing | None
) -> SampleSet:
    if path.is_dir():
        return _from_images(path, inputs, limit, preprocessing)
    if not path.is_file():
        raise UserError(
            f"There is no file or folder {path}. Expected .npz, .npy, a folder of images or "
            "module:function."
        )
    try:
        # Opened here: given a path, numpy leaves a damaged file open.
        with open(path, "rb") as stream:
            loaded = np.load(stream, allow_pickle=False)
            if isinstance(loaded, np.ndarray):
                return SampleSet(_named(loaded, inputs), path.name, "all")
            arrays = {name: loaded[name] for name in loaded.files}
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f"{path} is not a .npz or .npy file of numbers ({error}).") from error
    if len(arrays) == 1 and len(inputs) == 1:
        return SampleSet({inputs[0].name: next(iter(arrays.values()))}, path.name, "all")
    names = [tensor.name for tensor in inputs]
    if not set(names) <= set(arrays):
        raise UserError(
            f"{path} must hold one array for each input: {', '.join(names)}. Received: "
            f"{', '.join(sorted(arrays))}. Write it with numpy.savez(path, **arrays_by_input_name)."
        )
    return SampleSet({name: arrays[name] for name in names}, path.name, "all")


def _from_images(
    folder: Path, inputs: Sequence[TensorSpec], limit: int, preprocessing: Preprocessing | None
) -> SampleSet:
    """Read a folder of images; its sub-folders do not matter here."""
    if len(inputs) != 1:
        raise UserError(
            f"A folder of images ({folder}) serves a model of one input. "
            f"Received: {', '.join(f'{t.name} {list(t.shape)}' for t in inputs)}."
        )
    (tensor,) = inputs
    images = read_images(folder, tensor.shape, tensor.dtype, preprocessing, limit=limit)
    chosen = f"{len(images.inputs)} evenly spread over {images.available} images"
    return SampleSet({tensor.name: images.inputs}, f"images in {folder.name}", chosen)


def _from_iterable(source: Iterable[Any], inputs: Sequence[TensorSpec], limit: int) -> SampleSet:
    """Read the first samples of batches or single samples, labels left aside."""
    parts: dict[str, list[np.ndarray]] = {tensor.name: [] for tensor in inputs}
    count = 0
    for element in source:
        batch = _element(element, inputs)
        for name, values in batch.items():
            parts[name].append(values)
        count += len(next(iter(batch.values())))
        if count >= limit:
            break
    if not count:
        raise UserError("The samples' dataset is empty.")
    arrays = {name: np.concatenate(values)[:limit] for name, values in parts.items()}
    return SampleSet(arrays, type(source).__name__, f"the first {min(count, limit)}")


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


def _named(array: np.ndarray, inputs: Sequence[TensorSpec]) -> dict[str, np.ndarray]:
    if len(inputs) != 1:
        raise UserError(
            f"Expected a dict of arrays by input name ({', '.join(t.name for t in inputs)}). "
            "Received: one array."
        )
    return {inputs[0].name: array}


__all__ = ["SampleSet", "Source", "check_samples", "load_samples"]
