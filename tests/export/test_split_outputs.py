"""Outputs that join parts with different ranges are reported, and split on request."""

from pathlib import Path

import keras
import numpy as np
import pytest
import renormlite as rl
from keras import layers
from renormlite.against_model.export import check_export
from renormlite.errors import UserError
from renormlite.export.fold.preparation import prepare


def heads() -> tuple[keras.KerasTensor, keras.KerasTensor, keras.KerasTensor]:
    keras.utils.set_random_seed(0)
    x = keras.Input((8, 8, 2), name="image")
    y = layers.Conv2D(6, 3, strides=2, activation="relu", name="first")(x)
    boxes = layers.Rescaling(100.0, name="boxes")(layers.Conv2D(4, 1, name="regress")(y))
    return x, boxes, layers.Conv2D(3, 1, activation="sigmoid", name="scores")(y)


def detector() -> keras.Model:
    x, boxes, scores = heads()
    return keras.Model(x, layers.Concatenate(name="detections")([boxes, scores]))


def data() -> np.ndarray:
    noise = np.random.default_rng(0).normal(size=(32, 8, 8, 2))
    return np.cumsum(np.cumsum(noise, 1), 2).astype(np.float32) / 8


def export(folder: Path, **options: object) -> rl.Manifest:
    return rl.export_model(
        detector(),
        folder,
        precisions=("int8",),
        calibration=data(),
        equalize="never",
        **options,  # type: ignore[arg-type]
    )


def test_a_note_suggests_splitting_a_joined_output_and_splitting_helps(tmp_path: Path) -> None:
    joined = export(tmp_path / "joined", formats=("onnx",))
    assert "--split-outputs detections" in " ".join(joined.artifacts[0].notes)
    explained = rl.explain(tmp_path / "joined").files[0]
    assert "--split-outputs detections" in " ".join(explained.advice)

    folder = tmp_path / "split"
    manifest = export(folder, split_outputs=("detections",))
    for artifact in manifest.artifacts:
        assert [output.name for output in artifact.outputs] == ["boxes", "scores"]
        assert not any("--split-outputs" in note for note in artifact.notes)
        # In one tensor a step of the boxes is larger than the whole range of the scores.
        assert artifact.snr_db["scores"] > 25
    wanted = detector().predict(data(), verbose=0)
    with np.load(folder / "golden.npz") as golden:
        real = golden["kind"] == "real"
        chosen = golden["input:image"][real]
        both = np.concatenate([golden["truth:boxes"], golden["truth:scores"]], axis=-1)[real]
    place = [int(np.abs(data() - one).sum((1, 2, 3)).argmin()) for one in chosen]
    np.testing.assert_allclose(both, wanted[place], rtol=1e-4, atol=1e-4)
    assert rl.check_parity(folder, per_op=True).passed
    assert check_export(detector(), folder).passed


def names(model: keras.Model, *split: str) -> tuple[list[str], list[np.ndarray]]:
    made = prepare(model, split=split)
    given = made.model.predict(data(), verbose=0)
    given = (
        given if isinstance(given, dict) else dict(zip(made.model.output_names, given, strict=True))
    )
    return list(given), list(given.values())


def test_other_outputs_and_dictionaries_keep_their_names() -> None:
    x, boxes, scores = heads()
    joined = layers.Concatenate(name="joined")([boxes, scores])
    model = keras.Model(x, {"found": joined, "area": layers.GlobalAveragePooling2D()(boxes)})
    found, arrays = names(model, "found")
    assert sorted(found) == ["area", "boxes", "scores"]
    wanted = model.predict(data(), verbose=0)
    both = [arrays[found.index(part)] for part in ("boxes", "scores")]
    np.testing.assert_allclose(np.concatenate(both, -1), wanted["found"], rtol=1e-5)
    np.testing.assert_allclose(arrays[found.index("area")], wanted["area"], rtol=1e-5)


def test_outputs_of_several_feature_maps_are_joined_for_each_part() -> None:
    x, boxes, scores = heads()
    rows = [layers.Reshape((-1, n))(part) for part, n in ((boxes, 4), (scores, 3))]
    maps = [layers.Concatenate()(rows), layers.Concatenate()([2 * rows[0], rows[1] / 2])]
    model = keras.Model(x, layers.Concatenate(axis=1, name="all")(maps))
    found, arrays = names(model, "all")
    assert len(found) == 2
    np.testing.assert_allclose(
        np.concatenate(arrays, -1), model.predict(data(), verbose=0), rtol=1e-5, atol=1e-5
    )


def test_parts_without_names_are_numbered() -> None:
    x = keras.Input((4, 2), name="x")
    head = layers.Dense(2, name="head")
    model = keras.Model(x, layers.Concatenate(name="all")([head(x), head(2 * x), x]))
    made = prepare(model, split=("all",)).model
    assert list(made.output_names) == ["all_0", "all_1", "all_2"]


@pytest.mark.parametrize(
    ("name", "message"), [("boxes", "has no output 'boxes'"), ("scores", "does not join parts")]
)
def test_outputs_that_cannot_be_split_are_refused(name: str, message: str) -> None:
    x, _, scores = heads()
    model = keras.Model(x, scores) if name == "scores" else detector()
    with pytest.raises(UserError, match=message):
        prepare(model, split=(name,))
