"""The program of a bundle: verify its files, run them, print and write the verdict.

Needs Python 3.9 or newer, NumPy and one runtime. Exit codes: 0 the checks passed, 1 one failed, 2
it could not be run. `write` makes the bundle.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ...artifacts.archive import save_arrays
from ...artifacts.directory import ExportDirectory, read_export
from ...artifacts.manifest import Artifact
from ...artifacts.plain_json import plain
from ...errors import UserError
from ...files import write_text
from ...runtimes import LOCAL, RUNTIMES, Target
from ...runtimes.application import unpack
from ...runtimes.machine import host, peak_memory_bytes
from ...runtimes.run import run_target
from ..end_to_end.target_check import judge_run
from ..end_to_end.thread_counts import parse_threads
from ..report.json_report import result_record

SCHEMA = "renormlite/replay/1"


def main(bundle: str, arguments: Sequence[str] | None = None) -> int:
    """Run a bundle and return its exit code.

    Args:
        bundle: Path of the bundle's archive, which has the name of the bundle.
        arguments: Command line; that of the process by default.
    """
    options = _parser(bundle).parse_args(arguments)
    try:
        # Beside the archive, in the folder that is removed with it.
        with tempfile.TemporaryDirectory(dir=Path(bundle).parent) as folder:
            return _replay(Path(bundle), Path(folder), options)
    except UserError as error:
        print(f"{Path(bundle).name}: {error}", file=sys.stderr)
        return 2


def _parser(bundle: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=f"python3 {Path(bundle).name}",
        description="Check on this machine that the bundled files compute what was trained.",
        epilog="Exit codes: 0 passed, 1 a check failed, 2 could not be run.",
    )
    parser.add_argument(
        "--runtime",
        metavar="RUNTIME[+VARIANT]",
        help=f"one of {', '.join(RUNTIMES)}; default: the first one installed",
    )
    parser.add_argument("--artifact", metavar="FILE", help="default: each file the runtime loads")
    parser.add_argument(
        "--threads",
        default="1",
        metavar="N[,N…]",
        help="threads of the runtime; several numbers, as in 1,4, are compared; default: 1",
    )
    parser.add_argument("--json", metavar="OUT", help="write the verdict and all metrics here")
    parser.add_argument(
        "--outputs",
        metavar="OUT.npz",
        help="write the outputs here, each by its name, or as FILE:NAME where several files ran",
    )
    parser.add_argument("--list", action="store_true", help="list the carried files and stop")
    return parser


def _replay(bundle: Path, folder: Path, options: argparse.Namespace) -> int:
    """Unpack, choose, run and report."""
    unpack(bundle, folder)
    export = read_export(folder)
    if options.list:
        for artifact in export.artifacts:
            print(f"{artifact.file}  {artifact.format} {artifact.precision}")
        return 0
    target = Target.parse(options.runtime) if options.runtime else _installed(export)
    if target.device != LOCAL:
        raise UserError(
            f"A bundle runs on the machine that starts it. Received the device '{target.device}'."
        )
    artifacts = _chosen(export, target, options.artifact)
    golden = export.read_golden()
    counts = parse_threads(options.threads)
    records = []
    arrays: dict[str, Any] = {}
    for artifact in artifacts:
        path = export.path / artifact.file
        run, *others = (
            run_target(path, artifact, golden.inputs, target, threads=n) for n in counts
        )
        result = judge_run(export, artifact, golden, target, run, others)
        records.append(_record(result_record(result), target, run.outputs))
        _print(records[-1])
        prefix = f"{artifact.file}:" if len(artifacts) > 1 else ""
        arrays.update({prefix + name: array for name, array in run.outputs.items()})
    if options.artifact is None:
        for sentence in _not_run(export, target):
            print(sentence)
    if options.outputs:
        save_arrays(options.outputs, arrays)
    passed = all(record["verdict"] == "pass" for record in records)
    if options.json:
        whole = records[0] if len(records) == 1 else _several(records, target, passed)
        write_text(options.json, json.dumps(plain(whole), indent=2, allow_nan=False) + "\n")
    return 0 if passed else 1


def _installed(export: ExportDirectory) -> Target:
    """Return the first installed runtime of the table that loads a bundled file."""
    formats = {artifact.format for artifact in export.artifacts}
    wanted = {
        name: entry
        for name, entry in RUNTIMES.items()
        if entry.home == LOCAL and formats & set(entry.formats)
    }
    for name, entry in wanted.items():
        if entry.installed:
            return Target(name)
    first, *others = (f"pip install {entry.install}" for entry in wanted.values())
    also = "".join(f"; or {line}" for line in dict.fromkeys(others) if line != first)
    raise UserError(f"No runtime is installed. Install one: {first}{also}")


def _not_run(export: ExportDirectory, target: Target) -> list[str]:
    """Return a line for each file that the target does not load, with a way to run it."""
    lines = []
    for artifact in export.artifacts:
        if artifact.format in target.formats:
            continue
        able = [
            (name, entry)
            for name, entry in RUNTIMES.items()
            if entry.home == LOCAL and artifact.format in entry.formats
        ]
        here = next((name for name, entry in able if entry.installed), None)
        how = f"--runtime {here} runs it" if here else f"pip install {able[0][1].install}"
        lines.append(f"NOT RUN  {artifact.file}: {target} does not load .{artifact.format} ({how})")
    return lines


def _chosen(export: ExportDirectory, target: Target, file: str | None) -> list[Artifact]:
    """Return the artifacts to run."""
    fitting = [entry for entry in export.artifacts if entry.format in target.formats]
    names = ", ".join(entry.file for entry in fitting) or "none"
    if file is None:
        if not fitting:
            raise UserError(f"'{target}' loads none of the carried files.")
        return fitting
    chosen = [entry for entry in fitting if entry.file == file]
    if not chosen:
        raise UserError(
            f"--artifact must be one of the carried files that '{target}' loads: {names}. "
            f"Received: '{file}'."
        )
    return chosen


def _record(
    record: dict[str, Any], target: Target, outputs: Mapping[str, np.ndarray]
) -> dict[str, Any]:
    """Add the identity of the device and its exact outputs to a result."""
    hashes = {
        name: hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()
        for name, array in outputs.items()
    }
    machine = host()
    ran = record["ran"]
    return {
        "schema": SCHEMA,
        **record,
        "runtime": target.runtime,
        "versions": {**ran.get("versions", {}), "numpy": np.__version__},
        "cpu": machine["cpu"],
        "host": machine,
        "outputs_sha256": hashes,
        "peak_memory_bytes": peak_memory_bytes(),
    }


def _several(records: list[dict[str, Any]], target: Target, passed: bool) -> dict[str, Any]:
    """Return the record of several artifacts."""
    return {
        "schema": SCHEMA,
        "runtime": target.runtime,
        "verdict": "pass" if passed else "fail",
        "results": records,
    }


def _print(record: Mapping[str, Any]) -> None:
    """Print one verdict, and each failure as a sentence."""
    latency = record.get("latency_ms", {}).get("median")
    shown = "" if latency is None else f", {latency:.3g} ms"
    print(f"{record['verdict'].upper()}  {record['artifact']} on {record['target']}{shown}")
    for finding in record["findings"]:
        if not finding["passed"] or finding["check"] == "threads":
            print(f"  {finding['message']}")
