"""Finds the tensor of a file that holds a value of the network, by its numbers, not by names."""

from __future__ import annotations

import functools
from collections.abc import Collection, Mapping, Sequence

import numpy as np

from ...artifacts.graphs.base import ArtifactGraph, GraphOp
from ...artifacts.network import Node
from .clipping import REORDERING
from .loops import LOOPS, results_of_loops
from .rounding_chain import RoundingChain
from .storage import Derived, Steps, Storage, storage_of

# Elements of a tensor that are compared first: they distinguish most pairs of tensors.
_PROBE = 64

# A match is meaningful only if the bound is small relative to the values: propagated through
# several ops it may grow until everything matches.
MEANINGFUL = 0.25

_QUANTIZING = ("QUANTIZE", "QuantizeLinear")
_CONVERTING = (*_QUANTIZING, "DEQUANTIZE", "DequantizeLinear", "Cast")
_MOVING = REORDERING | {"TRANSPOSE", "RESHAPE"}

# Ops that multiply by a kernel; an activation may be fused into them.
LINEAR_KINDS = {
    "CONV_2D",
    "CONV_3D",
    "DEPTHWISE_CONV_2D",
    "TRANSPOSE_CONV",
    "FULLY_CONNECTED",
    "Conv",
    "ConvTranspose",
    "Gemm",
    "MatMul",
}

# Ops that read a shape, which depends on no number.
_SIZES = {"RANK", "SHAPE", "Shape", "Size"}


