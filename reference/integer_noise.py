"""Bounds the difference between two correct runtimes of one integer file.

Every operator of such a file rounds its result to the steps of its output. Runtimes differ in how
they round (`reference.rounding.arithmetic`), in whether they round between two operators that they
fuse, and in the tables of their functions. Each of these changes individual results near a tie by
one step. The next rounding either removes a difference that is small relative to a step or turns it
into a whole step, so after a few layers the roundings of two runtimes are unrelated. Since a rule
prefers one direction, their differences do not average out. Assuming independent differences of one
step in every result of every operator covers both effects: the differences between LiteRT's
kernels, TFLite Micro, ONNX Runtime and OpenVINO are 0.1 to 0.8 of what this predicts for the output
(docs/limits.md).

The quantization error itself is not included, since it is the same on all runtimes.

The steps and ranges of operators with weights are read from the file, where the weights identify
them. Other operators get steps that cover the ranges of their values; a softplus gets no less than
the steps of the functions in the file that it consists of. A value outside its range
saturates on every runtime and propagates no difference.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from ..artifacts.graphs.base import ArtifactGraph, GraphOp, GraphTensor, Quantization
from ..artifacts.network import Network, Node
from .file_weights import WeightMatch
from .network import node_values
from .operators.whole_numbers import COUNTING

# Operators between an input of a file and its first quantized value.
_BEFORE_INTEGERS = (
    "QUANTIZE",
    "QuantizeLinear",
    "RESHAPE",
    "Reshape",
    "TRANSPOSE",
    "Transpose",
    "EXPAND_DIMS",
    "Unsqueeze",
)

# Operators between the last quantized value of a file and an output.
_AFTER_INTEGERS = ("DEQUANTIZE", "DequantizeLinear", *_BEFORE_INTEGERS, "SQUEEZE", "Squeeze")

# Operators between the sums of a linear operator and the integers to which they are rounded.
_BEHIND_SUMS = {*_BEFORE_INTEGERS, "Clip", "Max", "Min", "Relu", "Squeeze", "SQUEEZE"}
_BEHIND_BIASES = _BEHIND_SUMS | {"Add"}

# Linear operators whose first input is the shape of the output.
_SIZED = ("TRANSPOSE_CONV", "CONV_3D_TRANSPOSE")

# Samples from which the ranges of operators without weights are taken.
_FOR_RANGES = 8

# Operators that kernels fuse into the linear operator before them.
_FUSED = ("relu", "clip")

# Operators that form a clip when one input is a constant.
_LIMITS = ("maximum", "minimum")

# Operators whose results are a subset of their input values.
_MAXIMA = ("global_max_pool", "max_pool", "reduce_max")

# Operators that change no number; they may also stand for a merged affine.
_SAME_NUMBERS = ("flatten", "identity", "linear", "permute", "reshape")

# Operators that pass integers on unchanged.
_MOVES = [
    "broadcast",
    "clip",
    "concatenate",
    "constant",
    "crop",
    "flatten",
    "gather",
    "global_max_pool",
    "identity",
    "linear",
    "max_pool",
    "pad",
    "permute",
    "reduce_max",
    "reduce_min",
    "repeat",
    "reshape",
    "select",
    "slice",
    "sort",
    "take",
    "tile",
    "upsample_nearest",
]


# Operators that read truth values or indices, and the place of that input.
_DECIDED = {"gather": 0, "one_hot": 0, "pick": 1, "select": 0}


@dataclass(frozen=True)
class Step:
    """The steps of one value's integers.

    Attributes:
        size: The step.
        low: The least number that the integers represent.
        high: The greatest number that they represent.
    """

    size: float
    low: float
    high: float


def rounding_steps(
    network: Network,
    graph: ArtifactGraph,
    weights: Sequence[WeightMatch],
    inputs: Mapping[str, np.ndarray],
) -> dict[str, Step]:
    """Return the steps to which the operators of a network round their results in a file.

    Args:
        network: The network that the file was made from; every layer can be evaluated.
        graph: The file.
        weights: Its constants, matched with the network's weights.
        inputs: Input name to (N, …) samples, for the ranges of operators without weights.

    Returns:
        Node name to its steps; nodes that do not round are absent.
    """
    found = steps_with_weights(graph, weights)
    bits = 8 * max((steps.itemsize for steps in _activation_types(graph)), default=1)
    nodes = {node.name: node for node in network.nodes}
    whole = _whole(network)
    count = len(next(iter(inputs.values())))
    chosen = np.unique(np.linspace(0, count - 1, min(count, _FOR_RANGES)).astype(int))
    some = {name: array[chosen].astype(np.float32) for name, array in inputs.items()}
    with np.errstate(all="ignore"):
        for name, value in node_values(network, some):
            node = nodes.get(name)
            if node is None or name in found or name in whole or value.dtype.kind != "f":
                continue
            if _rounds(node, nodes):
                step = _from_range(value, bits)
                least = _softplus_step(graph) if node.op == "softplus" else 0.0
                found[name] = replace(step, size=max(step.size, least))
    return found


def rounded_values(network: Network, steps: Mapping[str, Step]) -> dict[str, str]:
    """Return, for each node, the value at which the cost of rounding to its steps is measured.

    It is the value of a relu fused with the node, even after operators that change no number. It
    may also be the value of a maximum, which drops values that the integers need not represent.
    Nodes before a hard_sigmoid are absent.
    """
    readers = network.users()
    for output in network.outputs.values():
        readers.pop(output, None)  # outputs of the network are measured as they are
    found = {name: _shown(name, readers, steps) for name in steps}
    return {name: shown for name, shown in found.items() if shown is not None}


def _shown(name: str, readers: Mapping[str, list[Node]], steps: Mapping[str, Step]) -> str | None:
    found = name
    while len(after := readers.get(name, [])) == 1 and after[0].name not in steps:
        (node,) = after
        name, constant = node.name, len(node.inputs) == 1
        if node.op in _FUSED or node.op in _MAXIMA or (node.op in _LIMITS and constant):
            found = name
        elif node.op == "hard_sigmoid":
            return None  # the file rounds relu6(x + 3), which is not a value of the network
        elif node.op not in _SAME_NUMBERS:
            break
    return found


def _rounds(node: Node, nodes: Mapping[str, Node]) -> bool:
    """Return whether a node without weights rounds its result in an integer file."""
    if node.op in _MOVES or not node.inputs:
        return False
    if node.op != "relu" or node.attributes.get("negative_slope"):
        return True
    # Converters compute relu together with the operator before it.
    before = nodes.get(node.inputs[0])
    return before is None or before.op in _MOVES


def _whole(network: Network) -> set[str]:
    """Return the truth values and indices, which a file never rounds to steps."""
    nodes = {node.name: node for node in network.nodes}
    read = [n.inputs[_DECIDED[n.op]] for n in network.nodes if n.op in _DECIDED]
    found: set[str] = set()
    while read:
        name = read.pop()
        if name in nodes and name not in found:
            found.add(name)
            # A relation makes truth values, and a cast indices, of numbers that may be rounded.
            if nodes[name].op not in COUNTING or nodes[name].op == "logical_not":
                read += nodes[name].inputs
    return found


def input_steps(
    graph: ArtifactGraph, names: Sequence[str], samples: Sequence[np.ndarray]
) -> dict[str, Step]:
    """Return the steps to which a file rounds its inputs.

    Args:
        graph: The file.
        names: Names of its inputs.
        samples: The array given to each input.

    Returns:
        Steps by name. Inputs that no op quantizes are absent, as are inputs that take integers
        unchanged, such as pixels.
    """
    readers = _readers(graph)
    keys = {graph.tensors[key].name: key for key in graph.inputs}
    found = {}
    for place, name in enumerate(names):
        key = keys.get(name, graph.inputs[place])
        if samples[place].dtype.kind != "f" and samples[place].dtype == graph.tensors[key].dtype:
            continue
        steps = graph.tensors[key].quantization
        while steps is None and key in readers and readers[key][0].kind in _BEFORE_INTEGERS:
            key = readers[key][0].outputs[0]
            steps = graph.tensors[key].quantization
        if steps is not None and steps.scales.size == 1:
            found[name] = _step(steps)
    return found


def output_steps(graph: ArtifactGraph, network: Network) -> dict[str, Step]:
    """Return the steps to which a file rounds its outputs.

    Args:
        graph: The file.
        network: The network that the file was made from, with its outputs in the file's order.

    Returns:
        Steps by the name of the node that computes the output. Outputs in float are absent.
    """
    makers = {key: op for op in graph.ops for key in op.outputs}
    nodes = {node.name: node for node in network.nodes}
    found = {}
    for key, name in zip(graph.outputs, network.outputs.values()):
        steps = graph.tensors[key].quantization
        while steps is None and key in makers and makers[key].kind in _AFTER_INTEGERS:
            key = makers[key].inputs[0]
            steps = graph.tensors[key].quantization
        while name in nodes and nodes[name].op in _SAME_NUMBERS:
            name = nodes[name].inputs[0]
        if steps is not None and steps.scales.size == 1:
            found[name] = _step(steps)
    return found


def steps_with_weights(graph: ArtifactGraph, weights: Sequence[WeightMatch]) -> dict[str, Step]:
    """Return the steps of the operators whose kernels were found in the file, by node.

    Several ops may read one kernel, or copies of it, such as the time steps of a recurrent layer.
    Their nodes get the greatest step and the widest range of these ops. Nodes whose bias is added
    later, as behind a dilated convolution in TFLite, are absent, and so are nodes without one whose
    operators add that of another node, and nodes whose negative numbers another operator computes,
    as for a PReLU of 16 bits.
    """
    readers = _readers(graph)
    makers = {key: op for op in graph.ops for key in op.outputs}
    biased = {m.node for m in weights if m.role == "bias" and _holds_numbers(m.tensor)}
    kernels = [match for match in weights if match.role == "kernel" and match.tensor is not None]
    nodes_of = Counter(match.tensor.key for match in kernels if match.tensor is not None)
    found = {}
    for match in weights:
        if match.role == "kernel" and match.tensor is not None and match.state != "absent":
            key = match.tensor.key
            if match.node in biased and _all_without_bias(graph, readers, makers, key):
                continue
            shared = nodes_of[key] > 1
            data = match.tensor.data
            keys = [*_equal(graph, data)] if shared and data is not None else [key]
            ops = [op for copy in keys for op in _computing(graph, readers, copy)]
            if match.node not in biased and ops and all(_biased(graph, op, makers) for op in ops):
                continue
            if _computes_a_half(graph, match.tensor, ops):
                continue
            steps = [step for op in ops if (step := _behind(graph, readers, op)) is not None]
            if steps:
                found[match.node] = Step(
                    max(step.size for step in steps),
                    min(step.low for step in steps),
                    max(step.high for step in steps),
                )
    return found


def _holds_numbers(tensor: GraphTensor | None) -> bool:
    """Return whether a constant holds numbers other than zeros."""
    return tensor is not None and tensor.data is not None and bool(tensor.data.any())


_Readers = Mapping[str, Sequence[GraphOp]]
_Makers = Mapping[str, GraphOp]


def _all_without_bias(
    graph: ArtifactGraph, readers: _Readers, makers: _Makers, kernel: str
) -> bool:
    """Return whether every op with a kernel rounds its sums before a bias is added to them."""
    ops = list(_computing(graph, readers, kernel))
    return bool(ops) and all(
        not _biased(graph, op, makers)
        and (_bias(op) in graph.tensors or _behind(graph, readers, op, _BEHIND_SUMS) is not None)
        for op in ops
    )


def _biased(graph: ArtifactGraph, op: GraphOp, makers: _Makers) -> bool:
    """Return whether a linear op adds a constant, possibly dequantized, other than zero."""
    key = _bias(op)
    return _holds_numbers(graph.tensors.get(makers[key].inputs[0] if key in makers else key))


def _bias(op: GraphOp) -> str:
    """Return the key of a linear op's bias; empty if it has none."""
    place = 3 if op.kind in _SIZED else 2
    return op.inputs[place] if len(op.inputs) > place else ""


