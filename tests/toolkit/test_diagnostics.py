"""Protects the diagnostics: readings describe the training step, wherever they are shown."""

import csv
import dataclasses
import json
import os
import subprocess
import sys

import keras
import matplotlib as mpl
import numpy as np
import pytest
import renormlite as rl
from keras import layers

CHANNELS = 6


def batches(count, size=4, seed=0):
    """Return small batches whose means and spreads drift: r and d are far from 1 and 0."""
    rng = np.random.default_rng(seed)
    spread = np.exp(rng.normal(size=(count, 1, CHANNELS)) * 0.7)
    shift = rng.normal(size=(count, 1, CHANNELS))
    x = rng.normal(size=(count, size, CHANNELS)) * spread + shift
    return x.reshape(-1, CHANNELS).astype("float32")


def model_of(*norms):
    model = keras.Sequential([layers.Input((CHANNELS,)), *norms, layers.Dense(1)])
    model.compile(keras.optimizers.SGD(1e-3), "mse")
    return model


def fit(model, x, *callbacks, batch_size=4, epochs=1):
    y = np.zeros((len(x), 1), "float32")
    return model.fit(
        x, y, batch_size=batch_size, epochs=epochs, shuffle=False, verbose=0, callbacks=callbacks
    )


NORMS = {
    "batch norm": lambda: layers.BatchNormalization(momentum=0.9),
    "learned": lambda: rl.LearnedRenormalization(momentum=0.9),
    "renorm": lambda: rl.BatchRenormalization(momentum=0.9, r_max=1.5, d_max=0.4),
    "renorm, unclipped": lambda: rl.BatchRenormalization(momentum=0.9, r_max=None, d_max=None),
    "renorm, two sets": lambda: rl.BatchRenormalization(
        momentum=0.99, renorm_momentum=0.9, r_max=1.5, d_max=0.4
    ),
    "keras renorm": lambda: layers.BatchNormalization(
        renorm=True,
        momentum=0.9,
        renorm_momentum=0.8,
        renorm_clipping={"rmax": 1.5, "rmin": 0.5, "dmax": 0.4},
    ),
    "keras renorm, unclipped": lambda: layers.BatchNormalization(renorm=True, momentum=0.9),
}


@pytest.mark.parametrize("make", NORMS.values(), ids=NORMS.keys())
def test_the_gap_is_the_difference_of_training_and_inference(make):
    """Expected: the difference of both modes of the layer on the batch, from the same state."""
    x, norm = batches(12), make()
    model, watch = model_of(norm), rl.RenormDiagnostics(every=1)
    fit(model, x[:40], watch)
    before = norm.get_weights()
    fit(model, x[40:44], watch)
    norm.set_weights(before)
    last = x[40:44]
    difference = np.asarray(norm(last, training=False)) - np.asarray(norm(last, training=True))
    scale = norm.r if isinstance(norm, rl.LearnedRenormalization) else norm.gamma
    gap = np.sqrt(np.mean((difference / np.asarray(scale)) ** 2))
    assert watch.readings[-1].gap == pytest.approx(gap, rel=1e-3, abs=2e-5)
    if make is NORMS["renorm, unclipped"]:
        assert watch.readings[-1].gap < 1e-5
    elif not norm.name.startswith("keras renorm, unclipped"):
        assert len(watch.readings) == 11


@pytest.mark.parametrize("warm_up", [False, True], ids=["paper", "warm-up"])
def test_clipped_shares_equal_those_of_algorithm_1(paper_renorm, warm_up):
    bounds = {"r_max": 1.5, "d_max": 0.4, "warm_up": warm_up}
    x, watch = batches(20), rl.RenormDiagnostics(every=1)
    fit(model_of(rl.BatchRenormalization(momentum=0.9, **bounds)), x, watch)
    oracle = paper_renorm(CHANNELS, momentum=0.9, **bounds)
    partly = 0
    for step, reading in enumerate(watch.readings):
        oracle.train(x[step * 4 : step * 4 + 4])
        r_clipped = np.mean(np.isclose(oracle.r, 1.5) | np.isclose(oracle.r, 1 / 1.5))
        d_clipped = np.mean(np.isclose(np.abs(oracle.d), 0.4))
        assert (reading.step, reading.channels) == (step, CHANNELS)
        assert (reading.r_clipped, reading.d_clipped) == pytest.approx((r_clipped, d_clipped))
        assert (reading.r_max, reading.d_max) == pytest.approx((1.5, 0.4))
        partly += 0 < r_clipped < 1 and 0 < d_clipped < 1
    assert partly > 5


