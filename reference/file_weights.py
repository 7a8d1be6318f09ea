"""Compares the constants of a file with the weights of the folded network, before anything runs.

Float weights must be equal bit for bit: both exporters only reorder axes. Quantized weights must
lie within half a step of the real ones, the error of rounding to the nearest step. Constants are
identified by value, never by name or position; if none is right, the one that agrees in most
elements is the altered one.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from ..artifacts.graphs.base import ArtifactGraph, GraphTensor
from ..artifacts.network import Network, Node
from ..artifacts.precisions import half_rounding
from .altered_weights import Compare, explain
from .weight_differences import FOLDED_ELSEWHERE, agreeing, wrong_in_foreign, wrong_numbers
from .weight_forms import Form, flattened_maps, forms, in_form

# A constant that agrees with a weight in half of its elements or more, but not in all, was altered.
# A constant that a converter merged with another operator agrees only where numbers are 0.
_ALTERED_SHARE = 0.5

# Steps of the fit of factors to the channels of a kernel, which alternates between the axes.
_FITS = 20

# Numbers that are compared first, to distinguish most large arrays quickly.
_PROBES = 8
_LARGE = 65_536

# Element type, number of elements, the first and the last one.
_Ends = tuple[np.dtype, int, float, float]

_Candidate = tuple[float, GraphTensor, Form, np.ndarray, np.ndarray]
_Keys = Callable[[], Collection[str]]


@dataclass(frozen=True)
class WeightMatch:
    """The state of one weight in a file.

    Attributes:
        node: The network's node.
        layer: Its Keras layer.
        role: "kernel", "bias", …
        state: "equal", "altered" (most elements agree), or "absent" (no constant resembles it:
            merged by the converter, reordered, or altered throughout).
        tensor: The equal or most similar constant; None if there is none of its size.
        form: Order of the axes of the network's weight, reshaped to ``view``, in the constant.
        view: Shape of the weight; for a dense layer after a flattened feature map, the rows are
            split into positions and channels.
        differing: Number of elements that differ.
        size: Number of elements.
        at: Index of the first differing element, in the network's axes.
        found: The number in the file at that index.
        expected: The number in the network at that index.
        remark: Explanation of the difference, if known (`altered_weights`).
        rounded: Whether the weight is equal only within the rounding of another fold.
        negated: Whether the file holds the numbers with the opposite sign.
        offset: Constant that the file adds to the numbers.
    """

    node: str
    layer: str
    role: str
    state: str
    tensor: GraphTensor | None = None
    form: tuple[int, ...] = ()
    view: tuple[int, ...] = ()
    differing: int = 0
    size: int = 0
    at: tuple[int, ...] = ()
    found: float = 0.0
    expected: float = 0.0
    remark: str = ""
    rounded: bool = False
    negated: bool = False
    offset: float = 0.0

    @property
    def sentence(self) -> str:
        """Describe the difference."""
        return (
            f"{self.role} of layer '{self.layer}': {self.differing} / {self.size} weights "
            f"({100 * self.differing / max(self.size, 1):.3g} %) differ from those of the folded "
            f"network; first at {list(self.at)}: {self.found:.9g} in the file, "
            f"{self.expected:.9g} in the network{self.remark and f'; {self.remark}'}"
        )


def match_weights(
    network: Network, graph: ArtifactGraph, *, foreign: bool = False
) -> list[WeightMatch]:
    """Find every weight of the network among the constants of a file.

    Args:
        network: The folded network.
        graph: The file.
        foreign: Whether another converter made the file; its fold rounds differently.

    Returns:
        One entry for each weight of each node. Nodes that share a weight share the constant.
    """
    # Truth values, such as those of a mask, are no weights.
    constants = [
        c
        for c in graph.constants
        if c.data is not None and c.data.size and c.data.dtype.kind != "b"
    ]
    floats: dict[_Ends, list[GraphTensor]] = {}
    by_size: dict[int, list[GraphTensor]] = {}
    for constant in constants:
        assert constant.data is not None
        by_size.setdefault(constant.data.size, []).append(constant)
        if constant.data.dtype.kind == "f":
            floats.setdefault(_ends(constant.data), []).append(constant)
    tables = _tables(network, graph)
    outputs_first = functools.cache(lambda: _outputs_first(graph))  # most files need no ops here
    readers = network.readers()
    shifted = {name for name, after in readers.items() if [n.op for n in after] == ["hard_sigmoid"]}
    maps = flattened_maps(network)
    known: dict[tuple[object, ...], WeightMatch | None] = {}
    wanted = [
        (node, role, weight, (id(weight), node.op, role, maps.get(node.name, ())))
        for node in network.nodes
        for role, weight in node.weights.items()
    ]
    for node, role, weight, key in wanted:
        if key not in known:
            alike = by_size.get(weight.size, [])
            others = {c.key for c in alike} - {c.key for c in _of_use(alike, tables, node)}
            known[key] = _exactly(
                node, role, weight, maps.get(node.name, ()), floats, others, outputs_first
            )
    claimed = {match.tensor.key for match in known.values() if match and match.tensor}
    found = []
    for node, role, weight, key in wanted:
        match = known[key]
        if match is None:
            rest = [c for c in by_size.get(weight.size, []) if c.key not in claimed]
            rest = _of_use(rest, tables, node)
            features = maps.get(node.name, ())
            match = _nearest(node, role, weight, features, rest, foreign, outputs_first)
            if role == "alpha" and match.state != "equal":
                # A PReLU as separate operators: relu(x) + (-alpha) · relu(-x).
                beside = [c for c in rest if c.key in _factors(graph)]
                other = _nearest(node, role, -weight, features, beside, foreign)
                match = replace(other, negated=True) if other.state == "equal" else match
            if match.state != "equal" and _is_uniform(role, weight):
                plain, first = replace(node, errors={}), weight.reshape(-1)[:1]
                one = _nearest(plain, role, first, (), by_size.get(1, []), foreign)
                if one.state == "equal":  # the file repeats one number
                    match = replace(match, state="equal", tensor=None, differing=0, remark="")
            if role == "bias" and match.state != "equal" and node.name in shifted:
                # relu6(x + 3) / 6, with the 3 in the bias of a node that `merged_affines` leaves as
                # it is, such as an einsum.
                other = _nearest(node, role, weight + 3, features, rest, foreign)
                match = replace(other, offset=3.0) if other.state == "equal" else match
            known[key] = match
        own = (match.node, match.layer) == (node.name, node.layer)
        found.append(match if own else replace(match, node=node.name, layer=node.layer))
    return _by_elimination(found, network, graph) if foreign else found


def _factors(graph: ArtifactGraph) -> set[str]:
    """Return the tensors that products read, also after a conversion to floats."""
    found = {key for op in graph.ops if op.kind in ("MUL", "Mul") for key in op.inputs}
    for op in graph.ops:
        if op.kind in ("DEQUANTIZE", "DequantizeLinear", "Cast") and found & set(op.outputs):
            found.add(op.inputs[0])
    return found


def _is_uniform(role: str, weight: np.ndarray) -> bool:
    """Return whether a weight other than a kernel repeats one number."""
    return role != "kernel" and weight.size > 1 and bool(np.all(weight == weight.reshape(-1)[0]))


def _by_elimination(
    found: list[WeightMatch], network: Network, graph: ArtifactGraph
) -> list[WeightMatch]:
    """Return the matches with integer kernels that were changed throughout as altered.

    Such a kernel resembles no constant. If most kernels were found, and one of a size is missing
    while one constant of that size is left, this is the kernel; unless it is the expected one with
    scaled channels, which may compute the same.
    """
    kernels = [match for match in found if match.role == "kernel" and match.size > 1]
    known = {m.tensor.key for m in kernels if m.tensor is not None and m.state != "absent"}
    missing = [match for match in kernels if match.state == "absent"]
    if 2 * len(missing) >= len(kernels):
        return found
    sizes = Counter(match.size for match in missing)
    left: dict[int, list[GraphTensor]] = {}
    for constant in graph.constants:
        data, steps = constant.data, constant.quantization
        integers = data is not None and steps is not None and data.dtype.kind in "iu"
        if data is not None and integers and constant.key not in known:
            left.setdefault(data.size, []).append(constant)
    nodes = {node.name: node for node in network.nodes}
    changed: dict[str, WeightMatch] = {}
    for match in missing:
        alike = left.get(match.size, [])
        if sizes[match.size] == 1 and len(alike) == 1:
            node = nodes[match.node]
            if not _may_compute_the_same(alike[0], node):
                near = _nearest(node, "kernel", node.weights["kernel"], (), alike, foreign=True)
                changed[match.node] = replace(near, state="altered")
    return [changed.get(m.node, m) if m.role == "kernel" else m for m in found]


def _may_compute_the_same(constant: GraphTensor, node: Node) -> bool:
    """Return whether a constant is a node's kernel with scaled channels or exchanged rows.

    Scaled channels are compensated in a neighbouring layer, and the rows of a dense kernel may
    follow another order of a flattened feature map.
    """
    assert constant.data is not None
    kernel = node.arrays["kernel"].astype(np.float64)
    stored = constant.real(constant.data)
    if constant.quantization is not None:
        # Half a step of its own, and as much if the expected kernel was read from an integer file.
        allowed = 1.5 * float(np.max(constant.quantization.scales))
    else:
        greatest = np.abs(stored).max(initial=0.0)
        rounding = half_rounding(greatest) if stored.dtype == np.float16 else 0.0
        error = np.max(node.errors.get("kernel", 0.0))
        allowed = float(2 * FOLDED_ELSEWHERE * greatest + rounding + error)
    if node.op == "dense" and np.allclose(np.sort(stored, None), np.sort(kernel, None), 0, allowed):
        return True
    last = (kernel.ndim - 2, kernel.ndim - 1)
    # Both of the last axes of a depthwise kernel are its channels.
    channels = (last,) if node.op == "depthwise_conv" else ((last[0],), (last[1],))
    for view, order in dict.fromkeys(forms(node.op, "kernel", kernel.shape)):
        real = stored.reshape([view[axis] for axis in order]).transpose(np.argsort(order))
        if _scaled(kernel, real, channels, allowed):
            return True
    return False


def changed_in_places(match: WeightMatch, node: Node) -> bool:
    """Return whether a kernel of floats differs in a way that no other layer can compensate.

    Most of its numbers other than zero agree, and factors of channels do not explain the rest.

    Args:
        match: The state of the kernel.
        node: Its node.
    """
    if match.role != "kernel" or match.state != "altered" or match.remark or match.tensor is None:
        return False
    few = 2 * match.differing < int(np.count_nonzero(node.weights["kernel"]))
    floats = match.tensor.dtype.kind == "f" and match.tensor.quantization is None
    return few and floats and not _may_compute_the_same(match.tensor, node)


def _scaled(
    kernel: np.ndarray, real: np.ndarray, channels: Sequence[tuple[int, ...]], allowed: float
) -> bool:
    """Return whether factors of the channels turn a kernel into another."""
    before = np.inf
    for _ in range(_FITS):
        for kept in channels:
            others = tuple(axis for axis in range(kernel.ndim) if axis not in kept)
            power = np.square(kernel).sum(others, keepdims=True)
            kernel = kernel * (real * kernel).sum(others, keepdims=True) / (power + 1e-300)
        off = float(np.abs(real - kernel).max())
        if off <= allowed or off >= before:
            return off <= allowed
        before = off
    return False


def _tables(network: Network, graph: ArtifactGraph) -> set[str]:
    """Return the constants that only the lookups of an embedding read.

    A dense layer with the same numbers, such as the output layer of a language model, may have a
    constant of its own, of integers.
    """
    if not any(node.op == "gather" and node.weights for node in network.nodes):
        return set()
    lookups = {op.inputs[0] for op in graph.ops if op.kind in ("GATHER", "Gather")}
    elsewhere = {
        key
        for op in graph.ops
        for key in (op.inputs[1:] if op.kind in ("GATHER", "Gather") else op.inputs)
    }
    return lookups - elsewhere


def _outputs_first(graph: ArtifactGraph) -> set[str]:
    """Return the constants that are only read as kernels of TFLite's dense layers, (out, in)."""
    found, elsewhere = set[str](), set[str]()
    for op in graph.ops:
        dense = op.kind == "FULLY_CONNECTED"
        found.update(op.inputs[1:2] if dense else ())
        elsewhere.update(op.inputs[:1] if dense else op.inputs)
    return found - elsewhere