class Tensors:
    """What a runtime computed, by the file's keys.

    Args:
        graph: The file.
        tensors: Key to (P, …): what the runtime computed for each of P samples.
        samples: P.
        further: Steps that each op of integers may err more than by the known rules.

    Attributes:
        arrays: Those that depend on the inputs' numbers; dequantized constants and shapes do not.
        looped: Keys of the results of loops and of all ops behind them.
        of_loops: Keys of the results of loops, and of those in another order.
    """

    def __init__(
        self,
        graph: ArtifactGraph,
        tensors: Mapping[str, np.ndarray],
        samples: int,
        further: float = 0.0,
    ) -> None:
        self.graph, self._samples = graph, samples
        self._producers = {key: op for op in graph.ops for key in op.outputs}
        self._consumers: dict[str, list[GraphOp]] = {}
        dependent = set(graph.inputs)
        self.looped: set[str] = set()
        for op in graph.ops:
            for key in op.inputs:
                self._consumers.setdefault(key, []).append(op)
            reads = op.kind not in _SIZES and any(key in dependent for key in op.inputs)
            if op.kind in LOOPS or reads:
                dependent.update(op.outputs)
            if op.kind in LOOPS or any(key in self.looped for key in op.inputs):
                self.looped.update(op.outputs)
        self._dependent = dependent
        self.of_loops = results_of_loops(graph)
        computed = dependent - set(graph.inputs)
        self.arrays = {k: a for k, a in tensors.items() if k in graph.tensors and k in computed}
        self._storages: dict[str, Storage] = {}
        self._sources: frozenset[str] = frozenset()
        self._chain = RoundingChain(graph, tensors, samples, further)
        self._rounds = any(graph.tensors[key].quantization is not None for key in self.arrays)
        self._by_size: dict[int, list[str]] = {}
        for key, array in self.arrays.items():
            self._by_size.setdefault(array.size, []).append(key)

    def producer(self, key: str) -> GraphOp | None:
        """Return the op that computes a tensor.

        For a group of ops that runs in integers, this is the op before the QuantizeLinear.
        """
        op = self._producers.get(key)
        if op is not None and op.kind == "QuantizeLinear" and op.inputs[0] not in self.arrays:
            return self._producers.get(op.inputs[0], op)
        return op

    def computed(self, key: str) -> str:
        """Return the tensor of integers that floats were dequantized from; else the tensor."""
        op = self._producers.get(key)
        if op is not None and op.kind in ("DEQUANTIZE", "DequantizeLinear"):
            return op.inputs[0] if op.inputs[0] in self.arrays else key
        return key

    def half(self, key: str) -> bool:
        """Return whether a tensor is stored in half precision."""
        return bool(self.arrays[key].dtype == np.float16)

    def held(
        self, key: str, node: Node | None, expected: np.ndarray, allowed: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return value and bound after storage in a tensor's type."""
        storage = self.storage(key)
        array = self.arrays[key]
        if isinstance(storage, Steps) and np.size(storage.rounding) == array.size:
            rounding = self._without_batch(np.reshape(storage.rounding, array.shape))
            order = _orders(rounding.ndim)[self._nearest(key, expected)[0]]
            storage = storage.with_rounding(rounding.transpose(order))
        return storage.held(node, expected, allowed)

    def storage(self, key: str) -> Storage:
        """Return how a tensor stores numbers."""
        if key not in self._storages:
            tensor, dtype = self.graph.tensors[key], self.arrays[key].dtype
            integers = tensor.quantization is not None and dtype != np.float16
            rounding = self._chain.error(key, self._sources) if integers else 0.0
            self._storages[key] = storage_of(tensor, dtype, rounding)
        return self._storages[key]

    def halves(self, key: str, expected: np.ndarray, allowed: np.ndarray) -> bool:
        """Return whether the integers of a tensor have one sign and an expected value has two."""
        storage = self.storage(key)
        if not isinstance(storage, Steps) or storage.low * storage.high < 0:
            return False
        lost = np.abs(expected - np.clip(expected, storage.low, storage.high))
        return bool(np.any(lost > allowed + storage.step))

    @property
    def sources(self) -> frozenset[str]:
        """Tensors that later ops are known to read, so that their errors count only once."""
        return self._sources

    @sources.setter
    def sources(self, keys: frozenset[str]) -> None:
        if keys >= self._sources:
            keys |= self._integers_of(keys - self._sources)
        else:
            keys |= self._integers_of(keys)
        self._sources = keys
        for key in self._chain.use(keys):
            self._storages.pop(key, None)

    def _integers_of(self, keys: frozenset[str]) -> frozenset[str]:
        """Return the integers of dequantized tensors, which other ops may read."""
        makers = [self._producers.get(key) for key in keys]
        return frozenset(
            op.inputs[0]
            for op in makers
            if op is not None and op.kind in ("DEQUANTIZE", "DequantizeLinear")
        )

    def of_size(self, size: int) -> list[str]:
        """Return the tensors with that number of elements."""
        return self._by_size.get(size, [])

    def find(
        self, node: Node, expected: np.ndarray, allowed: np.ndarray, taken: set[str]
    ) -> list[tuple[str, np.ndarray]]:
        """Return the tensors that hold a node's value within its bound, and their numbers.

        The nearest comes first, since a wide bound may also admit the tensor before a small bias is
        added. A tensor may match two nodes (an identity), so those in ``taken`` come last. Even
        later come tensors with samples that saturate, since these say nothing. If there is none,
        floats that were computed from rounded numbers are compared within their error.
        """
        keys = self.of_size(expected.size)
        found = self._found(keys, node, expected, allowed, taken)
        if found or not self._rounds:
            return found
        for key in keys:
            derived = self._derived(key)
            if derived is None:
                continue
            before, self._storages[key] = self.storage(key), derived
            more = self._found([key], node, expected, allowed, taken)
            if not more:
                self._storages[key] = before
            found.extend(more)
        return sorted(found, key=lambda entry: (entry[0] in taken, distance(entry[1], expected)))

    def _derived(self, key: str) -> Derived | None:
        """Return the storage of floats that were computed from rounded numbers; None for others."""
        tensor = self.graph.tensors[key]
        if tensor.quantization is not None or self.arrays[key].dtype != np.float32:
            return None
        rounding = self._chain.error(key, self._sources)
        return Derived(rounding) if np.any((rounding > 0) & np.isfinite(rounding)) else None

    def _found(
        self,
        keys: Sequence[str],
        node: Node,
        expected: np.ndarray,
        allowed: np.ndarray,
        taken: set[str],
    ) -> list[tuple[str, np.ndarray]]:
        size = expected.size // len(expected)
        columns = np.linspace(0, size - 1, min(_PROBE // len(expected) + 1, size)).astype(int)
        places = size * np.arange(len(expected))[:, None] + columns
        probe = [side.reshape(-1)[places] for side in (expected, allowed)]
        found: list[tuple[bool, bool, float, str, np.ndarray]] = []
        for key in keys:
            storage = self.storage(key)
            if isinstance(storage, Steps) and not np.isfinite(storage.rounding).any():
                continue
            target, limit = storage.held(node, *probe)
            for layout in self._layouts(key):
                # One number distinguishes most tensors, at little cost.
                one = self._real(key, np.asarray(layout.item(places[-1, -1]))).item()
                if abs(one - target[-1, -1]) > limit[-1, -1]:
                    continue
                seen = self._real(key, layout[np.unravel_index(places, layout.shape)])
                if not within(seen, target, limit):
                    continue
                view = self._real(key, layout.reshape(expected.shape))
                whole, limits = self.held(key, node, expected, allowed)
                if self._agrees(view, whole, limits):
                    free = not np.isfinite(limits).all()
                    found.append((free, key in taken, distance(view, expected), key, view))
                    break
        return [entry[3:] for entry in sorted(found, key=lambda entry: entry[:4])]

    def _agrees(self, view: np.ndarray, target: np.ndarray, limit: np.ndarray) -> bool:
        """Return whether a tensor agrees with a value, and whether that is meaningful."""
        return within(view, target, limit) and meaningful(target.reshape(-1), limit.reshape(-1))

    def numbers(self, key: str) -> np.ndarray:
        """Return a tensor's numbers, in its own layout."""
        return self._real(key, self.arrays[key])

    def _real(self, key: str, values: np.ndarray) -> np.ndarray:
        return self.graph.tensors[key].real(values)

    def closest(self, key: str, expected: np.ndarray) -> np.ndarray:
        """Return a tensor in the layout that is nearest to a node's value."""
        return self._nearest(key, expected)[1]

    def _nearest(self, key: str, expected: np.ndarray) -> tuple[int, np.ndarray]:
        """Return the place of the layout nearest to a node's value, and the tensor in it."""
        views = enumerate(self._views(key, expected.shape))
        return min(views, key=lambda entry: distance(entry[1], expected))

    def _layouts(self, key: str) -> list[np.ndarray]:
        """Return a tensor as stored, and with its channels moved."""
        raw = self.arrays[key]
        quantization = self.graph.tensors[key].quantization
        if quantization is not None and quantization.scales.size > 1:
            raw = self._real(key, raw)  # A scale for each channel goes with its axis.
        body = self._without_batch(raw)
        return [body.transpose(order) for order in _orders(body.ndim)]

    def _without_batch(self, array: np.ndarray) -> np.ndarray:
        """Return the array of all samples without a second axis for a batch of one."""
        return array.reshape(self._samples, *array.shape[2:]) if array.shape[1:2] == (1,) else array

    def _views(self, key: str, shape: tuple[int, ...]) -> list[np.ndarray]:
        """Return a tensor as real numbers in a node's shape, in each layout."""
        return [self._real(key, layout.reshape(shape)) for layout in self._layouts(key)]

    def read_after(self, key: str, value: np.ndarray) -> np.ndarray:
        """Return the numbers that the readers of a tensor see: rounded, if an op rounds them.

        After a reshape no layout may restore their order, and an op that repeats them has more;
        then the unrounded numbers are used.
        """
        rounded = self.rounded_copy(key)
        if rounded is not None and self.arrays[rounded].size != value.size:
            return value
        # A requantized copy is for one reader; the others read the original integers.
        shown = self.arrays.get(key)
        if rounded is None or (shown is not None and shown.dtype.kind != "f"):
            return value
        target, limit = self.held(rounded, None, value, np.zeros_like(value))
        view = self.closest(rounded, value)
        return view if within(view, target, limit) else value

    def read_as_input(self, key: str, value: np.ndarray) -> np.ndarray:
        """Return the numbers that a file's ops read of its inputs."""
        tensor = self.graph.tensors[key]
        if tensor.quantization is not None and tensor.dtype.kind != "f":
            return Steps(tensor.quantization).nearest(value)
        return self.read_after(key, value)

    def read_in_half(self, key: str) -> bool:
        """Return whether a file's ops read an input in half precision."""
        rounded = self.rounded_copy(key)
        return rounded is not None and self.half(rounded)

    def rounded_copy(self, key: str) -> str | None:
        """Return the tensor that holds another one's value after a rounding op; None without one.

        Ops that only move numbers may lie in between.
        """
        for op in self._consumers.get(key, []):
            if not op.outputs:
                continue
            out = op.outputs[0]
            if op.kind in _MOVING or _moves_ties(op.kind, key, out):
                found = self.rounded_copy(out)
                if found is not None:
                    return found
            if out not in self.arrays:
                continue
            if op.kind == "Cast" and self.half(out):
                return out
            if op.kind in _QUANTIZING:
                after = [o for o in self._consumers.get(out, []) if o.kind == "DequantizeLinear"]
                if after and after[0].outputs[0] in self.arrays:
                    return after[0].outputs[0]
                if self.graph.tensors[out].quantization:
                    return out
        return None

    def copies(self, values: Mapping[str, np.ndarray]) -> set[str]:
        """Return the tensors that ops only convert from others, with no more error than a rounding.

        Args:
            values: Key to the numbers of each of the others.
        """
        found: dict[str, np.ndarray] = {}
        waiting = list(values.items())
        while waiting:
            key, value = waiting.pop()
            for op in self._consumers.get(key, []):
                out = op.outputs[0] if op.kind in _CONVERTING else ""
                if out in found or out not in self.arrays or self.arrays[out].size != value.size:
                    continue
                numbers = self.numbers(out).reshape(value.shape)
                if within(numbers, *self.held(out, None, value, np.zeros_like(value))):
                    found[out] = numbers
                    waiting.append((out, numbers))
        return set(found)

    def computed_from(self, key: str, sources: frozenset[str], others: Collection[str]) -> bool:
        """Return whether a tensor depends on the inputs only through some tensors.

        No more than one linear op may lie in between, since no node is several layers.

        Args:
            key: The tensor.
            sources: Those tensors.
            others: Tensors that it must not depend on, unless through the sources.
        """
        sources = sources | self._integers_of(sources)
        waiting, most = [(key, 0)], {key: 0}  # with the linear ops behind each
        while waiting:
            name, behind = waiting.pop()
            op = self._producers[name]
            behind += op.kind in LINEAR_KINDS
            if behind > 1:
                return False
            for read in op.inputs:
                if read in sources or read not in self._dependent:
                    continue
                if read in others or read in self.graph.inputs:
                    return False
                if most.get(read, -1) < behind:
                    most[read] = behind
                    waiting.append((read, behind))
        return True

    def depths(self, taken: set[str]) -> dict[str, int]:
        """Return the tensors outside ``taken``, with the number of such ops before each."""
        depths: dict[str, int] = {}
        for key in self._producers:
            if key not in self.arrays or key in taken:
                continue
            read = [
                depths.get(name)
                for name in self._shown_before(key)
                if name not in taken and name not in self.graph.inputs
            ]
            known = [depth for depth in read if depth is not None]
            if len(known) == len(read):
                depths[key] = 1 + max(known, default=-1)
        return depths

    def _shown_before(self, key: str) -> Sequence[str]:
        """Return the available tensors and inputs that a tensor is computed from."""
        found: list[str] = []
        waiting, seen = list(self._producers[key].inputs), {key}
        while waiting:
            name = waiting.pop()
            if name in seen:
                continue
            seen.add(name)
            if name in self.arrays or name in self.graph.inputs:
                found.append(name)
            elif name in self._dependent:
                waiting.extend(self._producers[name].inputs)
        return found


@functools.lru_cache
def _orders(rank: int) -> tuple[tuple[int, ...], ...]:
    """Return the orders of axes that a file may have: as stored, and with the channels moved.

    The first axis is the samples. Channels first moves the last axis to place 1, but a layer that a
    converter applies to each time step keeps the steps before the channels: (P, steps, channels,
    length).
    """
    axes = tuple(range(rank))
    orders = [axes]
    for axis in range(1, rank - 1):
        orders.append((*axes[:axis], *axes[axis + 1 :], axis))
        orders.append((*axes[:axis], rank - 1, *axes[axis:-1]))
    return tuple(dict.fromkeys(orders))


def meaningful(expected: np.ndarray, limit: np.ndarray) -> bool:
    """Return whether a bound is small enough to distinguish the expected values from others."""
    if not np.isfinite(expected).any():
        return True
    finite = np.isfinite(expected) & np.isfinite(limit)
    if not finite.any():
        return False
    size, allowed = np.abs(expected[finite]), limit[finite]
    peak = float(max(size.max(), allowed.max()))
    if peak == 0 or not np.isfinite(peak):
        return peak == 0
    # Scaled by the peak, so that no square overflows.
    squares = [float(np.mean(np.square(side / peak))) for side in (size, allowed)]
    return not size.any() or squares[1] <= MEANINGFUL**2 * squares[0]


def within(got: np.ndarray, expected: np.ndarray, limit: np.ndarray) -> bool:
    """Return whether every element is within its limit, or equally infinite or NaN."""
    with np.errstate(invalid="ignore"):
        near = np.abs(got - expected) <= limit
    alike = (np.isnan(got) & np.isnan(expected)) | (got == expected)
    return bool(np.all(near | alike))


def distance(got: np.ndarray, expected: np.ndarray) -> float:
    """Return the relative distance of two arrays; infinite when one is not finite."""
    if not np.isfinite(got).all():
        return float("inf")
    with np.errstate(invalid="ignore"):
        return float(np.linalg.norm(got - expected) / (np.linalg.norm(expected) + 1e-300))


def _moves_ties(kind: str, key: str, out: str) -> bool:
    """Return whether a float op shifts ties before a rounding.

    An ONNX file that follows XNNPACK's rule has such ops, named after the op that they follow
    (`export.quantization.onnx_integers`).
    """
    before = out.rpartition("/")[0]
    return kind in ("LeakyRelu", "Mul", "Add") and before in (key, key.rpartition("/")[0])