@pytest.mark.parametrize("warm_up", [False, True], ids=["paper", "warm-up"])
def test_bounds_for_99_percent_are_quantiles_of_unclipped_r_and_d(paper_renorm, warm_up):
    x, watch = batches(8), rl.RenormDiagnostics(every=1)
    common = {"momentum": 0.9, "warm_up": warm_up}
    fit(model_of(rl.BatchRenormalization(r_max=None, d_max=None, **common)), x, watch)
    oracle = paper_renorm(CHANNELS, **common)
    for step, reading in enumerate(watch.readings):
        oracle.train(x[step * 4 : step * 4 + 4])
        r, d = np.maximum(oracle.r, 1 / oracle.r), np.abs(oracle.d)
        assert reading.r_99 == pytest.approx(np.quantile(r, 0.99), rel=1e-3)
        assert reading.d_99 == pytest.approx(np.quantile(d, 0.99), rel=1e-3)


def test_readings_have_the_bounds_of_the_schedule_at_their_step():
    r_max, watch = rl.LinearRamp(1.0, 3.0, start_step=2, end_step=6), rl.RenormDiagnostics(every=1)
    fit(model_of(rl.BatchRenormalization(r_max=r_max, d_max=0.0)), batches(8), watch)
    found = [reading.r_max for reading in watch.readings]
    assert found == pytest.approx([1, 1, 1, 1.5, 2, 2.5, 3, 3])
    assert watch.readings[0].r_clipped == watch.readings[0].d_clipped == 1.0


def test_diagnostics_do_not_change_training():
    weights = []
    for callbacks in ([], [rl.RenormDiagnostics(every=1)]):
        keras.utils.set_random_seed(1)
        model = model_of(rl.BatchRenormalization(r_max=2.0, d_max=1.0))
        fit(model, batches(10), *callbacks)
        weights.append(model.get_weights())
    for plain, watched in zip(*weights, strict=True):
        np.testing.assert_array_equal(plain, watched)


@pytest.mark.parametrize(("at_once", "steps"), [(1, [0, 4, 8, 10, 14, 18]), (3, [0, 3, 6, 10])])
def test_readings_are_taken_every_n_steps_of_each_epoch(at_once, steps):
    model, watch = model_of(rl.BatchRenormalization(name="norm")), rl.RenormDiagnostics(every=4)
    model.compile("sgd", "mse", steps_per_execution=at_once)
    fit(model, batches(10), watch, epochs=2)
    found = [reading.step for reading in watch.readings]
    assert found[: len(steps)] == steps
    assert int(model.get_layer("norm").step) == 20


def test_several_steps_at_once_give_their_average_batch():
    x, watch = batches(3), rl.RenormDiagnostics(every=1)
    model = model_of(rl.BatchRenormalization(momentum=0.999, r_max=None, d_max=None))
    model.compile("sgd", "mse", steps_per_execution=3)
    fit(model, x, watch)
    assert len(watch.readings) == 1
    # The statistics hardly move, so the three batches have equal weights.
    expected = np.quantile(np.abs(x.mean(0)) / np.sqrt(1.001), 0.99)
    assert watch.readings[0].d_99 == pytest.approx(expected, rel=5e-3)


@pytest.mark.parametrize(("warm_up", "first"), [(False, 0.9), (True, 1.0)])
def test_a_norm_called_twice_a_step_counts_both_updates(paper_renorm, warm_up, first):
    common = {"momentum": 0.9, "r_max": 1.0, "d_max": 0.0, "warm_up": warm_up}
    norm, inputs = rl.BatchRenormalization(**common), keras.Input((6,))
    model = keras.Model(inputs, layers.Dense(1)(norm(norm(inputs))))
    model.compile(keras.optimizers.SGD(0.0), "mse")
    x, watch = batches(1, size=64) * 5 + 3, rl.RenormDiagnostics(every=1)
    fit(model, x, watch, batch_size=64)
    oracle = paper_renorm(CHANNELS, **common)
    means = [0.0]
    for _ in range(2):
        y = oracle.train(x)
        means.append(x.mean(0))
        x = y
    # Two updates with a weight of 0.1: the first batch counts 0.9 and the second 1, of 1.9. In the
    # mean over all batches both count the same.
    average = (first * means[1] + 1.0 * means[2]) / (first + 1.0)
    expected = np.quantile(np.abs(average) / np.sqrt(1.001), 0.99)
    assert watch.readings[0].d_99 == pytest.approx(expected, rel=1e-3)


