"""Files that take raw pixels give what the trained model gives of preprocessed ones."""

from pathlib import Path

import keras
import numpy as np
import pytest
import renormlite as rl
from keras import layers
from PIL import Image
from renormlite.artifacts.images import Preprocessing
from renormlite.errors import UserError
from renormlite.export.quantization.pixel_inputs import whole_mean
from renormlite.export.quantization.whole_mean import with_whole_mean
from renormlite.runtimes.base import TensorInfo
from renormlite.runtimes.session import quantize

IMAGENET = Preprocessing((123.675, 116.28, 103.53), (0.0171, 0.0175, 0.0174))


def network(padding: str = "same") -> keras.Model:
    keras.utils.set_random_seed(0)
    image = keras.Input((12, 12, 3), name="image")
    y = layers.Conv2D(6, 3, strides=2, padding=padding, use_bias=False)(image)
    y = layers.ReLU()(rl.BatchRenormalization()(y))
    return keras.Model(image, layers.Dense(4, name="scores")(layers.Flatten()(y)))


def pixels(count: int = 24) -> np.ndarray:
    """Smooth images, as photographs are."""
    coarse = np.random.default_rng(0).integers(0, 256, (count, 4, 4, 3)).astype(np.uint8)
    return np.stack(
        [np.asarray(Image.fromarray(c).resize((12, 12), Image.Resampling.BILINEAR)) for c in coarse]
    )


def export(
    folder: Path, model: keras.Model, given: Preprocessing, **options: object
) -> rl.Manifest:
    return rl.export_model(
        model,
        folder,
        calibration=pixels(),
        preprocessing=given,
        preprocessing_in_model=True,
        equalize="never",
        **options,  # type: ignore[arg-type]
    )


