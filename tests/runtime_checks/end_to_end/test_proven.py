"""Protects that samples have no limit only where every one of their operators was compared."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from renormlite.runtime_checks.end_to_end.bounds import NoiseBound
from renormlite.runtime_checks.end_to_end.comparison import compare_output
from renormlite.runtime_checks.end_to_end.findings import (
    Finding,
    OutputVerdict,
    TargetResult,
    judge_proven,
)

GOLDEN = SimpleNamespace(
    samples=4, kind=np.array(["real", "real", "random", "extreme"]), truth={"y": np.zeros((4, 2))}
)
BOUND = NoiseBound(np.zeros((4, 2)), np.full(4, 0.1), 5.0, 1.5, "the known rules", "the host")


def verdict(errors: list[float]) -> OutputVerdict:
    actual = np.repeat(np.array(errors), 2).reshape(4, 2)
    metrics = compare_output("y", actual, GOLDEN.truth["y"])
    return OutputVerdict.of(metrics, BOUND, BOUND, actual, GOLDEN)


@pytest.mark.parametrize(
    ("errors", "proven", "passes"),
    [
        ([0.1, 0.1, 0.1, 0.9], (3,), True),  # 9 times the noise, of 5
        ([0.1, 0.1, 0.1, 0.9], (0, 1, 2), False),
        ([0.9, 0.1, 0.1, 0.9], (0,), False),
        ([0.1, 0.2, 0.2, 0.9], (0, 3), False),  # twice the noise in the others, of 1.5
    ],
)
def test_only_proven_samples_have_no_limit(errors, proven, passes):
    failed = Finding("noise", False, "output 'y' differs", "y")
    other = Finding("snr", False, "output 'y' is bad", "y")
    result = TargetResult("t", "f", "int8", (failed, other), (verdict(errors),))
    noise, snr = judge_proven(result, GOLDEN, proven).findings
    assert noise.passed == passes
    assert snr is other
    if passes:
        assert "9x in 1 samples" in noise.message
