"""Protects the sources of real data, and the refusal of unsuitable ones."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import renormlite as rl
import tensorflow as tf
from renormlite.artifacts import sample_shards
from renormlite.artifacts.images import Preprocessing
from renormlite.artifacts.manifest import TensorSpec
from renormlite.artifacts.samples import load_samples

IMAGE = (TensorSpec("image", (None, 12, 12, 3), "float32"),)
TWO = (TensorSpec("a", (None, 4), "float32"), TensorSpec("b", (None, 2), "int32"))


def test_an_array_is_used_for_the_only_input(images):
    samples = load_samples(images, IMAGE, limit=100)
    np.testing.assert_array_equal(samples.arrays["image"], images)


def test_a_limit_takes_evenly_spread_samples(images):
    samples = load_samples(images, IMAGE, limit=5)
    np.testing.assert_array_equal(samples.arrays["image"], images[[0, 12, 24, 35, 47]])
    assert samples.to_json()["chosen"] == "5 evenly spread over 48"


@pytest.mark.parametrize("name", ["image", "any_name"])
def test_npz_of_one_array(name, images, tmp_path):
    np.savez(tmp_path / "data.npz", **{name: images})
    assert load_samples(tmp_path / "data.npz", IMAGE, limit=9).count == 9


def test_npz_with_labels_beside_the_inputs(images, tmp_path):
    np.savez(tmp_path / "data.npz", image=images, label=np.arange(48))
    samples = load_samples(tmp_path / "data.npz", IMAGE, limit=100)
    assert list(samples.arrays) == ["image"]


def test_npy(images, tmp_path):
    np.save(tmp_path / "data.npy", images)
    assert load_samples(str(tmp_path / "data.npy"), IMAGE, limit=100).count == 48


def test_a_folder_of_images_is_resized_and_preprocessed(tmp_path):
    for index, colour in enumerate((0, 255)):
        path = tmp_path / "photos" / f"{index}.png"
        path.parent.mkdir(exist_ok=True)
        keras.utils.save_img(path, np.full((20, 16, 3), colour, np.uint8), scale=False)
    (tmp_path / "photos" / "readme.txt").write_text("not an image")
    samples = load_samples(
        tmp_path / "photos", IMAGE, limit=10, preprocessing=Preprocessing(127.5, 1 / 127.5)
    )
    assert samples.arrays["image"].shape == (2, 12, 12, 3)
    assert samples.arrays["image"].dtype == np.float32
    np.testing.assert_allclose(samples.arrays["image"][0], -1)
    np.testing.assert_allclose(samples.arrays["image"][1], 1)
    with pytest.raises(rl.UserError, match="--scale 1 keeps pixels unchanged"):
        load_samples(tmp_path / "photos", IMAGE, limit=10)


@pytest.mark.parametrize("batched", [True, False])
@pytest.mark.parametrize("labelled", [True, False])
def test_tf_data(batched, labelled, images):
    data = tf.data.Dataset.from_tensor_slices(
        (images, np.arange(len(images))) if labelled else images
    )
    samples = load_samples(data.batch(10) if batched else data, IMAGE, limit=25)
    np.testing.assert_array_equal(samples.arrays["image"], images[:25])
    assert samples.chosen == "the first 25"


def test_an_iterable_of_dictionaries_is_used_for_several_inputs():
    rows = ({"a": np.full(4, i), "b": np.full(2, -i)} for i in range(7))
    samples = load_samples(rows, TWO, limit=5)
    np.testing.assert_array_equal(samples.arrays["b"][:, 0], [0, -1, -2, -3, -4])


def test_module_function_in_the_current_folder(images, tmp_path, monkeypatch):
    np.save(tmp_path / "data.npy", images)
    (tmp_path / "my_samples.py").write_text(
        "import numpy as np\ndef few():\n    return np.load('data.npy')[:6]\n"
    )
    monkeypatch.chdir(tmp_path)
    samples = load_samples("my_samples:few", IMAGE, limit=100)
    assert samples.count == 6
    assert samples.source == "function my_samples:few"


@pytest.mark.parametrize(
    ("source", "sentence"),
    [
        ("nowhere.npz", "no file or folder"),
        ("nowhere:function", "cannot be imported"),
        ("os:nothing", "has no function 'nothing'"),
        (np.zeros((4, 5, 5, 3)), "shape"),
        (np.zeros((0, 12, 12, 3)), "at least 1"),
        ({"picture": np.zeros((1, 12, 12, 3))}, "picture"),
        (np.full((1, 12, 12, 3), np.nan), "NaN"),
        (12, "int"),
        ([], "empty"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_unsuitable_sources_are_refused_in_one_sentence(source, sentence):
    with pytest.raises(rl.UserError, match=sentence):
        load_samples(source, IMAGE, limit=10)


def test_unequal_numbers_of_samples_are_refused():
    with pytest.raises(rl.UserError, match="equally many"):
        load_samples({"a": np.zeros((3, 4)), "b": np.zeros((2, 2))}, TWO, limit=10)


def test_one_array_for_two_inputs_is_refused():
    with pytest.raises(rl.UserError, match="by input name"):
        load_samples(np.zeros((3, 4)), TWO, limit=10)


def test_a_damaged_file_is_refused(tmp_path):
    (tmp_path / "data.npz").write_bytes(b"PK\x03\x04 cut short")
    with pytest.raises(rl.UserError, match=r"data\.npz is not"):
        load_samples(tmp_path / "data.npz", IMAGE, limit=1)


def test_an_empty_folder_is_refused(tmp_path):
    with pytest.raises(rl.UserError, match="holds no image"):
        load_samples(tmp_path, IMAGE, limit=1)


@pytest.mark.parametrize("labels", [[0, -7], [0, 2**62], [0.5, 1.0], ["a", "b"], [True, False]])
def test_labels_that_are_not_classes_are_refused_in_one_sentence(labels):
    with pytest.raises(rl.UserError, match="'label' must hold"):
        load_samples(
            {"x": np.zeros((2, 3)), "label": np.array(labels)},
            [TensorSpec("x", (None, 3), "float32")],
        )


@pytest.mark.parametrize("sizes", [(4,), (None,)])
def test_a_parquet_file_that_expands_to_gigabytes_is_refused(sizes, monkeypatch, tmp_path):
    """Equal numbers take no space in a file; here 8 MB count as gigabytes."""
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    numbers = 1 << 20
    zeros = pa.array(np.zeros(numbers, np.int8))
    column = pa.ListArray.from_arrays(pa.array([0, numbers], pa.int32()), zeros)
    path = tmp_path / "bomb.parquet"
    parquet.write_table(pa.table({"x": column}), path)
    assert path.stat().st_size < numbers // 100
    monkeypatch.setattr(sample_shards, "_LARGEST_MEMBER", 8 * numbers - 1)
    inputs = [TensorSpec("x", (None, *sizes), "float32")]
    stream = sample_shards.open_shards([path], path.name, inputs, None)
    with pytest.raises(rl.UserError, match=r"bomb\.parquet has 1048576 numbers for 1 rows of 'x'"):
        next(iter(stream.parts(8)))


def test_parquet_rows_of_a_free_length_are_read(tmp_path):
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    path = tmp_path / "x.parquet"
    parquet.write_table(pa.table({"x": [[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]}), path)
    inputs = [TensorSpec("x", (None, None), "float32")]
    stream = sample_shards.open_shards([path], path.name, inputs, None)
    ((arrays, _),) = stream.parts(8)
    np.testing.assert_array_equal(arrays["x"], [[1, 2, 3], [4, 5, 6]])
