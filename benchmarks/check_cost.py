"""Time of a check, without per-op checks, relative to plain inference of the same samples.

    python benchmarks/check_cost.py [--pairs 15] [--networks NAME,…] [--clock wall|cpu]
        [--json FILE]

Plain inference uses only the runtime: load the file, run every golden sample on one thread. The
samples are in memory. The check is `check_parity` on that file and runtime: hash and read
everything, compare weights, load, run, run the first sample again, measure and judge. `SHA-256`
hashes the same bytes as a check, and nothing else. All run in one process, in turn; the ratio is
the median of those within a round. `--clock cpu` counts the processor time of all threads instead
of wall time, for machines that are not idle.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import tempfile
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import keras
import numpy as np
import renormlite as rl
from check_networks import export, smooth_inputs
from renormlite.artifacts.directory import read_export
from renormlite.models import digits
from renormlite.models.mlperf_tiny import NETWORKS
from rows import Row, write
from timing import CLOCKS, paired, ratio_rows, time_row

Feeds = Sequence[dict[str, np.ndarray]]


def litert(path: Path, feeds: Feeds) -> None:
    """Load a file in LiteRT and run every sample."""
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_path=str(path), num_threads=1)
    interpreter.allocate_tensors()
    inputs = [(d["index"], d["name"]) for d in interpreter.get_input_details()]
    outputs = [d["index"] for d in interpreter.get_output_details()]
    for feed in feeds:
        for index, name in inputs:
            interpreter.set_tensor(index, feed[name])
        interpreter.invoke()
        for index in outputs:
            interpreter.get_tensor(index)


def onnxruntime(path: Path, feeds: Feeds) -> None:
    """Load a file in ONNX Runtime and run every sample."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    for feed in feeds:
        session.run(None, feed)


PLAIN: dict[str, tuple[str, Callable[[Path, Feeds], None]]] = {
    "litert": ("tflite", litert),
    "onnxruntime": ("onnx", onnxruntime),
}


def export_digits(directory: Path) -> None:
    trained = digits.train(epochs=1)
    rl.export_model(trained.model, directory, inputs=trained.test.x[:16])


def export_mobilenet(size: int) -> Callable[[Path], None]:
    def write(directory: Path) -> None:
        keras.utils.set_random_seed(0)
        network = keras.applications.MobileNetV2(input_shape=(size, size, 3), weights=None)
        samples = smooth_inputs((size, size, 3), np.random.default_rng(0), 16)
        rl.export_model(rl.to_renorm(network), directory, inputs=samples)

    return write


EXPORTS: dict[str, Callable[[Path], object]] = {
    **{name: lambda d, name=name: export(name, 1, d, ("float32",)) for name in NETWORKS},
    "digits": export_digits,
    "mobilenet_v2_96": export_mobilenet(96),
    "mobilenet_v2_128": export_mobilenet(128),
    "mobilenet_v2_224": export_mobilenet(224),
}


def hashing(paths: Sequence[Path]) -> Callable[[], None]:
    """Return an action that computes the SHA-256 of files in memory."""
    contents = [path.read_bytes() for path in paths]

    def run() -> None:
        for content in contents:
            hashlib.sha256(content).digest()

    return run


def artifact_of(directory: Path, suffix: str) -> Path:
    """Return the path of the only file of a format."""
    manifest = json.loads((directory / "manifest.json").read_text())
    (record,) = [a for a in manifest["artifacts"] if a["format"] == suffix]
    return directory / record["file"]


def measure(name: str, directory: Path, runtime: str, pairs: int, clock: str) -> list[Row]:
    """Return the rows of one network on one runtime."""
    suffix, plain = PLAIN[runtime]
    exported = read_export(directory)
    golden, path = exported.read_golden(), artifact_of(directory, suffix)
    feeds = [
        {name: np.array(array[i : i + 1]) for name, array in golden.inputs.items()}
        for i in range(golden.samples)
    ]
    assert exported.network is not None
    actions = {
        "check": lambda: rl.check_parity(directory, (runtime,)),
        "plain inference": lambda: plain(path, feeds),
        "SHA-256": hashing((path, exported.golden, exported.network)),
    }
    seconds = paired(actions, pairs, clock)
    case = f"{name}, {runtime}"
    rows = ratio_rows(case, "check", seconds)[:1]
    return rows + [time_row(case, action, seconds[action]) for action in actions]


def main() -> None:
    warnings.simplefilter("ignore")
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pairs", type=int, default=15)
    parser.add_argument("--networks", default=",".join(EXPORTS))
    parser.add_argument("--clock", choices=CLOCKS, default="wall")
    parser.add_argument("--json")
    options = parser.parse_args()
    rows = []
    for name in options.networks.split(","):
        with tempfile.TemporaryDirectory() as folder:
            directory = Path(folder) / name
            EXPORTS[name](directory)
            for runtime in PLAIN:
                found = measure(name, directory, runtime, options.pairs, options.clock)
                print(*found, sep="\n", flush=True)
                rows += found
    write(rows, options.json)


if __name__ == "__main__":
    main()
