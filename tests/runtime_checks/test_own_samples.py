"""Protects the user's own samples: checked with their labels, or refused in one sentence."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from PIL import Image
from renormlite import Preprocessing, UserError, check_parity
from renormlite.artifacts.directory import read_export
from renormlite.artifacts.manifest import TensorSpec
from renormlite.artifacts.samples import SampleSet, gathered
from renormlite.reference.network import evaluate_network
from renormlite.runtime_checks import own_samples
from renormlite.runtime_checks.own_samples import open_own
from renormlite.runtimes import Runtime

COUNT = 9
PIXELS = Preprocessing(mean=127.5, scale=1 / 127.5)


def read_samples(source, export, **options) -> SampleSet:
    stream = open_own(source, export, **options)
    return gathered(stream.batches(4), stream)


@pytest.fixture
def own() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(2)
    return {
        "image": rng.normal(size=(COUNT, 8, 8, 1)).astype(np.float32),
        "label": rng.integers(0, 10, COUNT),
    }


def as_file(kind: str, own, tmp_path):
    if kind == "npz":
        np.savez(tmp_path / "own.npz", **own)
        return tmp_path / "own.npz"
    if kind == "npy":
        np.save(tmp_path / "own.npy", own["image"])
        return str(tmp_path / "own.npy")
    return own["image"] if kind == "array" else own


@pytest.mark.parametrize("kind", ["npz", "npy", "array", "dict"])
def test_every_source_is_checked(healthy_export, own, tmp_path, kind):
    report = check_parity(healthy_export, ("litert",), as_file(kind, own, tmp_path))
    assert report.passed
    assert report.samples == 16 + COUNT
    assert (report.golden.kind[16:] == "real").all()
    task = report.results[0].tasks[0]
    assert (task.kind, task.samples) == ("real", COUNT)
    assert task.labelled == (COUNT if kind in ("npz", "dict") else 0)


def test_accuracy_is_that_of_the_trained_model(healthy_export, own):
    """Truth comes from the folded network: its decisions are the Keras model's."""
    export = read_export(healthy_export)
    network = export.read_network(export.artifacts[0])
    decided = evaluate_network(network, {"image": own["image"]})["scores"].argmax(axis=1)
    labels = np.where(np.arange(COUNT) < 6, decided, (decided + 1) % 10)
    report = check_parity(healthy_export, ("onnxruntime",), {**own, "label": labels})
    task = report.results[0].tasks[0]
    assert (task.right_before, task.right_after, task.labelled) == (6, 6, COUNT)


def test_own_samples_are_judged_as_the_golden_ones_are(export, own):
    with np.load(export / "network.npz") as archive:
        weight = next(archive[k] for k in archive.files if k.startswith("point")).ravel()[0]
    path = export / "tiny.float32.tflite"
    data = path.read_bytes()
    path.write_bytes(data.replace(weight.tobytes(), np.float32(weight + 0.5).tobytes()))
    report = check_parity(export, ("litert",), own)
    ratios = report.results[0].outputs[0].ratios
    assert len(ratios) == 16 + COUNT
    assert ratios[16:].max() > 5


def test_a_changed_file_is_not_compared_with_itself(export, own):
    """What a damaged file gives now is not what it gave when it was exported."""
    path = export / "tiny.float32.onnx"
    path.write_bytes(path.read_bytes() + b"\0")
    report = check_parity(export, ("onnxruntime",), own)
    assert not report.passed
    assert "tiny.float32.onnx" not in report.golden.artifacts


@pytest.mark.parametrize("precision", ["float16", "dynamic", "int8"])
def test_a_changed_file_is_measured_but_has_no_limit(coarse_export, own, tmp_path, precision):
    """Bytes behind the file change no output: its quality is the same, and no limit is known."""
    folder = shutil.copytree(coarse_export, tmp_path / "tiny")
    (path,) = folder.glob(f"*.{precision}.tflite")

    def checked():
        (result,) = check_parity(folder, ("litert",), own, precisions=(precision,)).results
        return result, {finding.check: finding for finding in result.findings}

    before, _ = checked()
    path.write_bytes(path.read_bytes() + bytes(16))
    after, findings = checked()
    assert before.passed
    assert [f.check for f in after.findings if not f.passed] == ["file"]
    assert after.qualities[0].samples == 16 + COUNT - 8  # eight golden samples are not real ones
    assert after.qualities[0].snr_db == before.qualities[0].snr_db
    assert "the file was changed" in findings["noise"].message
    assert "float32 arithmetic" not in findings["noise"].message
    assert not after.stages  # what was lost in which stage is not known
    if before.integers is not None:
        assert "not the one that was exported" in findings["integers"].message