def test_logs_reach_history_csv_and_tensorboard(tmp_path):
    inner = keras.Sequential([layers.Dense(4), rl.BatchRenormalization(name="norm")], name="inner")
    model = model_of(rl.BatchRenormalization(name="norm"), inner)
    watch = rl.RenormDiagnostics(every=2, per_layer=True, log_dir=tmp_path / "own")
    history = fit(
        model,
        batches(10),
        watch,
        keras.callbacks.CSVLogger(tmp_path / "log.csv"),
        keras.callbacks.TensorBoard(tmp_path / "keras", write_graph=False),
        epochs=2,
    ).history
    network = [f"renorm_{what}" for what in ("r_clipped", "d_clipped", "gap")]
    single = [
        f"{name}/{k}" for name in ("norm", "norm_2") for k in ("r_clipped", "d_clipped", "gap")
    ]
    assert set(network + single) <= history.keys()
    of_first = [r for r in watch.readings if r.step < 10]
    shares = np.average([r.d_clipped for r in of_first], weights=[r.channels for r in of_first])
    assert history["renorm_d_clipped"][0] == pytest.approx(shares)
    squares = np.average([r.gap**2 for r in of_first], weights=[r.channels for r in of_first])
    assert history["renorm_gap"][0] == pytest.approx(np.sqrt(squares))
    second = [r.gap for r in watch.readings if r.step >= 10 and r.layer == "norm_2"]
    assert history["norm_2/gap"][1] == pytest.approx(np.sqrt(np.mean(np.square(second))))

    with open(tmp_path / "log.csv") as file:
        rows = list(csv.DictReader(file))
    assert float(rows[1]["norm_2/gap"]) == pytest.approx(history["norm_2/gap"][1])
    epochs = scalars(tmp_path / "keras" / "train")
    assert epochs["epoch_renorm_gap"] == pytest.approx(dict(enumerate(history["renorm_gap"])))
    steps = scalars(tmp_path / "own")
    expected = {r.step: r.gap for r in watch.readings if r.layer == "norm_2"}
    assert steps["renorm gap/norm_2"] == pytest.approx(expected)
    assert len(steps) == 10


def scalars(folder):
    """Return every scalar of the event files in a folder, by name and step."""
    import tensorflow as tf
    from tensorboard.compat.proto import event_pb2
    from tensorboard.util import tensor_util

    found = {}
    for file in folder.glob("events.*"):
        for record in tf.data.TFRecordDataset(str(file)):
            event = event_pb2.Event.FromString(record.numpy())
            for value in event.summary.value:
                curve = found.setdefault(value.tag, {})
                curve[event.step] = float(tensor_util.make_ndarray(value.tensor))
    return found


def test_a_custom_training_loop():
    norm, x = rl.BatchRenormalization(momentum=0.9, r_max=1.5, d_max=0.4), batches(6)
    model, by_fit, by_hand = model_of(norm), rl.RenormDiagnostics(1), rl.RenormDiagnostics(1)
    start = model.get_weights()
    fit(model, x, by_fit)
    model.set_weights(start)
    around = keras.callbacks.CallbackList([by_hand], model=model)
    around.on_train_begin()
    around.on_epoch_begin(0)
    for step in range(6):
        around.on_train_batch_begin(step)
        norm(x[step * 4 : step * 4 + 4], training=True)
        around.on_train_batch_end(step)
    around.on_epoch_end(0, {})
    assert [r.gap for r in by_hand.readings] == pytest.approx([r.gap for r in by_fit.readings])


def test_logs_have_three_values_by_default():
    history = fit(model_of(rl.BatchRenormalization()), batches(4), rl.RenormDiagnostics()).history
    assert history.keys() == {"loss", "renorm_r_clipped", "renorm_d_clipped", "renorm_gap"}


