"""Checks files of other converters and quantizers: healthy ones, and ones with faults.

    pip install onnxsim onnxslim       # optional
    python benchmarks/foreign_files.py [--networks two_heads ...] [--seeds 3] [--faults 15]

Prints, for each converter, the number of healthy files and of false alarms, and of files with a
great quantization loss and how many of these fail. The loss is measured on the outputs, apart from
the checks. Then, for each kind of fault, how many were planted, detected, and located in a layer
that the changed op computes. Faults are planted in files of TensorFlow's converter and of tf2onnx.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import io
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np
import onnx
import renormlite as rl
import tensorflow as tf
from check_faults import KINDS, NotPossibleError, OnnxFile, TFLiteFile, computed_layers
from check_networks import smooth_inputs, trained_like
from keras import layers
from renormlite.artifacts.graphs import read_graph

Maker = Callable[[keras.Model, np.ndarray, Path], None]
NETWORKS = (
    "two_heads",
    "time_series",
    "keyword_spotting",
    "image_classification",
    "visual_wake_words",
)

# A file has a great loss if the error of an output is 10 dB below the signal or more, or if more
# than 5 % of the model's values lie outside the range of the file's.
MIN_SNR, MAX_CLIPPED = 10.0, 0.05


def two_heads(seed: int) -> tuple[keras.Model, np.ndarray]:
    """Build a network with an input of three channels and two outputs."""
    keras.utils.set_random_seed(seed)
    image = keras.Input((16, 16, 3), name="image")
    x = layers.Conv2D(8, 3, padding="same", use_bias=False)(image)
    x = layers.ReLU()(layers.BatchNormalization(momentum=0.8)(x))
    x = layers.SeparableConv2D(16, 3, strides=2, padding="same")(x)
    x = layers.ReLU()(layers.BatchNormalization(momentum=0.8)(x))
    x = layers.UpSampling2D()(x)
    x = layers.Conv2D(8, 3, padding="same", activation="relu")(x)
    x = layers.GlobalAveragePooling2D()(x)
    model = keras.Model(image, [layers.Dense(4, name=name)(x) for name in ("age", "weight")])
    samples = smooth_inputs((16, 16, 3), np.random.default_rng(seed), 32)
    for _ in range(40):
        model(samples, training=True)
    return model, samples


def time_series(seed: int) -> tuple[keras.Model, np.ndarray]:
    """Build a classifier of series with a residual block."""
    keras.utils.set_random_seed(seed)
    series = keras.Input((64, 3), name="image")
    x = layers.Conv1D(16, 5, strides=2, padding="same", activation="relu")(series)
    y = layers.Conv1D(16, 3, padding="same", use_bias=False)(x)
    y = layers.BatchNormalization(momentum=0.8)(y)
    x = layers.ReLU()(layers.Add()([x, y]))
    x = layers.MaxPooling1D()(x)
    x = layers.Dense(12, activation="relu")(layers.GlobalAveragePooling1D()(x))
    model = keras.Model(series, layers.Dense(5, name="kind")(x))
    samples = smooth_inputs((64, 3), np.random.default_rng(seed), 32)
    for _ in range(40):
        model(samples, training=True)
    return model, samples


def built(name: str, seed: int) -> tuple[keras.Model, np.ndarray]:
    """Build a network and samples for it."""
    own = {"two_heads": two_heads, "time_series": time_series}
    return own[name](seed) if name in own else trained_like(name, seed)


def _tensorflow(*types: tf.DType, quantize: bool = True) -> Maker:
    def make(model: keras.Model, samples: np.ndarray, path: Path) -> None:
        converter = tf.lite.TFLiteConverter.from_keras_model(model)
        if quantize:
            converter.optimizations = [tf.lite.Optimize.DEFAULT]
        converter.target_spec.supported_types = list(types)
        if tf.int8 in types:
            converter.representative_dataset = lambda: ([x[None]] for x in samples)
        path.write_bytes(converter.convert())

    return make


def _exported(form: str) -> Maker:
    return lambda model, samples, path: model.export(path, format=form, verbose=False)


def _tf2onnx(model: keras.Model, samples: np.ndarray, path: Path, first: bool = False) -> None:
    import tf2onnx

    spec = [tf.TensorSpec((None, *model.input_shape[1:]), tf.float32, name="image")]
    options = {"inputs_as_nchw": ["image"]} if first else {}
    tf2onnx.convert.from_keras(model, spec, opset=17, output_path=str(path), **options)


def _simplified(model: keras.Model, samples: np.ndarray, path: Path) -> None:
    import onnxsim

    onnx.save(onnxsim.simplify(onnx.load(path.with_name("tf2onnx.onnx")))[0], path)


def _slimmed(model: keras.Model, samples: np.ndarray, path: Path) -> None:
    import onnxslim

    onnx.save(onnxslim.slim(str(path.with_name("tf2onnx.onnx"))), path)


def _litert_quantizer(recipe: str) -> Maker:
    def make(model: keras.Model, samples: np.ndarray, path: Path) -> None:
        from ai_edge_quantizer import quantizer
        from ai_edge_quantizer import recipe as recipes

        source = path.with_name("tensorflow.tflite")
        tool = quantizer.Quantizer(str(source), getattr(recipes, recipe)())
        found = None
        if tool.need_calibration:
            (key,) = tf.lite.Interpreter(str(source)).get_signature_list()
            runner = tf.lite.Interpreter(str(source)).get_signature_runner(key)
            (name,) = runner.get_input_details()
            found = tool.calibrate({key: [{name: x[None]} for x in samples]})
        path.write_bytes(tool.quantize(found).quantized_model)

    return make


def _onnxruntime(static: bool) -> Maker:
    def make(model: keras.Model, samples: np.ndarray, path: Path) -> None:
        from onnxruntime import quantization

        class Reader(quantization.CalibrationDataReader):
            def __init__(self) -> None:
                self._left = iter([{"image": x[None]} for x in samples])

            def get_next(self) -> Any:
                return next(self._left, None)

        source = path.with_name("tf2onnx.onnx")
        if static:
            quantization.quantize_static(source, path, Reader(), per_channel=True)
        else:
            quantization.quantize_dynamic(source, path)

    return make


# In this order: later ones read the files of TensorFlow's converter and of tf2onnx.
MAKERS: dict[str, Maker] = {
    "tensorflow.tflite": _tensorflow(quantize=False),
    "tensorflow-float16.tflite": _tensorflow(tf.float16),
    "tensorflow-dynamic.tflite": _tensorflow(),
    "tensorflow-int8.tflite": _tensorflow(tf.int8),
    "model-export.tflite": _exported("litert"),
    "model-export.onnx": _exported("onnx"),
    "tf2onnx.onnx": _tf2onnx,
    "tf2onnx-nchw.onnx": lambda model, samples, path: _tf2onnx(model, samples, path, True),
    "onnxsim.onnx": _simplified,
    "onnxslim.onnx": _slimmed,
    "litert-quantizer-dynamic.tflite": _litert_quantizer("dynamic_wi8_afp32"),
    "litert-quantizer-weights.tflite": _litert_quantizer("weight_only_wi8_afp32"),
    "litert-quantizer-static.tflite": _litert_quantizer("static_wi8_ai8"),
    "onnxruntime-dynamic.onnx": _onnxruntime(static=False),
    "onnxruntime-static.onnx": _onnxruntime(static=True),
}


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Suppress the output of converters."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield


def make(model: keras.Model, samples: np.ndarray, folder: Path) -> list[Path]:
    """Let every installed converter write its file."""
    paths = []
    for name, maker in MAKERS.items():
        module = name.partition(".")[0]
        if module.startswith("onnxs") and importlib.util.find_spec(module) is None:
            continue
        with quiet():
            maker(model, samples, folder / name)
        paths.append(folder / name)
    return paths


def _blue_first(file: Any) -> int:
    """Reverse the input channels of the first convolution."""
    op = file.linear_ops()[0]
    tensor, values, _ = file.kernel(op)
    reads = values.ndim - 1 if isinstance(file, TFLiteFile) else 1
    if values.shape[reads] != 3:
        raise NotPossibleError
    file.put(tensor, np.flip(values, reads))
    return op


def _outputs_exchanged(file: Any) -> int:
    """Exchange the names of two outputs."""
    if isinstance(file, TFLiteFile) or len(file.graph.output) < 2:
        raise NotPossibleError
    a, b = (output.name for output in file.graph.output)
    for node in file.graph.node:
        for side in (node.input, node.output):
            side[:] = [{a: b, b: a}.get(name, name) for name in side]
    return -1


WHOLE = {"blue first": _blue_first, "outputs exchanged": _outputs_exchanged}
PLANTED = (
    "single weight",
    "wrong padding",
    "wrong activation",
    "swapped channel",
    "stale statistics",
    "wrong calibration",
    "blue first",
    "outputs exchanged",
)
SPOILED = ("tensorflow.tflite", "tf2onnx.onnx")


def plant(
    kind: str, model: keras.Model, samples: np.ndarray, folder: Path, target: Path, rng: Any
) -> tuple[Path, str, int] | None:
    """Write a file with a fault; return it, what it was made from and the spoiled op's index."""
    if kind == "wrong calibration":
        path = target.with_suffix(".tflite")
        with quiet():
            _tensorflow(tf.int8)(model, samples / 8, path)
        return path, "", -1
    for _ in range(40):
        source = SPOILED[int(rng.integers(len(SPOILED)))]
        path = target.with_suffix(Path(source).suffix)
        shutil.copy(folder / source, path)
        file: Any = TFLiteFile(path) if path.suffix == ".tflite" else OnnxFile(path)
        try:
            if kind in WHOLE:
                op = WHOLE[kind](file)
            else:
                op = int(rng.choice(file.linear_ops()))
                KINDS[kind](file, op, rng)
        except NotPossibleError:
            path.unlink()
            continue
        file.save()
        return path, source, op
    return None


