"""Accuracy after export of the networks that `purpose.py` trains: int8 files on LiteRT.

    python benchmarks/purpose_int8.py [--seeds 5] [--only TEXT] [--json FILE]

Every network is calibrated with 200 training samples and run on the held-out ones, so the rows can
be compared with those of `purpose.py` with stored statistics, which the files have.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import renormlite as rl
from ai_edge_litert.interpreter import Interpreter
from purpose_networks import CASES, DATA, Case, Data, cases_parser, network
from rows import Row, mean_row, write

CHOSEN = [
    case
    for case in CASES
    if case.batch == 4 and not case.skewed and case.network in ("deep", "dense", "series")
]
NORMS = ("BatchRenormalization", "BatchNormalization", "none")
CALIBRATION = 200


def accuracy(path: Path, data: Data) -> float:
    """Return the share of held-out samples that a file classifies correctly."""
    interpreter = Interpreter(str(path), num_threads=1)
    interpreter.allocate_tensors()
    source = interpreter.get_input_details()[0]["index"]
    target = interpreter.get_output_details()[0]["index"]
    right = 0
    for x, label in zip(data.held_out, data.truth, strict=True):
        interpreter.set_tensor(source, x[None])
        interpreter.invoke()
        right += int(np.argmax(interpreter.get_tensor(target)) == label)
    return right / len(data.truth)


def exported(case: Case, data: Data, norm: str, weights: Path) -> float:
    """Return the accuracy of the int8 file of trained weights."""
    keras.backend.clear_session()
    model = network(case, data, norm)
    with np.load(weights) as stored:
        model.set_weights([stored[name] for name in stored.files])
    with tempfile.TemporaryDirectory() as folder:
        directory = Path(folder) / "net"
        manifest = rl.export_model(
            model,
            directory,
            precisions=("int8",),
            formats=("tflite",),
            calibration=data.x[:CALIBRATION],
            inputs=data.x[:4],
        )
        return accuracy(directory / manifest.artifacts[0].file, data)


def measured(case: Case, seeds: int) -> list[Row]:
    """Train a case's networks in a process of JAX, export them and return the rows."""
    data = DATA[case.data]()
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, str(Path(__file__).with_name("purpose.py"))]
        options = {"only": case, "norms": "/".join(NORMS), "seeds": seeds, "weights": folder}
        command += [f"--{name}={value}" for name, value in options.items()]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        rows = []
        for norm in NORMS:
            paths = [Path(folder) / f"{case}, {norm}, {seed}.npz" for seed in range(seeds)]
            values = [exported(case, data, norm, path) for path in paths]
            rows.append(mean_row(f"{case}, int8", norm, "accuracy", values))
            print(rows[-1], flush=True)
    return rows


def main() -> None:
    options = cases_parser(__doc__.splitlines()[0]).parse_args()
    cases = [case for case in options.only if case in CHOSEN]
    write([row for case in cases for row in measured(case, options.seeds)], options.json)


if __name__ == "__main__":
    main()