@pytest.mark.parametrize("precision", ["int8"])
def test_integers_that_do_not_run_here_are_predicted(coarse_export, own, monkeypatch, precision):
    """As for a device, from a machine without the usual runtime of the format."""
    monkeypatch.setattr(own_samples, "usable_here", lambda _: False)
    (result,) = check_parity(
        coarse_export, ("litert+reference",), own, precisions=(precision,)
    ).results
    assert result.passed
    assert len(result.outputs[0].ratios) == len(result.given["scores"])
    assert np.isfinite(result.outputs[0].bound.noise).all()


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (lambda own: {"picture": own["image"]}, "must hold one array for each input: image"),
        (lambda own: {"image": own["image"][:, :4]}, r"shape \(N, 8, 8, 1\)"),
        (lambda own: {"image": own["image"].astype(str)}, "Expected numbers"),
        (lambda own: {"image": own["image"][:0]}, "N at least 1"),
        (lambda own: {**own, "label": own["label"][:3]}, "one class number for each of 9"),
        (lambda own: {**own, "label": own["label"] / 2}, "one class number"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(healthy_export, own, spoil, sentence):
    with pytest.raises(UserError, match=sentence):
        read_samples(spoil(own), read_export(healthy_export))


def test_paths_that_are_not_sample_files(healthy_export, tmp_path):
    export = read_export(healthy_export)
    with pytest.raises(UserError, match="There is no file or folder"):
        read_samples(tmp_path / "none.npz", export)
    (tmp_path / "text.npz").write_text("no samples")
    with pytest.raises(UserError, match=r"is not a \.npz or \.npy file"):
        read_samples(tmp_path / "text.npz", export)


def test_a_network_that_only_keras_evaluates(export, own):
    with np.load(export / "network.npz") as archive:
        arrays = dict(archive)
    graph = json.loads(str(arrays["graph"]))
    graph["nodes"][0]["op"] = "opaque"
    arrays["graph"] = np.array(json.dumps(graph))
    np.savez(export / "network.npz", **arrays)
    from renormlite.files import sha256

    manifest = json.loads((export / "manifest.json").read_text())
    manifest["network"]["sha256"] = sha256(export / "network.npz")
    (export / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match="renormlite export --inputs"):
        check_parity(export, ("litert",), own)


def test_own_samples_need_only_the_runtime_of_the_checked_files(export, own, monkeypatch):
    only = property(lambda runtime: runtime.package == "ai_edge_litert")
    monkeypatch.setattr(Runtime, "installed", only)
    report = check_parity(export, None, own)
    assert report.passed
    assert {result.target for result in report.results} == {"litert"}


@pytest.fixture
def photos(tmp_path):
    """A folder with three subfolders of two images, two of them classes, and one more image."""
    rng = np.random.default_rng(8)
    folder = tmp_path / "photos"
    for place in ("cat", "cat", "dog", "dog", "cow", "cow", "."):
        (folder / place).mkdir(parents=True, exist_ok=True)
        name = f"{len(list(folder.rglob('*.png')))}.png"
        pixels = rng.integers(0, 256, (11, 14, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / place / name)
    return folder


def tell(export, **metadata):
    """Write metadata into the manifest, as an export does that was told it."""
    manifest = json.loads((export / "manifest.json").read_text())
    manifest["metadata"] = metadata
    (export / "manifest.json").write_text(json.dumps(manifest))


def test_a_folder_of_images_is_read_as_the_export_reads_it(healthy_export, photos):
    from renormlite.artifacts.samples import load_samples

    export = read_export(healthy_export)
    own = read_samples(photos, export, preprocessing=PIXELS)
    image = TensorSpec("image", (None, 8, 8, 1), "float32")
    exported = load_samples(photos, [image], limit=99, preprocessing=PIXELS)
    assert own.arrays["image"].shape == (7, 8, 8, 1)
    np.testing.assert_array_equal(own.arrays["image"], exported.arrays["image"])
    assert own.labels is None
    assert np.abs(own.arrays["image"]).max() <= 1


def test_folders_named_as_classes_are_their_labels(export, photos):
    tell(export, labels=["dog", "fish", "cat"])
    own = read_samples(photos, read_export(export), preprocessing=PIXELS)
    assert list(own.labels) == [-1, 2, 2, -1, -1, 0, 0]
    report = check_parity(export, ("litert",), photos, preprocessing=PIXELS)
    assert report.passed
    assert report.results[0].tasks[0].labelled == 4


def test_classes_are_found_without_being_told(export, photos):
    """The network has ten classes: folders are classes only if they are ten."""

    def notes(**options):
        return open_own(photos, read_export(export), preprocessing=PIXELS, **options).notes

    assert read_samples(photos, read_export(export), preprocessing=PIXELS).labels is None
    assert any("are not used as classes" in note for note in notes())
    for number in range(7):
        shutil.copytree(photos / "cat", photos / f"more {number}")
    own = read_samples(photos, read_export(export), preprocessing=PIXELS)
    assert sorted(own.labels) == [-1, *sorted([*range(10)] * 2)]
    assert "0 cat, 1 cow, 2 dog, 3 more 0" in notes()[0]
    assert any("1 of 21 images have no label" in note for note in notes())
    assert any("5 evenly spread over 21 images" in note for note in notes(limit=5))
    report = check_parity(export, ("litert",), photos, preprocessing=PIXELS)
    assert report.results[0].tasks[0].labelled == 20
    assert set(notes()) <= {f.message for f in report.findings if f.passed}


def test_the_manifest_says_how_pixels_become_inputs(export, photos):
    tell(export, preprocessing={"mean": [127.5], "scale": 1 / 127.5})
    told = read_samples(photos, read_export(export))
    given = read_samples(photos, read_export(export), preprocessing=PIXELS)
    np.testing.assert_array_equal(told.arrays["image"], given.arrays["image"])
    other = read_samples(photos, read_export(export), preprocessing=Preprocessing())
    assert other.arrays["image"].max() > 1


def test_unknown_preprocessing_is_asked_for(healthy_export, photos):
    with pytest.raises(UserError, match="--mean and --scale"):
        read_samples(photos, read_export(healthy_export))


def test_preprocessing_is_for_images_only(healthy_export, own):
    with pytest.raises(UserError, match="is for a folder of images"):
        read_samples(own, read_export(healthy_export), preprocessing=PIXELS)


def test_channels_of_the_preprocessing(healthy_export, photos):
    three = Preprocessing(mean=(1.0, 2.0, 3.0))
    with pytest.raises(UserError, match="one for each of 1 channels"):
        read_samples(photos, read_export(healthy_export), preprocessing=three)


def test_limited_samples_are_evenly_spaced(healthy_export, own, photos):
    export = read_export(healthy_export)
    taken = read_samples(own, export, limit=3)
    np.testing.assert_array_equal(taken.labels, own["label"][[0, 4, 8]])
    images = read_samples(photos, export, preprocessing=PIXELS, limit=2)
    assert len(images.arrays["image"]) == 2


def test_a_damaged_image_is_named(healthy_export, photos):
    (photos / "cat" / "broken.png").write_bytes(b"no image")
    with pytest.raises(UserError, match=r"broken\.png cannot be read as an image"):
        read_samples(photos, read_export(healthy_export), preprocessing=PIXELS)


def test_a_folder_without_images(healthy_export, tmp_path):
    with pytest.raises(UserError, match="holds no image"):
        read_samples(tmp_path, read_export(healthy_export), preprocessing=PIXELS)


def test_own_samples_with_nan_are_not_typical_samples(healthy_export, own):
    own["image"][4, 2, 3, 0] = np.nan
    report = check_parity(healthy_export, ("litert", "onnxruntime"), own)
    assert list(report.golden.kind[16:]) == ["real"] * 4 + ["nonfinite"] + ["real"] * 4
    assert report.passed
    assert report.results[0].tasks[0].samples == COUNT - 1


def test_on_the_command_line(export, photos):
    from click.testing import CliRunner
    from renormlite.cli.main import cli

    arguments = ["check", str(export), "--on", "litert", "--inputs", str(photos)]
    asked = CliRunner().invoke(cli, arguments, standalone_mode=False)
    assert isinstance(asked.exception, UserError)
    options = ["--mean", "127.5", "--scale", "0.00784", "--samples", "5", "--search", "8"]
    checked = CliRunner().invoke(cli, [*arguments, *options])
    assert checked.exit_code == 0, checked.output
    assert "5 real" in checked.output
    assert "2 search" in checked.output
    assert "after 8 runs" in checked.output


@pytest.mark.parametrize("mean", ["x", None, (1.0, float("nan")), {}])
def test_preprocessing_is_numbers(mean):
    with pytest.raises(UserError, match="mean of the preprocessing must be one finite number"):
        Preprocessing(mean=mean)
