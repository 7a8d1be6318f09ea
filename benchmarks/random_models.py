"""Random networks of all public Keras layers, each exported to one file and checked on a runtime.

The networks are those of `tests/random_graphs.py`. Format, precision and runtime take turns. The
log has one line per network with its outcome: `pass`; `refused` with a sentence; `not run` if the
runtime cannot load or run the file; `lossy` if its quality is too low, as is that of some integer
files of untrained networks; `fail` if the check found the file wrong; `traceback`; `crash` if the
process died; or `slow`. An interrupted run continues where its log ends.

    python benchmarks/random_models.py [--first 0] [--count 3000] [--log random_models.log]
    python benchmarks/random_models.py --only 49,169          only these, in every file
"""

from __future__ import annotations

import argparse
import itertools
import multiprocessing
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

TARGETS = {
    "tflite": ("litert", "litert+reference", "litert+builtin"),
    "onnx": ("onnxruntime", "openvino", "onnx-reference"),
}
FILES = (
    *itertools.product(("tflite",), ("float32", "float16", "dynamic", "int8", "int16x8", "int4")),
    *itertools.product(("onnx",), ("float32", "float16", "dynamic", "int8")),
)
_LONGEST = 600.0  # seconds for one network
_CALLS = 100  # networks per process, since TensorFlow leaks memory

Turn = tuple[int, str, str, str]


def turns_of(seed: int) -> Iterator[Turn]:
    """Yield every file and runtime of one network."""
    for file_format, precision in FILES:
        for target in TARGETS[file_format]:
            yield seed, file_format, precision, target


def turn_of(seed: int) -> Turn:
    """Return the file and the runtime for a network."""
    file_format, precision = FILES[seed % len(FILES)]
    targets = TARGETS[file_format]
    return seed, file_format, precision, targets[seed // len(FILES) % len(targets)]


def outcome(seed: int, file_format: str, precision: str, target: str) -> tuple[str, str]:
    """Export a network and check the file; return the outcome and a sentence."""
    import keras
    import renormlite as rl
    from outcomes import outcome_of
    from random_graphs import random_model

    warnings.filterwarnings("ignore")
    keras.backend.clear_session()
    try:
        with tempfile.TemporaryDirectory() as folder:
            rl.export_model(
                random_model(seed),
                Path(folder, "net"),
                formats=(file_format,),
                precisions=(precision,),
                calibration="random",
            )
            report = rl.check_parity(Path(folder, "net"), targets=[target])
    except rl.UserError as error:
        return ("refused" if "\n" not in str(error) else "traceback"), str(error)
    except Exception:
        return "traceback", traceback.format_exc()
    failed = [f for result in report.results for f in result.findings if not f.passed]
    return outcome_of({f.check for f in failed}), " || ".join(f.message for f in failed)


class Worker:
    """A process that tries networks; it is replaced after a crash."""

    def __init__(self) -> None:
        self._pool: ProcessPoolExecutor | None = None

    def __call__(self, turn: Turn) -> tuple[str, str]:
        """Return the outcome of one turn, and a sentence."""
        if self._pool is None:
            self._pool = ProcessPoolExecutor(
                1, multiprocessing.get_context("spawn"), max_tasks_per_child=_CALLS
            )
        try:
            return self._pool.submit(outcome, *turn).result(timeout=_LONGEST)
        except BrokenProcessPool:
            self._pool = None
            return "crash", "the process died"
        except TimeoutError:
            for process in multiprocessing.active_children():
                process.kill()
            self._pool = None
            return "slow", f"more than {_LONGEST:.0f} s"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--count", type=int, default=3000)
    parser.add_argument("--only", metavar="SEED,...")
    parser.add_argument("--log", type=Path, default=Path("random_models.log"))
    arguments = parser.parse_args()
    done: dict[str, str] = {}
    if arguments.only:
        turns = [turn for seed in arguments.only.split(",") for turn in turns_of(int(seed))]
    else:
        turns = [turn_of(arguments.first + i) for i in range(arguments.count)]
        if arguments.log.exists():
            lines = [line.split("\t") for line in arguments.log.read_text().splitlines()]
            done = {line[1]: line[0] for line in lines}
    work, count = Worker(), Counter[str]()
    with open("/dev/stdout" if arguments.only else arguments.log, "a") as log:
        for turn in turns:
            name = " ".join(map(str, turn))
            kind = done.get(name, "")
            if not kind:
                start = time.perf_counter()
                kind, sentence = work(turn)
                line = kind, name, f"{time.perf_counter() - start:.1f} s", repr(sentence)
                print(*line, sep="\t", file=log, flush=True)
            count[kind] += 1
    print(", ".join(f"{number} {kind}" for kind, number in sorted(count.items())))


if __name__ == "__main__":
    main()
