"""Times files in alternation, in a process that loads one runtime and nothing else.

    python benchmarks/latency.py '{"runtime": "litert", "threads": 1, "rounds": 40,
                                   "files": {"folded": "a.tflite", "stock": "b.tflite"}}'

Prints the seconds of CPU time of every round as JSON. With one thread, CPU time is the latency on
an idle machine and does not include other processes; with more it is the work of all threads.
Inputs are random numbers in [0, 1), one sample.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable

import numpy as np
from timing import paired

Run = Callable[[], object]


def _interpreter(module: object, path: str, threads: int) -> Run:
    """Return a run of a .tflite file."""
    interpreter = module.Interpreter(path, num_threads=threads)
    (details,) = interpreter.get_input_details()
    shape = [1, *details["shape"][1:]]
    interpreter.resize_tensor_input(details["index"], shape)
    interpreter.allocate_tensors()
    x = np.random.default_rng(1).random(shape, np.float32)
    interpreter.set_tensor(details["index"], x)
    return interpreter.invoke


def litert(path: str, threads: int) -> Run:
    from ai_edge_litert import interpreter

    return _interpreter(interpreter, path, threads)


def tflite_runtime(path: str, threads: int) -> Run:
    from tflite_runtime import interpreter

    return _interpreter(interpreter, path, threads)


def onnxruntime(path: str, threads: int) -> Run:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(path, options, ["CPUExecutionProvider"])
    (entry,) = session.get_inputs()
    x = np.random.default_rng(1).random((1, *entry.shape[1:]), np.float32)
    return lambda: session.run(None, {entry.name: x})


RUNTIMES = {"litert": litert, "tflite-runtime": tflite_runtime, "onnxruntime": onnxruntime}


def main() -> None:
    request = json.loads(sys.argv[1])
    load = RUNTIMES[request["runtime"]]
    runs = {name: load(path, request["threads"]) for name, path in request["files"].items()}
    print(json.dumps(paired(runs, request["rounds"], "cpu")))


if __name__ == "__main__":
    main()