def _fits(node: Node, role: str, form: Form, constant: GraphTensor, outputs_first: _Keys) -> bool:
    """Return whether a constant may hold a weight in an order of its axes.

    A network may multiply by a matrix and by its transpose, as for the distances to the codes of a
    vector quantization and for the code that is chosen.
    """
    dense = node.op == "dense" and role == "kernel"
    return not dense or form[1][0] == len(form[0]) - 1 or constant.key not in outputs_first()


def _of_use(constants: list[GraphTensor], tables: Collection[str], node: Node) -> list[GraphTensor]:
    """Return the constants that may be a node's weight: those that are only looked up, or not.

    A file may round the numbers of a table and of a kernel in different steps, such as the codes of
    a vector quantization and their products with a vector. If there are none of its use, all may.
    """
    looked_up = node.op == "gather"
    chosen = [constant for constant in constants if (constant.key in tables) is looked_up]
    return chosen or constants


def _exactly(
    node: Node,
    role: str,
    weight: np.ndarray,
    features: tuple[int, ...],
    floats: Mapping[_Ends, Sequence[GraphTensor]],
    others: Collection[str],
    outputs_first: _Keys,
) -> WeightMatch | None:
    """Return the match with the constant that is equal bit for bit, as float32 or float16.

    Constants of the keys `others` belong to other nodes.
    """
    for dtype in (np.float32, np.float16):
        with np.errstate(over="ignore"):
            alike = floats.get(_ends(weight, dtype))
            rounded = weight.astype(dtype, copy=False) if alike else weight
        for constant in (c for c in alike or () if c.key not in others):
            for form in dict.fromkeys(forms(node.op, role, weight.shape, features)):
                if _equal(in_form(rounded, form), constant) and _fits(
                    node, role, form, constant, outputs_first
                ):
                    return WeightMatch(
                        node.name,
                        node.layer,
                        role,
                        "equal",
                        constant,
                        form[1],
                        form[0],
                        size=weight.size,
                    )
    return None


