"""How much of an op's result is lost because it is beyond the range of its integers."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ...artifacts.graphs.base import GraphOp
from ...reference.integer.base import together
from ...reference.integer.onnx_moving import MOVING
from .shown_numbers import ShownNumbers

#: Ops that add products.
SUMS = frozenset({"CONV_2D", "DEPTHWISE_CONV_2D", "TRANSPOSE_CONV", "FULLY_CONNECTED"}) | {
    "Conv", "ConvTranspose", "Gemm", "MatMul", "BATCH_MATMUL",
}  # fmt: skip

#: Ops of ONNX that keep all numbers, in another order or shape.
REORDERING = frozenset({"Transpose", "Reshape", "Squeeze", "Unsqueeze"})

_AFFINE = {
    "MUL": np.multiply, "ADD": np.add, "SUB": np.subtract,
    "Mul": np.multiply, "Add": np.add, "Sub": np.subtract,
}  # fmt: skip


class Clipping:
    """The parts of results that a file's integers cannot represent.

    Args:
        numbers: The numbers of the file.
        samples: How many the runtime computed.
        nearest: Greatest rounding error of a result, in steps.
        is_source: Whether a tensor's numbers are taken as exact.
    """

    def __init__(
        self,
        numbers: ShownNumbers,
        samples: int,
        nearest: float,
        is_source: Callable[[str], bool],
    ) -> None:
        self._graph, self._shown, self._samples = numbers.graph, numbers.arrays, samples
        self._numbers, self._nearest, self._is_source = numbers, nearest, is_source

    def lost(self, op: GraphOp, key: str) -> np.ndarray:
        """Return (P,) how much of a result is lost; infinite where that is not known.

        Args:
            op: The op that computes the tensor.
            key: The tensor.
        """
        # A function whose range ends at a limit of its type, such as a gate, loses nothing.
        if self._cuts_part(op):
            return np.where(self._clipped(op.inputs[0], key), np.inf, 0.0)
        core = self._computing(op)
        if not self._cuts(core):
            return np.zeros(self._samples)
        return np.where(self._saturated(key), self._beyond(core, key), 0.0)

    def _computing(self, op: GraphOp) -> GraphOp:
        """Return the op whose result a QuantizeLinear writes; otherwise the op itself."""
        core = self._numbers.producers.get(op.inputs[0]) if op.kind == "QuantizeLinear" else None
        return core or op

    def _cuts(self, op: GraphOp) -> bool:
        """Return whether an op's result may be clipped to the range of its type.

        This holds for sums of products, for sums and products of activations, and for a factor or a
        shift for each channel, whose ranges the quantizer chose on other samples. A function that
        is fused into an op clips by itself.
        """
        if op.kind in SUMS:
            return True
        if op.kind not in _AFFINE or op.attributes.get("fusedActivationFunction"):
            return False
        constants = [
            data for k in op.inputs if k and (data := self._numbers.constant(k)) is not None
        ]
        return not constants or any(data.size > 1 for data in constants)

    def _cuts_part(self, op: GraphOp) -> bool:
        """Return whether an op rounds a part of unrounded floats, such as a slice.

        The network's node reads all of them, so the clipping of a part is not in its value.
        """
        core = self._numbers.producers.get(op.inputs[0]) if op.kind == "QuantizeLinear" else None
        if core is None or not self.moves_floats(core):
            return False
        while core.kind in REORDERING:
            before = core.inputs[0]
            if self._is_source(before):
                return False
            core = self._numbers.producers[before]
        return True

    def moves_floats(self, op: GraphOp) -> bool:
        """Return whether an op only moves floats that nothing has rounded."""
        if op.kind not in MOVING:
            return False
        for key in self._graph.activations(op):
            before = self._numbers.producers.get(key)
            if self._is_source(key) and self._graph.tensors[key].quantization is None:
                continue
            if before is None or not self.moves_floats(before):
                return False
        return True

    def _saturated(self, key: str) -> np.ndarray:
        """Return (P,) whether a number is at a limit of its type that does not represent zero."""
        array, steps = self._shown.get(key), self._graph.tensors[key].quantization
        if array is None or steps is None or array.dtype != steps.dtype:
            return np.zeros(self._samples, bool)
        return steps.saturated(array)

    def _beyond(self, op: GraphOp, key: str) -> np.ndarray:
        """Return (P,) how far the exact result of a factor or a shift is beyond a tensor's range.

        Zero if rounding explains it: a function may end at the range's limit, as GELU at -0.17. The
        rounding of what the op reads may take its result beyond the calibrated range by a step;
        infinite for more, and for other ops.
        """
        steps, function = self._graph.tensors[key].quantization, _AFFINE.get(op.kind)
        unknown = np.full(self._samples, np.inf)
        if function is None or steps is None:
            return unknown
        read = [self._numbers.exact(key) for key in op.inputs]
        if any(x is None for x in read):
            return unknown
        result = function(*together([x for x in read if x is not None]))
        errors = np.abs(result - self._numbers.of(key)).reshape(self._samples, -1).max(axis=1)
        step, nearest = steps.scales.max(), self._nearest
        lost = np.where(errors > (1 + nearest) * step, np.inf, errors)
        return np.where(errors > nearest * step, lost, 0.0)

    def _clipped(self, read: str, key: str) -> np.ndarray:
        """Return (P,) whether floats that are quantized are beyond the range of the integers."""
        floats, integers = self._shown.get(read), self._shown.get(key)
        steps = self._graph.tensors[key].quantization
        if floats is None or integers is None or steps is None:
            return self._saturated(key)
        errors = np.abs(floats - self._numbers.of(key)).reshape(self._samples, -1)
        return np.asarray((errors > self._nearest * steps.scales.max()).any(axis=1))