def _computes_a_half(graph: ArtifactGraph, kernel: GraphTensor, ops: Sequence[GraphOp]) -> bool:
    """Return whether ops with a fused activation share a layer with ops of the negated kernel."""
    fused = [op for op in ops if op.attributes.get("fusedActivationFunction")]
    if not ops or len(fused) < len(ops) or kernel.data is None:
        return False
    return any(_equal(graph, -kernel.data))


def _equal(graph: ArtifactGraph, data: np.ndarray) -> Iterator[str]:
    """Yield the constants of some numbers, such as one for each step of a recurrence."""
    for constant in graph.constants:
        found = constant.data
        if found is not None and found.dtype == data.dtype and np.array_equal(found, data):
            yield constant.key


def _computing(graph: ArtifactGraph, readers: _Readers, constant: str) -> Iterator[GraphOp]:
    """Yield the ops that compute with a constant, possibly after it was dequantized."""
    waiting, passed = [constant], set()
    while waiting:
        key = waiting.pop()
        if key in passed:
            continue
        passed.add(key)
        for op in readers.get(key, ()):
            if not graph.activations(op):
                waiting.extend(op.outputs)
            else:
                yield op


def _behind(
    graph: ArtifactGraph, readers: _Readers, op: GraphOp, through: Collection[str] = _BEHIND_BIASES
) -> Step | None:
    """Return the steps to which the sums of an op are rounded, with other ops in between.

    None if a function follows that is computed in float: the next steps are those of its result.
    """
    passed: set[str] = set()
    while op.outputs[0] not in passed:
        key = op.outputs[0]
        steps = graph.tensors[key].quantization
        if steps is not None and steps.scales.size == 1:
            return _step(steps)
        if key not in readers or readers[key][0].kind not in through:
            return None
        passed.add(key)
        op = readers[key][0]
    return None


