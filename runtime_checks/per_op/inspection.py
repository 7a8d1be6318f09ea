"""Inspects a file: weights against the network, and on demand every op against float64.

Runs on the host, where the file's format can be parsed.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ...artifacts.golden_set import GoldenSet
from ...artifacts.graphs import READERS, read_graph
from ...artifacts.graphs.base import ArtifactGraph
from ...artifacts.manifest import Artifact
from ...artifacts.network import Network, Node
from ...artifacts.precisions import Arithmetic, precision_named
from ...reference.altered_weights import exchanged_slices
from ...reference.channel_factors import differ_by_channels, exchanged_channels
from ...reference.constant_values import constant_nodes
from ...reference.file_noise import shares_ranges
from ...reference.file_weights import (
    WeightMatch,
    changed_in_places,
    file_weight,
    match_weights,
)
from ...reference.merged_affines import like, with_merged_affines
from ...reference.operators.activations import STEEP
from ...reference.operators.contractions import CONTRACTIONS
from ...reference.operators.indexing import INDEXING
from ...reference.operators.reductions import REDUCTIONS
from ...reference.pixel_inputs import numbers_of, with_pixels
from ...reference.saturation import with_saturated_constants
from ...reference.weight_forms import flattened_maps
from ...runtimes import Target
from ...runtimes.base import ArtifactError
from ..end_to_end.findings import Finding, TargetResult
from .culprit import Fault, name_fault, rounding_faults, static_faults, weight_faults
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


@dataclass(frozen=True)
class FileContents:
    """A file's graph, the network it was made from, and the state of that network's weights.

    Attributes:
        network: The network that the file should compute, with affines merged as in the file
            and its inputs the numbers that the file's pixels stand for.
        graph: The file.
        weights: Every weight of the network.
    """

    network: Network
    graph: ArtifactGraph
    weights: tuple[WeightMatch, ...]

    @classmethod
    def of(
        cls,
        path: Path,
        artifact: Artifact,
        network: Network,
        data: bytes | None = None,
        typical: Callable[[], Mapping[str, np.ndarray]] | None = None,
    ) -> FileContents:
        """Read a file.

        Args:
            path: The file.
            artifact: The manifest's entry of the file.
            network: The network it was made from.
            data: Its contents, if they have been read already.
            typical: Returns the typical samples of the export by input; None if there are none.

        Raises:
            UserError: It cannot be parsed.
        """
        graph = read_graph(path, artifact.format, data)
        graph = graph.in_order(*artifact.names)
        if typical is not None:
            network = with_saturated_constants(network, graph, artifact.precision, typical)
        network = with_pixels(with_merged_affines(network, graph), graph)
        weights = match_weights(network, graph, foreign=artifact.foreign)
        return cls(network, graph, tuple(weights))

    def conclusive(self, artifact: Artifact) -> bool:
        """Return whether correct weights and outputs prove the file correct.

        Not if a weight was not found, and not for a quantized file: its end-to-end bound is its
        error at export, so only its ops distinguish a fault at export from quantization loss.
        """
        found = all(match.state == "equal" for match in self.weights)
        return found and not precision_named(artifact.precision).quantized

    @property
    def output_names(self) -> list[str]:
        """Names of the file's outputs."""
        return [self.graph.tensors[key].name for key in self.graph.outputs]

    @functools.cached_property
    def _kernels(self) -> list[WeightMatch]:
        """The kernels of more than one number."""
        return [match for match in self.weights if match.role == "kernel" and match.size > 1]

    @property
    def of_another_training(self) -> bool:
        """Whether none of several kernels is the network's or derived from it.

        A converter merges or reorders some kernels, never all. In a file of integers, another
        calibration may have multiplied the channels of all.
        """
        unlike = all(kernel.state != "equal" and not kernel.remark for kernel in self._kernels)
        known = any(state is not None for state in self._scaled_kernels.values())
        return len(self._kernels) > 1 and unlike and not known

    @property
    def of_another_calibration(self) -> bool:
        """Whether no kernel of integers is the network's, but some are with scaled channels."""
        return "" in self._scaled_kernels.values()

    @property
    def beside_calibration(self) -> tuple[str, ...]:
        """How kernels differ that are not just those of the network with scaled channels."""
        return tuple(
            f"the kernel of layer '{layer}' is another one"
            if state is None
            else f"in layer '{layer}' {state}"
            for layer, state in self._scaled_kernels.items()
            if state != ""
        )

    @functools.cached_property
    def _scaled_kernels(self) -> dict[str, str | None]:
        """How each layer's kernel of integers differs from the network's with scaled channels.

        It is "" for no difference, a clause for exchanged channels, and None for another kernel. If
        a kernel is the network's own, possibly altered in a known way, there are none.
        """
        nodes = {node.name: node for node in self.network.nodes}
        maps = flattened_maps(self.network)
        if any(match.state == "equal" or match.remark for match in self._kernels):
            return {}
        integers = [tensor for tensor in self.graph.constants if tensor.quantization is not None]
        found = {}
        for match in self._kernels:
            node = nodes[match.node]
            kernel = node.arrays["kernel"].astype(np.float64)
            features = maps.get(match.node, ())
            alike = [
                file_weight(candidate, kernel.shape)
                for candidate in like(node, "kernel", integers, features)
            ]
            found[match.layer] = _with_scaled_channels(kernel, alike)
        return found

    @property
    def changed_in_places(self) -> bool:
        """Whether a kernel of floats differs in a way that no other layer can compensate."""
        nodes = {node.name: node for node in self.network.nodes}
        return any(changed_in_places(match, nodes[match.node]) for match in self.weights)

    @property
    def recognised(self) -> bool:
        """Whether every kernel is the network's, possibly altered."""
        found = any(match.state == "equal" for match in self._kernels)
        return found and all(match.state != "absent" for match in self._kernels)

    def summary(self) -> Finding:
        """Describe how many weights are the network's, for a file whose outputs are right."""
        weights = _distinct(self.weights)
        equal = sum(match.state == "equal" for match in weights)
        rest = len(weights) - equal
        others = (
            f"; {rest} folded, merged or scaled otherwise, which changes no output" if rest else ""
        )
        return Finding(
            "weights",
            True,
            f"{equal} of {len(weights)} weights are the trained model's{others}",
        )

    def findings(self) -> list[Finding]:
        """Return the verdict on the weights: one failure for each altered one."""
        weights = _distinct(self.weights)
        altered = [
            match
            for match in weights
            if match.state == "altered" and (match.remark or not self.of_another_calibration)
        ]
        if altered:
            return [Finding("weights", False, match.sentence, match.layer) for match in altered]
        equal = sum(match.state == "equal" for match in weights)
        rest = len(weights) - equal
        merged = (
            f"; {rest} merged or reordered by the converter, checked through the operators"
            if rest
            else ""
        )
        return [
            Finding(
                "weights",
                True,
                f"{equal} of {len(weights)} weights are those of the folded network, bit for "
                f"bit where they are floats, within half a step where quantized{merged}",
            )
        ]