@pytest.fixture(scope="module")
def half(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An export for pixels with the mean 127.5, whose first layer pads with zeros."""
    folder = tmp_path_factory.mktemp("pixels") / "half"
    export(folder, network(), Preprocessing(127.5, 1 / 127.5), precisions=("float32", "int8"))
    return folder


def outputs(folder: Path, file: str, given: np.ndarray) -> np.ndarray:
    if file.endswith(".onnx"):
        import onnxruntime

        session = onnxruntime.InferenceSession(folder / file, providers=["CPUExecutionProvider"])
        return np.concatenate([session.run(None, {"image": image[None]})[0] for image in given])
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(str(folder / file))
    interpreter.allocate_tensors()
    found = []
    for image in given:
        interpreter.set_tensor(interpreter.get_input_details()[0]["index"], image[None])
        interpreter.invoke()
        found.append(interpreter.get_tensor(interpreter.get_output_details()[0]["index"]).copy())
    return np.concatenate(found)


@pytest.mark.parametrize(
    ("file", "decibels"),
    [
        ("half.float32.tflite", 110),
        ("half.float32.onnx", 110),
        ("half.int8.tflite", 35),
        ("half.int8.onnx", 35),
    ],
)
def test_files_take_raw_pixels(half: Path, file: str, decibels: float) -> None:
    given = pixels()
    wanted = network().predict((given.astype(np.float64) - 127.5) / 127.5, verbose=0)
    got = outputs(half, file, given)  # bytes of a camera, without any arithmetic
    ratio = 10 * np.log10(np.sum(wanted**2) / np.sum((got - wanted) ** 2))
    assert ratio > decibels


def test_checks_run_from_raw_pixels(half: Path) -> None:
    with np.load(half / "golden.npz") as golden:
        assert golden["input:image"].dtype == np.uint8
        assert golden["input:image"].max() > 200
    assert rl.check_parity(half, per_op=True).passed


def test_checks_read_unchanged_images(half: Path, tmp_path: Path) -> None:
    for number, image in enumerate(pixels(4)):
        Image.fromarray(image).save(tmp_path / f"{number}.png")
    assert rl.check_parity(half, inputs=str(tmp_path)).passed
    with pytest.raises(UserError, match="take raw pixels"):
        rl.check_parity(half, inputs=str(tmp_path), preprocessing=Preprocessing(127.5, 1 / 127.5))


def test_preprocessed_samples_are_refused(half: Path) -> None:
    with pytest.raises(UserError, match="give raw pixels"):
        rl.check_parity(half, inputs=pixels(2) / 255)


def test_a_whole_mean_is_the_zero_point_of_the_input(tmp_path: Path) -> None:
    given = Preprocessing(128.0, 1 / 128)
    manifest = export(tmp_path / "whole", network(), given, precisions=("int8",))
    by_format = {artifact.format: artifact for artifact in manifest.artifacts}
    (image,) = by_format["tflite"].inputs
    assert (image.dtype, image.scale, image.zero_point) == ("uint8", 1.0, 128)
    assert "ADD" not in by_format["tflite"].ops
    assert "CAST" not in by_format["tflite"].ops
    assert not {"Add", "Cast"} & set(by_format["onnx"].ops)
    assert by_format["onnx"].inputs[0].dtype == "uint8"
    assert not any("pixels" in note for a in manifest.artifacts for note in a.notes)
    assert rl.check_parity(tmp_path / "whole", per_op=True).passed


def test_a_note_says_why_the_mean_does_not_fold(half: Path, tmp_path: Path) -> None:
    manifest = export(
        tmp_path / "net", network(), IMAGENET, formats=("tflite",), precisions=("int8",)
    )
    assert "rounded to 8 bits" in " ".join(manifest.artifacts[0].notes)
    assert "ADD" in manifest.artifacts[0].ops


def test_a_fractional_mean_is_exact_except_at_the_border() -> None:
    folded = rl.fold(_with_preprocessing(network(), 127.5, 1 / 127.5)).model
    found = with_whole_mean(folded)
    assert "128 instead of 127.5" in found.note
    assert found.model is not None
    image = pixels(2)
    first = next(layer for layer in folded.layers if isinstance(layer, layers.Conv2D))
    inner = [
        keras.Model(m.inputs, m.get_layer(first.name).output).predict(image, verbose=0)
        for m in (folded, found.model)
    ]
    # Strides of two over twelve pixels pad at the far end only.
    np.testing.assert_allclose(inner[0][:, :-1, :-1], inner[1][:, :-1, :-1], atol=1e-5)
    assert np.abs(inner[0] - inner[1]).max() > 1e-4


def test_no_operator_remains_without_padding() -> None:
    folded = rl.fold(_with_preprocessing(network("valid"), IMAGENET.mean, IMAGENET.scale)).model
    assert with_whole_mean(folded).model is None
    assert with_whole_mean(folded).note == ""


def _with_preprocessing(model: keras.Model, mean: object, scale: object) -> keras.Model:
    from renormlite.export.fold.preparation import prepare

    return prepare(model, preprocessing=Preprocessing(mean, scale)).model  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("shift", "mean"),
    [
        ([-128, -128], 128),
        ([0, 0], 0),
        ([-127.5] * 2, None),
        ([-1, -2], None),
        ([3, 3], None),
        ([-300] * 2, None),
    ],
)
def test_a_mean_must_be_whole_and_equal_for_all_channels(
    shift: list[float], mean: int | None
) -> None:
    assert whole_mean(np.array(shift, np.float64)) == mean


def test_integers_of_the_files_type_are_passed_on() -> None:
    info = TensorInfo("image", (1, 2), np.dtype(np.uint8), 1.0, 128)
    np.testing.assert_array_equal(quantize(np.array([[0, 255]], np.uint8), info), [[0, 255]])
    np.testing.assert_array_equal(quantize(np.array([[-128.0, 5]]), info), [[0, 133]])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "must know how pixels"),
        ({"preprocessing": Preprocessing((1.0, 2.0))}, "one for each of 3 channels"),
        ({"preprocessing": Preprocessing(0.0, 0.0)}, "A scale of 0"),
        (
            {"preprocessing": Preprocessing(), "formats": ("tflite",), "precisions": ("int16x8",)},
            "int16x8",
        ),
    ],
)
def test_unsupported_combinations_are_refused(
    options: dict[str, object], message: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message):
        rl.export_model(
            network(),
            tmp_path / "net",
            calibration=pixels(),
            preprocessing_in_model=True,
            **options,  # type: ignore[arg-type]
        )


def test_a_model_without_one_image_is_refused(tmp_path: Path) -> None:
    a, b = keras.Input((4, 4, 1), name="a"), keras.Input((4, 4, 1), name="b")
    model = keras.Model([a, b], layers.Add()([a, b]))
    with pytest.raises(UserError, match="needs one input"):
        rl.export_model(
            model, tmp_path / "net", preprocessing=Preprocessing(), preprocessing_in_model=True
        )
