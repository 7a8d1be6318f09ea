"""A real export of the digits network to report on: healthy, and with weights damaged."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

CLASSES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


def damage(directory: Path, file: str, node: str, new: float) -> None:
    """Overwrite one kernel weight of a layer in an exported file."""
    with np.load(directory / "network.npz") as archive:
        kernel = archive[f"{node}/kernel"]
    path = directory / file
    data = path.read_bytes()
    found = next(w for w in kernel.ravel() if data.count(np.float32(w).tobytes()) == 1)
    path.write_bytes(data.replace(np.float32(found).tobytes(), np.float32(new).tobytes()))


@pytest.fixture(scope="session")
def digits_export(tmp_path_factory) -> Path:
    """An export of digits in float32 and int8, whose norms have statistics that are not trivial."""
    import keras
    import renormlite as rl
    from renormlite.models import digits
    from renormlite.models.data import handwritten_digits

    keras.utils.clear_session()  # names are numbered from the start, whatever ran before
    keras.utils.set_random_seed(5)
    model = digits.build(rl.BatchRenormalization)
    rng = np.random.default_rng(5)
    for layer in model.layers:
        if isinstance(layer, rl.BatchRenormalization):
            size = layer.gamma.shape
            layer.gamma.assign(rng.normal(1, 0.4, size))
            layer.beta.assign(rng.normal(0, 0.3, size))
            layer.moving_mean.assign(rng.normal(0, 0.3, size))
            layer.moving_variance.assign(rng.uniform(0.2, 2, size))
    real = handwritten_digits().test.x
    directory = tmp_path_factory.mktemp("export") / "digits"
    rl.export_model(
        model,
        directory,
        precisions=("float32", "int8"),
        inputs=real[:40],
        calibration=real[40:200],
        labels=CLASSES,
    )
    return directory


@pytest.fixture(scope="session")
def healthy(digits_export):
    """The report on the healthy export."""
    from renormlite import check_parity

    return check_parity(digits_export, ("litert", "onnxruntime"))


@pytest.fixture(scope="session")
def walked(digits_export, tmp_path_factory):
    """The report on the float32 files alone, every op checked."""
    from renormlite import check_parity

    directory = tmp_path_factory.mktemp("float32") / "digits"
    shutil.copytree(digits_export, directory)
    manifest = json.loads((directory / "manifest.json").read_text())
    manifest["artifacts"] = [a for a in manifest["artifacts"] if a["precision"] == "float32"]
    (directory / "manifest.json").write_text(json.dumps(manifest))
    return check_parity(directory, ("litert", "onnxruntime"), per_op=True)


@pytest.fixture(scope="session")
def failing(digits_export, tmp_path_factory):
    """The report on an export with a wrong weight in one file and a NaN in another."""
    from renormlite import check_parity

    directory = tmp_path_factory.mktemp("damaged") / "digits"
    shutil.copytree(digits_export, directory)
    damage(directory, "digits.float32.tflite", "conv2d_1", 0.7)
    damage(directory, "digits.float32.onnx", "conv2d_2", float("nan"))
    return check_parity(directory, ("litert", "onnxruntime"))
