"""Int8 signal-to-noise ratio of the MLPerf Tiny networks and the digits network, in four ways.

- stock: TensorFlow's own converter on the trained network, calibrated with real samples;
- folded: our export without equalization, with the same samples;
- equalized where better: our export with its defaults;
- random: our export calibrated with random numbers, as without samples.

An MLPerf Tiny network is trained briefly with batch renormalization on waves and walks, then its
norms' scales are spread over a decade as long training does; the digits network is trained on real
digits by its recipe. All are compared with the trained network in float64 on other samples. Softmax
is removed, since it hides errors where one class dominates. `same class` is the share of these
samples with the class of float64.

    python benchmarks/export_int8.py [--seeds 1] [NETWORK ...]
"""

from __future__ import annotations

import argparse
import dataclasses
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import keras
import numpy as np
import renormlite as rl
import tensorflow as tf
from ai_edge_litert.interpreter import Interpreter
from renormlite.export.fold import float64_twin
from renormlite.export.golden_set import decibels
from renormlite.models import digits, mlperf_tiny
from renormlite.models.data import handwritten_digits

NETWORKS = (*mlperf_tiny.NETWORKS, "digits")
CALIBRATION, HELD_OUT = 100, 64  # samples


@dataclasses.dataclass(frozen=True)
class Case:
    """A trained network without its softmax, and samples of its data."""

    name: str
    model: keras.Model
    calibration: np.ndarray
    held_out: np.ndarray
    classes: bool


def cases(name: str, seed: int) -> Iterator[Case]:
    if name == "digits":
        yield digits_case(seed)
        return
    for after in (True, False):
        yield mlperf_tiny_case(name, after, seed)


def digits_case(seed: int) -> Case:
    model = digits.train(seed=seed).model
    model.layers[-1].activation = keras.activations.linear
    data = handwritten_digits()
    return Case("digits", model, data.train.x[:CALIBRATION], data.test.x, True)


def mlperf_tiny_case(name: str, after: bool, seed: int) -> Case:
    keras.utils.set_random_seed(seed)
    generator = np.random.default_rng(seed)
    model = mlperf_tiny.NETWORKS[name](rl.BatchRenormalization, norm_after_activation=after)
    data = smooth(model.input_shape[1:], 256, seed)
    held_out = smooth(model.input_shape[1:], HELD_OUT, 1000 + seed)
    regression = name == "anomaly_detection"
    target = data if regression else generator.integers(0, model.output_shape[-1], len(data))
    model.compile("adam", "mse" if regression else "sparse_categorical_crossentropy")
    model.fit(data, target, batch_size=16, epochs=4, verbose=0)
    for layer in model.layers:
        if isinstance(layer, rl.BatchRenormalization):
            spread = np.exp(generator.uniform(np.log(0.3), np.log(3), layer.gamma.shape))
            layer.gamma.assign(layer.gamma * spread)
    model.layers[-1].activation = keras.activations.linear
    order = "after" if after else "before"
    label = f"{name}, norm {order} activation"
    return Case(label, model, data[:CALIBRATION], held_out, not regression)


def smooth(shape: tuple[int, ...], count: int, seed: int) -> np.ndarray:
    """Return spectra as random walks, images as sums of four waves per channel."""
    generator = np.random.default_rng(seed)
    if len(shape) == 1:
        walk = np.cumsum(generator.normal(0, 1, (count, *shape)), axis=1)
        return (walk / np.abs(walk).max(axis=1, keepdims=True)).astype(np.float32)
    rows, columns = np.mgrid[: shape[0], : shape[1]][..., None, None]
    phase = generator.uniform(0, 6, (count, 1, 1, shape[2], 4))
    speed = generator.uniform(0.05, 0.7, (count, 1, 1, 1, 4))
    slope = generator.uniform(-2, 2, (count, 1, 1, 1, 4))
    waves = 0.5 + 0.5 * np.sin(speed * (rows + slope * columns) + phase)
    return waves.mean(axis=-1).astype(np.float32)


def stock(case: Case) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        case.model.export(folder, verbose=False)
        converter = tf.lite.TFLiteConverter.from_saved_model(folder)
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
        converter.representative_dataset = lambda: ([sample[None]] for sample in case.calibration)
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
        return bytes(converter.convert())


def ours(model: keras.Model, calibration: np.ndarray | str, equalize: str) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        rl.export_model(
            model,
            Path(folder) / "net",
            formats=("tflite",),
            precisions=("int8",),
            calibration=calibration,
            equalize=equalize,
        )
        return (Path(folder) / "net" / "net.int8.tflite").read_bytes()


WAYS: dict[str, Callable[[Case], bytes]] = {
    "stock": stock,
    "folded": lambda case: ours(case.model, case.calibration, "never"),
    "equalized where better": lambda case: ours(case.model, case.calibration, "auto"),
    "random": lambda case: ours(case.model, "random", "never"),
}


def run(data: bytes, inputs: np.ndarray) -> np.ndarray:
    interpreter = Interpreter(model_content=data)
    interpreter.allocate_tensors()
    source = interpreter.get_input_details()[0]["index"]
    sink = interpreter.get_output_details()[0]["index"]
    outputs = []
    for sample in inputs:
        interpreter.set_tensor(source, sample[None])
        interpreter.invoke()
        outputs.append(interpreter.get_tensor(sink)[0])
    return np.array(outputs)


def judged(case: Case) -> dict[str, tuple[float, float]]:
    """Return decibels and share of equal classes (NaN for a regression) for each way."""
    truth = keras.ops.convert_to_numpy(float64_twin(case.model)(case.held_out.astype(np.float64)))
    results = {}
    for name, way in WAYS.items():
        outputs = run(way(case), case.held_out)
        same = float(np.mean(outputs.argmax(-1) == truth.argmax(-1))) if case.classes else np.nan
        ratio = decibels(truth, outputs)
        results[name] = (np.inf if ratio is None else ratio, same)
    return results


def show(title: str, results: dict[str, tuple[float, float]]) -> None:
    cells = (
        f"{name} {ratio:.1f} dB" + ("" if np.isnan(same) else f" ({same:.1%} same class)")
        for name, (ratio, same) in results.items()
    )
    print(f"{title}: {', '.join(cells)}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("networks", nargs="*", default=NETWORKS)
    parser.add_argument("--seeds", type=int, default=1)
    arguments = parser.parse_args()
    for name in arguments.networks:
        rows: dict[str, list[dict[str, tuple[float, float]]]] = {}
        for seed in range(arguments.seeds):
            for case in cases(name, seed):
                results = judged(case)
                show(f"{case.name}, seed {seed}", results)
                rows.setdefault(case.name, []).append(results)
        for label, row in rows.items():
            means = {way: np.mean([results[way] for results in row], axis=0) for way in WAYS}
            show(f"{label}, mean of {len(row)}", {k: (v[0], v[1]) for k, v in means.items()})


if __name__ == "__main__":
    main()
