"""Protects the layer on JAX and PyTorch: same training and edge cases as on TensorFlow.

PyTorch has a separate environment (`make test-torch`), named by RENORMLITE_TORCH_PYTHON.
"""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

PROGRAM = Path(__file__).with_name("backend_program.py")

# A hundred float32 steps: each adds rounding of 6e-8, which differs between convolutions of the
# backends, and training neither damps nor explodes it: a thousandfold covers it.
TRAJECTORY = {"rtol": 1e-4, "atol": 1e-4}
# Two steps: only the order of sums differs, on values up to 100 times the spread.
ODD_BATCHES = {"rtol": 1e-5, "atol": 5e-5}


def run(python, backend, folder):
    out = folder / f"{backend}.npz"
    environment = {
        **os.environ,
        "KERAS_BACKEND": backend,
        "CUDA_VISIBLE_DEVICES": "-1",
    }
    finished = subprocess.run(
        [python, str(PROGRAM), str(out)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert finished.returncode == 0, (finished.stdout + finished.stderr)[-4000:]
    return np.load(out)


@pytest.fixture(scope="module")
def tensorflow(tmp_path_factory):
    return run(sys.executable, "tensorflow", tmp_path_factory.mktemp("tensorflow"))


def python_of(backend):
    if backend == "jax":
        return sys.executable
    if "RENORMLITE_TORCH_PYTHON" not in os.environ:
        pytest.skip("PyTorch has an environment of its own: run `make test-torch`")
    return os.environ["RENORMLITE_TORCH_PYTHON"]


@pytest.mark.parametrize("backend", ["jax", "torch"])
def test_training_and_edge_cases_equal_those_of_tensorflow(backend, tensorflow, tmp_path):
    theirs, ours = run(python_of(backend), backend, tmp_path), tensorflow
    assert set(theirs) == set(ours)
    losses = ours["losses"]
    assert len(losses) == 100
    assert losses[-10:].mean() < 0.5 * losses[:10].mean()  # the model learns
    for name in ours:
        assert np.isfinite(ours[name]).all(), name
        tolerance = ODD_BATCHES if ": " in name else TRAJECTORY
        np.testing.assert_allclose(theirs[name], ours[name], err_msg=name, **tolerance)
