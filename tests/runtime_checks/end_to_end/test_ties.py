"""Protects that a number next to a tie may be rounded to either side, and no other number may."""

from __future__ import annotations

import shutil

import keras
import numpy as np
import onnx
import pytest
import renormlite as rl
from keras import layers
from onnx import numpy_helper
from renormlite.artifacts.directory import read_export
from renormlite.artifacts.golden_set import GoldenSet
from renormlite.reference.integer.file_outputs import predicted_outputs
from renormlite.runtime_checks import parity
from renormlite.runtime_checks.end_to_end import ties
from renormlite.runtime_checks.end_to_end.integer_agreement import integer_agreement
from renormlite.runtime_checks.end_to_end.ties import with_ties_turned

COUNT = 20_000


@pytest.fixture(scope="module")
def dense(tmp_path_factory):
    """Return an export of a dense layer, and many samples with their predictions."""
    keras.utils.set_random_seed(0)
    x = keras.Input((16,), name="x")
    model = keras.Model(x, layers.Dense(6, bias_initializer="normal", name="y")(x))
    folder = tmp_path_factory.mktemp("ties") / "net"
    samples = np.random.default_rng(0).normal(0, 1, (COUNT, 16)).astype("f4")
    rl.export_model(
        model, folder, formats=("onnx",), precisions=("int8",), calibration=samples[:64]
    )
    export = read_export(folder)
    (artifact,) = export.artifacts
    predictions = predicted_outputs(export.path / artifact.file, artifact, {"x": samples})
    golden = GoldenSet(
        kind=np.full(COUNT, "real"),
        inputs={"x": samples},
        truth={},
        folded64={},
        reference={},
        artifacts={},
        predictions={artifact.file: predictions},
    )
    return export, golden, artifact


def quotients(path, samples):
    """Return (N, 6) the exact numbers that the file rounds, in steps."""
    graph = onnx.load(path).graph
    constants = {t.name: numpy_helper.to_array(t).astype(np.float64) for t in graph.initializer}
    makers = {key: node for node in graph.node for key in node.output}
    (gemm,) = (node for node in graph.node if node.op_type in ("Gemm", "MatMul"))
    (after,) = (node for node in graph.node if gemm.output[0] in node.input)
    x, w, b = (makers[key].input for key in gemm.input)
    scale, zero = (constants[key] for key in x[1:])
    integers = np.clip(np.rint(samples / np.float32(scale)) + zero, 0, 255) - zero
    weights = constants[w[0]] * constants[w[1]].reshape(-1, 1 if w_is_turned(gemm) else 6)
    weights = weights.T if w_is_turned(gemm) else weights
    real = scale * (integers @ weights) + constants[b[0]] * constants[b[1]]
    return real / constants[after.input[1]]


def w_is_turned(gemm) -> bool:
    return any(a.name == "transB" and a.i for a in gemm.attribute)


def judged(dense, changes):
    """Return the agreement of the predicted outputs with some integers changed by a step."""
    export, golden, artifact = dense
    predictions = golden.predictions[artifact.file]
    outputs = {"y": predictions.by_rule["ONNX Runtime with nothing fused"]["y"].copy()}
    for place, step in changes.items():
        outputs["y"][place] += np.float32(step * predictions.steps["y"])
    agreed = integer_agreement(artifact, outputs, golden)
    turned = with_ties_turned(export, artifact, golden, agreed, outputs)
    return integer_agreement(artifact, outputs, turned)


def next_to_ties(dense):
    """Return the places of numbers next to ties, and the step to the other side of each."""
    export, golden, artifact = dense
    exact = quotients(export.path / artifact.file, golden.inputs["x"])
    distance = exact - np.floor(exact) - 0.5
    size = np.abs(exact).max(axis=1, keepdims=True)
    near = (np.abs(distance) < 8 * 2.0**-24 * size) & (np.abs(exact) < 100)
    return {tuple(place): -1 if distance[tuple(place)] >= 0 else 1 for place in np.argwhere(near)}


def test_ties_may_be_on_either_side(dense):
    found = next_to_ties(dense)
    # One for each sample, since those of a sample are turned to one side together.
    alone = {p: step for p, step in found.items() if [q[0] for q in found].count(p[0]) == 1}
    chosen = dict(list(alone.items())[:3])
    assert len(chosen) == 3
    agreed = judged(dense, chosen)
    assert agreed.kernels == ("ONNX Runtime with nothing fused, with ties turned in 3 samples",)
    assert agreed.sentence.startswith("equal to the bit")


def test_other_numbers_may_not(dense):
    found = next_to_ties(dense)
    (place, step), *_ = found.items()
    # The tie's number on the wrong side, and a number that is next to no tie.
    for changes in ({place: -step}, {(place[0], (place[1] + 1) % 6): 1}):
        agreed = judged(dense, changes)
        assert not agreed.kernels
        assert (agreed.differing, agreed.first[1]) == (1, next(iter(changes)))


def test_a_rule_that_differs_in_many_samples_is_unknown(dense):
    found = next_to_ties(dense)
    far = {(sample, 0): 1 for sample in range(20)}
    agreed = judged(dense, {**dict(list(found.items())[:1]), **far})
    assert not agreed.kernels
    assert "ties" not in agreed.nearest


@pytest.mark.parametrize(("count", "predicted"), [(16, True), (17, False)])
def test_up_to_sixteen_samples_are_predicted_anew(dense, count, predicted, monkeypatch):
    called = []
    real = ties.turned_outputs
    monkeypatch.setattr(ties, "turned_outputs", lambda *a, **k: called.append(1) or real(*a, **k))
    judged(dense, {(sample, 0): 1 for sample in range(count)})
    assert bool(called) is predicted


def test_ties_are_turned_for_whole_files_on_runtimes_that_round_by_rules(
    dense, tmp_path, monkeypatch
):
    export, _, artifact = dense
    folder = tmp_path / export.path.name
    shutil.copytree(export.path, folder)
    asked = []

    def turned(export, artifact, golden, *others):
        asked.append(artifact.file)
        return golden

    monkeypatch.setattr(parity, "with_ties_turned", turned)
    assert rl.check_parity(folder, ("onnxruntime",)).passed
    assert asked == [artifact.file]
    with open(folder / artifact.file, "ab") as file:  # a field that ONNX does not know
        file.write(b"\xfa\x7f\x00")
    assert not rl.check_parity(folder, ("onnxruntime",)).passed
    assert asked == [artifact.file]