def _with_scaled_channels(kernel: np.ndarray, candidates: Sequence[np.ndarray]) -> str | None:
    """Return "" if a candidate is a kernel with scaled channels, and which of them are exchanged.

    None if all are other kernels.
    """
    if any(differ_by_channels(kernel, candidate) for candidate in candidates):
        return ""
    for candidate in candidates:
        exchanged = exchanged_channels(kernel, candidate)
        if exchanged is not None:
            axis, places = exchanged
            moved = np.flatnonzero(places != np.arange(len(places)))
            return exchanged_slices(moved, places, axis, kernel.ndim, "kernel")
    return None


def _distinct(weights: Sequence[WeightMatch]) -> list[WeightMatch]:
    """Return each weight once, even if several steps of a recurrent layer use it."""
    found: dict[tuple[str, str, str], WeightMatch] = {}
    for match in weights:
        which = match.node if match.tensor is None else match.tensor.key
        found.setdefault((match.layer, match.role, which), match)
    return list(found.values())


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
    return faults + static_faults(walked.checks, contents.graph, contents.network.nodes)


def _all_right(walked: Walk, seen: Observation, network: Network) -> Finding:
    """Return the finding on a file without fault.

    If no op was evaluated although some could be, nothing was checked, which is a failure.
    """
    where = f" {seen.remark}" if seen.remark else ""
    blind = f"; not evaluated: {', '.join(walked.unchecked)}" if walked.unchecked else ""
    if not walked.checks:
        if constant_nodes(network).issuperset(network.outputs.values()):
            return Finding("ops", True, f"the outputs do not depend on the inputs{blind}")
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