def _ends(array: np.ndarray, dtype: type | None = None) -> _Ends:
    """Return type, size, first and last number, which do not depend on the order of the axes."""
    kind = np.dtype(dtype or array.dtype)
    first, last = (float(kind.type(array.item(place))) for place in (0, -1))
    return kind, array.size, first, last


def _equal(weight: np.ndarray, constant: GraphTensor) -> bool:
    """Return whether a weight equals a constant."""
    assert constant.data is not None
    data = constant.data.reshape(weight.shape)
    places = range(0, weight.size, weight.size // _PROBES) if weight.size > _LARGE else ()
    if any(weight.item(place) != data.item(place) for place in places):
        return False
    return bool(np.array_equal(weight, data))


def _nearest(
    node: Node,
    role: str,
    weight: np.ndarray,
    features: tuple[int, ...],
    rest: list[GraphTensor],
    foreign: bool,
    outputs_first: _Keys = set,
) -> WeightMatch:
    """Return the match with the constant that agrees in most elements, the nearest of several."""
    error = np.broadcast_to(node.errors.get(role, 0.0), weight.shape)

    def compare_in(form: Form) -> Compare:
        if not foreign:
            return wrong_numbers
        return functools.partial(wrong_in_foreign, error=in_form(error, form).reshape(-1))

    best: _Candidate | None = None
    rank = (-1.0, 0.0)
    for form in dict.fromkeys(forms(node.op, role, weight.shape, features)):
        ordered = in_form(weight, form).astype(np.float64).reshape(-1)
        compare = compare_in(form)
        for constant in rest:
            if not _fits(node, role, form, constant, outputs_first):
                continue
            wrong, real = compare(ordered, constant)
            share = agreeing(wrong, ordered, real)
            off = float(np.abs(real - ordered).sum()) if share == 1 else np.inf
            if (share, -off) > rank:
                best, rank = (share, constant, form, wrong, real), (share, -off)
    plain = WeightMatch(node.name, node.layer, role, "absent", size=weight.size)
    if (best is None or best[0] < 1) and _does_nothing(node, role, weight):
        return replace(plain, state="equal")
    if best is None:
        return plain
    remark = ""
    if best[0] < 1:

        def fitting(form: Form) -> list[GraphTensor]:
            return [c for c in rest if _fits(node, role, form, c, outputs_first)]

        best, remark = _explained(node, role, weight, features, fitting, best, compare_in)
    share, constant, (view, axes), wrong, real = best
    placed = replace(plain, tensor=constant, form=axes, view=view)
    if not wrong.any():
        return replace(placed, state="equal", rounded=foreign)
    first = int(np.argmax(wrong))
    place = np.unravel_index(first, [view[axis] for axis in axes])
    inside = [0] * len(view)
    for axis, index in zip(axes, place):
        inside[axis] = int(index)
    flat = int(np.ravel_multi_index(inside, view))
    return replace(
        placed,
        state="altered" if remark or share >= _ALTERED_SHARE else "absent",
        differing=int(wrong.sum()),
        at=tuple(int(i) for i in np.unravel_index(flat, weight.shape)),
        found=float(real[first]),
        expected=float(weight.reshape(-1)[flat]),
        remark=remark,
    )


def _does_nothing(node: Node, role: str, weight: np.ndarray) -> bool:
    """Return whether converters omit a weight because it adds zeros or multiplies by ones."""
    factor = role == "scale" or (role == "constant" and node.op == "multiply")
    return not weight.any() or (factor and bool(np.all(weight == 1)))


def _explained(
    node: Node,
    role: str,
    weight: np.ndarray,
    features: tuple[int, ...],
    fitting: Callable[[Form], list[GraphTensor]],
    best: _Candidate,
    compare_in: Callable[[Form], Compare],
) -> tuple[_Candidate, str]:
    """Return the constant explained by a known alteration, with a remark; else the nearest one."""
    if weight.size < 2 or not weight.any():
        return best, ""
    for form in dict.fromkeys(forms(node.op, role, weight.shape, features)):
        ordered, compare = in_form(weight, form).astype(np.float64), compare_in(form)
        rest = fitting(form)
        for constant in sorted(rest, key=lambda constant: constant is not best[1]):
            remark = explain(ordered, constant, form[1], role, compare)
            if remark:
                wrong, real = compare(ordered.reshape(-1), constant)
                share = agreeing(wrong, ordered.reshape(-1), real)
                return (share, constant, form, wrong, real), remark
    return best, ""


def file_weight(match: WeightMatch, shape: tuple[int, ...]) -> np.ndarray:
    """Return the numbers that the file holds for a weight, in the network's axes, as float64."""
    assert match.tensor is not None
    assert match.tensor.data is not None
    real = match.tensor.real(match.tensor.data) - match.offset
    ordered = (-real if match.negated else real).reshape([match.view[axis] for axis in match.form])
    return np.transpose(ordered, np.argsort(match.form)).reshape(shape)
