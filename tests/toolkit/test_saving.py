"""Protects loading: a saved model opens in a fresh process, and a bad file is one clear line."""

import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
import renormlite as rl


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    model = keras.Sequential([keras.Input((4,)), rl.BatchRenormalization()])
    model.save(tmp_path / "model.keras")
    return tmp_path / "model.keras"


@pytest.mark.parametrize(
    "program",
    [
        "import renormlite as rl; rl.load_model(PATH)",
        "import keras, renormlite; keras.models.load_model(PATH)",
    ],
)
def test_a_saved_model_opens_in_a_fresh_process(program: str, saved: Path) -> None:
    run = subprocess.run(
        [sys.executable, "-c", program.replace("PATH", repr(str(saved)))],
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr


def test_the_loaded_model_computes_the_same(saved: Path) -> None:
    x = np.ones((2, 4), np.float32)
    before = keras.models.load_model(saved).predict(x, verbose=0)
    np.testing.assert_array_equal(rl.load_model(saved).predict(x, verbose=0), before)


def test_a_missing_file_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(
        rl.UserError, match=r"There is no file .*no\.keras\. Save the trained model"
    ):
        rl.load_model(tmp_path / "no.keras")


def test_a_truncated_file_is_named(saved: Path) -> None:
    saved.write_bytes(saved.read_bytes()[:200])
    with pytest.raises(rl.UserError, match=r"is not a \.keras file, or was cut short"):
        rl.load_model(saved)


def test_an_unknown_layer_says_what_to_do(tmp_path: Path) -> None:
    class Strange(keras.layers.Layer):
        def call(self, inputs: keras.KerasTensor) -> keras.KerasTensor:
            return inputs

    keras.Sequential([keras.Input((4,)), Strange()]).save(tmp_path / "strange.keras")
    with pytest.raises(rl.UserError, match=r"Strange.*import its module first"):
        rl.load_model(tmp_path / "strange.keras")
