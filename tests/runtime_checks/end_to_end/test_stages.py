"""Protects the error budget: each planted error is put down to the stage that made it."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from renormlite.artifacts.golden_set import GoldenSet
from renormlite.artifacts.manifest import Artifact
from renormlite.runtime_checks.end_to_end.bounds import end_to_end_bound, float32_bound
from renormlite.runtime_checks.end_to_end.stages import error_budget

UNIT = 2.0**-24
SAMPLES, CLASSES = 20, 10


def artifact(precision: str) -> Artifact:
    return Artifact(
        file=f"net.{precision}.tflite",
        format="tflite",
        precision=precision,
        sha256="",
        bytes=0,
        ops={},
        inputs=(),
        outputs=(),
    )


FLOAT, INT8 = artifact("float32"), artifact("int8")


def noisy(truth: np.ndarray, relative: float, seed: int) -> np.ndarray:
    """Return truth with an error of a relative size in every element."""
    return truth * (1 + relative * np.random.default_rng(seed).normal(size=truth.shape))


@pytest.fixture
def golden() -> GoldenSet:
    """A healthy way from truth to an int8 file: each stage adds what is usual for it."""
    truth = np.random.default_rng(0).normal(size=(SAMPLES, CLASSES))
    return GoldenSet(
        kind=np.array(["real"] * 12 + ["random"] * 4 + ["border"] * 2 + ["extreme"] * 2),
        inputs={"x": np.zeros((SAMPLES, 3), np.float32)},
        truth={"y": truth},
        folded64={"y": noisy(truth, 0.3 * UNIT, 1)},
        reference={"y": noisy(truth, UNIT, 2).astype(np.float32)},
        artifacts={
            FLOAT.file: {"y": noisy(truth, UNIT, 3)},
            INT8.file: {"y": noisy(truth, 1e-2, 4)},
        },
    )


def budget(golden, actual, of=FLOAT, *, sound=True, worst_sample=0):
    rounding = float32_bound(golden, "y")
    limit = end_to_end_bound(golden, of, "y", rounding, follows_rules=True)
    return error_budget(
        "y",
        actual,
        golden,
        of,
        [FLOAT, INT8],
        limit=limit,
        rounding=rounding,
        sound=sound,
        worst_sample=worst_sample,
    )


def causes(found) -> dict[str, str]:
    return {stage.name: stage.cause for stage in found.stages}


def test_healthy_float_file_is_rounding(golden):
    found = budget(golden, golden.artifacts[FLOAT.file]["y"])
    assert causes(found) == {"folded": "rounding", "exported": "rounding", "target": "exact"}
    assert found.cause == "rounding"
    assert "rounding only" in found.sentence
    assert (found.kind, found.samples) == ("real", 12)


def test_healthy_int8_file_is_quantization_loss(golden):
    found = budget(golden, noisy(golden.artifacts[INT8.file]["y"], 1e-4, 9), INT8)
    assert causes(found)["quantized"] == "quantization"
    assert causes(found)["target"] == "rounding"
    assert found.cause == "quantization"
    by_name = {stage.name: stage for stage in found.stages}
    assert by_name["quantized"].share > 0.99
    assert by_name["quantized"].added_db == pytest.approx(40, abs=2)
    assert by_name["exported"].snr_db > 130
    assert "quantization loss" in found.sentence


@pytest.mark.parametrize(
    ("stage", "where"),
    [
        ("folded", "in the fold"),
        ("exported", "in the conversion to net.float32.tflite"),
        ("target", "on the target"),
    ],
)
def test_planted_fault_is_attributed_to_its_stage(golden, stage, where):
    """A wrong weight moves what its stage gives and everything that comes after."""
    wrong = noisy(golden.truth["y"], 1e-3, 7) - golden.truth["y"]
    outputs = {
        "folded": golden.folded64["y"],
        "exported": golden.artifacts[FLOAT.file]["y"],
        "target": golden.artifacts[FLOAT.file]["y"],
    }
    names = list(outputs)
    for name in names[names.index(stage) :]:
        outputs[name] = outputs[name] + wrong
    damaged = dataclasses.replace(
        golden,
        folded64={"y": outputs["folded"]},
        artifacts={FLOAT.file: {"y": outputs["exported"]}},
    )
    found = budget(damaged, outputs["target"], sound=False)
    assert [name for name, cause in causes(found).items() if cause == "fault"] == [stage]
    assert found.cause == "fault"
    assert where in found.sentence
    shares = {entry.name: entry.share for entry in found.stages}
    assert shares[stage] > 0.999


def test_stages_without_error(golden):
    truth = golden.truth["y"]
    exact = dataclasses.replace(
        golden, folded64={"y": truth}, artifacts={FLOAT.file: {"y": truth.copy()}}
    )
    found = budget(exact, truth.copy())
    assert set(causes(found).values()) == {"exact"}
    assert all(stage.snr_db == math.inf and stage.share == 0 for stage in found.stages)
    assert "is exact" in found.sentence


def test_unknown_stages_are_merged_into_the_next(golden):
    bare = dataclasses.replace(golden, artifacts={})
    actual = golden.artifacts[INT8.file]["y"]
    found = budget(bare, actual, INT8)
    assert [stage.name for stage in found.stages] == [
        "folded",
        "exported + quantized + target",
    ]
    assert found.cause == "quantization"
    assert "cannot separate it" in found.sentence
    assert budget(bare, actual, INT8, sound=False).cause == "fault"


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_target_with_nonfinite_outputs_has_all_of_the_error(golden, value):
    actual = golden.artifacts[FLOAT.file]["y"].copy()
    actual[3, 4] = value
    found = budget(golden, actual, sound=False, worst_sample=3)
    target = found.stages[-1]
    assert (target.cause, target.share, target.snr_db) == ("fault", 1.0, -math.inf)
    assert all(stage.share == 0 for stage in found.stages[:-1])
    assert "no signal after" in found.sentence


def test_expected_nonfinite_values_are_not_errors(golden):
    truth = golden.truth["y"].copy()
    truth[0, 0] = np.inf
    every = {"y": truth}
    same = dataclasses.replace(
        golden,
        truth=every,
        folded64=every,
        reference={"y": truth.astype(np.float32)},
        artifacts={FLOAT.file: every},
    )
    found = budget(same, truth.copy())
    assert set(causes(found).values()) == {"exact"}
    assert math.isfinite(found.signal_rms)


def test_fault_that_shows_only_on_border_samples_is_measured_on_them(golden):
    actual = golden.artifacts[FLOAT.file]["y"].copy()
    actual[16:18] += 0.1
    found = budget(golden, actual, sound=False, worst_sample=16)
    assert (found.kind, found.samples) == ("border", 2)
    assert found.stages[-1].share > 0.999


@settings(max_examples=60)
@given(
    st.integers(0, 2**32 - 1),
    st.lists(st.floats(1e-12, 1e3), min_size=4, max_size=4),
)
def test_shares_add_up_to_one(seed, sizes):
    """Whatever the stages do, also where one cancels what another did."""
    rng = np.random.default_rng(seed)
    steps = [size * rng.normal(size=(5, 4)) for size in sizes]
    truth = rng.normal(size=(5, 4))
    outputs = [truth + sum(steps[: i + 1]) for i in range(4)]
    golden = GoldenSet(
        kind=np.array(["real"] * 5),
        inputs={},
        truth={"y": truth},
        folded64={"y": outputs[0]},
        reference={"y": truth.astype(np.float32)},
        artifacts={FLOAT.file: {"y": outputs[1]}, INT8.file: {"y": outputs[2]}},
    )
    found = budget(golden, outputs[3], INT8)
    assert sum(stage.share for stage in found.stages) == pytest.approx(1, abs=1e-9)
    total = np.sqrt(np.mean((outputs[3] - truth) ** 2))
    assert found.stages[-1].error_rms == pytest.approx(total)


@pytest.mark.parametrize("size", [1e-200, 1.0, 1e153])
def test_root_mean_squares_neither_overflow_nor_vanish(golden, size):
    truth = size * np.tile([3.0, 4.0], (SAMPLES, 5))  # root mean square: sqrt((9 + 16) / 2)
    stages = {FLOAT.file: {"y": truth}}
    plain = dataclasses.replace(
        golden,
        truth={"y": truth},
        folded64={"y": truth},
        reference={"y": 1.01 * truth},
        artifacts=stages,
    )
    found = budget(plain, 0.9 * truth, sound=False)
    assert found.signal_rms == pytest.approx(3.5355339059327378 * size, rel=1e-12, abs=0)
    assert found.reference_rms == pytest.approx(0.035355339059327378 * size, rel=1e-9, abs=0)
    assert found.reference_db == pytest.approx(40.0)
    assert found.stages[-1].error_rms == pytest.approx(0.35355339059 * size, rel=1e-9, abs=0)
    assert found.stages[-1].snr_db == pytest.approx(20.0)


def test_an_output_without_signal(golden):
    nothing = np.zeros((SAMPLES, CLASSES))
    silent = dataclasses.replace(
        golden,
        truth={"y": nothing},
        folded64={"y": nothing},
        reference={"y": nothing},
        artifacts={FLOAT.file: {"y": nothing}},
    )
    found = budget(silent, nothing + 1e-3, sound=False)
    assert (found.signal_rms, found.reference_rms, found.reference_db) == (0.0, 0.0, math.inf)
    assert found.stages[-1].error_rms == pytest.approx(1e-3)
    assert found.stages[-1].snr_db == -math.inf


@pytest.mark.parametrize("exported", [True, False])
def test_training_with_quantization_is_a_stage_of_integer_files_only(golden, exported):
    """The file computes the trained integers, so that all of the loss is training's."""
    integers = golden.artifacts[INT8.file]["y"]
    files = dict(golden.artifacts) if exported else {INT8.file: {"y": integers}}
    trained = dataclasses.replace(
        golden, artifacts=files, trained_integers={"y": integers.astype(np.float32)}
    )
    given = dataclasses.replace(
        trained, artifacts={**files, INT8.file: {"y": trained.trained_integers["y"]}}
    )
    found = budget(given, trained.trained_integers["y"], INT8)
    before = ["folded", "exported"] if exported else ["folded"]
    merged = "" if exported else "exported + "
    assert [stage.name for stage in found.stages] == [
        *before,
        f"{merged}quantized in training",
        "quantized",
        "target",
    ]
    assert causes(found)[f"{merged}quantized in training"] == "quantization"
    assert causes(found)["quantized"] == "exact"
    assert "the file computes the trained integers; the target adds nothing" in found.sentence
    plain = budget(trained, golden.artifacts[FLOAT.file]["y"])
    assert not any("training" in stage.name for stage in plain.stages)


def test_what_a_file_adds_to_training_is_told(golden):
    """The file moves the trained integers by as much as training moved the truth, elsewhere."""
    truth = golden.truth["y"]
    first, second = np.zeros((2, *truth.shape))
    first[:, :5], second[:, 5:] = 0.03, 0.03
    given = dataclasses.replace(
        golden,
        artifacts={**golden.artifacts, INT8.file: {"y": truth + first + second}},
        trained_integers={"y": truth + first},
    )
    found = budget(given, truth + first + second, INT8)
    assert "the file adds 50.0 % to the trained quantization; " in found.sentence
