"""Hostile versions of every kind of file that renormlite reads, for tests and benchmarks.

`inputs` yields altered copies of a healthy file: bits flipped, parts removed, repeated or
exchanged, numbers replaced by extreme ones, values in nested records replaced by other types.
`PARSERS` has the reader of each kind. A reader may return, or raise `UserError` with one line.
"""

from __future__ import annotations

import copy
import io
import json
import os
import random
import struct
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from renormlite.artifacts.golden_set import read_golden
from renormlite.artifacts.graphs import read_graph, reading, with_shapes
from renormlite.artifacts.manifest import Manifest, TensorSpec
from renormlite.artifacts.network import read_network
from renormlite.artifacts.samples import load_samples
from renormlite.errors import UserError, printable
from renormlite.reference.file_networks import network_of_file
from renormlite.runtime_checks.baseline import read_baseline
from renormlite.runtime_checks.bundle.verify import verify_bundle
from renormlite.runtime_checks.file_table import file_table
from renormlite.runtime_checks.foreign.precision import precision_of
from renormlite.runtimes.application import sealed
from renormlite.runtimes.verification import verified_contents

VALUES = (
    *(None, True, 0, -1, 1e308, 10**400, "", "..", "../x", "a/b", "C:\\x", "\x1b[31m", "\x00"),
    *([], [[]], [None], {}, {"": {}}, {"a": [1]}, "x" * 300, "NaN", "int8", "float99", [2**70]),
    *(10**9, [10**9, 10**9], [None, 10**9, 10**9, 3]),
)
_SIZES = ("4", "12", "3", "0", "-1", "True", "2.0", "'4'", "None", "2**9", "9" * 12, "9" * 40)
_TYPES = (
    *("'<f4'", "'>f8'", "'<f2'", "'<f16'", "'|O'", "'<U5'", "'|S0'", "'|V4'", "'<M8[s]'", "'<c8'"),
    *("[('a','<f4')]", "('<f4',(12,3))", "'|b1'", "'<i9'", "'x'", "None", "[]", "'<f4,<f4'"),
)
_NUMBERS = (0, 1, -1, 127, -128, 2**15, 2**31 - 1, -(2**31), 2**32 - 1)


@dataclass(frozen=True)
class Parser:
    """A reader of one kind of file.

    Attributes:
        suffix: Suffix of the file.
        read: Reads the whole file.
        structured: Returns a well-formed copy with wrong values; None if only bytes are altered.
    """

    suffix: str
    read: Callable[[Path], object]
    structured: Callable[[bytes, random.Random], bytes] | None = None


def outcome(read: Callable[[Path], object], path: Path) -> str:
    """Return what is wrong about the behaviour of a reader; empty if nothing is."""
    try:
        read(path)
    except UserError as error:
        text = str(error).replace(str(path), "")
        return "" if text and printable(text) == text else f"not one printable line: {text!r}"
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return ""


def inputs(parser: Parser, healthy: bytes, seed: int) -> Iterator[bytes]:
    """Yield an endless sequence of altered copies of a file, determined by the seed."""
    rng = random.Random(seed)
    while True:
        if parser.structured is not None and rng.random() < 0.7:
            yield parser.structured(healthy, rng)
        else:
            yield altered(healthy, rng)


def altered(data: bytes, rng: random.Random) -> bytes:
    """Return bytes with one to four faults of any kind."""
    changed = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        if not changed:
            break
        place, kind = rng.randrange(len(changed)), rng.random()
        if kind < 0.4:
            changed[place] ^= 1 << rng.randrange(8)
        elif kind < 0.55:
            changed[place : place + 4] = struct.pack("<I", rng.choice(_NUMBERS) & 0xFFFFFFFF)
        elif kind < 0.65:
            changed[place] = rng.randrange(256)
        elif kind < 0.75:
            del changed[place:]
        elif kind < 0.85:
            del changed[place : place + rng.randint(1, 64)]
        else:
            other = rng.randrange(len(changed))
            changed[place:place] = changed[other : other + rng.randint(1, 64)]
    return bytes(changed)


def places(value: Any, path: tuple = ()) -> list[tuple]:
    """Return the path of every value inside nested JSON."""
    entries = value.items() if isinstance(value, dict) else enumerate(value)
    found = []
    for key, entry in entries:
        found.append((*path, key))
        if isinstance(entry, (dict, list)):
            found += places(entry, (*path, key))
    return found


def changed(record: Any, path: tuple, value: Any) -> Any:
    """Return a copy with one value replaced, or removed if the value is `places`."""
    record = copy.deepcopy(record)
    holder = record
    for key in path[:-1]:
        holder = holder[key]
    if value is places:
        del holder[path[-1]]
    else:
        holder[path[-1]] = value
    return record


def altered_json(data: bytes, rng: random.Random) -> bytes:
    """Return JSON with one value replaced or removed."""
    record = json.loads(data)
    path = rng.choice(places(record))
    return json.dumps(changed(record, path, rng.choice((*VALUES, places)))).encode()


def altered_npy(data: bytes, rng: random.Random) -> bytes:
    """Return an array under a header of any shape and type."""
    shape = ", ".join(rng.choice(_SIZES) for _ in range(rng.choice((0, 1, 2, 4, 4, 4, 40))))
    order = rng.choice(("False", "False", "True", "0", "'no'"))
    header = f"{{'descr': {rng.choice(_TYPES)}, 'fortran_order': {order}, 'shape': ({shape},)}}\n"
    start = 10 + int.from_bytes(data[8:10], "little")
    version, length = rng.choice((b"\1\0", b"\1\0", b"\2\0", b"\3\0")), len(header)
    size = length.to_bytes(2 if version == b"\1\0" else 4, "little")
    return data[:6] + version + size + header.encode() + data[start:] * rng.choice((0, 1, 1, 9))


