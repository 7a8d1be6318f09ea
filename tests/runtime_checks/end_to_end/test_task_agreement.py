"""Protects task agreement: decisions lost, gained and tied are counted as what they are."""

from __future__ import annotations

import numpy as np
import pytest
from renormlite.artifacts.golden_set import GoldenSet
from renormlite.artifacts.network import Network, Node
from renormlite.runtime_checks.end_to_end.quality_gates import QualityLimits, quality_findings
from renormlite.runtime_checks.end_to_end.task_agreement import (
    deciding_outputs,
    ordering_outputs,
    task_agreement,
)
from scipy.stats import binomtest


def golden_of(truth, *, labels=None, kind=None) -> GoldenSet:
    truth = np.asarray(truth, np.float64)
    return GoldenSet(
        kind=np.array(kind or ["real"] * len(truth)),
        inputs={},
        truth={"y": truth},
        folded64={},
        reference={},
        artifacts={},
        labels=None if labels is None else np.asarray(labels),
    )


def one_hot(classes, size=4) -> np.ndarray:
    return np.eye(size)[list(classes)]


def agree(truth, actual, *, labels=None, kind=None, allowed=0.0):
    golden = golden_of(truth, labels=labels, kind=kind)
    limit = np.full(len(golden.kind), allowed)
    return task_agreement("y", np.asarray(actual, np.float64), golden, limit)


def test_same_decisions():
    task = agree(one_hot([0, 1, 2]), one_hot([0, 1, 2]))
    assert (task.same, task.flips, task.changes) == (3, 0, ())
    assert task.chance is None
    assert "3 / 3 real samples" in task.sentence


def test_lost_and_gained_are_counted_separately():
    """Equal accuracy before and after, although two decisions change."""
    task = agree(one_hot([0, 1, 2, 3]), one_hot([1, 0, 2, 3]), labels=[0, 0, 2, 2])
    assert (task.lost, task.gained) == (1, 1)
    assert (task.right_before, task.right_after, task.labelled) == (2, 2, 4)
    assert task.flips == 2
    assert task.confusion == ((0, 1, 1), (1, 0, 1))
    assert "accuracy 50.00 % before, 50.00 % after (1 lost, 1 gained of 4; chance" in task.sentence


def test_tie_is_not_a_flip():
    truth = [[0.50, 0.49, 0.01], [0.8, 0.1, 0.1]]
    actual = [[0.49, 0.50, 0.01], [0.1, 0.8, 0.1]]
    task = agree(truth, actual, allowed=0.006)
    assert [change.tie for change in task.changes] == [True, False]
    assert task.flips == 1
    assert task.changes[0].margin == pytest.approx(0.01)


def test_equal_scores_give_one_decision():
    task = agree([[0.5, 0.5, 0.0]], [[0.4, 0.6, 0.0]])
    assert task.same == 1


def test_only_real_samples_count():
    """Decisions about noise are no decisions of the task."""
    task = agree(one_hot([0, 1]), one_hot([0, 2]), kind=["real", "extreme"])
    assert (task.samples, task.same) == (1, 1)


@pytest.mark.parametrize(
    ("truth", "actual"),
    [
        (np.zeros((2, 3, 4)), np.zeros((2, 3, 4))),
        (one_hot([0, 1]), np.zeros((2, 5))),
        (one_hot([0, 1]), np.full((2, 4), np.nan)),
    ],
)
def test_no_decision_to_compare(truth, actual):
    assert agree(truth, actual) is None


def test_labels_beyond_the_classes_belong_to_another_output():
    task = agree(one_hot([0, 1]), one_hot([0, 1]), labels=[0, 7])
    assert task.labelled == 0


def test_samples_without_a_label_do_not_count():
    task = agree(one_hot([0, 1, 2]), one_hot([0, 1, 1]), labels=[0, -1, -1])
    assert (task.labelled, task.right_after) == (1, 1)
    assert task.changes[0].label is None


