"""The results of checking a file op by op: passed checks, and culprits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from ...artifacts.graphs.base import GraphOp
from ...artifacts.network import Node
from .storage import Storage


@dataclass(frozen=True)
class OpCheck:
    """One node of the network with a tensor in the file, and its error relative to the bound.

    Attributes:
        node: The network's node.
        layer: Its Keras layer.
        fused: Nodes that the same op computes before it.
        op: The op of the file that computed the tensor; None for a graph input.
        ratio: Greatest |got - expected| over its bound; at most 1.
        max_abs: Greatest |got - expected|.
        drift: Root mean square error of this op alone, relative to the expected value's.
        accumulated: The same for everything up to this op, against the network evaluated in
            float64 from the true inputs.
    """

    node: str
    layer: str
    fused: tuple[str, ...]
    op: GraphOp | None
    ratio: float
    max_abs: float
    drift: float
    accumulated: float


@dataclass(frozen=True)
class Culprit:
    """The first op whose inputs were right and whose output was not.

    Attributes:
        node: The network's node, with the file's weights where these are right.
        layer: Its Keras layer.
        segment: The nodes from it to the one that the tensor belongs to, with the same weights.
        key: The file's tensor; empty if no tensor of its size remains.
        op: The op of the file that computes it; None without a tensor.
        storage: How the tensor stores numbers.
        inputs: Network value to the runtime's tensor, (P, …), that it was computed from.
        expected: (P, …) float64.
        allowed: (P, …) bound on the error.
        got: (P, …) the runtime's tensor; None if there is none.
    """

    node: Node
    layer: str
    segment: tuple[Node, ...]
    key: str
    op: GraphOp | None
    storage: Storage
    inputs: Mapping[str, np.ndarray] = field(repr=False)
    expected: np.ndarray = field(repr=False)
    allowed: np.ndarray = field(repr=False)
    got: np.ndarray | None = field(repr=False)


@dataclass(frozen=True)
class Walk:
    """The result of walking a file.

    Attributes:
        checks: Every node that has a tensor.
        culprits: Nodes at fault, in the order of the network.
        unchecked: Layers that could not be evaluated, and those after them.
    """

    checks: tuple[OpCheck, ...]
    culprits: tuple[Culprit, ...]
    unchecked: tuple[str, ...]