def test_norms_that_cannot_be_observed_are_named_with_the_reason():
    model = model_of(
        rl.BatchRenormalization(name="seen"),
        rl.BatchRenormalization(virtual_batch_size=2, name="ghosts"),
        rl.BatchRenormalization(momentum=1.0, name="still"),
        layers.BatchNormalization(trainable=False, name="frozen"),
        layers.BatchNormalization(momentum=1.0, name="plain"),
    )
    watch = rl.RenormDiagnostics()
    fit(model, batches(2), watch)
    assert {reading.layer for reading in watch.readings} == {"seen"}
    assert watch.left_out.keys() == {"ghosts", "still", "frozen", "plain"}
    assert watch.left_out["plain"] == "its momentum is 1, so its statistics do not move"
    assert "ghost batches" in watch.left_out["ghosts"]
    with pytest.raises(rl.UserError, match="has no norm that can be observed"):
        fit(model_of(), batches(2), rl.RenormDiagnostics())
    still = model_of(rl.BatchRenormalization(momentum=1.0, name="still"))
    with pytest.raises(rl.UserError, match="still: its momentum is 1"):
        fit(still, batches(2), rl.RenormDiagnostics())
    with pytest.raises(rl.UserError, match="Expected every to be at least 1"):
        rl.RenormDiagnostics(every=0)


JAX_PROGRAM = """
import sys, json, numpy as np, keras, renormlite as rl
assert keras.backend.backend() == "jax"
x = np.load(sys.argv[1])
model = keras.Sequential([keras.Input((6,)), rl.BatchRenormalization(momentum=0.9, r_max=1.5,
    d_max=0.4, name="norm"), keras.layers.Dense(1)])
model.compile(keras.optimizers.SGD(0.0), "mse")
watch = rl.RenormDiagnostics(every=2)
model.fit(x, np.zeros((len(x), 1)), batch_size=4, shuffle=False, verbose=0, callbacks=[watch])
print(json.dumps([[r.step, r.r_clipped, r.d_clipped, r.gap] for r in watch.readings]))
"""


