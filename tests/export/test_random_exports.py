"""Protects that random networks of all public layers export right, or are refused in a sentence."""

from __future__ import annotations

import functools
import os
from pathlib import Path

import keras
import numpy as np
import pytest
import renormlite as rl
from random_graphs import random_model
from renormlite.export import exporter

# Networks per run; `benchmarks/random_models.py` checks more, in all precisions and runtimes.
NETWORKS = int(os.environ.get("RENORMLITE_RANDOM_NETWORKS", "300"))
_GROUP = 30

# Most networks of a group that may be refused. Some do not run in Keras, mix the samples of a batch
# or need operators that a format lacks; a converter refuses some that it should not.
_MOST_REFUSED = 8


@pytest.mark.filterwarnings("ignore")  # Keras warns about some of what is generated
@pytest.mark.parametrize("first", range(0, NETWORKS, _GROUP))
def test_files_compute_what_keras_does_or_the_export_is_refused(first, tmp_path, monkeypatch):
    # Without the proof, which would undo a wrong fold: the files are compared with the original.
    monkeypatch.setattr(exporter, "fold", functools.partial(exporter.fold, verify=False))
    refused = []
    for seed in range(first, first + _GROUP):
        keras.backend.clear_session()
        try:
            problem = _examine(seed, tmp_path / f"net_{seed}")
        except rl.UserError as refusal:
            problem = "a refusal of several lines" if "\n" in str(refusal) else ""
            refused.append(f"seed {seed}: {refusal}")
        assert not problem, f"seed {seed}: {problem}"
    assert len(refused) <= _MOST_REFUSED, refused


def _examine(seed: int, folder: Path) -> str:
    """Export one network to one format; return what is wrong, empty if nothing is."""
    file_format = ("tflite", "onnx")[seed % 2]
    (artifact,) = rl.export_model(random_model(seed), folder, formats=(file_format,)).artifacts
    golden = np.load(folder / "golden.npz")
    fair = np.isin(golden["kind"], ("real", "random", "border"))
    for tensor in artifact.outputs:
        name = tensor.keras_name
        keys = f"truth:{name}", f"reference:{name}", f"artifact:{artifact.file}:{name}"
        truth, own, got = (golden[key][fair].astype(np.float64) for key in keys)
        # Keras' own float32 error says how much this network amplifies rounding.
        usual = np.abs(own - truth).max(initial=0)
        allowed = max(1e-4 * np.abs(truth).max(initial=0), 100 * usual)
        error = np.abs(got - truth).max(initial=0)
        if not error <= allowed:
            return f"{name!r} differs by {error:.1e}, allowed {allowed:.1e}"
    return ""
