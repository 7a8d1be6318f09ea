"""Diagnoses the op at fault: its weights, activation, padding, dilation or arithmetic.

The walk says *where* the fault is. Here each known kind of fault is applied to the expected result:
if the op with other padding, or another activation, equals the runtime's result, that is the cause.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ...artifacts.graphs.base import ArtifactGraph, GraphOp, GraphTensor
from ...artifacts.network import Node
from ...artifacts.precisions import UNIT_ROUNDOFF
from ...reference.file_weights import WeightMatch
from ...reference.network import evaluate_node, node_error_bound
from ...reference.operators.linear import paddings
from ...reference.operators.shaping import SHAPING
from .integer_rounding import IntegerReport
from .matching import within
from .op_results import Culprit, OpCheck

# TFLite's ActivationFunctionType.
_FUSED = {0: "none", 1: "relu", 2: "relu_n1_to_1", 3: "relu6", 4: "tanh", 5: "sign_bit"}

_ACTIVATIONS: dict[str, tuple[str, dict[str, Any]]] = {
    "no activation": ("linear", {}),
    "relu": ("relu", {}),
    "relu6": ("relu", {"max_value": 6.0}),
    "leaky_relu": ("leaky_relu", {"negative_slope": 0.2}),
    "leaky_relu of slope 0.01": ("leaky_relu", {"negative_slope": 0.01}),
    "sigmoid": ("sigmoid", {}),
    "tanh": ("tanh", {}),
    "hard_silu": ("hard_silu", {}),
    "silu": ("silu", {}),
    "elu": ("elu", {}),
}


@dataclass(frozen=True)
class Fault:
    """A fault, named.

    Attributes:
        layer: The Keras layer at fault.
        kind: "weights", "activation", "padding", "dilation", "rounding" or "arithmetic".
        op: The op of the file; None when the fault has no op of its own.
        message: What and where, the size of the error, and the allowed size.
        culprit: Inputs, expected and got, for a reproducer; None for faults found without running.
    """

    layer: str
    kind: str
    op: GraphOp | None
    message: str
    culprit: Culprit | None = field(default=None, repr=False)


def name_fault(culprit: Culprit, weights: Sequence[WeightMatch]) -> Fault:
    """Diagnose the fault of an op.

    Args:
        culprit: The op, as the walk found it.
        weights: The state of each weight of the network in the file.

    Returns:
        The fault.
    """
    names = {node.name for node in culprit.segment}
    wrong = [match for match in weights if match.node in names and match.state != "equal"]
    layer, kind, why = culprit.layer, "arithmetic", ""
    if wrong:
        # A bias next to an altered kernel may be merged; the kernel is more informative.
        worst = max(wrong, key=lambda match: (match.state == "altered", match.size))
        layer, kind, why = worst.layer, "weights", f"; {worst.sentence}"
    elif culprit.got is not None:
        for hypothesis, attempt in _hypotheses(culprit):
            if _agrees(culprit, attempt):
                layer, kind, why = hypothesis.layer, hypothesis.kind, f"; {hypothesis.says}"
                break
    return Fault(layer, kind, culprit.op, _message(culprit, layer, why), culprit)


def weight_faults(
    weights: Sequence[WeightMatch], graph: ArtifactGraph, state: str = "altered"
) -> list[Fault]:
    """Return a fault for each altered weight, however little it changes the op's result.

    Args:
        weights: The state of each weight of the network in the file.
        graph: The file.
        state: Which weights: "absent" for those that agree nowhere with the most similar constant.
            A converter may have merged them: they are suspects if nothing else is at fault.

    Returns:
        The faults, in the order of the network.
    """
    faults = []
    for match in weights:
        if match.state == state and match.tensor is not None:
            op = next(iter(graph.consumers(match.tensor.key)), None)
            faults.append(Fault(match.layer, "weights", op, match.sentence))
    # The steps of a recurrent layer share their weights.
    return list({fault.message: fault for fault in faults}.values())


def _scope(op: GraphOp) -> str:
    """Return the layer that an op's name starts with: `conv/BiasAdd;conv/convolution` is conv."""
    return op.name.split(";")[0].split("/")[0]


def rounding_faults(integers: IntegerReport, checks: Sequence[OpCheck]) -> list[Fault]:
    """Return a fault for each integer op whose result matches no rounding rule.

    Args:
        integers: The integer ops against the rules.
        checks: Which layers each op computes.

    Returns:
        The faults, in the order the ops run.
    """
    layers = {check.op.index: check.layer for check in checks if check.op is not None}
    faults = []
    for check in integers.wrong:
        layer = layers.get(check.core.index) or layers.get(check.op.index) or _scope(check.op)
        rule = f"; nearest rule: {check.rule.says}" if check.rule else ""
        if check.ignored:
            rule = f"; it ignores the zero point of its input '{check.ignored}'"
        faults.append(
            Fault(
                layer,
                "rounding",
                check.core,
                f"layer '{layer}': op {check.core.index} ({check.core.kind}) rounds by no known "
                f"rule: {check.differing} / {check.elements} "
                f"({100 * check.differing / check.elements:.3g} %) integers differ, first at "
                f"{list(check.at)}: got {check.got:.9g}, expected {check.expected:.9g}{rule}",
            )
        )
    return faults


