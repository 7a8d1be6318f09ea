"""Files that no longer solve their task fail, even if every runtime computes them exactly."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import renormlite as rl
from click.testing import CliRunner
from renormlite.artifacts.golden_set import GoldenSet
from renormlite.artifacts.joined_outputs import Part, joined_outputs
from renormlite.artifacts.manifest import Artifact, Manifest
from renormlite.artifacts.network import Network, Node
from renormlite.artifacts.ranges import Clipped, Misfits
from renormlite.cli.check import command
from renormlite.errors import UserError
from renormlite.runtime_checks.end_to_end.chance import all_within, at_least, mcnemar
from renormlite.runtime_checks.end_to_end.quality import Slices, output_quality
from renormlite.runtime_checks.end_to_end.quality_gates import (
    QualityLimits,
    misfit_findings,
    quality_findings,
)
from renormlite.runtime_checks.end_to_end.task_agreement import TaskAgreement, task_agreement
from renormlite.runtime_checks.parity import check_parity


def golden_of(truth, kind=None, labels=None):
    kind = np.array(["real"] * len(truth)) if kind is None else np.asarray(kind)
    return GoldenSet(
        kind=kind,
        inputs={"x": np.zeros((len(truth), 1), np.float32)},
        truth={"y": truth},
        folded64={"y": truth},
        reference={"y": truth.astype(np.float32)},
        artifacts={},
        labels=labels,
    )


def failed(findings):
    return {finding.check: finding.message for finding in findings if not finding.passed}


@pytest.fixture(scope="module")
def detector(tmp_path_factory):
    """Boxes in pixels and scores from 0 to 1 in one output, 8-bit integers."""
    import keras
    from keras import layers

    image = keras.Input((8, 8, 2), name="image")
    flat = layers.Flatten()(image)
    boxes = layers.Rescaling(640.0)(layers.Dense(4, activation="sigmoid", name="boxes")(flat))
    scores = layers.Dense(6, activation="sigmoid", name="classes")(flat)
    model = keras.Model(image, layers.Concatenate(name="detections")([boxes, scores]))
    rng = np.random.default_rng(1)
    for variable in model.weights:
        variable.assign(rng.normal(0, 0.3, variable.shape))
    x = rng.normal(size=(40, 8, 8, 2)).cumsum(axis=1).cumsum(axis=2).astype(np.float32) / 4
    directory = tmp_path_factory.mktemp("detector") / "detector"
    rl.export_model(model, directory, precisions=("float32", "int8"), calibration=x, inputs=x[:16])
    return directory


@pytest.fixture(scope="module")
def badly_calibrated(tmp_path_factory):
    """A classifier of digits with pixels from 0 to 16, calibrated on pixels from 0 to 1."""
    import keras
    from sklearn.datasets import load_digits

    digits = load_digits()
    x = digits.images[..., None].astype(np.float32)
    image = keras.Input((8, 8, 1), name="image")
    hidden = keras.layers.Dense(48, activation="relu")(keras.layers.Flatten()(image))
    model = keras.Model(image, keras.layers.Dense(10, activation="softmax", name="digit")(hidden))
    rng = np.random.default_rng(0)
    kernel, bias = rng.normal(0, 0.05, (64, 48)), rng.normal(0, 0.5, 48)
    features = np.maximum(x.reshape(len(x), 64) @ kernel + bias, 0)
    known = np.c_[features, np.ones(len(x))]
    solved = np.linalg.lstsq(known, 8 * np.eye(10)[digits.target], rcond=None)[0]
    model.set_weights([kernel, bias, solved[:-1], solved[-1]])
    folder = tmp_path_factory.mktemp("digits")
    samples = folder / "samples.npz"
    np.savez(samples, image=x[-80:], label=digits.target[-80:])
    rl.export_model(
        model,
        folder / "digits",
        formats=("tflite",),
        precisions=("float32", "int8"),
        calibration=x[:64] / 16,
        inputs=x[64:80],
    )
    return folder / "digits", samples


@pytest.mark.parametrize("target", ["litert", "onnxruntime"])
def test_scores_lost_next_to_pixel_coordinates_fail(detector, target):
    report = check_parity(detector, (target,))
    plain, coarse = sorted(report.results, key=lambda result: result.precision)
    assert plain.passed
    message = failed(coarse.findings)["slices"]
    assert "slices 4 to 9 of the last axis of output 'detections' are constant" in message
    (quality,) = coarse.qualities
    assert quality.dead == (4, 5, 6, 7, 8, 9)
    assert quality.snr_db > 35  # the whole output looks fine
    assert max(quality.to_json()["slice_db"][4:]) < 10
    assert quality.step > 1
    assert "(export --split-outputs detections)" in message


@pytest.mark.parametrize(
    ("parts", "helps"),
    [
        ((4, 6), True),  # boxes, scores
        ((), False),  # one layer computes all
        ((1, 9), False),  # the scores stay with a box
        ((3, 7), False),
        ((10,), False),
    ],
)
def test_splitting_is_advised_only_where_it_separates_the_slices(parts, helps):
    share = np.linspace(0.05, 0.95, 16)[:, None]
    truth = np.c_[share * [640.0, 500.0, 320.0, 640.0], share + np.zeros(6)]
    quality = output_quality("y", np.rint(truth / 2.5) * 2.5, golden_of(truth), step=2.5)
    joined = {"y": [Part(f"part{n}", size) for n, size in enumerate(parts)]}
    message = failed(quality_findings([quality], [], QualityLimits(), joined))["slices"]
    assert ("--split-outputs y" in message) is helps
    assert ("from a layer of their own" in message) is not helps


def test_an_output_that_is_constant_as_a_whole():
    truth = np.random.default_rng(0).normal(size=(16, 3))
    quality = output_quality("y", np.full((16, 3), 0.25), golden_of(truth))
    joined = {"y": [Part("a", 1), Part("b", 2)]}
    message = failed(quality_findings([quality], [], QualityLimits(), joined))["slices"]
    assert message.startswith("output 'y' is constant in the file; in the trained model")
    assert "split-outputs" not in message


def test_the_parts_of_joined_outputs():
    """`--split-outputs` takes these apart, but not a join inside a traced layer."""

    def node(name, op, inputs, size, layer="", **attributes):
        return Node(name, op, layer or name, inputs, (None, 5, size), attributes, {})

    network = Network(
        {"x": (None, 5, 2)},
        {name: name for name in ("cat", "own", "rows", "uneven", "plain")},
        (
            node("plain", "dense", ("x",), 3),
            node("cat", "concatenate", ("x", "plain"), 5, axis=-1),
            node("twice", "multiply", ("x",), 2, "own"),
            node("own", "concatenate", ("twice", "x"), 4, axis=2),
            node("other", "concatenate", ("x", "plain"), 5, axis=2),
            node("rows", "concatenate", ("cat", "other"), 5, axis=1),
            node("turned", "concatenate", ("plain", "x"), 5, axis=-1),
            node("uneven", "concatenate", ("cat", "turned"), 5, axis=1),
        ),
    )
    two = (Part("x", 2), Part("plain", 3))
    assert joined_outputs(network) == {"cat": two, "rows": two}
    assert joined_outputs(None) == {}


@pytest.mark.parametrize("weights", [1e-20, 1.0])
def test_denormal_numbers_explain_a_poor_ratio(tmp_path, weights):
    """XNNPACK replaces them by zero, so that nothing is left of these outputs."""
    import keras

    x = keras.Input((8,), name="x")
    hidden = keras.layers.Dense(6, use_bias=False)(x)
    model = keras.Model(x, keras.layers.Dense(3, use_bias=False, name="y")(hidden))
    rng = np.random.default_rng(0)
    model.set_weights([rng.normal(0, weights, v.shape) for v in model.weights])
    inputs = rng.uniform(0.5, 1, (16, 8)).astype("f4") * np.float32(1e-40 / weights**2)
    options = {"formats": ("tflite",), "precisions": ("float32",), "inputs": inputs}
    rl.export_model(model, tmp_path / "net", **options)
    (result,) = check_parity(tmp_path / "net", ("litert",)).results
    (message,) = failed(result.findings).values()
    assert "output 'y' is 0.0 dB from truth" in message
    assert "denormal numbers (below 1.2e-38), which runtimes may replace by zero" in message


def test_a_file_calibrated_on_another_range_fails(badly_calibrated):
    directory, samples = badly_calibrated
    report = check_parity(directory, ("litert",), samples)
    plain, coarse = sorted(report.results, key=lambda result: result.precision)
    assert plain.passed
    wrong = failed(coarse.findings)
    assert "accuracy of output 'digit' falls by" in wrong["accuracy"]
    assert "--max-accuracy-drop" in wrong["accuracy"]
    assert "otherwise than the trained model" in wrong["decisions"]
    (task,) = coarse.tasks
    assert task.flips > 10
    assert task.chance < 0.05
    assert "% of the values of input 'image' are clipped" in wrong["clipped"]
    assert "the samples reach 0 to 16" in wrong["clipped"]
    assert "represents 0 to 1 in the file" in wrong["calibration"]
    # The runtime computes what the file says: nothing else is wrong.
    assert set(wrong) <= {"accuracy", "calibration", "decisions", "clipped", "snr"}


@pytest.mark.parametrize(
    ("right_before", "right_after", "lost", "gained", "chance", "said"),
    [
        (97, 97, 1, 1, 1.0, "is unchanged: 97.00 % of 100 samples (1 lost, 1 gained)"),
        (97, 97, 0, 0, None, "is unchanged: 97.00 % of 100 samples (0 lost, 0 gained)"),
        (
            97,
            90,
            7,
            0,
            0.016,
            "falls by 7 percentage points, from 97.00 % to 90.00 % of 100 samples (7 lost, "
            "0 gained; p = 0.016 by McNemar's test)",
        ),
        (
            90,
            92,
            1,
            3,
            0.625,
            "rises by 2 percentage points, from 90.00 % to 92.00 % of 100 samples (1 lost, "
            "3 gained; p = 0.62 by McNemar's test)",
        ),
    ],
)
def test_the_change_of_accuracy_in_words(right_before, right_after, lost, gained, chance, said):
    task = TaskAgreement(
        "digit", "real", 100, (), 0, 0, (), 100, right_before, right_after, lost, gained, chance
    )
    (finding,) = (f for f in quality_findings([], [task], QualityLimits()) if f.check == "accuracy")
    assert finding.message == (
        f"accuracy of output 'digit' {said}; a fall of 1 is allowed, more only within chance "
        "(--max-accuracy-drop)"
    )
    assert finding.passed is (lost < 7)


@pytest.mark.parametrize(("chance", "passed"), [(0.05, True), (0.0499, False), (None, True)])
def test_what_is_at_least_five_per_cent_likely_does_not_count(chance, passed):
    task = TaskAgreement("digit", "real", 100, (), 0, 0, (), 100, 97, 90, 7, 0, chance)
    (finding,) = (f for f in quality_findings([], [task], QualityLimits()) if f.check == "accuracy")
    assert finding.passed is passed


def test_the_export_reports_clipped_values(badly_calibrated):
    directory, _ = badly_calibrated
    notes = [note for entry in Manifest.load(directory).artifacts for note in entry.notes]
    assert any("% of the values of input 'image' are clipped" in note for note in notes)


def test_the_limits_are_options(badly_calibrated, tmp_path):
    directory, samples = badly_calibrated
    arguments = [str(directory), "--inputs", str(samples), "--on", "litert"]
    arguments += ["--html", str(tmp_path / "page.html")]
    lax = ["--max-accuracy-drop", "100", "--max-flipped", "100", "--min-snr", "-20"]
    lax += ["--max-clipped", "100"]
    runner = CliRunner()
    assert runner.invoke(command, arguments).exit_code == 1
    result = runner.invoke(command, [*arguments, *lax])
    assert result.exit_code == 0, result.output
    assert runner.invoke(command, [*arguments, "--max-flipped", "101"]).exit_code == 2


@pytest.mark.parametrize("name", ["max_accuracy_drop", "max_flipped", "max_clipped"])
def test_percentages_are_between_0_and_100(name):
    for value in (0, 100):
        assert getattr(QualityLimits(**{name: value}), name) == value
    for value in (-1, 100.5, math.nan):
        with pytest.raises(UserError, match=f"Expected {name} to be a number between 0 and 100"):
            QualityLimits(**{name: value})


def test_only_loss_beyond_margin_and_chance_fails():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 4, 400)
    truth = np.eye(4)[labels] * 0.7 + 0.1
    golden = golden_of(truth, labels=labels)

    def verdict(lost, gained=0):
        given = truth.copy()
        wrong = golden.truth["y"].copy()
        given[:lost] = np.roll(given[:lost], 1, axis=1)
        wrong[lost : lost + gained] = np.roll(wrong[lost : lost + gained], 1, axis=1)
        changed = dataclasses.replace(golden, truth={"y": wrong})
        task = task_agreement("y", given, changed, np.zeros(400))
        return failed(quality_findings([], [task], QualityLimits()))

    assert "accuracy" not in verdict(4)  # one point
    assert "accuracy" in verdict(8)  # two points, p = 0.008
    assert "accuracy" not in verdict(18, 12)  # 1.5 points, p = 0.36
    assert "decisions" not in verdict(60)
    assert "decisions" in verdict(80)


def test_ties_are_defined_by_float32_rounding_for_every_file(coarse_export):
    """A decision that an 8-bit file changes is changed, however coarse the file is."""
    report = check_parity(coarse_export, ("litert",))
    for result in report.results:
        (task,) = result.tasks
        (entry,) = result.outputs
        for change in task.changes:
            assert change.tie == (change.margin < 1e-4)
        assert task.flips == entry.metrics.agreement.flips or task.kind == "real"


def test_slices_that_may_be_constant():
    rng = np.random.default_rng(0)
    truth = np.zeros((50, 5))
    truth[:, 0] = rng.normal(size=50) * 100
    truth[:, 1] = rng.uniform(0, 0.01, 50)  # a class that no sample is of
    truth[0, 2] = 3.0  # a feature that one sample has
    truth[:, 3] = 7.0  # constant in the model
    truth[:, 4] = rng.normal(size=50)  # of other units
    given = truth.copy()
    given[:, 1:] = [0.0, 0.0, 7.0, 0.0]
    quality = output_quality("y", given, golden_of(truth))
    assert quality.dead == (4,)
    assert output_quality("y", truth, golden_of(truth)).snr_db == math.inf


def test_activations_that_are_flat_for_all_samples():
    """Of 1000 units that are below zero half of the time, some are so in all of 12 samples."""
    x = np.random.default_rng(0).uniform(-8, 8, (12, 1000))
    x[:, 5], x[:, 7] = -np.abs(x[:, 5]), np.abs(x[:, 7])
    truth = x / (1 + np.exp(-2 * x))
    given = np.rint(truth)
    assert (np.ptp(given, axis=0) == 0).any()
    assert output_quality("y", given, golden_of(truth), step=1.0).dead == ()
    given[:, 7] = 0  # others have this value half of the time, but this one is above zero
    assert output_quality("y", given, golden_of(truth), step=1.0).dead == (7,)


@pytest.mark.parametrize(
    ("beyond", "values", "passed"),
    [(1, 10, True), (2, 10, True), (3, 10, False), (3, 1000, True), (63, 1000, False)],
)
def test_a_few_values_may_be_clipped_by_chance(beyond, values, passed):
    """One of the ten scores of one sample is 10 % of them."""
    from scipy.stats import binom

    assert passed == (beyond <= 0.05 * values or binom.sf(beyond - 1, values, 0.05) >= 0.05)
    share = 100 * beyond / values
    clipped = Clipped("layer 'scores'", share, 0.0, 1.0, 0.0, 2.0, values)
    later = dataclasses.replace(golden_of(np.zeros((1, 2))), misfits={"f": Misfits((clipped,))})
    artifact = Artifact("f", "tflite", "int8", "", 1, {}, (), ())
    (finding,) = misfit_findings(artifact, later, QualityLimits())
    assert finding.passed is passed


@pytest.mark.parametrize("samples", [1, 2, 3, 4, 6, 16])
@pytest.mark.parametrize("slices", [2, 10, 100])
@pytest.mark.parametrize("spread", [0.1, 1.0, 8.0])
def test_a_right_file_of_few_samples_has_no_dead_slices(samples, slices, spread):
    """Values of one slice are alike by chance, more often the fewer samples there are."""
    rng = np.random.default_rng(samples)
    trials, dead, constant = 200, 0, 0
    for _ in range(trials):
        centres = rng.normal(size=slices) * 30
        truth = centres + spread * rng.uniform(-1, 1, size=(samples, slices))
        given = np.rint(truth + rng.normal(0, 0.5, truth.shape))
        quality = output_quality("y", given, golden_of(truth), step=1.0)
        constant += bool((np.ptp(given, axis=0) == 0).any())
        if 2 * spread >= 1:  # a slice that never spans a step is lost in this file
            dead += bool(quality.dead)
    assert dead <= 0.05 * trials
    if samples == 2 and spread > 0.1:
        assert constant > 0.05 * trials  # each of these was a failure


@pytest.mark.parametrize("samples", [2, 16])
def test_scores_below_a_step_are_dead_if_enough_samples_show_it(samples):
    share = np.linspace(0.05, 0.95, samples)[:, None]
    truth = np.c_[share * [640.0, 500.0, 320.0, 90.0], share + np.zeros(6)]
    quality = output_quality("y", np.rint(truth / 2.5) * 2.5, golden_of(truth), step=2.5)
    found = quality_findings([quality], [], QualityLimits())
    (finding,) = (f for f in found if f.check == "slices")
    assert finding.passed is (samples == 2)
    says = finding.message
    assert "slices 4 to 9 of the last axis of output 'y' are constant in the file" in says
    assert ("2 samples do not show to be a fault" in says) is (samples == 2)


def test_a_score_that_is_always_the_same_is_dead_whatever_the_step():
    """A constant where the model gives scores far apart; two samples may be alike by chance."""
    truth = np.linspace(0.1, 0.9, 16)[[0, 15, *range(1, 15)], None] + np.zeros(10)
    given = np.rint(truth * 256) / 256
    given[:, 3] = given[0, 3]
    assert output_quality("y", given, golden_of(truth), step=1 / 256).dead == (3,)
    few = golden_of(truth[:2])
    assert output_quality("y", given[:2], few, step=1 / 256).unresolved == (3,)


@pytest.mark.parametrize("count", [1, 2, 5, 16])
def test_the_range_of_uniform_numbers(count):
    rng = np.random.default_rng(0)
    ranges = np.ptp(rng.uniform(size=(20_000, count)), axis=1)
    for share in (0.2, 0.6, 0.9, 1.0):
        assert all_within(share, count) == pytest.approx(np.mean(ranges <= share), abs=0.01)


def test_quality_is_judged_on_real_samples():
    truth = np.ones((6, 3)) * np.arange(1, 4)
    given = truth.copy()
    given[4:] = 0
    kind = ["real"] * 4 + ["extreme"] * 2
    quality = output_quality("y", given, golden_of(truth, kind))
    assert (quality.kind, quality.samples, quality.snr_db) == ("real", 4, math.inf)
    nothing = output_quality("y", given, golden_of(np.zeros((6, 3)), kind))
    assert nothing.snr_db is None
    assert quality_findings([nothing], [], QualityLimits())[0].check == "slices"


def test_a_poor_ratio_fails_with_the_share_of_the_signal():
    truth = np.random.default_rng(0).normal(size=(20, 8))
    quality = output_quality("y", truth + 0.5, golden_of(truth))
    message = failed(quality_findings([quality], [], QualityLimits()))["snr"]
    assert "10 dB required (--min-snr)" in message
    assert "% of the signal" in message
    assert not failed(quality_findings([quality], [], QualityLimits(min_snr=5)))


def test_chance_is_exact():
    from scipy.stats import binom

    for hits, trials, rate in ((5, 16, 0.15), (23, 80, 0.15), (0, 9, 0.3), (900, 5000, 0.15)):
        expected = binom.sf(hits - 1, trials, rate)
        assert at_least(hits, trials, rate) == pytest.approx(expected, rel=1e-8)
    assert mcnemar(15, 1) == pytest.approx(2 * 17 / 2**16)
    assert at_least(1, 5, 0) == 0


def test_one_number_a_sample_has_no_slices():
    truth = np.linspace(0, 1, 12)[:, None]
    quality = output_quality("y", np.zeros_like(truth), golden_of(truth))
    assert quality.slices is None
    assert quality.dead == ()
    assert quality.snr_db == 0  # the error is the signal


@pytest.mark.parametrize(("width", "sliced"), [(1, False), (2, True), (4096, True), (4097, False)])
def test_up_to_4096_slices_are_judged(width, sliced):
    truth = np.linspace(0, 1, 2 * width).reshape(2, width)
    quality = output_quality("y", truth, golden_of(truth))
    assert (quality.slices is not None) is sliced


def test_a_constant_output_has_no_step():
    truth = np.stack([np.linspace(0, 1, 12), np.linspace(1, 0, 12)], axis=1)
    quality = output_quality("y", np.full_like(truth, 0.5), golden_of(truth))
    assert quality.step == 0
    assert quality.dead == (0, 1)


def test_the_step_is_the_least_distance_of_two_values():
    truth = np.stack([np.linspace(0, 1, 12), np.linspace(1, 0, 12)], axis=1)
    given = np.where(np.arange(24).reshape(12, 2) % 3 == 0, 0.25, 1.0)
    given[3, 1] = 1.125
    assert output_quality("y", given, golden_of(truth)).step == 0.125


def test_values_that_a_trained_range_clips_pass():
    """The layer's range was chosen in training, and its input's range was not."""
    layer = Clipped("layer 'relu'", 40.0, 0, 1, -3, 9, 10_000)
    image = Clipped("input 'image'", 30.0, 0, 1, -3, 9, 10_000)
    artifact = Artifact(
        "n.int8.tflite", "tflite", "int8", "", 0, {}, (), (), misfits=Misfits(clipped=(layer,))
    )
    plain = golden_of(np.zeros((4, 2)))
    trained = dataclasses.replace(plain, trained_integers={"y": np.zeros((4, 2))})
    (found,) = misfit_findings(artifact, trained, QualityLimits())
    assert found.passed
    assert found.message.endswith("the model was trained with this range and clips them as well")
    (found,) = misfit_findings(artifact, plain, QualityLimits())
    assert not found.passed
    artifact = dataclasses.replace(artifact, misfits=Misfits(clipped=(layer, image)))
    found = list(misfit_findings(artifact, trained, QualityLimits()))
    assert [(f.passed, f.subject) for f in found] == [(True, layer.place), (False, image.place)]


def test_totals_of_two_parts_are_those_of_the_whole():
    rng = np.random.default_rng(0)
    truth, found = rng.integers(-8, 9, (2, 12, 3)) / 4  # sums without rounding
    whole = Slices.of(truth, found, step=0.25)
    parts = Slices.of(truth[:5], found[:5], step=0.25).plus(Slices.of(truth[5:], found[5:]))
    assert dataclasses.replace(parts, alike=whole.alike) == whole
    broken = np.where(np.arange(12)[:, None] == 2, np.nan, found)
    for first, second in ((broken[:5], found[5:]), (found[5:], broken[:5])):
        pair = [Slices.of(truth[: len(part)], part) for part in (first, second)]
        assert not pair[0].plus(pair[1]).finite