@pytest.mark.parametrize(("lost", "gained"), [(0, 0), (1, 0), (3, 1), (2, 9), (700, 650)])
def test_chance_is_the_exact_binomial_test(lost, gained):
    total = max(1, lost + gained)
    before = one_hot([0] * lost + [1] * gained or [0])
    after = one_hot([1] * lost + [0] * gained or [0])
    task = agree(before, after, labels=[0] * total)
    expected = binomtest(lost, lost + gained).pvalue if lost + gained else 1.0
    assert (task.lost, task.gained) == (lost, gained)
    assert task.chance == pytest.approx(expected)


def test_the_json_has_counts_changes_and_confusion():
    task = agree(one_hot([0, 1, 2, 3]), one_hot([1, 0, 2, 3]), labels=[0, 0, 2, 2])
    record = task.to_json()
    expected = {
        "kind": "real",
        "samples": 4,
        "same": 2,
        "flips": 2,
        "labelled": 4,
        "right_before": 2,
        "right_after": 2,
        "lost": 1,
        "gained": 1,
        "chance": 1.0,
        "odds": None,
        "confusion": [
            {"before": 0, "after": 1, "count": 1},
            {"before": 1, "after": 0, "count": 1},
        ],
        "sentence": task.sentence,
    }
    assert {key: record[key] for key in expected} == expected
    assert [change["sample"] for change in record["changes"]] == [0, 1]
    assert not {"output", "changed"} & record.keys()


def test_one_probability_decides_between_two_classes():
    task = agree([[0.9], [0.2], [0.51]], [[0.8], [0.6], [0.49]], labels=[1, 0, 1], allowed=0.03)
    assert task.samples == 3
    assert [(c.before, c.after, c.tie) for c in task.changes] == [(0, 1, False), (1, 0, True)]
    assert (task.right_before, task.right_after) == (3, 1)


def network_ending_in(**ends: tuple[str, ...]) -> Network:
    """A network whose outputs end in these operations, in this order."""
    nodes = [
        Node(f"{name}{i}", op, name, (f"{name}{i - 1}" if i else "x",), (), {}, {})
        for name, ops in ends.items()
        for i, op in enumerate(ops)
    ]
    outputs = {name: f"{name}{len(ops) - 1}" for name, ops in ends.items()}
    return Network({"x": (None, 3)}, outputs, tuple(nodes))


def golden_with(labels=None, **sizes: int) -> GoldenSet:
    truth = {name: np.zeros((2, size)) for name, size in sizes.items()}
    return GoldenSet(np.array(["real"] * 2), {}, truth, {}, {}, {}, labels=labels)


@pytest.mark.parametrize(
    ("ends", "sizes", "labels", "classes", "expected"),
    [
        ({"y": ("dense", "softmax")}, {"y": 10}, None, (), {"y"}),
        ({"y": ("dense", "softmax", "reshape")}, {"y": 10}, None, (), {"y"}),
        ({"y": ("dense", "sigmoid")}, {"y": 1}, None, (), {"y"}),
        # two scores are two classes, one logit is none
        ({"y": ("dense",)}, {"y": 2}, np.array([1, 2]), (), {"y"}),
        ({"y": ("dense",)}, {"y": 1}, np.array([1, 2]), (), set()),
        ({"y": ("softmax",)}, {"y": 2}, None, (), {"y"}),
        # an autoencoder, of sounds and of pixels
        ({"y": ("dense",)}, {"y": 640}, None, (), set()),
        ({"y": ("dense", "sigmoid")}, {"y": 784}, None, (), set()),
        # logits: only the user knows
        ({"y": ("dense",)}, {"y": 10}, None, tuple("abcdefghij"), {"y"}),
        ({"y": ("dense",)}, {"y": 10}, None, tuple("abc"), set()),
        ({"y": ("dense",)}, {"y": 10}, np.array([1, 2]), (), {"y"}),
        # beside a classifier, what has the shape of scores is none
        ({"y": ("softmax",), "z": ("dense",)}, {"y": 4, "z": 64}, np.array([1, 2]), (), {"y"}),
        ({"y": ("dense",), "z": ("dense",)}, {"y": 4, "z": 64}, np.array([1, 2]), (), set()),
    ],
)
def test_network_determines_the_deciding_outputs(ends, sizes, labels, classes, expected):
    golden = golden_with(labels, **sizes)
    assert deciding_outputs(network_ending_in(**ends), golden, classes) == expected


