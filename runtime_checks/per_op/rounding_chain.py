"""Bounds the error of a quantized tensor against the exact value of a node, from the ops before it.

A converter may compute one node of the network in several quantized ops, each of which rounds: a
bias after a convolution, or x · sigmoid(x). From the source tensors, whose numbers are taken as
exact, to the tensor, every op propagates the errors of its inputs and adds its own rounding. The
propagation is bounded by the op's slope at the runtime's numbers.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Mapping

import numpy as np

from ...artifacts.graphs.base import ArtifactGraph, GraphOp, Quantization
from ...reference.integer.onnx_moving import MOVING
from ...reference.integer.tflite_moving import MOVING_OPS
from .clipping import SUMS, Clipping
from .function_errors import POINTWISE, carried_errors, error_of_places, own_errors
from .shown_numbers import ShownNumbers

# An integer result is the nearest step to the exact one; kernels that scale by a fixed-point
# multiplier round twice, which measured 0.507 steps at most (docs/checks.md).
_NEAREST = 0.51
# An unknown rule may truncate where a known one rounds.
UNKNOWN_RULE = 0.5
# Look-up tables and integer approximations of activations and means: within one step. So are
# requantizations: XNNPACK's factors are off by up to 1/512, which is half a step of 255. An ONNX
# file that follows it adds a float to move ties before it rounds.
_TABLE = 1.01
_REGRIDS = "QUANTIZE from integers"
# ONNX Runtime's integer softmax scales by floor(1/step) instead of 1/step, which takes up to one
# step from a probability of 1.
_SOFTMAX = _TABLE + 1
# A sum of 64 bits is multiplied by a number in [2^14, 2^15], half a unit of which is up to 2^-15 of
# the result: one step of 16 bits at full range.
_WIDE = _NEAREST + 1
# Tables of 16 bits, as `reference.rounding.tables` has them. The logistic function: a line
# between points 1/24 apart, h²/8 · max|f''| = 0.68 steps; the argument's truncated multiplier, up
# to 2^-14 of it, 0.45; its own rounding 0.33; the points 0.5. The tangent has twice the slope and
# four times the curvature at half the distance. GELU: the points, their shift and the result are
# rounded, besides the line between points 128 integers apart, h²/8 · max|f''|.
_WIDE_TABLE = {"LOGISTIC": 2.5, "TANH": 5.0, "SOFTMAX": 8.0, "GELU": 2.0}
_OF_GELU = 128**2 / 8 * 0.8

# The table of exponentials of a 16-bit softmax ends at -10, with this number, which all lesser
# differences have too; each number is rounded to steps of 2/65535.
_LEAST_EXPONENTIAL, _OF_EXPONENTIAL = 2 * 2.0**-15, 0.5 * 2.0**-15

# The axis of a kernel for the output channels.
_CHANNEL = {
    "CONV_2D": 0, "TRANSPOSE_CONV": 0, "FULLY_CONNECTED": 0, "DEPTHWISE_CONV_2D": -1, "Conv": 0,
    "ConvTranspose": 1,
}  # fmt: skip
_PRODUCTS = frozenset({"MUL", "Mul"})
_NEAR = SUMS | {"QUANTIZE", "ADD", "SUB", "MUL", "MAXIMUM", "MINIMUM", "Add", "Sub", "Mul"}

# The greatest slope of unary functions; for other ops the errors of all inputs are added.
_SLOPES = {
    "LOGISTIC": 0.25, "Sigmoid": 0.25, "HARD_SWISH": 1.5, "HardSwish": 1.5, "GELU": 1.13,
    "Erf": 1.13, "Selu": 1.76, "SOFTMAX": 0.5, "Softmax": 0.5, "Mish": 1.09,
}  # fmt: skip

_STEEP = frozenset({"EXP", "Exp", "LOG", "Log"})

# Ops that keep the order of the numbers, and so of their errors.
_RESHAPES = frozenset({"RESHAPE", "SQUEEZE", "EXPAND_DIMS"})

# Most ops in a row through which an error is propagated: after more, the bound is too wide. In ONNX
# each op counts as three; attention and normalization over a sample have ten of them.
_MOST_OPS = 32


class RoundingChain:
    """Bounds on the rounding errors of a file's tensors, by sample, or by element after functions.

    Args:
        graph: The file.
        shown: Key to (P, …): what the runtime computed for each of P samples.
        samples: P.
        further: Steps that each op may err more than by the known rules.
    """

    def __init__(
        self,
        graph: ArtifactGraph,
        shown: Mapping[str, np.ndarray],
        samples: int,
        further: float = 0.0,
    ) -> None:
        self._graph, self._samples = graph, samples
        self._further = further
        self._numbers = ShownNumbers(graph, shown)
        self._clipping = Clipping(self._numbers, samples, _NEAREST + further, self._is_source)
        self._inputs = frozenset(graph.inputs)
        self._sums: dict[tuple[str, ...], list[GraphOp]] = {}
        self._readers: dict[str, list[int]] = {}  # places in the graph
        for place, op in enumerate(graph.ops):
            if op.kind in SUMS:
                self._sums.setdefault((op.kind, *op.inputs), []).append(op)
            for key in op.inputs:
                self._readers.setdefault(key, []).append(place)
        self._places = {key: place for place, op in enumerate(graph.ops) for key in op.outputs}
        self._sources: frozenset[str] = frozenset()
        self._known: dict[str, np.ndarray] = {}
        self._depth: dict[str, int] = {}
        self._update(range(len(graph.ops)))

    def error(self, key: str, sources: frozenset[str]) -> np.ndarray:
        """Return the greatest error of a tensor against the exact result of its sources.

        At least the rounding of its own numbers.

        Args:
            key: The tensor.
            sources: Tensors whose numbers are taken as exact.

        Returns:
            (P,) bounds, or (P, …) one for each element after `POINTWISE` ops; infinite where an
            intermediate number was saturated.
        """
        if sources is not self._sources:
            self.use(sources)
        if self._depth.get(key, 0) > _MOST_OPS:
            return np.full(self._samples, np.inf)
        steps = self._graph.tensors[key].quantization
        nearest = _NEAREST + self._further
        least = 0.0 if steps is None else nearest * float(steps.scales.max())
        return np.maximum(least, self._through_op(key))

    def use(self, sources: frozenset[str]) -> set[str]:
        """Take other tensors as exact; return those whose bounds may change."""
        added = sources - self._sources
        places = {place for key in added for place in self._readers.get(key, ())}
        for key in added & self._places.keys():
            op = self._graph.ops[self._places[key]]
            twins = self._sums.get((op.kind, *op.inputs), [])
            places |= {self._places[twin.outputs[0]] for twin in twins}
        if not sources >= self._sources:
            self._known, self._depth, added = {}, {}, frozenset(self._places)
            places = set(range(len(self._graph.ops)))
        self._sources = sources
        self._depth |= dict.fromkeys(sources, 0)
        return set(added) | self._update(places)

    def _update(self, places: Iterable[int]) -> set[str]:
        """Count how many ops lead from the sources to tensors, on the longest path.

        Args:
            places: The ops whose inputs have changed.

        Returns:
            The tensors whose bounds may change.
        """
        changed: set[str] = set()
        waiting = sorted(places)
        while waiting:
            place = heapq.heappop(waiting)
            if waiting[:1] == [place]:
                continue
            op = self._graph.ops[place]
            depth = 1 + max((self._depth.get(key, 0) for key in op.inputs), default=0)
            depth = min(depth, _MOST_OPS + 1)
            for key in op.outputs:
                # Beyond that depth, there is no bound before or after.
                if key in self._sources or self._depth.get(key) == depth == _MOST_OPS + 1:
                    continue
                self._depth[key] = depth
                self._known.pop(key, None)
                changed.add(key)
                for reader in self._readers.get(key, ()):
                    heapq.heappush(waiting, reader)
        return changed

    def _error(self, key: str) -> np.ndarray:
        """Return the error bounds of a tensor that ops read; zero for a source."""
        if self._is_source(key):
            return np.zeros(self._samples)
        if key not in self._known:
            found = self._through_op(key, read=True)
            op = self._numbers.producers.get(key)
            if op is not None:
                lost = self._clipping.lost(op, key)
                found = found + lost.reshape(-1, *[1] * (found.ndim - 1))
            self._known[key] = found
        return self._known[key]

    def _of_samples(self, key: str) -> np.ndarray:
        """Return (P,) the greatest error bound of a tensor that ops read."""
        error = self._error(key)
        return error.reshape(len(error), -1).max(axis=1)

    def _is_source(self, key: str) -> bool:
        """Return whether a tensor is taken as exact: a source, or an input of the file."""
        return key in self._sources or key in self._inputs

    def _through_op(self, key: str, *, read: bool = False) -> np.ndarray:
        """Return the errors that a tensor's op propagates, plus its own.

        Args:
            key: The tensor.
            read: Whether ops read it, so that its actual rounding errors may be used.
        """
        op = self._numbers.producers.get(key)
        if op is None or not self._graph.activations(op):
            return np.zeros(self._samples)
        own: np.ndarray | float = self._own(op, key) + self._of_twin(op)
        by_element = op.kind in POINTWISE and self._numbers.all_known(op)
        with np.errstate(invalid="ignore"):
            carried = self._of_elements(op) if by_element else self._carried(op)
        if read and by_element:
            own = own_errors(op, self._numbers.operands(op), self._numbers.of(key), float(own))
        # An infinite bound times a factor of zero stays infinite.
        return np.where(np.isnan(carried), np.inf, carried) + own

    def _of_elements(self, op: GraphOp) -> np.ndarray:
        """Return the propagated errors of a function, element by element."""
        operands, errors = self._numbers.operands(op), []
        for key, x in zip(op.inputs, operands):
            error = self._error(key)
            shape = x.shape if error.size == x.size else (-1, *[1] * (x.ndim - 1))
            errors.append(error.reshape(shape) + self._rounded(op, key))
        return carried_errors(op, operands, errors)

    def _carried(self, op: GraphOp) -> np.ndarray:
        """Return the propagated errors of an op's inputs."""
        keys = [key for key in op.inputs if key]
        if op.kind in _RESHAPES:
            return self._error(keys[0])
        errors = [self._of_samples(key) + self._rounded(op, key) for key in keys]
        none = np.zeros(self._samples)
        if op.kind in SUMS | _PRODUCTS:
            return sum(
                (error * self._gain(op, keys, i) for i, error in enumerate(errors) if error.any()),
                none,
            )
        if op.kind in ("Div", "DIV"):
            return self._of_quotient(keys, errors)
        if op.kind in MOVING or op.kind in MOVING_OPS:
            return np.max(errors, axis=0)
        if op.kind in _STEEP:
            return self._steep(op, keys[0], errors[0])
        return _SLOPES.get(op.kind, 1.0) * sum(errors, none)

    def _steep(self, op: GraphOp, key: str, error: np.ndarray) -> np.ndarray:
        """Return the propagated error of a function whose slope has no bound.

        |exp(x + e) - exp(x)| <= exp(x) (exp(e) - 1), and |log(x + e) - log(x)| <= e / (x - e).
        """
        x = self._numbers.of(key)
        with np.errstate(divide="ignore", over="ignore"):
            if op.kind in ("EXP", "Exp"):
                return np.asarray(np.exp(x.max(initial=0.0)) * np.expm1(error))
            room = np.maximum(x.min(initial=np.inf) - error, 0.0)
            return np.where(error > 0, error / room, 0.0)

    def _of_quotient(self, keys: list[str], errors: list[np.ndarray]) -> np.ndarray:
        """Return the propagated errors of a quotient.

        |(a + e) / (b + f) - a / b| <= (|e| + |a / b| |f|) / (|b| - |f|).
        """
        a, b = (np.abs(self._numbers.of(key)) for key in keys)
        least = b.min(initial=np.inf)
        room = np.maximum(least - errors[1], 0.0)
        with np.errstate(divide="ignore", invalid="ignore"):
            error = errors[0] + a.max(initial=0.0) / least * errors[1]
            return np.where(error > 0, error / room, 0.0)

    def _rounded(self, op: GraphOp, key: str) -> float:
        """Return the error of a constant other than a kernel: half a step.

        Kernels are compared separately, and nodes are evaluated with those of the file.
        """
        tensor, steps = self._graph.tensors[key], self._graph.tensors[key].quantization
        if op.kind in SUMS or tensor.data is None or steps is None:
            return 0.0
        return float(steps.scales.max()) / 2 if steps.dtype.itemsize <= 2 else 0.0

    def _gain(self, op: GraphOp, keys: list[str], place: int) -> float:
        """Return the factor by which an error of one operand may grow."""
        others = [key for index, key in enumerate(keys) if index != place]
        data = [self._numbers.of(key) for key in others]
        if op.kind in _PRODUCTS:
            return max((float(np.abs(array).max(initial=0.0)) for array in data), default=1.0)
        kernel = next((np.abs(array) for array in data if array.ndim > 1), np.ones((1, 1)))
        if op.kind in _CHANNEL:
            kept = _CHANNEL[op.kind] % kernel.ndim
            return float(kernel.sum(axis=tuple(i for i in range(kernel.ndim) if i != kept)).max())
        return float(max(kernel.sum(axis=axis).max() for axis in (-1, -2)))

    def _own(self, op: GraphOp, key: str) -> float:
        """Return the rounding error of an op itself."""
        steps = self._graph.tensors[key].quantization
        if steps is None or op.kind == "DequantizeLinear" or op.kind in MOVING_OPS:
            return 0.0
        kind = op.kind
        if kind == "QuantizeLinear":
            core = self._numbers.producers.get(op.inputs[0])
            if core is None or self._is_source(op.inputs[0]) or self._keeps_steps(core, steps):
                return 0.0
            makers = [self._numbers.producers.get(k) for k in core.inputs[1:] if k]
            floats = any(op is None or op.kind != "DequantizeLinear" for op in makers)
            kind = _REGRIDS if core.kind == "Add" and floats else core.kind
            kind = "QUANTIZE" if self._clipping.moves_floats(core) else kind
        elif self._graph.tensors[key].dtype.kind == "f":
            return 0.0
        # Source floats have been rounded already; integers have not.
        read = op.inputs[0]
        floats = self._graph.tensors[read].dtype.kind == "f"
        if kind == "QUANTIZE" and floats and self._is_source(read):
            return 0.0
        if kind == "QUANTIZE" and not floats:
            kind = _REGRIDS
        size = float(steps.scales.max())
        own = (_steps(kind, steps.dtype.itemsize) + self._further) * size + self._first_rounding(op)
        if kind == "SOFTMAX" and steps.dtype.itemsize > 1:
            own += _of_exponentials(self._numbers.of(read))
        if kind == "RESIZE_BILINEAR":
            sizes = [int(size) for size in self._numbers.of(op.inputs[1]).reshape(-1)]
            own += error_of_places(op, self._numbers.of(read), sizes)
        argument = self._graph.tensors[read].quantization
        if kind == "GELU" and steps.dtype.itemsize > 1 and argument is not None:
            own += _OF_GELU * float(argument.scales.max()) ** 2
        return own

    def _of_twin(self, op: GraphOp) -> float:
        """Return the rounding error of a source that holds the same sums in other steps.

        A converter may compute a convolution twice, with a relu and without. The network's function
        reads the numbers of one of them, the file's parts of it those of both.
        """
        twins = self._sums.get((op.kind, *op.inputs), [])
        keys = [twin.outputs[0] for twin in twins if twin.index != op.index]
        errors = [self._own(self._numbers.producers[k], k) for k in keys if k in self._sources]
        return max(errors, default=0.0)

    def _keeps_steps(self, op: GraphOp, steps: Quantization) -> bool:
        """Return whether an op only moves numbers that are already in these steps."""
        before = [self._graph.tensors[key].quantization for key in self._graph.activations(op)]
        return op.kind in MOVING and all(
            quantization is not None
            and quantization.dtype == steps.dtype
            and np.array_equal(quantization.scales, steps.scales)
            and np.array_equal(quantization.zero_points, steps.zero_points)
            for quantization in before
        )

    def _first_rounding(self, op: GraphOp) -> float:
        """Return the error of the first of two roundings of sums or products: half a unit of shift.

        With M = m 2^(e-31), that is 2^(e-1) steps of the result, no more than M. The usual bound
        covers an M of 0.01.
        """
        if op.kind not in SUMS and op.kind != "MUL":
            return 0.0
        steps = [self._graph.tensors[key].quantization for key in op.inputs if key]
        scales = [float(s.scales.max()) for s in steps if s is not None and s.dtype.itemsize <= 2]
        return float(np.prod(scales)) if len(scales) == 2 else 0.0


def _of_exponentials(x: np.ndarray) -> float:
    """Return the error of the sum of exponentials in a softmax of 16 bits."""
    exact = np.exp(x - x.max(axis=-1, keepdims=True))
    errors = np.maximum(_LEAST_EXPONENTIAL - exact, _OF_EXPONENTIAL)
    return float(errors.sum(axis=-1).max(initial=0.0))


def _steps(kind: str, size: int) -> float:
    """Return the greatest error of an op's result, in steps.

    Args:
        kind: The op that computes.
        size: Bytes of an integer.
    """
    if size > 1:
        return _WIDE_TABLE.get(kind, _WIDE if kind in _NEAR else _TABLE)
    if kind in ("Softmax", "SOFTMAX"):
        return _SOFTMAX
    return _NEAREST if kind in _NEAR else _TABLE
