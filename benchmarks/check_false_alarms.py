"""Checks healthy exports and counts false alarms: networks x precisions x runtimes x seeds.

    python benchmarks/check_false_alarms.py [--seeds 3] [--networks NAME,…] [--precisions NAME,…]
        [--json OUT]

Prints, for each runtime, the number of checked files, the number of failed checks (each is a false
alarm), and the margin of the healthy files below every bound. Networks that `--json OUT` already
contains are not checked again, so that an interrupted run can be continued. Not counted as alarms
are files that a runtime cannot load or run, and files whose own numbers are that far from those of
the trained model (4-bit weights of a network that is too sensitive).
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import renormlite as rl
from check_networks import export
from layer_networks import LAYER_NETWORKS, export_layers
from outcomes import outcome_of
from renormlite.models.mlperf_tiny import NETWORKS
from rich.console import Console
from rich.table import Table

PRECISIONS = ("float32", "float16", "dynamic", "int8", "int16x8", "int4")
TARGETS = (
    "litert",
    "litert+builtin",
    "litert+reference",
    "tf-lite",
    "onnxruntime",
    "onnxruntime+disabled",
)
MORE_TARGETS = (
    *TARGETS,
    "litert-compiled",
    "tflite-runtime",
    "tflite-micro",
    "onnx-reference",
    "openvino",
)
# Targets that need another version of NumPy are left out where it is not installed.
_PACKAGES = {"tflite-runtime": "tflite_runtime"}


def main() -> None:
    warnings.simplefilter("ignore")
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--networks", default=",".join([*NETWORKS, *LAYER_NETWORKS]))
    parser.add_argument("--precisions", default=",".join(PRECISIONS))
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    rows: list[dict[str, Any]] = []
    if options.json and options.json.exists():
        rows = json.loads(options.json.read_text())
    done = {(row["network"], row["seed"]) for row in rows}
    for seed in range(options.seeds):
        for name in options.networks.split(","):
            if (name, seed) in done or (seed and name in LAYER_NETWORKS):
                continue
            rows.extend(_checked(name, seed, options.precisions.split(",")))
            if options.json:
                options.json.write_text(json.dumps(rows, indent=1))
    _print(rows)


def _checked(name: str, seed: int, precisions: Sequence[str]) -> list[dict[str, Any]]:
    """Export one network and check its files on every target that runs them."""
    listed = name in LAYER_NETWORKS
    with tempfile.TemporaryDirectory() as folder:
        directory = Path(folder) / name
        if listed:
            export_layers(name, directory, precisions)
        else:
            export(name, seed, directory, precisions)
        targets = [
            target
            for target in (MORE_TARGETS if listed else TARGETS)
            if target not in _PACKAGES or importlib.util.find_spec(_PACKAGES[target])
        ]
        report = rl.check_parity(directory, targets, per_op=listed or seed == 0)
    failed = [(r.artifact, r.target, r.reason) for r in report.results if not r.passed]
    print(name, seed, len(report.results), "checks, failed:", *failed, sep="\n  ", flush=True)
    return [_row(name, seed, result) for result in report.results]


def _row(name: str, seed: int, result: Any) -> dict[str, Any]:
    return {
        "network": name,
        "seed": seed,
        "artifact": result.artifact,
        "precision": result.precision,
        "target": result.target,
        "passed": result.passed,
        "failed": sorted({f.check for f in result.findings if not f.passed}),
        "reason": result.reason,
        "pooled": max((entry.pooled_ratio for entry in result.outputs), default=0.0),
        "worst": max((entry.worst_ratio for entry in result.outputs), default=0.0),
        "op ratio": max((check.ratio for check in result.ops), default=None),
        "ops": len(result.ops),
    }


_OUTCOMES = ("fail", "not run", "lossy")


def _print(rows: list[dict[str, Any]]) -> None:
    table = Table(title=f"{len(rows)} checks of healthy files", title_justify="left")
    for heading in (
        *("precision", "target", "checks", "alarms", *_OUTCOMES[1:]),
        *("pooled", "worst", "per op", "ops"),
    ):
        table.add_column(heading)
    for precision in PRECISIONS:
        for target in MORE_TARGETS:
            chosen = [r for r in rows if (r["precision"], r["target"]) == (precision, target)]
            if not chosen:
                continue
            ops = [r["op ratio"] for r in chosen if r["op ratio"] is not None]
            table.add_row(
                precision,
                target,
                str(len(chosen)),
                *(str(sum(outcome_of(r["failed"]) == kind for r in chosen)) for kind in _OUTCOMES),
                f"{max(r['pooled'] for r in chosen):.2f}",
                f"{max(r['worst'] for r in chosen):.2f}",
                f"{max(ops):.2f}" if ops else "-",
                str(sum(r["ops"] for r in chosen)),
            )
    Console().print(table)


if __name__ == "__main__":
    main()