def owners(report: rl.ParityReport, folder: Path) -> dict[tuple[str, int], set[str]]:
    """Return the layers that each op of each healthy file computes, as the checks match them."""
    found = computed_layers(report)
    for name in SPOILED:
        graph = read_graph(folder / name, name.rpartition(".")[2])
        for op in graph.ops:  # includes ops that only read its value, such as a relu
            for after in graph.consumers(op.outputs[0]):
                own = found.setdefault((name, op.index), set())
                own.update(found.get((name, after.index), set()))
    return found


def faults(name: str, seed: int, count: int, rows: list[dict[str, Any]]) -> None:
    """Plant faults in files of one network and record the result of each check."""
    model, samples = built(name, seed)
    rng = np.random.default_rng(seed)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        with quiet():
            for source in SPOILED:
                MAKERS[source](model, samples, folder / source)
        sound = rl.check_files(model, [folder / n for n in SPOILED], samples[:8], per_op=True)
        known = owners(sound, folder)
        planted = {}
        for number in range(count):
            kind = PLANTED[number % len(PLANTED)]
            if kind == "outputs exchanged" and len(model.outputs) < 2:
                kind = "swapped channel"
            if kind == "blue first" and model.input_shape[-1] != 3:
                kind = "single weight"
            made = plant(kind, model, samples, folder, folder / f"{number:02d}-{kind}", rng)
            if made is not None:
                planted[made[0].name] = (kind, made[0], known.get(made[1:], set()))
        report = rl.check_files(model, [path for _, path, _ in planted.values()], samples[:8])
    for result in report.results:
        kind, _, truth = planted[result.artifact]
        blamed = [fault.layer for fault in result.faults][:1]
        messages = [f.message for f in result.findings if not f.passed]
        named = bool(set(blamed) & truth) or (
            kind in ("blue first", "outputs exchanged", "wrong calibration")
            and any("exchanged" in text or "clipped" in text for text in messages)
        )
        row = {"network": name, "kind": kind, "found": not result.passed, "named": named}
        rows.append({**row, "blamed": blamed, "truth": sorted(truth), "messages": messages[:2]})
        if not named:
            print(rows[-1], flush=True)


