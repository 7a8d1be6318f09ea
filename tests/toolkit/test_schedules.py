"""Protects the bounds over time: exact values, serialization, resuming, no retracing."""

import keras
import numpy as np
import pytest
import renormlite as rl
from keras import ops
from renormlite.toolkit.schedules import (
    PAPER_D_MAX,
    PAPER_R_MAX,
    Constant,
    LinearRamp,
    Settling,
    as_schedule,
    paper_schedule,
)


def at(schedule, step):
    return np.float32(ops.convert_to_numpy(schedule(ops.convert_to_tensor(step, "int64"))))


@pytest.mark.parametrize(
    ("step", "r_max", "d_max"),
    [
        (0, 1.0, 0.0),
        (5_000, 1.0, 0.0),
        (5_001, 1 + 2 / 35_000, 5 / 20_000),
        (15_000, 1 + 2 * 10 / 35, 2.5),
        (22_500, 2.0, 5 * 17.5 / 20),
        (25_000, 1 + 2 * 20 / 35, 5.0),
        (40_000, 3.0, 5.0),
        (10**9, 3.0, 5.0),
    ],
)
def test_the_papers_schedule_is_exact(step, r_max, d_max):
    # One rounding of the fraction and one of the sum: at most one unit in the last place.
    np.testing.assert_array_max_ulp(at(PAPER_R_MAX, step), np.float32(r_max), maxulp=1)
    np.testing.assert_array_max_ulp(at(PAPER_D_MAX, step), np.float32(d_max), maxulp=1)
    if step in (0, 5_000, 25_000, 40_000, 10**9):
        assert at(PAPER_D_MAX, step) == d_max
    if step in (0, 5_000, 22_500, 40_000, 10**9):
        assert at(PAPER_R_MAX, step) == r_max


def test_steps_beyond_float32_integers_are_distinguished():
    ramp = LinearRamp(0.0, 1.0, 2**25, 2**25 + 2)
    assert [at(ramp, 2**25 + i) for i in range(3)] == [0.0, 0.5, 1.0]


def test_a_schedule_can_be_scaled_to_the_length_of_a_run():
    r_max, d_max = paper_schedule(total_steps=1_300)
    assert (r_max.start_step, r_max.end_step) == (50, 400)
    assert (d_max.start_step, d_max.end_step) == (50, 250)
    assert at(r_max, 400) == 3.0
    tiny, _ = paper_schedule(total_steps=1)
    assert at(tiny, 1) == 3.0


@pytest.mark.parametrize("momentum", [0.0, 0.9, 0.99])
def test_moving_statistics_start_as_the_mean_over_all_batches(momentum):
    rng = np.random.default_rng(0)
    layer = rl.BatchRenormalization(momentum=momentum, epsilon=1e-6)
    layer.build((None, 3))
    mean, sigma = np.zeros(3), np.ones(3)
    for step in range(30):
        x = (rng.normal(size=(8, 3)) * 3 + 5).astype("float32")
        layer(x, training=True)
        kept = min(momentum, step / (step + 1))
        mean = kept * mean + (1 - kept) * x.mean(0)
        sigma = kept * sigma + (1 - kept) * np.sqrt(x.var(0) + 1e-6)
        np.testing.assert_allclose(layer.moving_mean, mean, rtol=1e-5)
        np.testing.assert_allclose(layer.moving_variance, sigma**2 - 1e-6, rtol=1e-4)


def test_a_momentum_of_1_keeps_the_statistics():
    layer = rl.BatchRenormalization(momentum=1.0)
    layer(np.full((4, 2), 3.0, "float32"), training=True)
    assert (np.array(layer.moving_mean) == 0).all()


def test_the_default_bounds_open_by_one_with_each_batch():
    layer = rl.BatchRenormalization()
    assert [at(layer.r_max, s) for s in (0, 1, 300)] == [1, 2, 301]
    assert [at(layer.d_max, s) for s in (0, 1, 300)] == [0, 1, 300]


def test_the_papers_schedule_has_a_name():
    layer = rl.BatchRenormalization(r_max="paper", d_max="paper")
    twin = rl.BatchRenormalization.from_config(layer.get_config())
    assert (at(twin.r_max, 22_500), at(twin.d_max, 15_000)) == (2.0, 2.5)


