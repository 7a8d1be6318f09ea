"""Protects the search for class names: labels.txt first, then folders; their number must match."""

from pathlib import Path

import pytest
from renormlite.artifacts.class_names import class_counts, find_class_names
from renormlite.artifacts.manifest import TensorSpec
from renormlite.errors import UserError


def folder_of(path: Path, *names: str) -> Path:
    for name in names:
        (path / name).mkdir(parents=True)
        (path / name / "a.png").write_bytes(b"")
    return path


def test_folders_in_alphabetical_order(tmp_path: Path) -> None:
    photos = folder_of(tmp_path / "photos", "dog", "cat")
    (photos / "empty").mkdir()
    found = find_class_names(str(photos), {2})
    assert found.names == ("cat", "dog")
    assert "2 folders of" in found.note


def test_labels_in_the_folder_come_before_those_beside_the_model_and_before_folders(
    tmp_path: Path,
) -> None:
    photos = folder_of(tmp_path / "photos", "dog", "cat")
    model = tmp_path / "net.keras"
    assert find_class_names(photos, {2}, model).names == ("cat", "dog")
    (tmp_path / "labels.txt").write_text("dog\r\ncat\r\n")
    assert find_class_names(photos, {2}, model).names == ("dog", "cat")
    assert find_class_names(None, {2}, model).names == ("dog", "cat")
    (photos / "labels.txt").write_text("cat\nbird\n\n")
    assert find_class_names(photos, {2}, model).names == ("cat", "bird")


def test_folders_are_no_classes_if_their_number_differs_from_the_outputs(tmp_path: Path) -> None:
    found = find_class_names(folder_of(tmp_path, "2024-01", "2024-02"), {10})
    assert found.names == ()
    assert "no output of the model has 2" in found.note


def test_other_sources_have_no_class_names(tmp_path: Path) -> None:
    for source in (None, "module:function", tmp_path / "x.npz", [1, 2]):
        assert find_class_names(source, {2}).note == ""


def test_class_counts_are_the_sizes_of_the_last_axis_of_vector_outputs() -> None:
    shapes = [(None, 10), (None, 1), (None, 4, 4), (None, None)]
    outputs = [TensorSpec(str(i), shape, "float32") for i, shape in enumerate(shapes)]
    assert class_counts(outputs) == {10, 2}


def test_names_in_another_encoding_are_refused(tmp_path: Path) -> None:
    (tmp_path / "labels.txt").write_bytes("café\nthé\n".encode("latin-1"))
    with pytest.raises(UserError, match=r"labels\.txt is not UTF-8 text"):
        find_class_names(tmp_path, {2})
