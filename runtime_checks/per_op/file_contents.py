"""The contents of a file, with the network it was made from and the state of its weights."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ...artifacts.graphs import read_graph
from ...artifacts.graphs.base import ArtifactGraph
from ...artifacts.manifest import Artifact
from ...artifacts.network import Network
from ...artifacts.precisions import precision_named
from ...reference.altered_weights import exchanged_slices
from ...reference.channel_factors import differ_by_channels, exchanged_channels
from ...reference.file_weights import (
    WeightMatch,
    changed_in_places,
    file_weight,
    match_weights,
)
from ...reference.merged_affines import like, with_merged_affines
from ...reference.pixel_inputs import with_pixels
from ...reference.saturation import with_saturated_constants
from ...reference.weight_forms import flattened_maps
from ..end_to_end.findings import Finding


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
        graph = read_graph(path, artifact.format, data, bounded=False)
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
