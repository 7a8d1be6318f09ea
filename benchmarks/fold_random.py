"""The fold without its proof on random networks of all public Keras layers, against Keras itself.

    python benchmarks/fold_random.py [--count 10000] [--start 0] [--prove] [--json FILE]

Every network is folded with `verify=False` and compared with the outputs of Keras in float64. With
`--prove` it is also folded with the proof, which must pass without undoing a fold. Prints every
network that is wrong or raises an exception; the exit code is then 1.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import warnings
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from fold_oracle import examine


def main() -> int:
    """Examine the networks of the requested seeds."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--start", type=int, default=0)
    parser.add_argument("--prove", action="store_true")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    totals = dict.fromkeys(("networks", "not run", "wrong", "raised", "norms", "folded"), 0)
    totals["without float64"] = 0
    for seed in range(options.start, options.start + options.count):
        totals["networks"] += 1
        try:
            verdict = examine(seed, prove=options.prove)
        except Exception as error:
            totals["raised"] += 1
            print(f"seed {seed}: {type(error).__name__}: {str(error).strip()[:300]}", flush=True)
            continue
        totals["not run"] += not verdict.runs
        totals["wrong"] += bool(verdict.problem)
        totals["norms"] += verdict.norms
        totals["folded"] += verdict.folded
        totals["without float64"] += not verdict.exact
        if verdict.problem:
            print(f"seed {seed}: {verdict.problem}", flush=True)
        if (seed + 1) % 100 == 0:
            print(totals, flush=True)
    print(totals)
    if options.json:
        options.json.write_text(json.dumps(totals, indent=2) + "\n")
    return 1 if totals["wrong"] or totals["raised"] else 0


if __name__ == "__main__":
    sys.exit(main())
