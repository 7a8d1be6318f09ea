"""Protects the readings of ranges: ends, step, and share of clipped values."""

from pathlib import Path

import keras
import numpy as np
import pytest
import renormlite as rl
from keras import layers as kl


def test_a_range_that_is_too_narrow_shows_clipped_values(tmp_path: Path) -> None:
    image = keras.Input((4,), name="image")
    model = rl.quantize_aware(keras.Model(image, kl.Dense(3, activation="relu")(image)))
    # Compiling a graph takes longer than these few steps.
    model.compile("sgd", "mse", run_eagerly=True)
    samples = np.linspace(-1, 1, 64, dtype="f4").reshape(16, 4)
    watch = rl.QuantizationDiagnostics(4 * samples, each=True)  # three quarters lie outside
    history = model.fit(samples, np.zeros((16, 3)), verbose=0, callbacks=[watch]).history
    reading = watch.readings[0]
    assert reading.layer == "image_quantizer"
    assert (reading.low, reading.high) == pytest.approx((-1, 1), abs=0.01)
    assert reading.step == pytest.approx(2 / 255, rel=1e-4)
    assert reading.clipped == pytest.approx(0.75, abs=0.04)
    assert history["quantized_clipped_max"][0] == pytest.approx(0.75, abs=0.04)
    for name in ("clipped", "low", "high", "step"):
        assert history[f"image_quantizer_{name}"] == [getattr(reading, name)]
    figure = rl.plot_diagnostics(watch.readings, tmp_path / "ranges.png")
    assert (tmp_path / "ranges.png").stat().st_size > 1000
    assert "2 ranges, 1 observed epoch" in figure.get_suptitle()
    titles = [axes.get_title(loc="left") for axes in figure.axes[:6]]
    assert {"Clipped values", "Width of the range", "Step"} <= set(titles)


def test_a_model_without_ranges_is_refused() -> None:
    image = keras.Input((4,))
    model = keras.Model(image, kl.Dense(3)(image))
    model.compile("sgd", "mse", run_eagerly=True)
    with pytest.raises(rl.UserError, match=r"Expected a model made by quantize_aware\."):
        model.fit(
            np.zeros((2, 4)),
            np.zeros((2, 3)),
            verbose=0,
            callbacks=[rl.QuantizationDiagnostics(np.zeros((2, 4)))],
        )