def lossy(model: keras.Model, samples: np.ndarray, given: dict[str, np.ndarray]) -> bool:
    """Return whether outputs of a file have a great loss."""
    truth = model.predict(samples, verbose=0)
    truths = [truth] if isinstance(truth, np.ndarray) else truth
    for name, exact in zip(model.output_names, truths, strict=True):
        got = given[name][: len(exact)].astype(np.float64)
        snr = 10 * np.log10(np.square(exact).sum() / (np.square(got - exact).sum() + 1e-300))
        low, high = got.min(), got.max()
        step = (high - low) / 128
        outside = float(np.mean((exact < low - step) | (exact > high + step)))
        if snr < MIN_SNR or outside > MAX_CLIPPED:
            return True
    return False


def healthy(name: str, seed: int) -> Iterator[tuple[str, bool, bool]]:
    """Check the files of every converter; yield name, whether it is lossy, whether it passed."""
    model, samples = built(name, seed)
    with tempfile.TemporaryDirectory() as folder:
        paths = make(model, samples, Path(folder))
        report = rl.check_files(model, paths, samples[:16])
    for result in report.results:
        loss = bool(result.given) and lossy(model, samples[:16], dict(result.given))
        if not result.passed or loss:
            print(f"{name}, seed {seed}: {result.artifact}, loss {loss}: {result.reason}")
        yield result.artifact, loss, result.passed
    print(f"{name}, seed {seed}: {len(report.results)} files", flush=True)


def main() -> None:
    """Run the requested parts and print two tables."""
    warnings.simplefilter("ignore")
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS), choices=NETWORKS)
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds for healthy networks")
    parser.add_argument("--faults", type=int, default=15, help="number for each network")
    options = parser.parse_args()
    verdicts: list[tuple[str, bool, bool]] = []
    rows: list[dict[str, Any]] = []
    for name in options.networks:
        for seed in range(options.seeds):
            verdicts += healthy(name, seed)
        if options.faults:
            faults(name, 100, options.faults, rows)
    print("converter: healthy files / false alarms; with a great loss / failed")
    for maker in (*MAKERS, "all"):
        chosen = [v for v in verdicts if maker in (v[0], "all")]
        sound, lost = (
            [passed for _, loss, passed in chosen if loss is side] for side in (False, True)
        )
        counts = len(sound), sound.count(False), len(lost), lost.count(False)
        print("  {}: {} / {}; {} / {}".format(maker, *counts))
    print("fault: planted / detected / named")
    for kind in PLANTED:
        chosen = [row for row in rows if row["kind"] == kind]
        counts = (sum(row[key] for row in chosen) for key in ("found", "named"))
        print(f"  {kind}:", " / ".join(map(str, (len(chosen), *counts))))
    print(f"  all: {len(rows)} / {sum(r['found'] for r in rows)} / {sum(r['named'] for r in rows)}")


if __name__ == "__main__":
    main()
