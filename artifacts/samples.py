"""Reads samples for a network's inputs from various sources, for export and checks.

A source is an array, a dict of arrays by input name, a `.npz` or `.npy` file, a folder of images,
Parquet files or tar files in WebDataset's layout (`sample_shards`), a `tf.data.Dataset`, any other
iterable of samples or batches, or `module:function`, the name of a Python function that returns one
of these. A dict, `.npz` or Parquet file may also hold the true classes, as `label`, a tar file as
`.cls`; in a folder of images, sub-folders that have the names of the classes are the labels.

Every source is read part by part (`open_samples`); `load_samples` gathers the parts.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import UserError
from ..user_code import import_user_module
from .archive import DamageError
from .array_rows import open_arrays
from .images import ImageInput, Preprocessing, class_of, find_images
from .manifest import TensorSpec
from .sample_checks import check_labels, check_samples, check_whole
from .sample_shards import find_shards, open_shards
from .sample_stream import LABEL, Part, SampleStream, concatenated, part_size, spread

Source = np.ndarray | Mapping[str, np.ndarray] | str | os.PathLike[str] | Iterable[Any]

# Images read from a folder unless a limit is given; it may hold millions.
IMAGES = 200


@dataclasses.dataclass(frozen=True)
class SampleSet:
    """Samples for every input of a model.

    Attributes:
        arrays: Input name to (N, …) array.
        source: Their origin, for the manifest.
        chosen: Which of them were chosen, for the manifest.
        labels: (N,) true classes, -1 if unknown; None if none is known.
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
        """Return at most `limit` samples, evenly spaced."""
        if limit is None or self.count <= limit:
            return self
        chosen = spread(self.count, limit)
        return SampleSet(
            {name: values[chosen] for name, values in self.arrays.items()},
            self.source,
            f"{limit} evenly spread over {self.count}",
            None if self.labels is None else self.labels[chosen],
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
) -> SampleSet:
    """Read samples from any source the module's docstring lists; see `open_samples`.

    Returns:
        The samples in the inputs' types.
    """
    stream = open_samples(source, inputs, limit=limit, preprocessing=preprocessing)
    return gathered(stream.batches(part_size([t.shape for t in inputs])), stream)


def open_samples(
    source: Source,
    inputs: Sequence[TensorSpec],
    *,
    limit: int | None = None,
    preprocessing: Preprocessing | None = None,
    classes: Sequence[str] = (),
    finite: bool = True,
) -> SampleStream:
    """Open samples from any source the module's docstring lists, to be read part by part.

    Args:
        source: The source.
        inputs: The model's inputs, shapes with the batch dimension.
        limit: At most this many samples, evenly spread where the source tells its length, the first
            ones where it does not; by default all, and `IMAGES` of a folder.
        preprocessing: Applied to the pixels of images only; every other source already holds inputs
            of the network.
        classes: Names of the model's classes; an image's folder of that name is its label.
        finite: Whether NaN and infinity are refused.

    Returns:
        The samples; its parts are checked when they are read, and are in the inputs' types.

    Raises:
        UserError: The source is missing, empty, of no known kind, or does not fit the inputs; also
            when its parts are read.
    """
    stream = _opened(source, inputs, limit, preprocessing, classes).take(limit)
    return dataclasses.replace(
        stream, parts=lambda size: _checked(stream, size, inputs, finite=finite)
    )


def gathered(parts: Iterable[Part], stream: SampleStream) -> SampleSet:
    """Return parts of a stream as one set of samples."""
    arrays, labels = concatenated(list(parts))
    count = len(next(iter(arrays.values())))
    if labels is not None and not (labels >= 0).any():
        labels = None
    return SampleSet(dict(arrays), stream.source, stream.chosen or f"the first {count}", labels)


