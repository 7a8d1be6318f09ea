"""Protects what is expected of a runtime of floats on samples that saturate the file's integers."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
from renormlite.artifacts.golden_set import GoldenSet
from renormlite.runtime_checks.end_to_end.target_check import _in_floats, _judged
from renormlite.runtimes import Target

TRUTH = np.linspace(-1, 1, 8).reshape(4, 2)
EXPORTED = TRUTH + np.array([0.0, 0.01])
ARTIFACT = SimpleNamespace(file="net.int16x8.tflite", precision="int16x8")


def judged(outputs: np.ndarray, beyond: list[bool], exported: np.ndarray = EXPORTED) -> np.ndarray:
    golden = SimpleNamespace(
        kind=np.array(["real", "real", "extreme", "nonfinite"]),
        reference={"y": TRUTH},
        truth={"y": TRUTH},
        artifacts={"net.int16x8.tflite": {"y": exported}},
        file_noise={},
    )
    artifact = ARTIFACT
    run = SimpleNamespace(outputs={"y": outputs})
    return _judged(run, artifact, golden, np.array(beyond))["y"]


def test_errors_like_those_of_the_file_are_accepted_where_it_saturates():
    found = judged(TRUTH + 0.02, [True, False, True, True])
    np.testing.assert_array_equal(found[[0, 2]], EXPORTED[[0, 2]])
    np.testing.assert_array_equal(found[1], TRUTH[1] + 0.02)


def test_other_errors_are_not():
    wrong = TRUTH + 0.2
    np.testing.assert_array_equal(judged(wrong, [True] * 4)[:3], wrong[:3])
    missing = np.where(np.arange(4)[:, None] == 2, np.nan, TRUTH)
    assert np.isnan(judged(missing, [True] * 4)[2]).all()


def test_an_infinite_sample_is_the_trained_models():
    np.testing.assert_array_equal(judged(TRUTH + 5, [True] * 4)[3], TRUTH[3])


def test_a_sample_that_loses_little_by_chance_has_the_usual_limit_of_its_like():
    """Of two saturated samples the file errs by 1 in one, and by nothing in the other."""
    exported = TRUTH + np.array([0.0, 0.0, 1.0, 0.0])[:, None]
    found = judged(TRUTH + 0.2, [True, False, True, False], exported)
    np.testing.assert_array_equal(found[0], TRUTH[0])
    np.testing.assert_array_equal(found[1], TRUTH[1] + 0.2)
    found = judged(TRUTH + 3.0, [True, False, True, False], exported)
    np.testing.assert_array_equal(found[0], TRUTH[0] + 3.0)


def test_a_runtime_of_floats_is_held_to_the_network_with_the_weights_of_the_file():
    """Its limit is the noise of one step, 1e-5 here, where the file itself errs by 0.01."""
    floats = TRUTH + 0.003
    golden = GoldenSet(
        kind=np.array(["real", "real", "extreme", "border"]),
        inputs={"x": TRUTH},
        truth={"y": TRUTH},
        folded64={"y": TRUTH},
        reference={"y": TRUTH.astype(np.float32)},
        artifacts={ARTIFACT.file: {"y": EXPORTED}},
        noise={"y": np.full(4, 1e-8)},
        file_noise={ARTIFACT.file: {"y": np.full(4, 1e-5)}},
        in_floats={ARTIFACT.file: {"y": floats}},
    )

    def bounds(outputs: np.ndarray, runtime: str = "openvino") -> list[str]:
        run = SimpleNamespace(outputs={"y": outputs})
        return list(_in_floats(run, ARTIFACT, golden, Target(runtime)))

    assert bounds(floats + 1e-5) == ["y"]
    assert bounds(floats + np.array([0, 0, 6e-5, 0])[:, None]) == []  # 5e-5 are allowed
    assert bounds(TRUTH) == []
    assert bounds(EXPORTED) == []
    assert bounds(floats, "litert") == []  # it computes in integers
    assert bounds(floats[:, :1]) == []
