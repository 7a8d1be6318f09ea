"""Protects the reader of archives: arrays equal those that NumPy saved, damage is an error."""

from __future__ import annotations

import io
import zipfile

import numpy as np
import pytest
from renormlite.artifacts import archive as archive_module
from renormlite.artifacts.archive import Archive, DamageError
from renormlite.artifacts.array_rows import open_arrays

ARRAYS = {
    "matrix": np.arange(12.0).reshape(3, 4),
    "fortran": np.asfortranarray(np.arange(6).reshape(2, 3)),
    "empty": np.zeros((0, 3), np.float16),
    "scalar": np.array(7, np.int8),
    "text": np.array("größer"),
    "kinds": np.array(["real", "random"]),
    "stem/conv:kernel": np.full((3, 3, 1, 2), 0.5, np.float32),
}


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_every_array_equals_the_saved_one(save, tmp_path):
    path = tmp_path / "a.npz"
    save(path, **ARRAYS)
    archive = Archive(path)
    assert set(archive) == set(ARRAYS)
    assert len(archive) == len(ARRAYS)
    for name, expected in ARRAYS.items():
        assert archive[name].dtype == expected.dtype
        np.testing.assert_array_equal(archive[name], expected, strict=True)
        assert not archive[name].flags.writeable


def test_arrays_are_views_of_the_file(tmp_path):
    np.savez(tmp_path / "a.npz", x=np.zeros(1 << 16))
    assert not Archive(tmp_path / "a.npz")["x"].flags.owndata


def saved(**arrays) -> bytes:
    stream = io.BytesIO()
    np.savez(stream, **arrays)
    return stream.getvalue()


def headed(shape: str, dtype: str = "'<f4'") -> bytes:
    """Return an archive with one array of 8 bytes under a header."""
    header = f"{{'descr': {dtype}, 'fortran_order': False, 'shape': {shape}}}".ljust(117) + "\n"
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        start = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little")
        archive.writestr("x.npy", start + header.encode() + bytes(8))
    return stream.getvalue()


def read_by_rows(path):
    for rows in open_arrays(path).values():
        list(rows.parts(2))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"no archive",
        saved(x=np.arange(100))[:-30],
        saved(x=np.arange(100)).replace(b"NUMPY", b"NIMPY"),
        saved(x=np.array([{}], object)),
        saved(x=np.zeros(2, [("a", "f4"), ("b", "i4")])),
        saved(x=np.arange(4)).replace(b"(4,)", b"(5,)"),
        saved(x=np.arange(4)).replace(b"(4,)", b"(9,)"),
        headed("(True,)"),
        headed("(-1,)"),
        headed("(0, 9999999999999999999)"),
        headed("(1,)", "('<f4', 2)"),
    ],
    ids=[
        *("empty", "text", "cut", "mark", "objects", "records", "one too many", "beyond the end"),
        *("a size of True", "a negative size", "an impossible size", "arrays as elements"),
    ],
)
def test_damage_is_an_error(data, tmp_path):
    (tmp_path / "a.npz").write_bytes(data)
    with pytest.raises(DamageError):
        dict(Archive(tmp_path / "a.npz"))
    with pytest.raises(DamageError):
        read_by_rows(tmp_path / "a.npz")


def test_an_archive_that_expands_to_a_multiple_of_its_size_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(archive_module, "_MOST_BYTES", 1 << 16)
    path = tmp_path / "bomb.npz"
    np.savez_compressed(path, x=np.zeros(1 << 20, np.uint8))
    with pytest.raises(DamageError, match="expand"):
        dict(Archive(path))
    with pytest.raises(DamageError, match="expand"):
        open_arrays(path)
    np.savez_compressed(path, x=np.random.default_rng(0).integers(0, 9, 1 << 18, np.uint8))
    assert len(Archive(path)["x"]) == open_arrays(path)["x"].shape[0]


@pytest.mark.parametrize("shape", [(), (3,), (0, 3), (2, 3, 4, 5), (2, 1, 3, 1, 2)])
@pytest.mark.parametrize("kind", ["<f4", "<f8", "|i1", ">i2", "|b1", "<U3"])
def test_headers_of_every_form_are_read(tmp_path, shape, kind):
    """The usual form is read without NumPy's parser."""
    numbers = np.arange(int(np.prod(shape))).reshape(shape).astype(kind)
    np.savez(tmp_path / "a.npz", plain=numbers, turned=np.asfortranarray(numbers))
    archive = Archive(tmp_path / "a.npz")
    for name in ("plain", "turned"):
        assert archive[name].dtype == numbers.dtype
        np.testing.assert_array_equal(archive[name], numbers)


def test_an_impossible_shape_is_refused(tmp_path):
    header = (
        b"{'descr': '<f4', 'fortran_order': False, 'shape': (0, 999999999, 999999999, 999999999), }"
    )
    data = b"\x93NUMPY\x01\x00" + (118).to_bytes(2, "little") + header.ljust(117) + b"\n"
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("x.npy", data)
    with pytest.raises(DamageError, match="impossible shape"):
        Archive(tmp_path / "a.npz")["x"]


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("code", [0x110000, 0xFFFFFFFF, 0xD800, 0xDFFF])
def test_text_of_numbers_that_are_no_characters_is_refused(tmp_path, order, code):
    """Python raises a SystemError when such an array is read."""
    text = np.array(["abc", "de\U0010ffff"], f"{order}U3")
    for number in (0x10FFFF, 0xD7FF, code):
        changed = text.copy()
        changed.view(f"{order}u4")[4] = number
        np.savez(tmp_path / "a.npz", text=changed)
        if number == code:
            for read in (lambda path: dict(Archive(path)), read_by_rows):
                with pytest.raises(DamageError, match="numbers that are no characters"):
                    read(tmp_path / "a.npz")
        else:
            read_by_rows(tmp_path / "a.npz")
            assert Archive(tmp_path / "a.npz")["text"][1] == changed[1]
