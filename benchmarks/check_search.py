"""Compares the search for the worst inputs with random inputs, with the same number of runs.

    python benchmarks/check_search.py [--networks NAME,…] [--units 16] [--runs 200] [--seed 0]
        [--json FILE]

Measures two things. *Hidden faults*: one random unit after a relu of the folded network is clipped
1 % above the largest value that it has for any golden sample, so that no golden sample shows the
fault. The table counts the faults that each kind of search reveals (error above the limit of one
sample). Not every unit can reach such values within the range of the data. *Healthy files*: the
largest error over the noise, or over the usual error of a quantized file, that each kind of search
finds.

Random inputs are half uniform within the range of the data, half real ones with normal noise of a
quarter of that range.
"""

from __future__ import annotations

import argparse
import dataclasses
import tempfile
from pathlib import Path

import numpy as np
import renormlite as rl
from check_networks import NAMES, export
from renormlite.artifacts.directory import ExportDirectory, read_export
from renormlite.artifacts.golden_set import GoldenSet, read_golden
from renormlite.artifacts.network import Network
from renormlite.artifacts.precisions import WORST_SAMPLE_LIMIT
from renormlite.artifacts.sample_kinds import representative
from renormlite.models import digits
from renormlite.reference.gradients import evaluated
from renormlite.reference.network import evaluate_network
from renormlite.runtime_checks.search.explorer import explore
from renormlite.runtime_checks.search.probe import Objective, Run
from renormlite.runtime_checks.search.search import usual_error
from renormlite.runtimes import Target, make_runner
from renormlite.runtimes.session import Session
from rows import Row, count_row, median_row, write

# Kind of search to the share of runs that maximize single units.
WAYS = {"reach": 1.0, "climb": 0.0, "both": 0.5}


def random_search(objective: Objective, golden: GoldenSet, runs: int, seed: int) -> float:
    """Return the largest ratio of random inputs."""
    rng = np.random.default_rng(seed)
    (name,) = golden.inputs
    real = golden.inputs[name][golden.kind == "real"]
    low, high = real.min(), real.max()
    worst = 0.0
    for turn in range(runs // 4):
        x = rng.uniform(low, high, (4, *real.shape[1:]))
        if turn % 2:
            near = real[rng.integers(0, len(real), 4)]
            x = np.clip(near + rng.normal(0, 0.25 * (high - low), near.shape), low, high)
        worst = max(worst, float(objective({name: x.astype(np.float32)}).ratio.max()))
    return worst


def compared(objective: Objective, golden: GoldenSet, runs: int, seed: int) -> dict[str, float]:
    """Return the largest ratio that each kind of search finds."""
    found = {"random": random_search(objective, golden, runs, seed)}
    for way, share in WAYS.items():
        result = explore(objective, golden, runs=runs, keep=1, seed=seed, reaching=share)
        found[way] = float(result.worst.ratio[0])
    return found


def clipped(network: Network, golden: GoldenSet, rng: np.random.Generator) -> Network:
    """Return the network with one unit clipped just above its values for the golden set."""
    known = golden.select(np.flatnonzero(representative(golden.kind)))
    values = evaluated(network, known.inputs)
    relus = [n for n in network.nodes if n.op == "relu" and n.attributes.get("max_value") is None]
    node = relus[rng.integers(len(relus))]
    value = values[node.name]
    channel = rng.integers(value.shape[-1])
    top = np.full(value.shape[-1], np.inf)
    top[channel] = 1.01 * value[..., channel].max()
    other = dataclasses.replace(node, attributes={**node.attributes, "max_value": top})
    return dataclasses.replace(
        network, nodes=tuple(other if n is node else n for n in network.nodes)
    )


def in_float32(network: Network) -> Run:
    """Return a function that runs a network in float32."""
    return lambda inputs: evaluate_network(network, inputs, dtype=np.float32)


def exported(name: str, seed: int, folder: Path) -> Path:
    """Export a network as float32 and int8 and return the directory."""
    precisions = ("float32", "int8")
    if name != "digits":
        return export(name, seed, folder / name, precisions)
    trained = digits.train(epochs=2)
    images = trained.test.x
    rl.export_model(
        trained.model, folder / name, precisions=precisions, calibration=images, inputs=images[:16]
    )
    return folder / name


def hidden_faults(
    name: str, network: Network, golden: GoldenSet, options: argparse.Namespace
) -> list[Row]:
    """Plant faults in the network and count those that each kind of search reveals."""
    rng = np.random.default_rng(options.seed)
    counts = dict.fromkeys(("random", *WAYS), 0)
    for _ in range(options.units):
        bad = Objective(network, in_float32(clipped(network, golden, rng)), {})
        for way, ratio in compared(bad, golden, options.runs, options.seed).items():
            counts[way] += ratio > WORST_SAMPLE_LIMIT
    case = f"{name}: of {options.units} hidden faults, found"
    return [count_row(case, way, counts[way]) for way in counts]


def largest_errors(
    one: ExportDirectory, network: Network, golden: GoldenSet, options: argparse.Namespace
) -> list[Row]:
    """Return the largest error of each file for its golden samples and in each kind of search."""
    rows = []
    for artifact in one.artifacts:
        target = Target("litert" if artifact.format == "tflite" else "onnxruntime")
        with make_runner(target, one.path / artifact.file) as runner:
            run = Session(runner, artifact).run
            objective = Objective(network, run, usual_error(artifact, golden))
            usual = golden.select(np.flatnonzero(golden.kind == "real"))
            ratios = {"golden samples": float(objective(usual.inputs).ratio.max())}
            ratios |= compared(objective, golden, options.runs, options.seed)
        case = f"{artifact.file}: largest error"
        rows += [median_row(case, way, "ratio", [ratio]) for way, ratio in ratios.items()]
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--networks", default="digits", help=f"digits, {', '.join(NAMES)}")
    parser.add_argument("--units", type=int, default=16)
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json")
    options = parser.parse_args()
    rows: list[Row] = []
    for name in options.networks.split(","):
        with tempfile.TemporaryDirectory() as folder:
            one = read_export(exported(name, options.seed, Path(folder)))
            golden = read_golden(one.golden, [spec.name for spec in one.outputs])
            network = one.read_network(one.artifacts[0])
            assert network is not None
            rows += hidden_faults(name, network, golden, options)
            rows += largest_errors(one, network, golden, options)
    print(*rows, sep="\n")
    write(rows, options.json)


if __name__ == "__main__":
    main()
