"""Samples in Parquet files and in tar files with the layout of WebDataset.

A Parquet file has one row per sample and one column per input: a list of numbers (nested or not),
or the bytes of an image. In a tar file, the members of one sample are consecutive and share their
name up to the first dot. The rest of the name tells the content: `npy`, an image suffix, or
`INPUT.npy` if the network has several inputs. The class is the column `label` or the member `cls`.
"""

from __future__ import annotations

import contextlib
import io
import math
import tarfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np

from ..errors import UserError, printable
from ..extras import missing_package
from .archive import DamageError, array_of
from .images import SUFFIXES, ImageInput, Preprocessing
from .manifest import TensorSpec
from .sample_stream import LABEL, Part, SampleStream

# Exceptions of tarfile and the decompressors for damaged files; DamageError is a ValueError.
_TAR = (tarfile.TarError, EOFError, OSError, ValueError, TypeError, LookupError, zlib.error)
# Base classes of the exceptions of pyarrow.
_ARROW = (OSError, ValueError, NotImplementedError, LookupError, TypeError)
_PARQUET = ".parquet"
_TARS = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
_CLASS = "cls"
_GLOB = "*?["
# Limit on the size in bytes of one member, an array or an image.
_LARGEST_MEMBER = 1 << 30


def find_shards(path: Path) -> list[Path]:
    """Return the Parquet or tar files of a path, a folder or a pattern such as `train-*.tar`.

    Returns:
        The files sorted by name; empty if the path is something else.
    """
    if path.is_file():
        return [path] if _is_shard(path) else []
    if path.is_dir():
        return sorted(entry for entry in path.iterdir() if entry.is_file() and _is_shard(entry))
    if any(letter in path.name for letter in _GLOB) and path.parent.is_dir():
        return sorted(entry for entry in path.parent.glob(path.name) if _is_shard(entry))
    return []


def open_shards(
    paths: Sequence[Path],
    name: str,
    inputs: Sequence[TensorSpec],
    preprocessing: Preprocessing | None,
) -> SampleStream:
    """Open shards of one kind.

    Args:
        paths: The files.
        name: Name of the whole set, for messages.
        inputs: The network's inputs.
        preprocessing: How the pixels of images become inputs.

    Raises:
        UserError: The files are of two kinds, or cannot be read.
    """
    tables = [path for path in paths if path.name.endswith(_PARQUET)]
    if not tables:
        parts = _tar_parts(paths, inputs, preprocessing)
        return SampleStream(name, "", None, lambda size: parts)
    if len(tables) < len(paths):
        raise UserError(f"{name} holds Parquet and tar files. Name one kind: '{name}/*{_PARQUET}'.")
    count = sum(_parquet(path).metadata.num_rows for path in paths)
    return SampleStream(
        name, "all", count, lambda size: _parquet_parts(paths, inputs, preprocessing, size)
    )


def _is_shard(path: Path) -> bool:
    return path.name.endswith((_PARQUET, *_TARS))


def _parquet(path: Path) -> Any:
    """Open a Parquet file."""
    try:
        import pyarrow.parquet
    except ImportError as error:
        missing = missing_package(error, f"Reading {path.name}")
        raise missing or error from error
    try:
        file = pyarrow.parquet.ParquetFile(path)
        _ = file.schema_arrow  # parsed on first access
        return file
    except _ARROW as error:
        raise UserError(f"{path} is not a Parquet file ({_line(error)}).") from error


def _parquet_parts(
    paths: Sequence[Path],
    inputs: Sequence[TensorSpec],
    preprocessing: Preprocessing | None,
    size: int,
) -> Iterator[Part]:
    for path in paths:
        file = _parquet(path)
        known = set(file.schema_arrow.names)
        labelled = LABEL in known and LABEL not in {tensor.name for tensor in inputs}
        names = {tensor.name: tensor.name for tensor in inputs}
        others = sorted(known - {LABEL})
        if len(inputs) == 1 and len(others) == 1:
            names = {inputs[0].name: others[0]}
        if not set(names.values()) <= known:
            raise UserError(
                f"{path.name} must have one column for each input: {', '.join(names)}. Received: "
                f"{printable(', '.join(sorted(known)))}."
            )
        columns = [*names.values(), *([LABEL] if labelled else [])]
        for tensor in inputs:
            _demand_expected_numbers(file.metadata, path, names[tensor.name], tensor)
        try:
            for batch in file.iter_batches(batch_size=size, columns=columns):
                arrays = {
                    tensor.name: _column(
                        batch.column(names[tensor.name]), tensor, path.name, preprocessing
                    )
                    for tensor in inputs
                }
                yield arrays, _classes(batch.column(LABEL), path.name) if labelled else None
        except UserError:
            raise
        except _ARROW as error:
            raise UserError(f"{path} cannot be read as Parquet ({_line(error)}).") from error


def _demand_expected_numbers(metadata: Any, path: Path, column: str, tensor: TensorSpec) -> None:
    """Refuse gigabytes of numbers that no input takes; equal numbers take no space in a file.

    Raises:
        UserError: A row group has far more numbers in a column than an input takes.
    """
    sizes = [size for size in tensor.shape[1:] if size is not None]
    taken = math.prod(sizes) if len(sizes) == len(tensor.shape[1:]) else None
    for group in (metadata.row_group(index) for index in range(metadata.num_row_groups)):
        chunks = (group.column(index) for index in range(group.num_columns))
        for chunk in (c for c in chunks if c.path_in_schema.partition(".")[0] == column):
            numbers = chunk.num_values
            expected = taken is not None and numbers <= taken * group.num_rows
            if not expected and 8 * numbers > _LARGEST_MEMBER:
                takes = "" if taken is None else f", of which the input takes {taken}"
                raise UserError(
                    f"{path} has {numbers} numbers for {group.num_rows} rows of {column!r}{takes}. "
                    "Write the samples in the shape of the input, in row groups of less than 1 GB."
                )


