"""Peak memory of an export, by stage, relative to the bytes of the weights.

    python benchmarks/export_memory.py [--network dense] [--millions 80] [--to tflite onnx]
                                       [--precision float32] [--json FILE]

The export runs in a process of its own, and this process reads the memory of it and of its child
processes every few milliseconds. Rows are the greatest sum in each stage, in MB and, less that of a
network of 0.01 million parameters (the libraries), in bytes of the weights. Pages of files, which
the system can drop when memory is short, are only in the last row. `stock` is the same for the
stock converters alone, `model.export`.
"""

from __future__ import annotations

import argparse
import os
import select
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from rows import median_row, write

_EVERY = 0.01  # seconds
_SIZE = "bytes of the weights: "
_LIBRARIES = 0.01  # million parameters, whose own memory is below the noise


def network(kind: str, millions: float):
    """Return a network of eight equal layers with batch renormalization between them."""
    import keras
    import renormlite as rl

    keras.utils.set_random_seed(0)
    layers = 8
    if kind == "dense":
        units = max(int((millions * 1e6 / layers) ** 0.5), 8)
        x = data = keras.Input((units,))
        for _ in range(layers):
            x = keras.layers.Dense(units, use_bias=False)(x)
            x = keras.layers.ReLU()(rl.BatchRenormalization()(x))
    else:
        filters = max(int((millions * 1e6 / layers / 9) ** 0.5), 8)
        x = data = keras.Input((8, 8, filters))
        for _ in range(layers):
            x = keras.layers.Conv2D(filters, 3, padding="same", use_bias=False)(x)
            x = keras.layers.ReLU()(rl.BatchRenormalization()(x))
        x = keras.layers.GlobalAveragePooling2D()(x)
    return keras.Model(data, x)


def work(options: argparse.Namespace) -> None:
    """Build the network and export it; print the name of each stage when it begins."""

    def begin(stage: str) -> None:
        os.write(1, f"{stage}\n".encode())  # in one piece

    begin("import")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    import numpy as np
    import renormlite as rl

    begin("build the network")
    model = network(options.network, options.millions)
    begin(f"{_SIZE}{4 * model.count_params()}")
    with tempfile.TemporaryDirectory() as folder:
        if options.way == "stock":
            shape = (1, *model.input_shape[1:])
            model(np.zeros(shape, np.float32))  # the stock ONNX export requires one call before
            for name, stock in (("tflite", "litert"), ("onnx", "onnx")):
                if name in options.to:
                    begin(f"stock {name}")
                    model.export(f"{folder}/net.{name}", format=stock, verbose=False)
            return
        before: list[str] = []

        def listen(progress: rl.export.progress.Progress) -> None:
            if progress.seconds is None:
                subject = progress.subject.partition(".")[2] or progress.subject
                before.append(f"{subject}: {progress.stage}")
                begin(before[-1])
            else:
                begin(f"after {before[-1]}")

        begin("before the first step")
        rl.export_model(
            model,
            f"{folder}/net",
            formats=options.to,
            precisions=(options.precision,),
            listener=listen,
        )


def stages(options: argparse.Namespace, millions: float) -> tuple[dict[str, float], float, int]:
    """Return the peaks of one run in MB, and the bytes of the weights.

    Returns:
        The peak of each stage without pages of files; the greatest one with them; the bytes.
    """
    worker = [sys.executable, __file__, "--worker", "--way", options.way]
    worker += ["--network", options.network, "--millions", str(millions), "--to", *options.to]
    worker += ["--precision", options.precision]
    peaks: dict[str, float] = {}
    stage, weights, with_files = "start", 0, 0.0
    with subprocess.Popen(worker, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        while process.poll() is None:
            if select.select([process.stdout], [], [], _EVERY)[0]:
                for line in os.read(process.stdout.fileno(), 1 << 16).decode().splitlines():
                    if line.startswith(_SIZE):
                        weights = int(line.removeprefix(_SIZE))
                    else:
                        stage = line
            used = [_resident_mb(member) for member in _family(process.pid)]
            peaks[stage] = max(peaks.get(stage, 0.0), sum(own for own, _ in used))
            with_files = max(with_files, sum(own + files for own, files in used))
    if process.returncode:
        raise SystemExit(f"the export failed with {process.returncode}")
    return peaks, with_files, weights


def _family(process: int) -> Iterator[int]:
    """Yield a process and all that it started."""
    yield process
    try:
        children = Path(f"/proc/{process}/task/{process}/children").read_text().split()
    except OSError:  # it has ended
        return
    for child in children:
        yield from _family(int(child))


def _resident_mb(process: int) -> tuple[float, float]:
    """Return the memory of a process, its own and pages of files, shared ones in equal parts."""
    try:
        lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0.0, 0.0
    sizes = {line.split()[0]: int(line.split()[1]) for line in lines[1:]}
    files = sizes.get("Pss_File:", 0)
    return (sizes.get("Pss:", 0) - files) * 1.024e-3, files * 1.024e-3


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--network", choices=("dense", "conv"), default="dense")
    parser.add_argument("--millions", type=float, default=80)
    parser.add_argument("--way", choices=("export", "stock"), default="export")
    parser.add_argument("--to", nargs="+", default=["tflite", "onnx"])
    parser.add_argument("--precision", default="float32")
    parser.add_argument("--json")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        work(options)
        return
    libraries = max(stages(options, _LIBRARIES)[0].values())
    peaks, with_files, weights = stages(options, options.millions)
    case = f"{options.network}, {options.precision}, {weights / 1e6:.0f} MB"
    rows = [
        median_row(case, f"{options.way}, libraries", "MB", [libraries]),
        *(
            median_row(case, f"{options.way}, {stage}", "MB", [peak])
            for stage, peak in peaks.items()
        ),
        median_row(case, f"{options.way}, peak", "MB", [max(peaks.values())]),
        median_row(
            case,
            f"{options.way}, (peak - libraries) / weights",
            "ratio",
            [(max(peaks.values()) - libraries) * 1e6 / weights],
        ),
        median_row(case, f"{options.way}, peak with pages of files", "MB", [with_files]),
    ]
    for row in rows:
        print(row, flush=True)
    write(rows, options.json)


if __name__ == "__main__":
    main()
