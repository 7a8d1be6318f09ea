"""Inspects a file: weights against the network, and on demand every op against float64.

Runs on the host, where the file's format can be parsed.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ...artifacts.golden_set import GoldenSet
from ...artifacts.graphs import READERS
from ...artifacts.graphs.base import ArtifactGraph
from ...artifacts.manifest import Artifact
from ...artifacts.network import Network, Node
from ...artifacts.precisions import Arithmetic, precision_named
from ...reference.constant_values import constant_nodes
from ...reference.file_noise import shares_ranges
from ...reference.operators.activations import STEEP
from ...reference.operators.contractions import CONTRACTIONS
from ...reference.operators.indexing import INDEXING
from ...reference.operators.reductions import REDUCTIONS
from ...reference.pixel_inputs import numbers_of
from ...runtimes import Target
from ...runtimes.base import ArtifactError
from ..end_to_end.findings import Finding, TargetResult
from .culprit import Fault, name_fault, rounding_faults, static_faults, weight_faults
from .file_contents import FileContents
from .fused_activations import fused_activation_faults
from .integer_rounding import IntegerReport, recognise
from .observation import Observation, RunFile, observe
from .op_results import Walk
from .rounding_chain import UNKNOWN_RULE
from .walk import walk

_SHARED = (
    "operators were not checked: dynamic quantization uses one range for all {size} samples of a "
    "batch, so samples are not independent; with batch size 1 operators are checked"
)


class Inspected(NamedTuple):
    """The operators of a file.

    Attributes:
        walk: Every operator's error; None when the file could not be run.
        faults: The faults by layer.
        findings: The findings.
        unknown_rule: Whether all operators are right, some by a rounding rule that is not known.
        proven: Samples of the golden set for which every operator of the target itself is right,
            those of integers by known rules to the bit.
    """

    walk: Walk | None
    faults: list[Fault]
    findings: list[Finding]
    unknown_rule: bool = False
    proven: tuple[int, ...] = ()


def readable(artifact: Artifact) -> bool:
    """Return whether the ops of an artifact can be read."""
    return artifact.format in READERS


# A wrong weight can make values overflow; the walk then reports that.
@np.errstate(over="ignore", invalid="ignore", divide="ignore")
def inspect(
    path: Path,
    artifact: Artifact,
    golden: GoldenSet,
    target: Target,
    contents: FileContents,
    result: TargetResult,
    run: RunFile,
    *,
    threads: int = 1,
) -> Inspected:
    """Check a file op by op and name the faults.

    Args:
        path: The file.
        artifact: The manifest's entry of the file.
        golden: The samples.
        target: Where it was run.
        contents: The file's graph, network and weights.
        result: The end-to-end verdict, whose worst samples are used first.
        run: Runs another file on the target.
        threads: Threads that the runtime may use.

    Returns:
        The walk, the faults, and the findings.
    """
    if shares_ranges(artifact):
        says = _SHARED.format(size=artifact.inputs[0].shape[0])
        return Inspected(None, [], [Finding("ops", True, says)])
    worst = [*_odd(result, golden), *(entry.worst_sample for entry in result.outputs)]
    try:
        seen = observe(
            path,
            artifact,
            contents.graph,
            golden,
            target,
            result.given,
            run,
            passed=result.passed,
            threads=threads,
            first=worst,
        )
    except ArtifactError as error:
        return Inspected(None, [], [Finding("ops", False, str(error))])
    exact = numbers_of(seen.inputs, contents.network, contents.graph)
    network = _in_one_piece(contents.network, artifact)
    walked = walk(
        network,
        contents.graph,
        seen.tensors,
        exact,
        contents.weights,
        in_pieces=_in_pieces(network, artifact),
        further=UNKNOWN_RULE if seen.own_rule else 0.0,
        half=seen.half,
    )
    integers = recognise(contents.graph, artifact.format, seen.tensors)
    if seen.own_rule and integers is not None:
        integers = integers.with_unknown_rule()
    faults = _faults(contents, walked, integers)
    if not faults and not result.passed:
        # Every op is within its worst-case bound, but the output is too noisy.
        faults = weight_faults(contents.weights, contents.graph, "absent")
    findings = [Finding("ops", False, fault.message, fault.layer) for fault in faults]
    if integers is not None and not integers.wrong:
        where = f"; seen {seen.remark}" if seen.remark else ""
        findings.append(Finding("rounding", True, integers.sentence + where))
    if not faults:
        findings.append(_all_right(walked, seen, contents.network))
    proven = _proven(contents.graph, artifact, seen, walked, integers, result) and not faults
    samples = tuple(int(place) for place in seen.index) if proven else ()
    return Inspected(walked, faults, findings, seen.own_rule and not faults, samples)


def _proven(
    graph: ArtifactGraph,
    artifact: Artifact,
    seen: Observation,
    walked: Walk,
    integers: IntegerReport | None,
    result: TargetResult,
) -> bool:
    """Return whether the outputs of integers follow from operators that were all compared.

    Each operator must have run on the target itself, with the outputs of the check.
    """
    if integers is None or integers.wrong or integers.by_unknown_rule or walked.unchecked:
        return False
    if seen.remark or not walked.checks:
        return False
    for key, spec in zip(graph.outputs, artifact.outputs):
        array, given = seen.tensors.get(key), result.given.get(spec.keras_name)
        if array is None or given is None:
            return False
        real = array if array.dtype.kind == "f" else graph.tensors[key].real(array)
        known = given[seen.index]
        known = known if spec.axes is None else np.transpose(known, spec.axes)
        if real.size != known.size or not np.array_equal(
            real.astype(known.dtype).reshape(known.shape), known
        ):
            return False
    return True


def _odd(result: TargetResult, golden: GoldenSet) -> list[int]:
    """Return a sample with NaN or infinity where the trained model has none, if there is one.

    One is enough to find the op and leaves room for other samples.
    """
    for name, given in result.given.items():
        known = golden.reference.get(name)
        if known is not None and known.shape == given.shape:
            wrong = (np.isfinite(given) != np.isfinite(known)).reshape(len(given), -1).any(axis=1)
            if wrong.any():
                return [int(np.argmax(wrong))]
    return []


def _in_one_piece(network: Network, artifact: Artifact) -> Network:
    """Return the network with layers that a quantized file splits marked as opaque.

    A grouped Conv3D is written as a split, one convolution a group and a concatenation. Each piece
    rounds to steps of its own, of which the network knows nothing.
    """
    if not precision_named(artifact.precision).quantized:
        return network
    nodes = [
        replace(node, op="opaque") if node.op == "conv" and _pieces(node) > 1 else node
        for node in network.nodes
    ]
    return replace(network, nodes=tuple(nodes))


# Operators that only traced layers have.
_PRIMITIVES = {*CONTRACTIONS, *REDUCTIONS, *INDEXING, *STEEP, "divide", "power", "select"}

# Nodes of a layer with an operator of its own: a separable convolution and its activation.
_MOST_OWN = 3


def _in_pieces(network: Network, artifact: Artifact) -> frozenset[str]:
    """Return the layers whose primitives an integer file may round at other points.

    A converter writes a square as a product, a quotient as a reciprocal and a product, and gives
    each result its own steps.
    """
    if precision_named(artifact.precision).arithmetic is not Arithmetic.INTEGER:
        return frozenset()
    count = Counter(node.layer for node in network.nodes)
    names = {node.layer for node in network.nodes if node.op in _PRIMITIVES}
    return frozenset(names | {layer for layer, n in count.items() if n > _MOST_OWN})


def _pieces(node: Node) -> int:
    return int(node.attributes.get("groups", 1)) if node.arrays["kernel"].ndim == 5 else 1


def _faults(contents: FileContents, walked: Walk, integers: IntegerReport | None) -> list[Fault]:
    """Return the faults, one per layer, the first op at fault first."""
    faults = [name_fault(culprit, contents.weights) for culprit in walked.culprits]
    blamed = {fault.layer for fault in faults}
    more = weight_faults(contents.weights, contents.graph)
    if integers is not None and not faults:
        more.extend(rounding_faults(integers, walked.checks))
    faults.extend(fault for fault in more if fault.layer not in blamed)
    # After a kernel that is wrong throughout, other ops may be taken for its own.
    altered = {match.layer for match in contents.weights if match.state == "altered"}
    faults.sort(key=lambda fault: fault.layer not in altered)
    faults += static_faults(walked.checks, contents.graph, contents.network.nodes)
    blamed = {fault.layer for fault in faults}
    fused = fused_activation_faults(contents.weights, contents.graph, contents.network)
    return faults + [fault for fault in fused if fault.layer not in blamed]


def _all_right(walked: Walk, seen: Observation, network: Network) -> Finding:
    """Return the finding on a file without fault.

    If no op was evaluated although some could be, nothing was checked, which is a failure.
    """
    where = f" {seen.remark}" if seen.remark else ""
    blind = f"; not evaluated: {', '.join(walked.unchecked)}" if walked.unchecked else ""
    if not walked.checks:
        given = constant_nodes(network).union(network.inputs)
        if given.issuperset(network.outputs.values()):
            return Finding("ops", True, f"every output is a constant or an input{blind}")
        return Finding("ops", bool(walked.unchecked), f"no op could be evaluated by itself{blind}")
    count = len(walked.checks)
    ops = "1 op" if count == 1 else f"each of {count} ops"
    worst = max(check.ratio for check in walked.checks)
    return Finding(
        "ops",
        True,
        f"{ops} agrees with float64 within its bound{where} (greatest error {worst:.2f} of the "
        f"bound){blind}",
    )