def static_faults(
    checks: Sequence[OpCheck], graph: ArtifactGraph, nodes: Sequence[Node]
) -> list[Fault]:
    """Compare the activations that ops declare with the network, regardless of the values.

    A relu6 instead of a relu computes the same until a value exceeds 6.

    Args:
        checks: Which nodes each op computes.
        graph: The file.
        nodes: The network's nodes.

    Returns:
        The faults.
    """
    by_name = {node.name: node for node in nodes}
    last: dict[int, OpCheck] = {}
    for check in checks:
        if check.op is not None and by_name[check.node].op not in SHAPING:
            last[check.op.index] = check
    faults = []
    for check in last.values():
        assert check.op is not None
        declared = declared_activation(check.op, graph)
        node = by_name[check.node]
        expected = _clipping(node)
        # If either declares none, the activation may be a separate op: then the values decide.
        if declared in (None, "none") or expected == "none":
            continue
        before = by_name.get(node.inputs[0])
        if expected == "relu" and before is not None and declared == _clipping(before):
            continue  # one op for a relu and the relu6 before it
        top = node.attributes.get("max_value")
        if declared == "relu" and top and _limited_next(check.op, top, graph):
            continue  # a relu, and an op of its own for the limit
        if declared != expected:
            faults.append(
                Fault(
                    check.layer,
                    "activation",
                    check.op,
                    f"layer '{check.layer}': op {check.op.index} ({check.op.kind}) applies "
                    f"{declared} where the network has {expected}; on these inputs both give the "
                    "same",
                )
            )
    return faults + _slope_faults(checks, graph, nodes)


def _slope_faults(
    checks: Sequence[OpCheck], graph: ArtifactGraph, nodes: Sequence[Node]
) -> list[Fault]:
    """Compare the slopes of ops and nodes of which no tensor was found to hold the other's value.

    Integers calibrated with one slope saturate with a greater one, and the bound on a later sum,
    from the roundings of all ops between, may admit the difference.
    """
    found = {check.op.index for check in checks if check.op is not None}
    named = {check.node for check in checks}
    ops = [op for op in graph.ops if op.kind in _SLOPES and op.index not in found]
    leaky = [node for node in nodes if node.op == "leaky_relu" and node.name not in named]
    if len(ops) != len(leaky):  # written in other ops
        return []
    slopes = [float(op.attributes.get("alpha", _SLOPES[op.kind])) for op in ops]
    expected = [float(node.attributes["negative_slope"]) for node in leaky]
    if np.allclose(sorted(slopes), sorted(expected), rtol=_SAME_SLOPE, atol=0):
        return []
    return [
        Fault(
            node.layer,
            "activation",
            op,
            f"layer '{node.layer}': op {op.index} ({op.kind}) has the slope {slope:.6g} where the "
            f"network has {right:.6g}",
        )
        for op, node, slope, right in zip(ops, leaky, slopes, expected)
        if not np.isclose(slope, right, rtol=_SAME_SLOPE, atol=0)
    ]


def declared_activation(op: GraphOp, graph: ArtifactGraph) -> str | None:
    """Return the activation that an op declares; None if the format cannot declare one."""
    if "fusedActivationFunction" in op.attributes:
        return _FUSED.get(int(op.attributes["fusedActivationFunction"]), "unknown")
    if op.kind == "Relu":
        return "relu"
    if op.kind == "Clip" and len(op.inputs) == 3:
        limits = [graph.tensors[key].data for key in op.inputs[1:] if key]
        if len(limits) == 2 and all(limit is not None for limit in limits):
            low, high = (float(np.asarray(limit)) for limit in limits)
            return "relu6" if (low, high) == (0.0, 6.0) else f"clip({low:g}, {high:g})"
    return None


def _clipping(node: Node) -> str:
    """Return the activation that a format would declare for a node."""
    if node.op != "relu" or node.attributes.get("negative_slope"):
        return "none"
    top = node.attributes.get("max_value")
    if top is None:
        return "relu"
    return "relu6" if top == 6 else f"clip(0, {top:g})"


def _limited_next(op: GraphOp, top: float, graph: ArtifactGraph) -> bool:
    """Return whether every op that reads a result limits it to a constant, in its own steps."""

    def limits(reader: GraphOp) -> bool:
        if reader.kind not in ("MINIMUM", "Min"):
            return False
        tensors = [graph.tensors[key] for key in reader.inputs if key not in op.outputs]
        return len(tensors) == 1 and _holds(tensors[0], top)

    result = op.outputs[0]
    readers = graph.consumers(result)
    returned = result in graph.outputs
    return bool(readers) and not returned and all(limits(reader) for reader in readers)


