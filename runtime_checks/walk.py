"""Op by op: does every op of a file compute what the folded network says, from its own inputs?

The network is evaluated in float64, node by node. Each node reads the *runtime's own* tensors where
the file has one for its input, so an error made upstream is not counted again. The expected value
carries a bound: what rounding in that op may add. A tensor of the file that agrees with a node's
expected value within that bound is that node's tensor; names play no part in it. Where a converter
fused several nodes into one op, only the last of them has a tensor, and values and bounds are
carried through the ones before.

A node is *accounted for* when it has a tensor or all that read it are accounted for. The first that
is not, though everything it reads is right, is the culprit. To look behind it, the walk takes the
file's tensor for what it is and goes on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from .bounds import UNIT_ROUNDOFF
from .graphs.base import ArtifactGraph, GraphOp, GraphTensor
from .network import Network, Node
from .weights import WeightMatch, file_weight

# Elements of a tensor that are compared first: most pairs of tensors are told apart by these.
_PROBE = 64

# An integer result is the nearest step to the exact one; kernels that scale by a fixed-point
# multiplier round twice, which measured 0.507 steps at most (docs/checks.md).
_LINEAR_STEPS = 0.51
# Look-up tables and integer approximations of activations, means and softmax: within one step.
_OTHER_STEPS = 1.01
_LINEAR = ("conv", "depthwise_conv", "conv_transpose", "dense", "einsum")

# Deviations that the sum of independent rounding errors may have: one element in 4e11 has more.
_DEVIATIONS = 7.0

# A tensor says something about a node only where the bound is small beside the values: carried
# through several ops it may grow until anything agrees with it.
_MEANINGFUL = 0.25

_QUANTIZING = ("QUANTIZE", "QuantizeLinear")
_MOVING = ("Transpose", "Reshape", "Squeeze", "Unsqueeze", "TRANSPOSE", "RESHAPE")

_MAX_FAULTS = 3


@dataclass(frozen=True)
class OpCheck:
    """One node of the network that has a tensor in the file, and how near it came to its bound.

    Attributes:
        node: The network's node.
        layer: Its Keras layer.
        fused: Nodes that the same op computes on the way.
        op: The op of the file that wrote the tensor; None for a graph input.
        ratio: Greatest |got - expected| over its bound; at most 1.
        max_abs: Greatest |got - expected|.
        drift: Root mean square error relative to the expected value's: of this op by itself.
        accumulated: The same against the network evaluated in float64 from the true inputs: of
            everything up to this op.
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
        node: The network's node.
        layer: Its Keras layer.
        segment: The nodes from it to the one that the tensor belongs to.
        op: The op of the file that computes it; None when no tensor of its size is left.
        inputs: Network value to the runtime's tensor, (P, …), that it was computed from.
        expected: (P, …) float64.
        allowed: (P, …) bound on the error.
        got: (P, …) the runtime's tensor; None when there is none.
    """

    node: Node
    layer: str
    segment: tuple[Node, ...]
    op: GraphOp | None
    inputs: Mapping[str, np.ndarray] = field(repr=False)
    expected: np.ndarray = field(repr=False)
    allowed: np.ndarray = field(repr=False)
    got: np.ndarray | None = field(repr=False)


@dataclass(frozen=True)
class Walk:
    """The result of walking a file.

    Attributes:
        checks: Every node that has a tensor.
        culprits: Nodes at fault, in the order of the network; empty when all is well.
        unchecked: Layers that could not be evaluated, and those behind them that could not either.
    """

    checks: tuple[OpCheck, ...]
    culprits: tuple[Culprit, ...]
    unchecked: tuple[str, ...]


def walk(
    network: Network,
    graph: ArtifactGraph,
    tensors: Mapping[str, np.ndarray],
    inputs: Mapping[str, np.ndarray],
    weights: Sequence[WeightMatch],
) -> Walk:
    """Check a file op by op.

    Args:
        network: The folded network.
        graph: The file.
        tensors: Key to (P, …): what the runtime computed for each of P samples.
        inputs: Keras input name to the (P, …) floats that it was fed.
        weights: What became of each weight: quantized ones that lie within half a step are taken
            from the file, so that their rounding is not blamed on the op.

    Returns:
        Every op's distance to its bound, and the culprits.
    """
    walker = _Walker(network, graph, tensors, inputs, weights)
    forced: dict[str, str] = {}
    culprits: list[Culprit] = []
    while len(culprits) < _MAX_FAULTS:
        walker.run(forced)
        culprit = walker.culprit(forced)
        if culprit is None:
            break
        # A bound too wide to recognise a tensor by is still a bound: what lies within is no fault.
        if culprit.got is None or not _within(culprit.got, culprit.expected, culprit.allowed):
            culprits.append(culprit)
        if culprit.op is None or culprit.got is None:
            break
        forced[culprit.segment[-1].name] = walker.got_key
    return Walk(tuple(walker.checks), tuple(culprits), tuple(dict.fromkeys(walker.unchecked)))


class _Walker:
    """One pass after another over the network, with more and more tensors taken as they are."""

    def __init__(
        self,
        network: Network,
        graph: ArtifactGraph,
        tensors: Mapping[str, np.ndarray],
        inputs: Mapping[str, np.ndarray],
        weights: Sequence[WeightMatch],
    ) -> None:
        self.network, self.graph, self.inputs = network, graph, inputs
        self.samples = len(next(iter(inputs.values())))
        self.nodes = {node.name: node for node in network.nodes}
        self.readers: dict[str, list[Node]] = {}
        for node in network.nodes:
            for name in node.inputs:
                self.readers.setdefault(name, []).append(node)
        self.weights, self.hybrid = _file_weights(network, weights)
        self.producer = {key: op for op in graph.ops for key in op.outputs}
        self.consumers: dict[str, list[GraphOp]] = {}
        for op in graph.ops:
            for key in op.inputs:
                self.consumers.setdefault(key, []).append(op)
        # What depends on the inputs; a dequantized constant does not.
        dependent = set(graph.inputs)
        for op in graph.ops:
            if any(key in dependent for key in op.inputs):
                dependent.update(op.outputs)
        dependent.difference_update(graph.inputs)
        self.dependent = dependent
        computed = [key for key in tensors if key in graph.tensors and key in dependent]
        self.tensors = {key: tensors[key] for key in computed}
        self.true = _evaluated(network, inputs)
        self.by_size: dict[int, list[str]] = {}
        for key, array in self.tensors.items():
            self.by_size.setdefault(array.size, []).append(key)

    def run(self, forced: Mapping[str, str]) -> None:
        """Walk the network once."""
        self.value: dict[str, np.ndarray] = dict(self.inputs)
        self.bound = {name: np.zeros_like(array) for name, array in self.inputs.items()}
        self.exact: dict[str, np.ndarray] = {}
        self.allowed: dict[str, np.ndarray] = {}
        self.mapped: dict[str, str] = {}
        self.half: set[str] = set()
        self.checks: list[OpCheck] = []
        self.unchecked: list[str] = []
        self._take_inputs()
        for node in self.network.nodes:
            if not node.known or any(name not in self.value for name in node.inputs):
                self._skip(node, forced)
                continue
            expected, allowed = self._expect(node)
            self.exact[node.name], self.allowed[node.name] = expected, allowed
            key = forced.get(node.name) or self._find(node, expected, allowed)
            if key is None:
                self.value[node.name], self.bound[node.name] = expected, allowed
                continue
            got = self._views(key, expected.shape)[0]
            if node.name in forced:
                got = self._closest(key, expected)
            else:
                got = self._matching(key, node, expected, allowed)
                self._record(node, key, expected, allowed, got)
            self.mapped[node.name] = key
            if self.tensors[key].dtype == np.float16:
                self.half.add(node.name)
            read = self._requantized(key)
            self.value[node.name] = got if read is None else self._rounded(read, got)
            self.bound[node.name] = np.zeros_like(got)

    def _take_inputs(self) -> None:
        """Replace inputs that the file quantizes by what its integers stand for."""
        for name, key in zip(self.network.inputs, self.graph.inputs):
            read = self._requantized(key)
            if read is not None:
                self.value[name] = self._rounded(read, self.inputs[name])
                continue
            tensor = self.graph.tensors[key]
            if tensor.quantization is None or tensor.dtype.kind == "f":
                continue
            step, limits = tensor.quantization, np.iinfo(tensor.dtype)
            scaled = np.rint(self.inputs[name] / step.scales[0]) + step.zero_points[0]
            clipped = np.clip(scaled, limits.min, limits.max)
            self.value[name] = (clipped - step.zero_points[0]) * step.scales[0]

    def _requantized(self, key: str) -> str | None:
        """Return the tensor that holds another one's value after a rounding op, None without one.

        What follows such an op reads the rounded numbers, not the ones that the op before it wrote.
        Ops that only move numbers may stand between.
        """
        for op in self.consumers.get(key, []):
            if not op.outputs or op.outputs[0] not in self.tensors:
                continue
            out = op.outputs[0]
            if op.kind in _MOVING:
                found = self._requantized(out)
                if found is not None:
                    return found
            if op.kind == "Cast" and self.tensors[out].dtype == np.float16:
                return out
            if op.kind in _QUANTIZING:
                after = [o for o in self.consumers.get(out, []) if o.kind == "DequantizeLinear"]
                if after and after[0].outputs[0] in self.tensors:
                    return after[0].outputs[0]
                if self.graph.tensors[out].quantization:
                    return out
        return None

    def _rounded(self, key: str, before: np.ndarray) -> np.ndarray:
        """Return a tensor that holds rounded numbers in the order of the unrounded ones.

        Behind a reshape the order may be one that no view restores; then the unrounded ones stand.
        """
        tensor, dtype = self.graph.tensors[key], self.tensors[key].dtype
        target, limit = _in_type(tensor, dtype, None, before, np.zeros_like(before))
        for view in self._views(key, before.shape):
            if _within(view, target, limit):
                return view
        return before

    def _skip(self, node: Node, forced: Mapping[str, str]) -> None:
        """Note a node that cannot be evaluated; what reads it cannot either."""
        self.unchecked.append(node.layer)

    def _expect(self, node: Node) -> tuple[np.ndarray, np.ndarray]:
        """Return a node's exact value and its bound."""
        inputs = [self.value[name] for name in node.inputs]
        errors = [self.bound[name] for name in node.inputs]
        used = self.weights.get(node.name, node)
        output = used.evaluate(inputs)
        rounded = self._rounding_of_inputs(node, inputs)
        if rounded is None or node.op not in _LINEAR:
            if rounded is not None:
                errors = [error + limit for error, limit in zip(errors, rounded)]
            return output, used.error(inputs, output, errors, UNIT_ROUNDOFF["float32"])
        allowed = used.error(inputs, output, errors, UNIT_ROUNDOFF["float32"])
        # Errors of a rounding, independent and uniform: a third of the squared limit each.
        deviation = np.sqrt(used.carried(np.square(rounded[0]) / 3))
        return output, allowed + _DEVIATIONS * deviation

    def _rounding_of_inputs(self, node: Node, inputs: list[np.ndarray]) -> list[np.ndarray] | None:
        """Return how far the numbers an op reads may be from its input tensors, None for not."""
        if node.name in self.hybrid:
            # Dynamic range: the op quantizes its input to 8 bits by that sample's largest number.
            axes = tuple(range(1, inputs[0].ndim))
            step = np.abs(inputs[0]).max(axis=axes, keepdims=True) / 127
            return [np.broadcast_to(step / 2, inputs[0].shape)]
        halves = [name in self.half for name in node.inputs]
        if any(halves):
            # A runtime that computes half precision in float32 may skip the rounding in between.
            unit = UNIT_ROUNDOFF["float16"]
            return [unit * half * np.abs(x) for half, x in zip(halves, inputs)]
        return None

    def _find(self, node: Node, expected: np.ndarray, allowed: np.ndarray) -> str | None:
        """Return the key of the tensor that holds a node's value within its bound."""
        taken = set(self.mapped.values())
        found: list[tuple[bool, float, str]] = []
        for key in self.by_size.get(expected.size, []):
            view = self._matching_or_none(key, node, expected, allowed)
            if view is not None:
                found.append((key in taken, _distance(view, expected), key))
        # The nearest, since a wide bound may also admit the tensor before a small bias is added;
        # a tensor may serve two nodes (an identity), so the taken ones come last.
        return min(found)[2] if found else None

    def _matching(
        self, key: str, node: Node, expected: np.ndarray, allowed: np.ndarray
    ) -> np.ndarray:
        found = self._matching_or_none(key, node, expected, allowed)
        assert found is not None
        return found

    def _matching_or_none(
        self, key: str, node: Node, expected: np.ndarray, allowed: np.ndarray
    ) -> np.ndarray | None:
        """Return the view of a tensor that agrees with a node, None when none does."""
        tensor = self.graph.tensors[key]
        target, limit = _in_type(tensor, self.tensors[key].dtype, node, expected, allowed)
        flat_target, flat_limit = target.reshape(-1), limit.reshape(-1)
        if not _meaningful(flat_target, flat_limit):
            return None
        probe = np.linspace(0, target.size - 1, min(_PROBE, target.size)).astype(int)
        for view in self._views(key, expected.shape):
            flat = view.reshape(-1)
            if not _within(flat[probe], flat_target[probe], flat_limit[probe]):
                continue
            if _within(flat, flat_target, flat_limit):
                return view
        return None

    def _views(self, key: str, shape: tuple[int, ...]) -> list[np.ndarray]:
        """Return a tensor as real numbers in a node's shape: as it lies, or with channels moved."""
        raw = self.tensors[key]
        real = self.graph.tensors[key].real(raw)
        body = real.reshape(self.samples, *raw.shape[2:]) if raw.shape[1:2] == (1,) else real
        views = [body.reshape(shape)]
        if body.ndim >= 3:
            views.append(np.moveaxis(body, 1, -1).reshape(shape))
            views.append(np.moveaxis(body, -1, 1).reshape(shape))
        return views

    def _closest(self, key: str, expected: np.ndarray) -> np.ndarray:
        """Return the view of a tensor that is nearest to a node's value."""
        views = self._views(key, expected.shape)
        return min(views, key=lambda view: _distance(view, expected))

    def _record(
        self,
        node: Node,
        key: str,
        expected: np.ndarray,
        allowed: np.ndarray,
        got: np.ndarray,
    ) -> None:
        """Enter a check."""
        tensor = self.graph.tensors[key]
        target, limit = _in_type(tensor, self.tensors[key].dtype, node, expected, allowed)
        both = np.isfinite(got) & np.isfinite(target)
        error = np.abs(np.where(both, got, 0.0) - np.where(both, target, 0.0))
        ratio = np.divide(error, limit, where=limit > 0, out=np.zeros_like(error))
        power = float(np.sqrt(np.mean(np.square(np.where(both, target, 0.0)))))
        noise = float(np.sqrt(np.mean(np.square(error))))
        self.checks.append(
            OpCheck(
                node=node.name,
                layer=node.layer,
                fused=tuple(inner.name for inner in self._interior(node)),
                op=self.producer.get(key),
                ratio=float(ratio.max(initial=0.0)),
                max_abs=float(error.max(initial=0.0)),
                drift=noise / power if power else 0.0,
                accumulated=_distance(got, self.true[node.name]),
            )
        )

    def _interior(self, node: Node) -> list[Node]:
        """Return the nodes without a tensor that lead up to a node, nearest last."""
        found: list[Node] = []
        waiting = list(node.inputs)
        while waiting:
            name = waiting.pop()
            if name in self.nodes and name not in self.mapped:
                found.append(self.nodes[name])
                waiting.extend(self.nodes[name].inputs)
        order = {inner.name: place for place, inner in enumerate(self.network.nodes)}
        return sorted({n.name: n for n in found}.values(), key=lambda n: order[n.name])

    def culprit(self, forced: Mapping[str, str]) -> Culprit | None:
        """Return the first node that is not accounted for, None when all are."""
        outputs = set(self.network.outputs.values())
        accounted: set[str] = set()
        fused: set[str] = set()  # ends in a tensor without another linear op between
        for node in reversed(self.network.nodes):
            readers = self.readers.get(node.name, [])
            if all(
                reader.op not in _LINEAR and (reader.name in self.mapped or reader.name in fused)
                for reader in readers
            ):
                fused.add(node.name)
            if (
                node.name in self.mapped
                or node.name not in self.exact
                or (
                    node.name not in outputs
                    and readers
                    and all(reader.name in accounted for reader in readers)
                    # No op computes two linear layers: a bound carried through both proves nothing.
                    and (node.op not in _LINEAR or node.name in fused)
                )
            ):
                accounted.add(node.name)
        wrong = [node for node in self.network.nodes if node.name not in accounted]
        if not wrong:
            return None
        return self._describe(wrong[0], {node.name for node in wrong})

    def _depths(self) -> dict[str, int]:
        """Return the tensors that belong to no node, with how many such ops lead up to each."""
        taken = set(self.mapped.values())
        depths: dict[str, int] = {}
        for key, op in self.producer.items():
            if key not in self.tensors or key in taken:
                continue
            read = [
                depths.get(name)
                for name in self.graph.activations(op)
                if name not in taken and name in self.dependent
            ]
            known = [depth for depth in read if depth is not None]
            if len(known) == len(read):
                depths[key] = 1 + max(known, default=-1)
        return depths

    def _describe(self, first: Node, wrong: set[str]) -> Culprit:
        """Find the file's op and tensor for a node at fault."""
        chain = [first]
        while True:
            readers = self.readers.get(chain[-1].name, [])
            if len(readers) != 1 or len(readers[0].inputs) != 1 or readers[0].weights:
                break
            if readers[0].name not in wrong or readers[0].name not in self.exact:
                break
            chain.append(readers[0])
        best: tuple[bool, int, float, int, str] | None = None
        depths = self._depths()
        for place, node in enumerate(chain):
            expected, allowed = self.exact[node.name], self.allowed[node.name]
            for key, depth in depths.items():
                if self.tensors[key].size == expected.size:
                    view = self._closest(key, expected)
                    tensor, dtype = self.graph.tensors[key], self.tensors[key].dtype
                    off = not _within(view, *_in_type(tensor, dtype, node, expected, allowed))
                    found = (off, depth, _distance(view, expected), place, key)
                    if best is None or found < best:
                        best = found
        key = best[4] if best else ""
        place = best[3] if best else 0
        segment = chain[: place + 1]
        last = segment[-1].name
        self.got_key = key
        needed = {name for node in segment for name in node.inputs} - {n.name for n in segment}
        expected, allowed = self.exact[last], self.allowed[last]
        if best:
            tensor, dtype = self.graph.tensors[key], self.tensors[key].dtype
            expected, allowed = _in_type(tensor, dtype, segment[-1], expected, allowed)
        return Culprit(
            node=first,
            layer=first.layer,
            segment=tuple(segment),
            op=self.producer[key] if best else None,
            inputs={name: self.value[name] for name in needed},
            expected=expected,
            allowed=allowed,
            got=self._closest(key, self.exact[last]) if best else None,
        )


