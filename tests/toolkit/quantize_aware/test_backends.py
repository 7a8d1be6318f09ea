"""Protects training on JAX: it trains, and TensorFlow infers what it trained."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import renormlite as rl

pytest.importorskip("jax")

PROGRAM = Path(__file__).parent / "jax_program.py"


def test_what_jax_trained_is_what_tensorflow_infers(tmp_path: Path) -> None:
    model, arrays = tmp_path / "jax.keras", tmp_path / "jax.npz"
    command = [sys.executable, str(PROGRAM), str(model), str(arrays)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    expected = np.load(arrays)
    got = np.array(rl.load_model(model)(expected["samples"]))
    step = np.diff(np.unique(expected["outputs"])).min()
    # The backends' square roots differ in the last place, which may move the step of a channel by
    # 2^-16 of itself: then a few sums fall on the other side of a half.
    assert np.abs(got - expected["outputs"]).max() <= 1.5 * step
    assert np.mean(got != expected["outputs"]) < 0.05