def test_the_default_leaves_batch_normalization_within_300_steps():
    """Training outputs of small batches equal those of inference, even in a short run."""
    rng = np.random.default_rng(0)
    draw = lambda n: (rng.normal(size=(n, 4)) * 3 + 5).astype("float32")  # noqa: E731
    layer, paper = rl.BatchRenormalization(), rl.BatchRenormalization(r_max="paper", d_max="paper")
    for _ in range(300):
        few = draw(2)
        layer(few, training=True)
        paper(few, training=True)
    few = draw(2)
    gaps = [np.abs(n(few, training=False) - n(few, training=True)).max() for n in (layer, paper)]
    assert gaps[0] < 1e-4
    assert gaps[1] > 0.1


@keras.saving.register_keras_serializable(package="tests")
def square_root_bound(step):
    return 1.0 + ops.sqrt(ops.cast(step, "float32"))


@pytest.mark.parametrize(
    "bound",
    [
        2.0,
        None,
        "settling",
        "paper",
        Constant(1.5),
        LinearRamp(1, 2, 3, 4),
        Settling(2.0),
        square_root_bound,
    ],
)
def test_every_kind_of_bound_survives_a_config_round_trip(bound):
    layer = rl.BatchRenormalization(r_max=bound)
    twin = rl.BatchRenormalization.from_config(layer.get_config())
    for step in (0, 3, 4, 9):
        assert at(twin.r_max, step) == at(layer.r_max, step)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"r_max": 0.5}, "Expected r_max to be at least 1"),
        ({"r_max": float("nan")}, "Expected r_max to be at least 1"),
        ({"r_max": LinearRamp(0.9, 3, 0, 10)}, "Expected r_max to be at least 1"),
        ({"d_max": -1}, "Expected d_max to be at least 0"),
        ({"r_max": Settling(0.5)}, "Expected r_max to be at least 1"),
        ({"d_max": "five"}, "Expected d_max to be a number"),
    ],
)
def test_invalid_bounds_are_refused(arguments, message):
    with pytest.raises(rl.UserError, match=message):
        rl.BatchRenormalization(**arguments)


def test_a_ramp_needs_ordered_steps():
    with pytest.raises(rl.UserError, match="start_step < end_step"):
        LinearRamp(1, 3, 10, 10)
    with pytest.raises(rl.UserError, match="factor above 0"):
        LinearRamp(1, 3, 1, 10).scaled(0)


def test_none_and_infinity_are_the_same_bound():
    assert at(as_schedule(None, "r_max"), 0) == np.inf
    assert as_schedule(float("inf"), "r_max").get_config() == {"value": None}


RAMPS = LinearRamp(1, 3, 4, 12), LinearRamp(0, 5, 4, 16)
DEFAULT = "settling", "settling"


def renorm_model(r_max, d_max):
    keras.utils.set_random_seed(5)
    model = keras.Sequential(
        [
            keras.layers.Input((6,)),
            keras.layers.Dense(8),
            rl.BatchRenormalization(r_max=r_max, d_max=d_max, momentum=0.9),
            keras.layers.Dense(1),
        ]
    )
    model.compile(keras.optimizers.SGD(0.05, momentum=0.9), "mse")
    return model


@pytest.mark.parametrize("bounds", [RAMPS, DEFAULT], ids=["ramps", "default"])
def test_resuming_from_a_file_in_mid_ramp_changes_nothing(bounds, tmp_path):
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(80, 6)).astype("float32"), rng.normal(size=(80, 1)).astype("float32")
    uninterrupted = renorm_model(*bounds)
    uninterrupted.fit(x, y, batch_size=10, epochs=2, shuffle=False, verbose=0)

    first = renorm_model(*bounds)
    first.fit(x, y, batch_size=10, epochs=1, shuffle=False, verbose=0)
    first.save(tmp_path / "first.keras")
    resumed = keras.models.load_model(tmp_path / "first.keras")
    assert int(resumed.layers[1].step) == 8  # inside the ramp
    resumed.fit(x, y, batch_size=10, epochs=1, shuffle=False, verbose=0)
    for ours, theirs in zip(resumed.get_weights(), uninterrupted.get_weights(), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_fit_traces_once_while_the_schedule_moves():
    traces = []

    @keras.saving.register_keras_serializable(package="tests")
    def counted(step):
        traces.append(step)
        return LinearRamp(1, 3, 2, 8)(step)

    model = keras.Sequential([keras.layers.Input((6,)), rl.BatchRenormalization(r_max=counted)])
    model.compile("sgd", "mse", jit_compile=False)
    data = np.ones((8, 6), "float32")
    model.train_on_batch(data, data)
    once = len(traces)
    for _ in range(10):
        model.train_on_batch(data, data)
    assert len(traces) == once
    assert int(model.layers[0].step) == 11