def _holds(tensor: GraphTensor, number: float) -> bool:
    """Return whether all of a constant is a number, as nearly as its type represents that."""
    if tensor.data is None:
        return False
    filed, steps = tensor.real(tensor.data), tensor.quantization
    if steps is None:
        return bool(np.all(filed == tensor.data.dtype.type(number)))
    # The greatest integer stands for every number beyond it.
    last = tensor.data == np.iinfo(tensor.data.dtype).max
    near = np.abs(filed - number) <= steps.step(filed.ndim) / 2
    return bool(np.all(near | (last & (filed < number))))


# Ops with a slope for negative numbers, and their default.
_SLOPES = {"LEAKY_RELU": 0.0, "LeakyRelu": 0.01}
_SAME_SLOPE = 2.0**-11  # a file in half precision rounds it


@dataclass(frozen=True)
class _Hypothesis:
    layer: str
    kind: str
    says: str


def _hypotheses(culprit: Culprit) -> Iterator[tuple[_Hypothesis, tuple[Node, ...]]]:
    """Yield other ways in which the segment may have been computed."""
    segment = culprit.segment
    trailing = segment[-1]
    for name, (op, attributes) in _ACTIVATIONS.items():
        if op == "linear" and len(segment) > 1:
            attempt = segment[:-1]
        elif len(segment) > 1 or not segment[0].weights:
            attempt = (*segment[:-1], dataclasses.replace(trailing, op=op, attributes=attributes))
        else:
            after = dataclasses.replace(
                trailing, op=op, attributes=attributes, inputs=(trailing.name,), weights={}
            )
            attempt = (*segment, dataclasses.replace(after, name=f"{trailing.name}/tried"))
        yield _Hypothesis(trailing.layer, "activation", f"it computes {name} instead"), attempt
    first = segment[0]
    if "padding" not in first.attributes or "dilation" not in first.attributes:
        return
    for attributes, kind, says in _framings(first, culprit):
        attempt = (dataclasses.replace(first, attributes=attributes), *segment[1:])
        yield _Hypothesis(first.layer, kind, says), attempt


def _framings(first: Node, culprit: Culprit) -> Iterator[tuple[dict[str, Any], str, str]]:
    """Yield other paddings and dilations with an output of the same size."""
    kernel = first.weights.get("kernel")
    sizes = list(kernel.shape[:-2]) if kernel is not None else first.attributes.get("pool_size")
    if first.op == "conv_transpose" or not sizes:
        return
    x = culprit.inputs[first.inputs[0]]
    spatial = (
        x.shape[2:] if first.attributes.get("data_format") == "channels_first" else (x.shape[1:-1])
    )
    right = paddings(spatial, sizes, first.attributes)
    totals = [before + after for before, after in right]
    for starts in itertools.product(*(range(total + 1) for total in totals)):
        tried = [(start, total - start) for start, total in zip(starts, totals)]
        if tried != right:
            yield (
                {**first.attributes, "padding": tried},
                "padding",
                f"it pads {tried} where the network pads {right}",
            )
    for dilation in (1, 2):
        spread = [dilation] * len(sizes)
        if spread != list(first.attributes["dilation"]):
            yield (
                {**first.attributes, "dilation": spread},
                "dilation",
                f"it dilates by {spread} where the network dilates by "
                f"{first.attributes['dilation']}",
            )


def _agrees(culprit: Culprit, segment: Sequence[Node]) -> bool:
    """Return whether a way of computing agrees with the runtime's result."""
    got = culprit.got
    assert got is not None
    values: dict[str, np.ndarray] = dict(culprit.inputs)
    errors = {name: np.zeros_like(array) for name, array in values.items()}
    value = limit = got
    for node in segment:
        read = [values[name] for name in node.inputs]
        value = evaluate_node(node, read)
        passed = [errors[name] for name in node.inputs]
        limit = node_error_bound(node, read, value, passed, UNIT_ROUNDOFF["float32"])
        values[node.name], errors[node.name] = value, limit
    if value.shape != got.shape:
        return False
    return within(got, *culprit.storage.held(segment[-1], value, limit))


def _message(culprit: Culprit, layer: str, why: str) -> str:
    """Describe the fault: what and where, the size of the error and the allowed size."""
    if culprit.got is None or culprit.op is None:
        return f"layer '{layer}': no tensor of the file holds its value{why}"
    op = culprit.op
    error = np.abs(culprit.got - culprit.expected)
    over = ~(error <= culprit.allowed)
    excess = np.where(np.isfinite(error), error - culprit.allowed, np.inf)
    place = np.unravel_index(int(np.argmax(np.where(over, excess, -np.inf))), error.shape)
    others = [node.layer for node in culprit.segment if node.layer != layer]
    along = f" (with {', '.join(dict.fromkeys(others))})" if others else ""
    return (
        f"layer '{layer}'{along} is the first op at fault: op {op.index} ({op.kind}) has correct "
        f"inputs and returned {int(over.sum())} / {over.size} ({100 * over.mean():.3g} %) wrong "
        f"elements; at {[int(i) for i in place]} it gave {culprit.got[place]:.7g}, expected "
        f"{culprit.expected[place]:.7g}, allowed error {culprit.allowed[place]:.3g}{why}"
    )