def test_autoencoder_has_no_decisions_in_the_report(tmp_path):
    """Its 16 numbers have the shape of scores, and a greatest one."""
    import keras
    from renormlite import check_parity, export_model

    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((16,), name="spectrum"),
            keras.layers.Dense(4, activation="relu"),
            keras.layers.Dense(16, name="back"),
        ]
    )
    export_model(model, tmp_path / "auto", formats=("tflite",))
    (result,) = check_parity(tmp_path / "auto", ("litert",)).results
    assert result.passed
    assert result.tasks == ()
    assert result.outputs[0].metrics.agreement is None


@pytest.mark.parametrize(
    ("truth", "labels", "judged"),
    [
        ([[0.52, 0.48]] * 8, None, False),  # nearly equal scores
        ([[0.9, 0.1]] * 8, None, True),
        ([[1.0, 0.0]] * 8, None, True),
        ([[0.12, 0.11, 0.1]] * 8, None, False),
        ([[3.0, 2.9, -1.0]] * 8, None, False),  # logits
        ([[3.0, 1.9, -1.0]] * 8, None, True),
        # right in all of 8 samples of 2 classes: trained, however near its scores are
        ([[0.52, 0.48], [0.48, 0.52]] * 4, [0, 1] * 4, True),
        ([[0.52, 0.48], [0.48, 0.52]] * 4, [0, 0, 1, 1] * 2, False),
        ([[0.52, 0.48]] * 8, [0] * 8, False),  # one class says nothing
        ([[0.9, 0.1]] * 8, [0, 1] * 4, True),
    ],
)
def test_whether_the_model_makes_decisions(truth, labels, judged):
    wrong = np.asarray(truth)[:, ::-1]
    task = agree(truth, wrong, labels=labels)
    assert task.flips == 8
    (finding,) = (
        f for f in quality_findings([], [task], QualityLimits()) if f.check == "decisions"
    )
    assert finding.passed is not judged
    assert ("not judged: nothing shows that the model decides" in finding.message) is not judged
    assert ("not judged, since" in task.sentence) is not judged


@pytest.mark.parametrize("shape", [(4,), (4, 2)])
def test_class_numbers_in_an_order_decide_for_the_first(shape):
    """Neither their distance nor what follows the first place is an error."""
    truth, actual = np.zeros(shape), np.ones(shape)
    first = (slice(None),) if len(shape) == 1 else (slice(None), 0)
    truth[first], actual[first] = [0, 3, 7, 7], [0, 3, 7, 50]
    golden = golden_of(truth, labels=[0, 3, 7, 7])
    task = task_agreement("y", actual, golden, np.zeros(4), orders=True)
    assert (task.same, task.flips, task.lost) == (3, 1, 1)
    assert (task.changes[0].before, task.changes[0].sample) == (7, 3)
    assert not task.unjudged


@pytest.mark.parametrize(
    ("ends", "expected"),
    [
        ({"y": ("dense", "argmax")}, {"y"}),
        ({"y": ("dense", "argsort", "slice"), "z": ("dense", "sort", "slice")}, {"y"}),
        ({"y": ("argmax", "dense")}, set()),
    ],
)
def test_network_determines_the_outputs_in_an_order(ends, expected):
    assert ordering_outputs(network_ending_in(**ends)) == expected
