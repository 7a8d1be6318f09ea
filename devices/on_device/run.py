"""The program that the host sends to a device: runs files on inputs and writes the outputs.

It returns no verdict: the host has the truth and judges all targets in the same way. (A bundle
computes its own verdict: `runtime_checks/bundle/replay.py`.) It needs Python 3.9 or newer, NumPy
and one runtime. Exit codes: 0 the files were passed to the runtime, 2 they could not be.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from ...advance import Listener, listening, within
from ...artifacts.archive import load_arrays, save_arrays
from ...artifacts.manifest import Artifact
from ...artifacts.plain_json import plain
from ...artifacts.record import Record
from ...errors import UserError
from ...files import write_text
from ...runtimes import Target
from ...runtimes.application import unpack
from ...runtimes.machine import cpu, peak_memory_bytes
from ...runtimes.run import run_target

ARTIFACTS = "artifacts.json"
INPUTS = "inputs.npz"
_NOTED_EVERY_S = 0.5
INPUT = "input"  # prefix of each name, which could be that of an argument of numpy.savez


def main(program: str, arguments: Sequence[str] | None = None) -> int:
    """Run the files and return the exit code.

    Args:
        program: Path of the program's archive, which has its name.
        arguments: Command line; that of the process by default.
    """
    parser = argparse.ArgumentParser(prog=Path(program).name, description="Run the carried files.")
    parser.add_argument("--runtime", required=True, metavar="RUNTIME[+VARIANT]")
    parser.add_argument("--artifact", metavar="FILE", help="default: all, in one process")
    parser.add_argument("--threads", type=int, default=1, metavar="N")
    parser.add_argument("--json", required=True, metavar="OUT", help="what ran, how fast")
    parser.add_argument("--outputs", required=True, metavar="OUT.npz", help="as FILE:NAME")
    parser.add_argument("--progress", metavar="OUT", help="the share that is done, from 0 to 1")
    options = parser.parse_args(arguments)
    try:
        # Beside the archive, in the folder that is removed with it.
        with tempfile.TemporaryDirectory(dir=Path(program).parent) as folder:
            _run(Path(program), Path(folder), options)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


def _run(program: Path, folder: Path, options: argparse.Namespace) -> None:
    """Unpack, run each file, write the results."""
    unpack(program, folder)
    entries = json.loads((folder / ARTIFACTS).read_text(encoding="utf-8"))
    carried = load_arrays(folder / INPUTS)
    inputs = {name.partition(":")[2]: array for name, array in carried.items()}
    target = Target.parse(options.runtime)
    artifacts = [Artifact.from_json(Record(entry)) for entry in entries]
    chosen = [entry for entry in artifacts if options.artifact in (None, entry.file)]
    results, outputs = {}, {}
    note = _note(options.progress)
    for place, artifact in enumerate(chosen):
        path = folder / artifact.file
        with listening(note), within(artifact.file, place, len(chosen)):
            run = run_target(path, artifact, inputs, target, threads=options.threads)
        measured = {**run.measured, "peak_memory_bytes": peak_memory_bytes()}
        results[artifact.file] = {"ran": run.ran, "measured": measured, "problem": run.problem}
        outputs.update({f"{artifact.file}:{name}": array for name, array in run.outputs.items()})
    save_arrays(options.outputs, outputs)
    report = {"results": results, "cpu": cpu()}
    write_text(options.json, json.dumps(plain(report), allow_nan=False))


def _note(path: str | None) -> Listener:
    """Return a listener that writes the share that is done into a file, twice a second at most."""
    written = 0.0

    def listener(what: str, done: float, total: int) -> None:
        nonlocal written
        now = time.monotonic()
        if path is not None and now > written + _NOTED_EVERY_S:
            write_text(path, f"{done / total:.4f}")
            written = now

    return listener
