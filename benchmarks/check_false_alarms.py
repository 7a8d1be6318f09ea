"""Checks healthy exports and counts false alarms: networks x precisions x runtimes x seeds.

    python benchmarks/check_false_alarms.py [--seeds 3] [--json OUT]

Prints, for each runtime, how many files were checked, how many checks failed (each is a false
alarm), and how near the healthy files came to the limits: the headroom behind every bound.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import warnings
from pathlib import Path
from typing import Any

import renormlite as rl
from check_networks import export
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


def main() -> None:
    warnings.simplefilter("ignore")
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for seed in range(options.seeds):
        for name in NETWORKS:
            with tempfile.TemporaryDirectory() as folder:
                directory = export(name, seed, Path(folder) / name, PRECISIONS)
                report = rl.check_parity(directory, TARGETS, per_op=seed == 0)
            rows.extend(_row(name, seed, result) for result in report.results)
            print(name, seed, "failed:", [r.reason for r in report.results if not r.passed])
            if options.json:
                options.json.write_text(json.dumps(rows, indent=1))
    _print(rows)


def _row(name: str, seed: int, result: Any) -> dict[str, Any]:
    return {
        "network": name,
        "seed": seed,
        "artifact": result.artifact,
        "precision": result.precision,
        "target": result.target,
        "passed": result.passed,
        "reason": result.reason,
        "pooled": max(entry.pooled_ratio for entry in result.outputs),
        "worst": max(entry.worst_ratio for entry in result.outputs),
        "op ratio": max((check.ratio for check in result.ops), default=None),
        "ops": len(result.ops),
    }


def _print(rows: list[dict[str, Any]]) -> None:
    table = Table(title=f"{len(rows)} checks of healthy files", title_justify="left")
    for heading in ("precision", "target", "checks", "alarms", "pooled", "worst", "per op", "ops"):
        table.add_column(heading)
    for precision in PRECISIONS:
        for target in TARGETS:
            chosen = [r for r in rows if (r["precision"], r["target"]) == (precision, target)]
            if not chosen:
                continue
            ops = [r["op ratio"] for r in chosen if r["op ratio"] is not None]
            table.add_row(
                precision,
                target,
                str(len(chosen)),
                str(sum(not r["passed"] for r in chosen)),
                f"{max(r['pooled'] for r in chosen):.2f}",
                f"{max(r['worst'] for r in chosen):.2f}",
                f"{max(ops):.2f}" if ops else "-",
                str(sum(r["ops"] for r in chosen)),
            )
    Console().print(table)


if __name__ == "__main__":
    main()