_STRUCTURED = {".json": altered_json, ".npy": altered_npy}


def altered_members(data: bytes, rng: random.Random) -> bytes:
    """Return a zip archive in which one member has faults, with a matching checksum."""
    stream = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(stream, "w") as new:
        names = old.namelist()
        victim = rng.choice(names)
        for name in names:
            content = old.read(name)
            if name == victim and rng.random() < 0.1:
                continue
            if name == victim:
                known = _STRUCTURED.get(os.path.splitext(name)[1])
                content = (known if known and rng.random() < 0.8 else altered)(content, rng)
            new.writestr(name, content)
    return stream.getvalue()


def altered_bundle(data: bytes, rng: random.Random) -> bytes:
    """Return a bundle in which one file has faults, with a matching SHA-256."""
    with tempfile.NamedTemporaryFile() as file, io.BytesIO() as archive:
        file.write(data)
        file.flush()
        verified_contents(file.name, archive)
        return sealed("runtime_checks.bundle.replay", altered_members(archive.getvalue(), rng))


def altered_npz(data: bytes, rng: random.Random) -> bytes:
    """Return an archive with one array, or one value of a network's graph, replaced."""
    import numpy as np

    if rng.random() < 0.3:
        return altered_members(data, rng)
    with np.load(io.BytesIO(data)) as archive:
        arrays = dict(archive)
    if "graph" in arrays and rng.random() < 0.7:
        arrays["graph"] = np.array(altered_json(str(arrays["graph"]).encode(), rng).decode())
    else:
        name = rng.choice(sorted(arrays))
        value = arrays.pop(name)
        odd = (value.astype("U8"), value[None], value.reshape(-1)[:0], value.reshape(-1)[:1])
        renamed = rng.choice((name, name + "x", "", "../" + name))
        arrays[renamed] = rng.choice((*odd, np.full(value.shape, np.nan), np.zeros((3, 0, 2))))
    stream = io.BytesIO()
    np.savez(stream, **arrays)  # type: ignore[arg-type]
    return stream.getvalue()


def altered_onnx(data: bytes, rng: random.Random) -> bytes:
    """Return a well-formed protocol buffer in which one field is cleared or replaced."""
    import onnx

    message: Any = onnx.load_model_from_string(data)
    model = message
    while True:
        fields = message.ListFields()
        if not fields:
            break
        field, value = rng.choice(fields)
        if field.message_type is not None and rng.random() < 0.95:
            message = rng.choice(list(value)) if field.is_repeated else value
            continue
        if field.message_type is not None or rng.random() < 0.2:
            message.ClearField(field.name)
        else:
            _replace(message, field, value, rng)
        break
    return bytes(model.SerializeToString())


def _replace(message: Any, field: Any, value: Any, rng: random.Random) -> None:
    """Replace a number, text or bytes in a message."""
    one = value[0] if field.is_repeated and len(value) else value
    new: Any
    if isinstance(one, str):
        new = rng.choice(("", "\x1b[31m", one + "x", "Conv", "x" * 300))
    elif isinstance(one, bytes):
        new = altered(one, rng)
    elif isinstance(one, float):
        new = rng.choice((0.0, -1.0, float("nan"), float("inf"), 1e38))
    else:
        new = rng.choice((0, 1, 2, 7, 99, 2**31 - 1, -1))
    try:
        if field.is_repeated:
            value[rng.randrange(len(value))] = new
        else:
            setattr(message, field.name, new)
    except (ValueError, TypeError):  # out of the range of the field
        message.ClearField(field.name)


def _graph(path: Path) -> None:
    """Read a file as `inspect` and `compare` do."""
    file_format = path.suffix.lstrip(".")
    graph = with_shapes(read_graph(path, file_format), path)
    _ = graph.ops, graph.constants
    precision_of(graph)
    with reading(path, "a network"):
        network_of_file(graph, file_format)
    file_table(path)


def _keras(path: Path) -> None:
    from renormlite.toolkit.saving import load_model

    load_model(path)


def _golden(path: Path) -> None:
    read_golden(path, ["scores"])


_INPUTS = (TensorSpec("image", (None, 12, 12, 3), "float32"),)

PARSERS = {
    "manifest": Parser(".json", lambda path: Manifest.load(path.parent), altered_json),
    "baseline": Parser(".json", read_baseline, altered_json),
    "golden set": Parser(".npz", _golden, altered_npz),
    "network": Parser(".npz", read_network, altered_npz),
    "samples .npz": Parser(".npz", lambda path: load_samples(path, _INPUTS), altered_npz),
    "samples .tar": Parser(".tar", lambda path: load_samples(path, _INPUTS)),
    "samples .parquet": Parser(".parquet", lambda path: load_samples(path, _INPUTS)),
    "samples .npy": Parser(".npy", lambda path: load_samples(path, _INPUTS), altered_npy),
    "tflite": Parser(".tflite", _graph),
    "onnx": Parser(".onnx", _graph, altered_onnx),
    "bundle": Parser(".pyz", verify_bundle, altered_bundle),
    "keras": Parser(".keras", _keras, altered_members),
}


def place_of(name: str, folder: Path) -> Path:
    """Return the path of the file that a parser reads in a folder."""
    file = "manifest.json" if name == "manifest" else f"file{PARSERS[name].suffix}"
    return Path(os.path.join(folder, file))