def test_jax_which_keeps_the_state_outside_the_layers_during_an_epoch(tmp_path):
    x = batches(10)
    np.save(tmp_path / "x.npy", x)
    run = subprocess.run(
        [sys.executable, "-c", JAX_PROGRAM, tmp_path / "x.npy"],
        env={**os.environ, "KERAS_BACKEND": "jax", "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr[-3000:]
    watch = rl.RenormDiagnostics(every=2)
    model = model_of(rl.BatchRenormalization(momentum=0.9, r_max=1.5, d_max=0.4, name="norm"))
    model.compile(keras.optimizers.SGD(0.0), "mse")
    fit(model, x, watch)
    ours = [[r.step, r.r_clipped, r.d_clipped, r.gap] for r in watch.readings]
    np.testing.assert_allclose(json.loads(run.stdout.splitlines()[-1]), ours, rtol=1e-3)


@pytest.fixture(scope="module")
def readings():
    norms = [rl.BatchRenormalization(momentum=0.9, r_max=1.5, d_max=0.4) for _ in range(3)]
    watch = rl.RenormDiagnostics(every=2)
    fit(model_of(*norms), batches(12), watch)
    return watch.readings


@pytest.mark.parametrize("ending", [".png", ".svg", ".pdf"])
def test_the_plot_is_written(readings, tmp_path, ending):
    path = tmp_path / "new folder" / f"plot{ending}"
    rl.plot_diagnostics(readings, path)
    assert path.stat().st_size > 10_000
    if ending == ".png":
        image = mpl.image.imread(path)
        assert image.shape[1] > 1000
        assert image.std() > 0.05


def test_the_plot_shows_the_readings(readings):
    figure = rl.plot_diagnostics(readings)
    _, _, gap_curves, r_map, d_map, gap_map = figure.axes[:6]
    for axes, value in ((r_map, "r_clipped"), (d_map, "d_clipped"), (gap_map, "gap")):
        shown = axes.collections[0].get_array().reshape(3, 6)
        rows = [dataclasses.asdict(r)[value] for r in readings]  # norm by norm within each step
        np.testing.assert_allclose(shown, np.reshape(rows, (6, 3)).T)
    assert [t.get_text() for t in r_map.get_yticklabels()] == [r.layer for r in readings[:3]]
    np.testing.assert_allclose(gap_curves.lines[1].get_ydata(), [r.gap for r in readings[1::3]])


def test_a_bound_that_has_opened_does_not_flatten_the_curves(readings):
    """The default bounds grow by one with each batch, and r stays near 1."""
    opened = [dataclasses.replace(r, r_max=1.0 + r.step, d_max=1e3 * r.step) for r in readings]
    curves = rl.plot_diagnostics(opened).axes[:2]
    for axes, largest, least in zip(
        curves,
        (max(r.r_99 for r in readings), max(r.d_99 for r in readings)),
        (1.0, 0.0),
        strict=True,
    ):
        low, high = axes.get_ylim()
        assert low == least
        assert largest < high < least + 2 * (largest - least)
    near = [dataclasses.replace(r, d_max=1.2 * max(r.d_99 for r in readings)) for r in readings]
    axes = rl.plot_diagnostics(near).axes[1]
    assert axes.get_ylim()[1] > near[0].d_max


def test_the_plot_shows_the_loss_and_labels_its_axes(readings):
    figure = rl.plot_diagnostics(readings)
    loss = next(axes for axes in figure.axes if axes.get_title("left") == "Training loss")
    steps = sorted({r.step for r in readings})
    assert list(loss.lines[0].get_xdata()) == steps
    np.testing.assert_array_equal(loss.lines[0].get_ydata(), [r.loss for r in readings[::3]])
    assert all(np.isfinite(r.loss) for r in readings)
    assert all(axes.get_ylabel() for axes in (loss, *figure.axes[:3]))
    without = [dataclasses.replace(r, loss=np.nan) for r in readings]
    assert len(rl.plot_diagnostics(without).axes) == len(figure.axes) - 1


def test_a_reading_has_the_loss_of_its_step():
    watch = rl.RenormDiagnostics(every=1)
    history = fit(model_of(rl.BatchRenormalization()), batches(6), watch, epochs=2)
    last = [r.loss for r in watch.readings if (r.step + 1) % 6 == 0]
    np.testing.assert_allclose(last, history.history["loss"], rtol=1e-6)


def test_the_plot_of_one_step_and_of_many_norms(readings):
    rl.plot_diagnostics(readings[:1])
    many = [dataclasses.replace(readings[0], layer=f"norm_{i}") for i in range(200)]
    axes = rl.plot_diagnostics(many).axes[3]
    assert len(axes.get_yticklabels()) <= 64


def test_a_plot_that_cannot_be_drawn_is_refused_in_one_line(readings, tmp_path):
    with pytest.raises(rl.UserError, match="no readings yet"):
        rl.plot_diagnostics([])
    with pytest.raises(rl.UserError, match=r"Expected a file name that ends in .*\.png"):
        rl.plot_diagnostics(readings, tmp_path / "plot.doc")
    assert not list(tmp_path.iterdir())


def test_warns_of_a_schedule_that_stays_closed_in_this_run():
    x = batches(40)
    paper = lambda: rl.BatchRenormalization(r_max="paper", d_max="paper")  # noqa: E731
    with pytest.warns(UserWarning, match=r"will train as batch normalization for 100% .* 80 steps"):
        fit(model_of(paper()), x, rl.RenormDiagnostics(), epochs=2)
    separate = rl.BatchRenormalization(
        momentum=1.0, renorm_momentum=0.9, r_max="paper", d_max="paper"
    )
    with pytest.warns(UserWarning, match="will train as batch normalization for 100%"):
        fit(model_of(separate), x, rl.RenormDiagnostics())
    with pytest.warns(UserWarning, match="and 1 more will train"):
        fit(model_of(paper(), paper()), x, rl.RenormDiagnostics())


def test_does_not_warn_of_open_schedules_constant_bounds_and_resumed_runs(recwarn):
    x = batches(40)
    r_max, d_max = rl.paper_schedule(40)
    fitted = rl.BatchRenormalization(r_max=r_max, d_max=d_max)
    plain = rl.BatchRenormalization(r_max=1.0, d_max=0.0)
    frozen = rl.BatchRenormalization(r_max="paper", d_max="paper", trainable=False)
    late = rl.BatchRenormalization(r_max="paper", d_max="paper")
    model = model_of(rl.BatchRenormalization(), fitted, plain, frozen, late)
    late.step.assign(30_000)
    fit(model, x, rl.RenormDiagnostics())
    assert not [w for w in recwarn if "will train as" in str(w.message)]
