"""Looks inside a file: weights against the network, and on demand every op against float64.

Works on the host, where the file's format can be parsed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..errors import UserError
from .culprit import Fault, name_fault, static_faults, weight_faults
from .golden import GoldenSet
from .graphs import READERS, read_graph
from .graphs.base import ArtifactGraph
from .kinds import BORDER, EXTREME, NONFINITE, RANDOM, REAL, SEARCH
from .network import Network
from .records import Artifact
from .runners import LOCAL, Target, make_runner
from .runners.base import ArtifactError, TensorReader
from .session import Session
from .verdict import Finding, TargetResult
from .walk import Walk, walk
from .weights import WeightMatch, match_weights

# Where ops are looked at when the target itself shows no tensors.
_READERS = {"tflite": "litert", "onnx": "onnxruntime+disabled"}

# Samples that the walk evaluates; a walk of MobileNetV2 costs 0.15 s for each.
WALK_SAMPLES = 4

# Kinds of samples by what a walk learns from them; denormal ones only where they failed.
_WALKED = (REAL, BORDER, EXTREME, RANDOM, SEARCH)


@dataclass(frozen=True)
class Anatomy:
    """A file's graph, the network it was made from, and what became of that network's weights.

    Attributes:
        network: What the file should compute.
        graph: The file.
        weights: Every weight of the network.
    """

    network: Network
    graph: ArtifactGraph
    weights: tuple[WeightMatch, ...]

    @classmethod
    def of(cls, path: Path, artifact: Artifact, network: Network) -> Anatomy:
        """Read a file.

        Raises:
            UserError: It cannot be parsed.
        """
        graph = read_graph(path, artifact.format)
        return cls(network, graph, tuple(match_weights(network, graph)))

    def conclusive(self, artifact: Artifact) -> bool:
        """Return whether weights and outputs suffice to call a healthy file healthy.

        Not where a weight was not found, and not for a quantized file: its bound end to end is what
        it did when it was exported, so that only its ops tell a fault of then from a loss.
        """
        found = all(match.state == "equal" for match in self.weights)
        return found and artifact.precision in ("float32", "float16")

    def findings(self) -> list[Finding]:
        """Return the verdict on the weights: one failure for each altered one."""
        altered = [match for match in self.weights if match.state == "altered"]
        if altered:
            return [Finding("weights", False, match.sentence, match.layer) for match in altered]
        equal = sum(match.state == "equal" for match in self.weights)
        rest = len(self.weights) - equal
        merged = f"; {rest} merged or reordered by the converter, left to the ops" if rest else ""
        return [
            Finding(
                "weights",
                True,
                f"{equal} of {len(self.weights)} weights are those of the folded network, bit for "
                f"bit where they are floats, within half a step where quantized{merged}",
            )
        ]


def readable(artifact: Artifact) -> bool:
    """Return whether the ops of an artifact can be read."""
    return artifact.format in READERS


def walk_artifact(
    path: Path,
    artifact: Artifact,
    golden: GoldenSet,
    target: Target,
    anatomy: Anatomy,
    *,
    threads: int = 1,
    first: Sequence[int] = (),
) -> tuple[Walk, Target]:
    """Check a file op by op on a target.

    Args:
        path: The file.
        artifact: What the manifest says of it.
        golden: Where the samples are taken from.
        target: The runtime; one that shows no tensors is stood in for by one that does.
        anatomy: What the file holds and should hold.
        threads: Threads that the runtime may use.
        first: Samples to look at before others: those that failed.

    Returns:
        The walk, and the target that it ran on.
    """
    index = _choose(golden, first)
    inputs = {name: array[index] for name, array in golden.inputs.items()}
    stand_in = Target.parse(_READERS[artifact.format])
    if target.device != LOCAL:
        target = stand_in
    runner = make_runner(target, path, threads=threads)
    if not isinstance(runner, TensorReader):
        target = stand_in
        runner = make_runner(target, path, threads=threads)
    assert isinstance(runner, TensorReader)
    with runner:
        session = Session(runner, artifact)
        if session.batch_size != 1:
            raise UserError(
                f"{artifact.file} has the batch size {session.batch_size}; ops are checked on "
                "files with the batch size 1."
            )
        runs = [runner.infer_all(session.batch(inputs, sample)) for sample in range(len(index))]
    tensors = {
        key: np.stack([run[key] for run in runs])
        for key in runs[0]
        if all(key in run and run[key].shape == runs[0][key].shape for run in runs)
    }
    exact = {name: array.astype(np.float64) for name, array in inputs.items()}
    return walk(anatomy.network, anatomy.graph, tensors, exact, anatomy.weights), target


def inspect(
    path: Path,
    artifact: Artifact,
    golden: GoldenSet,
    target: Target,
    anatomy: Anatomy,
    result: TargetResult,
    *,
    threads: int = 1,
) -> tuple[Walk | None, list[Fault], list[Finding]]:
    """Walk a file and name what is at fault.

    Args:
        path: The file.
        artifact: What the manifest says of it.
        golden: The samples.
        target: Where it was run.
        anatomy: What the file holds and should hold.
        result: The verdict end to end: its worst samples are looked at first.
        threads: Threads that the runtime may use.

    Returns:
        The walk (None when the file could not be run), the faults, and the findings.
    """
    worst = [entry.worst_sample for entry in result.outputs]
    try:
        walked, used = walk_artifact(
            path, artifact, golden, target, anatomy, threads=threads, first=worst
        )
    except ArtifactError as error:
        return None, [], [Finding("ops", False, str(error))]
    faults = [name_fault(culprit, anatomy.weights) for culprit in walked.culprits]
    seen = {fault.layer for fault in faults}
    faults.extend(f for f in weight_faults(anatomy.weights, anatomy.graph) if f.layer not in seen)
    faults.extend(static_faults(walked.checks, anatomy.graph, anatomy.network.nodes))
    if not faults and not result.passed:
        # Every op is within its worst-case bound and yet the whole is too noisy.
        faults.extend(weight_faults(anatomy.weights, anatomy.graph, "absent"))
    if faults:
        failed = [Finding("ops", False, fault.message, fault.layer) for fault in faults]
        return walked, faults, failed
    where = "" if used == target else f" on {used}, since {target} shows no tensors"
    blind = f"; not evaluated: {', '.join(walked.unchecked)}" if walked.unchecked else ""
    worst_ratio = max((check.ratio for check in walked.checks), default=0.0)
    return (
        walked,
        [],
        [
            Finding(
                "ops",
                bool(walked.checks),
                f"each of {len(walked.checks)} ops agrees with float64 within its bound{where} "
                f"(greatest error {worst_ratio:.2f} of the bound){blind}",
            )
        ],
    )


def _choose(golden: GoldenSet, first: Sequence[int]) -> np.ndarray:
    """Return samples to walk: the given ones, then every kind in turn.

    No sample with NaN or infinity: what an op makes of those says nothing about the op.
    """
    usable = golden.kind != NONFINITE
    order = [i for i in dict.fromkeys(int(index) for index in first) if usable[i]]
    kinds = [kind for kind in _WALKED if kind in golden.kind]
    kinds += sorted(set(golden.kind[usable]) - set(kinds))
    by_kind = {kind: list(np.flatnonzero(golden.kind == kind)) for kind in kinds}
    while len(order) < min(WALK_SAMPLES, int(usable.sum())):
        for places in by_kind.values():
            while places and int(places[0]) in order:
                places.pop(0)
            if places and len(order) < WALK_SAMPLES:
                order.append(int(places.pop(0)))
    return np.array(order[:WALK_SAMPLES])