def _readers(graph: ArtifactGraph) -> _Readers:
    """Return the ops that read each tensor, in the order of the file."""
    readers: dict[str, list[GraphOp]] = {}
    for op in graph.ops:
        for key in op.inputs:
            readers.setdefault(key, []).append(op)
    return readers


def _step(steps: Quantization) -> Step:
    """Return the step and the range of integers with one scale."""
    limits = np.iinfo(steps.dtype)
    low, high = steps.real(np.array([limits.min, limits.max]))
    return Step(float(steps.scales[0]), float(low), float(high))


def _softplus_step(graph: ArtifactGraph) -> float:
    """Return what one step of the logistic function inside a softplus can make of its result.

    The file computes max(x, 0) - log(sigmoid(|x|)), where the slope of the logarithm is at most 2.
    """
    makers = {key: op.kind for op in graph.ops for key in op.outputs}
    read = [op.inputs[0] for op in graph.ops if op.kind == "LOG"]
    inner = [graph.tensors[key].quantization for key in read if makers.get(key) == "LOGISTIC"]
    return max((2 * float(steps.scales.max()) for steps in inner if steps), default=0.0)


def _activation_types(graph: ArtifactGraph) -> list[np.dtype]:
    """Return the types of the integers that a file computes between its operators."""
    computed = [graph.tensors[key] for op in graph.ops for key in op.outputs]
    types = [t.quantization.dtype for t in computed if t.quantization is not None]
    return [dtype for dtype in types if dtype.itemsize <= 2]


def _from_range(value: np.ndarray, bits: int) -> Step:
    """Return the steps that cover the range of a value over most samples.

    Integers of 16 bits have the zero point 0, so half of them are negative whatever the range.
    """
    rows = value.reshape(len(value), -1)
    low, high = float(np.median(rows.min(axis=1))), float(np.median(rows.max(axis=1)))
    low, high = min(low, 0.0), max(high, 0.0)
    span = 2 * max(-low, high) if bits == 16 else high - low
    return Step(span / 2**bits if np.isfinite(span) else 0.0, -np.inf, np.inf)