def _column(
    column: Any, tensor: TensorSpec, where: str, preprocessing: Preprocessing | None
) -> np.ndarray:
    """Return a column as (N, …): lists of numbers, or images."""
    import pyarrow as pa

    rows = len(column)
    if pa.types.is_struct(column.type) and column.type.get_field_index("bytes") >= 0:
        column = column.field("bytes")  # the layout of images in Hugging Face data sets
    if pa.types.is_binary(column.type) or pa.types.is_large_binary(column.type):
        reader = ImageInput.of(f"The images of {where}", [tensor], preprocessing)
        return reader.read([(io.BytesIO(data), where) for data in column.to_pylist()], where)
    shape = tensor.shape[1:]
    while pa.types.is_nested(column.type) and not pa.types.is_struct(column.type):
        if column.null_count:
            raise UserError(f"{where}: column '{tensor.name}' has rows without a value.")
        column = column.flatten()
    numeric = pa.types.is_integer(column.type) or pa.types.is_floating(column.type)
    if not (numeric or pa.types.is_boolean(column.type)) or column.null_count:
        raise UserError(
            f"{where}: column '{tensor.name}' must hold numbers, or lists of numbers, without "
            f"gaps. Received: {printable(str(column.type))}, {column.null_count} values missing."
        )
    values = column.to_numpy(zero_copy_only=False)
    free = [size for size in shape if size is None]
    known = int(np.prod([size for size in shape if size is not None]))
    if (
        len(free) > 1
        or not known
        or (values.size != rows * known if not free else values.size % (rows * known))
    ):
        raise UserError(
            f"{where}: column '{tensor.name}' must hold {list(shape)} numbers a row. Received: "
            f"{values.size} in {rows} rows."
        )
    return values.reshape(rows, *(-1 if size is None else size for size in shape))


def _classes(column: Any, where: str) -> np.ndarray:
    values = column.to_numpy(zero_copy_only=False)
    if values.dtype.kind not in "iu":
        raise UserError(
            f"{where}: column '{LABEL}' must hold class numbers. Received: "
            f"{printable(str(column.type))}."
        )
    return values


def _tar_parts(
    paths: Sequence[Path], inputs: Sequence[TensorSpec], preprocessing: Preprocessing | None
) -> Iterator[Part]:
    for path in paths:
        for key, members in _samples(path):
            where = f"{path.name}: {printable(key)}"
            arrays = {
                tensor.name: _input(members, tensor, inputs, where, preprocessing)[None]
                for tensor in inputs
            }
            yield arrays, _class(members, where)


def _samples(path: Path) -> Iterator[tuple[str, dict[str, bytes]]]:
    """Yield the key of each sample of a tar file, and its members by the rest of their names."""
    with _damage(path), tarfile.open(path, "r|*") as archive:
        last = ""
        members: dict[str, bytes] = {}
        for info in archive:
            if not info.isfile():
                continue
            folder, _, base = info.name.rpartition("/")
            stem, _, suffix = base.partition(".")
            key = f"{folder}/{stem}" if folder else stem
            if info.size > _LARGEST_MEMBER:
                raise DamageError(f"{info.name} has {info.size} bytes")
            if key != last and members:
                yield last, members
                members = {}
            file: IO[bytes] | None = archive.extractfile(info)
            assert file is not None
            last, members[suffix.lower()] = key, file.read()
        if members:
            yield last, members


def _input(
    members: Mapping[str, bytes],
    tensor: TensorSpec,
    inputs: Sequence[TensorSpec],
    where: str,
    preprocessing: Preprocessing | None,
) -> np.ndarray:
    """Return one input of one sample."""
    prefixes = [f"{tensor.name.lower()}.", *([""] if len(inputs) == 1 else [])]
    for prefix in prefixes:
        data = members.get(f"{prefix}npy")
        if data is not None:
            try:
                return array_of(data, where)
            except DamageError as error:
                raise UserError(f"{where} is not an array of numbers ({_line(error)}).") from error
        for suffix in SUFFIXES:
            image = members.get(f"{prefix}{suffix[1:]}")
            if image is not None:
                reader = ImageInput.of("A tar file of images", [tensor], preprocessing)
                return reader.read([(io.BytesIO(image), where)], where)[0]
    raise UserError(
        f"{where} holds no input '{tensor.name}': expected a member {prefixes[-1]}npy or an image. "
        f"Received: {printable(', '.join(sorted(members))) or 'none'}."
    )


def _class(members: Mapping[str, bytes], where: str) -> np.ndarray:
    """Return the class of one sample; -1 if it has none."""
    text = members.get(_CLASS)
    if text is None:
        return np.full(1, -1)
    try:
        return np.array([int(text.decode("ascii"))])
    except (ValueError, UnicodeDecodeError) as error:
        raise UserError(
            f"{where}.{_CLASS} must hold a class number. Received: {text[:20]!r}."
        ) from error


def _line(error: Exception) -> str:
    """Return the text of an error as one line."""
    return printable(" ".join(str(error).split()))[:200]


@contextlib.contextmanager
def _damage(path: Path) -> Iterator[None]:
    """Turn the exceptions of tarfile and the decompressors into a `UserError`."""
    try:
        yield
    except UserError:
        raise
    except _TAR as error:
        raise UserError(f"{path} is not a complete tar file ({_line(error)}).") from error