def _evaluated(network: Network, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return every value of the network that can be evaluated from the true inputs."""
    values = dict(inputs)
    for node in network.nodes:
        if node.known and all(name in values for name in node.inputs):
            values[node.name] = node.evaluate([values[name] for name in node.inputs])
    return values


def _file_weights(
    network: Network, weights: Sequence[WeightMatch]
) -> tuple[dict[str, Node], set[str]]:
    """Return nodes whose right but rounded weights come from the file, and the hybrid ones."""
    rounded: dict[str, dict[str, np.ndarray]] = {}
    hybrid: set[str] = set()
    nodes = {node.name: node for node in network.nodes}
    for match in weights:
        tensor = match.tensor
        if match.state != "equal" or tensor is None or tensor.data is None:
            continue
        if tensor.data.dtype == np.float32:
            continue
        weight = nodes[match.node].weights[match.role]
        rounded.setdefault(match.node, {})[match.role] = file_weight(match, weight.shape)
        if match.role == "kernel" and tensor.data.dtype.kind in "iu":
            hybrid.add(match.node)
    replaced = {}
    for name, arrays in rounded.items():
        node = nodes[name]
        replaced[name] = Node(
            node.name,
            node.op,
            node.layer,
            node.inputs,
            node.shape,
            node.attributes,
            {**node.weights, **arrays},
        )
    # A bias that is an integer as well belongs to an op that is integer throughout.
    for match in weights:
        data = None if match.tensor is None else match.tensor.data
        if match.role == "bias" and data is not None and data.dtype.kind in "iu":
            hybrid.discard(match.node)
    return replaced, hybrid


def _in_type(
    tensor: GraphTensor,
    dtype: np.dtype,
    node: Node | None,
    expected: np.ndarray,
    allowed: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Return value and bound as a tensor's own type can hold them."""
    if dtype == np.float16:
        # Accumulated in float32, as the measured runtimes do, and stored in half precision: one
        # rounding, or two where the bias is added to the stored number; the least step near zero.
        biased = node is not None and "bias" in node.weights
        bias = np.abs(node.weights["bias"]).max(initial=0.0) if node and biased else 0.0
        stored = UNIT_ROUNDOFF["float16"] * (2 * np.abs(expected) + float(bias)) + 2.0**-24
        return expected, allowed + stored
    if tensor.quantization is None:
        return expected, allowed
    limits = np.iinfo(tensor.quantization.dtype)
    scale, point = float(tensor.quantization.scales.max()), int(tensor.quantization.zero_points[0])
    low, high = (limits.min - point) * scale, (limits.max - point) * scale
    steps = _LINEAR_STEPS if node is None or node.op in _LINEAR else _OTHER_STEPS
    return np.clip(expected, low, high), allowed + steps * scale


def _meaningful(expected: np.ndarray, limit: np.ndarray) -> bool:
    """Return whether a bound tells the expected values from others."""
    finite = np.isfinite(expected)
    if not finite.any():
        return True
    size = float(np.sqrt(np.mean(np.square(expected[finite]))))
    allowed = float(np.sqrt(np.mean(np.square(limit[finite]))))
    return size == 0 or allowed <= _MEANINGFUL * size


def _within(got: np.ndarray, expected: np.ndarray, limit: np.ndarray) -> bool:
    """Return whether every element is within its limit, or infinite or NaN alike."""
    with np.errstate(invalid="ignore"):
        near = np.abs(got - expected) <= limit
    alike = (np.isnan(got) & np.isnan(expected)) | (got == expected)
    return bool(np.all(near | alike))


def _distance(got: np.ndarray, expected: np.ndarray) -> float:
    """Return the relative distance of two arrays; infinite when one is not finite."""
    if not np.isfinite(got).all():
        return float("inf")
    return float(np.linalg.norm(got - expected) / (np.linalg.norm(expected) + 1e-300))