def _checked(
    stream: SampleStream, size: int, inputs: Sequence[TensorSpec], *, finite: bool
) -> Iterator[Part]:
    """Yield the parts of a stream in the inputs' types.

    Raises:
        UserError: One does not fit, or there is none.
    """
    read = 0
    for arrays, labels in stream.parts(size):
        check_samples(arrays, inputs, finite=False)
        check_whole(arrays, inputs)
        count = len(next(iter(arrays.values())))
        check_labels(labels, count, stream.source)
        read += count
        with np.errstate(over="ignore"):  # a number beyond float32 becomes infinite
            cast = {t.name: np.asarray(arrays[t.name]).astype(t.dtype, copy=False) for t in inputs}
        check_samples(cast, inputs, finite=finite)
        yield cast, labels
    if not read:
        raise UserError(
            f"{stream.source} holds no sample. Expected numbers of shape (N, …) with N at least 1."
        )


def _opened(
    source: Source,
    inputs: Sequence[TensorSpec],
    limit: int | None,
    preprocessing: Preprocessing | None,
    classes: Sequence[str],
) -> SampleStream:
    if isinstance(source, str) and ":" in source and not Path(source).exists():
        stream = _opened(_call(source), inputs, limit, preprocessing, classes)
        return dataclasses.replace(stream, source=f"function {source}")
    if isinstance(source, (str, os.PathLike)):
        path = Path(source)
        shards = find_shards(path)
        if shards:
            return open_shards(shards, path.name, inputs, preprocessing)
        if path.is_dir():
            return _from_images(path, inputs, limit or IMAGES, preprocessing, classes)
        return _from_file(path, inputs)
    if isinstance(source, (np.ndarray, Mapping)):
        return _from_arrays(source, inputs)
    if isinstance(source, Iterable):
        name = type(source).__name__
        return SampleStream(name, "", None, lambda size: _from_iterable(source, inputs))
    raise UserError(
        "Expected samples as arrays, .npz, .npy, .parquet, .tar, a folder of images or of such "
        "files, a tf.data.Dataset, an iterable or 'module:function'. Received: "
        f"{type(source).__name__}."
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


def _from_file(path: Path, inputs: Sequence[TensorSpec]) -> SampleStream:
    """Open the arrays of a file; a single array serves the single input under any name."""
    if not path.is_file():
        raise UserError(
            f"There is no file or folder {path}. Expected .npz, .npy, .parquet, .tar, a folder of "
            "images or module:function."
        )
    try:
        rows = open_arrays(path)
    except (DamageError, OSError) as error:
        raise _damaged(path, error) from error
    unnamed = set(rows) - {LABEL}
    if len(inputs) == 1 and len(unnamed) == 1:
        rows[inputs[0].name] = rows.pop(unnamed.pop())
    names = _names(rows, inputs, path.name)
    # Shapes and types are in the headers; one zero stands for all numbers.
    blank = {n: np.broadcast_to(np.zeros((), rows[n].dtype), rows[n].shape) for n in names}
    arrays, labels = _part(blank, inputs)
    check_samples(arrays, inputs, finite=False)
    count = rows[inputs[0].name].shape[0]
    check_labels(labels, count, path.name)

    def parts(size: int) -> Iterator[Part]:
        readers = [rows[name].parts(size) for name in names]
        try:
            for part in zip(*readers):
                yield _part(dict(zip(names, part)), inputs)
        except (DamageError, OSError) as error:
            raise _damaged(path, error) from error

    return SampleStream(path.name, "all", count, parts)


def _damaged(path: Path, error: Exception) -> UserError:
    return UserError(f"{path} is not a .npz or .npy file of numbers ({error}).")


def _part(named: Mapping[str, np.ndarray], inputs: Sequence[TensorSpec]) -> Part:
    """Return the arrays without the labels, and the labels; an input may have their name."""
    names = [tensor.name for tensor in inputs]
    arrays = {name: array for name, array in named.items() if name in names or name != LABEL}
    return arrays, None if LABEL in names else named.get(LABEL)


def _names(
    arrays: Mapping[str, object], inputs: Sequence[TensorSpec], source: str
) -> tuple[str, ...]:
    """Return the names of the arrays to read: the inputs', and the labels' if there are any.

    Raises:
        UserError: An input has no array.
    """
    names = tuple(tensor.name for tensor in inputs)
    if not set(names) <= set(arrays):
        raise UserError(
            f"{source} must hold one array for each input: {', '.join(names)}. Received: "
            f"{', '.join(sorted(arrays)) or 'none'}. Write it with numpy.savez(path, "
            "**arrays_by_input_name)."
        )
    return (*names, LABEL) if LABEL in arrays and LABEL not in names else names


def _from_arrays(
    loaded: np.ndarray | Mapping[str, np.ndarray], inputs: Sequence[TensorSpec]
) -> SampleStream:
    """Take arrays by input name, and labels."""
    if isinstance(loaded, np.ndarray):
        if len(inputs) != 1:
            names = ", ".join(tensor.name for tensor in inputs)
            raise UserError(
                f"Expected a dict of arrays by input name ({names}). Received: one array."
            )
        loaded = {inputs[0].name: loaded}
    wanted = {name: np.asarray(loaded[name]) for name in _names(loaded, inputs, "arrays")}
    arrays, labels = _part(wanted, inputs)
    check_samples(arrays, inputs, finite=False)
    count = len(arrays[inputs[0].name])
    check_labels(labels, count, "arrays")

    def parts(size: int) -> Iterator[Part]:
        for start in range(0, count, size):
            rows = slice(start, start + size)
            part = {name: array[rows] for name, array in arrays.items()}
            yield part, None if labels is None else labels[rows]

    return SampleStream("arrays", "all", count, parts)


def _from_images(
    folder: Path,
    inputs: Sequence[TensorSpec],
    limit: int,
    preprocessing: Preprocessing | None,
    classes: Sequence[str],
) -> SampleStream:
    """Read a folder of images; a sub-folder with the name of a class holds its samples."""
    paths, available = find_images(folder, limit)
    reader = ImageInput.of(f"A folder of images ({folder})", inputs, preprocessing)
    numbers = {str(name): number for number, name in enumerate(classes)}

    def parts(size: int) -> Iterator[Part]:
        for start in range(0, len(paths), size):
            chosen = paths[start : start + size]
            images = reader.read([(path, str(path)) for path in chosen], str(folder))
            labels = np.array([numbers.get(class_of(path, folder), -1) for path in chosen])
            yield {reader.tensor.name: images}, labels

    chosen = f"{len(paths)} evenly spread over {available} images"
    notes = [f"of the images in {folder}, {chosen} are used"] if len(paths) < available else []
    outside = [name for name in (class_of(path, folder) for path in paths) if name not in numbers]
    if numbers and outside:
        names = ", ".join(sorted({name or "." for name in outside})[:4])
        notes.append(
            f"{len(outside)} of {len(paths)} images have no label: they are in folders that are no "
            f"class ({names})"
        )
    return SampleStream(f"images in {folder.name}", chosen, len(paths), parts, tuple(notes))


def _from_iterable(source: Iterable[Any], inputs: Sequence[TensorSpec]) -> Iterator[Part]:
    """Yield the samples of an iterable of samples or batches."""
    count = 0
    for element in source:
        part = _element(element, inputs)
        count += len(next(iter(part[0].values())))
        yield part
    if not count:
        raise UserError("The samples' dataset is empty.")


def _element(element: Any, inputs: Sequence[TensorSpec]) -> Part:
    """Return one element of a dataset, `x` or `(x, y)`, as a batch by input name.

    The classes are taken from `label` in a dict, and not from `y`, which may be anything.
    """
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
        alone = values.ndim in (0, len(tensor.shape) - 1)
        batch[tensor.name] = values[None] if alone else values
    labels = named.get(LABEL) if LABEL not in batch else None
    return batch, None if labels is None else np.atleast_1d(np.asarray(labels))
