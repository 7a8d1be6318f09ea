"""Protects that a killed training run resumes and ends with the same bits."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import keras
import numpy as np
import pytest
import renormlite as rl
from renormlite.models.checkpoint import Checkpoint
from renormlite.models.data import Dataset, Split
from renormlite.models.recipe import Trained, train_classifier

EPOCHS = 6


class KilledError(Exception):
    """Stands for the end of the process."""


def train(
    checkpoint: Path | None = None, stop: tuple[int, int] | None = None, **changed
) -> Trained:
    """Train a small network with renorm and dropout; `stop` is the epoch and step that kill it."""
    keras.utils.set_random_seed(3)
    generator = np.random.default_rng(3)
    x = generator.normal(size=(50, 6)).astype(np.float32)
    data = Dataset("small", Split(x, (x[:, 0] > 0).astype(np.int64)), Split(x[:4], np.zeros(4)))
    r_max, d_max = rl.paper_schedule(40)
    model = keras.Sequential(
        [
            keras.Input((6,)),
            keras.layers.Dense(5),
            rl.BatchRenormalization(r_max=r_max, d_max=d_max),
            keras.layers.Dropout(0.4),
            keras.layers.Dense(2, activation="softmax"),
        ]
    )

    class Kill(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            self.epoch = epoch

        def on_train_batch_end(self, batch, logs=None):
            if stop == (self.epoch, batch):
                raise KilledError

    arguments = {"epochs": EPOCHS, "batch_size": 8, "callbacks": [Kill()]} | changed
    return train_classifier(model, data, checkpoint=checkpoint, **arguments)


def state(trained: Trained) -> list[np.ndarray]:
    model = trained.model
    return [np.asarray(v) for v in (*model.variables, *model.optimizer.variables)]


@pytest.fixture(scope="module")
def uninterrupted() -> Trained:
    return train()


@pytest.mark.parametrize("stops", [[(1, 0)], [(2, 1), (2, 5), (5, 6)]])
def test_a_run_killed_in_any_step_ends_with_the_same_bits(
    uninterrupted, stops, tmp_path: Path
) -> None:
    file = tmp_path / "net.checkpoint.npz"
    for stop in stops:
        with pytest.raises(KilledError):
            train(file, stop)
    again = train(file)
    assert again.resumed == stops[-1][0]
    for expected, got in zip(state(uninterrupted), state(again), strict=True):
        np.testing.assert_array_equal(expected, got)


def untrained(units: int = 5) -> keras.Model:
    keras.utils.set_random_seed(units)
    model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(units)])
    model.compile("adam", "mse")
    return model


def saved(file: Path, run: dict, epoch: int = 2) -> keras.Model:
    model = untrained()
    model.optimizer.build(model.trainable_variables)
    checkpoint = Checkpoint(file, run)
    checkpoint.set_model(model)
    checkpoint.on_epoch_end(epoch)
    return model


def test_a_checkpoint_is_restored_only_for_the_same_run(tmp_path: Path) -> None:
    file = tmp_path / "net.checkpoint.npz"
    model, other = saved(file, {"seed": 1, "epochs": 3}), untrained()
    other.layers[0].kernel.assign(np.zeros((6, 5)))
    assert Checkpoint(file, {"epochs": 3, "seed": 2}).restore(other) == 0
    assert Checkpoint(file, {"epochs": 3, "seed": 1}).restore(untrained(4)) == 0
    assert not np.asarray(other.layers[0].kernel).any()
    assert Checkpoint(file, {"epochs": 3, "seed": 1}).restore(other) == 3
    np.testing.assert_array_equal(other.layers[0].kernel, model.layers[0].kernel)


def test_a_damaged_checkpoint_is_not_used(tmp_path: Path) -> None:
    file = tmp_path / "net.checkpoint.npz"
    saved(file, {})
    data = file.read_bytes()
    entry = data.index(b"PK\1\2")  # an entry of the archive's directory: flags and method follow
    changed = [data[:at] + b"?" + data[at + 1 :] for at in (120, entry + 8, entry + 10)]
    for damaged in (b"", data[: len(data) // 2], bytes(len(data)), *changed):
        file.write_bytes(damaged)
        model = untrained()
        before = np.asarray(model.layers[0].kernel).copy()
        assert Checkpoint(file, {}).restore(model) == 0
        np.testing.assert_array_equal(model.layers[0].kernel, before)


def test_a_command_killed_at_random_moments_ends_with_the_same_bits(tmp_path: Path) -> None:
    moments = random.Random(0)
    command = [sys.executable, "-m", "renormlite", "train", "batchnorm_dense", "--epochs", "6"]
    want, got = tmp_path / "want.keras", tmp_path / "got.keras"
    start = time.monotonic()
    subprocess.run([*command, "-o", str(want)], check=True, capture_output=True)
    duration = time.monotonic() - start
    checkpoint = tmp_path / "got.checkpoint.npz"
    for _ in range(3):
        run = subprocess.Popen([*command, "-o", str(got)], stderr=subprocess.DEVNULL)
        try:
            run.wait(duration * moments.uniform(0.4, 1))
        except subprocess.TimeoutExpired:
            run.send_signal(signal.SIGKILL)
            run.wait()
    last = subprocess.run([*command, "-o", str(got)], check=True, capture_output=True, text=True)
    assert not checkpoint.exists()
    assert f"wrote {got}" in last.stdout
    models = [keras.saving.load_model(path) for path in (want, got)]
    for expected, actual in zip(models[0].weights, models[1].weights, strict=True):
        np.testing.assert_array_equal(np.asarray(expected), np.asarray(actual))
    assert sorted(path.name for path in tmp_path.iterdir() if path.name[0] != ".") == [
        "got.keras",
        "got.samples.npz",
        "want.keras",
        "want.samples.npz",
    ]
