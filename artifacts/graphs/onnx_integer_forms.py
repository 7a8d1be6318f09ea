"""Writes integer operators of .onnx files as float ones between conversions to and from integers.

`QLinearConv` is defined as the dequantized inputs, Conv, and the quantized result, and so are all
its relatives; ONNX Runtime computes both forms by the same kernels. In this form every op of an
integer file is known to the checks.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from .base import GraphOp, GraphTensor

# Domain of ONNX Runtime's own operators.
_RUNTIMES = "com.microsoft"


@dataclass(frozen=True)
class _Form:
    """The place of an integer operator's inputs.

    Attributes:
        kind: Operator that computes the same of floats.
        reads: Places of its inputs; the scale and the zero point follow each.
        gives: Place of the scale of its output, which the zero point follows.
        bias: Place of a bias, whose scale is the product of the inputs' scales; 0 if it has none.
        standard: Whether it is an operator of ONNX, not of ONNX Runtime.
    """

    kind: str
    reads: tuple[int, ...]
    gives: int
    bias: int = 0
    standard: bool = False


_FORMS = {
    "QLinearConv": _Form("Conv", (0, 3), 6, bias=8, standard=True),
    "QLinearMatMul": _Form("MatMul", (0, 3), 6, standard=True),
    "QGemm": _Form("Gemm", (0, 3), 7, bias=6),
    "QLinearAdd": _Form("Add", (0, 3), 6),
    "QLinearMul": _Form("Mul", (0, 3), 6),
    "QLinearAveragePool": _Form("AveragePool", (0,), 3),
    "QLinearGlobalAveragePool": _Form("GlobalAveragePool", (0,), 3),
    "QLinearReduceMean": _Form("ReduceMean", (0,), 3),
    "QLinearLeakyRelu": _Form("LeakyRelu", (0,), 3),
    "QLinearSigmoid": _Form("Sigmoid", (0,), 3),
    "QLinearSoftmax": _Form("Softmax", (0,), 3),
    "QLinearWhere": _Form("Where", (1, 4), 7),
}


def in_floats(
    ops: Sequence[GraphOp], tensors: Mapping[str, GraphTensor]
) -> tuple[list[GraphOp], dict[str, GraphTensor]]:
    """Replace integer operators by float ones between DequantizeLinear and QuantizeLinear.

    Args:
        ops: The ops of a file.
        tensors: Its tensors.

    Returns:
        The ops, of which the replacements of one op have its index, and the tensors. Ops of another
        form remain as they are.
    """
    if not any(map(_form, ops)):
        return list(ops), dict(tensors)
    writer = _Writer(dict(tensors))
    found = [new for op in ops for new in writer.replaced(op)]
    return found, writer.tensors


class _Writer:
    """Appends the tensors that the replacements need."""

    def __init__(self, tensors: dict[str, GraphTensor]) -> None:
        self.tensors = tensors
        self._real: dict[tuple[str, ...], str] = {}

    def replaced(self, op: GraphOp) -> Iterator[GraphOp]:
        """Yield what replaces an op, or the op itself."""
        form = _form(op)
        if form is None or op.attributes.get("channels_last"):
            yield op
            return
        reads = _read(op, form)
        bias = op.inputs[form.bias] if form.bias and len(op.inputs) > form.bias else ""
        if bias:
            first, second = (self.tensors[scale].data for _, scale, _ in reads)
            if first is None or second is None:
                yield op
                return
            steps = np.asarray(first * second, np.float32).reshape(-1)
            reads.append((bias, self._constant(f"{bias}/scale of op {op.index}", steps), ""))
        floats = [op.inputs[0]] if form.kind == "Where" else []
        for place, (key, scale, point) in enumerate(reads):
            axis = self._channels(op, key) if place == 1 else 0
            yield from self._dequantized(op, key, scale, point, axis)
            floats.append(self._real[key, scale, point])
        output, given = op.outputs[0], form.gives
        result = output if _absent(op, given) else self._float(f"{output}/in floats")
        yield replace(
            op,
            kind=form.kind,
            domain="",
            inputs=tuple(floats),
            outputs=(result,),
            attributes={k: v for k, v in op.attributes.items() if k != "opset"},
        )
        if result != output:
            steps_of = op.inputs[given : given + 2]
            yield GraphOp(op.index, "QuantizeLinear", op.name, (result, *steps_of), (output,))

    def _dequantized(
        self, op: GraphOp, key: str, scale: str, point: str, axis: int
    ) -> Iterator[GraphOp]:
        """Yield the op that dequantizes a tensor, unless there is one."""
        if (key, scale, point) in self._real:
            return
        real = self._float(f"{key}/by {scale}")
        self._real[key, scale, point] = real
        steps = (scale, point) if point else (scale,)
        yield GraphOp(op.index, "DequantizeLinear", op.name, (key, *steps), (real,), {"axis": axis})

    def _channels(self, op: GraphOp, key: str) -> int:
        """Return the axis of a kernel that has a scale for each index."""
        if op.kind == "QLinearConv" or op.attributes.get("transB"):
            return 0
        return max(len(self.tensors[key].shape) - 1, 0)

    def _float(self, key: str) -> str:
        """Enter a computed float tensor and return its key."""
        self.tensors[key] = GraphTensor(key, key, (), np.dtype(np.float32))
        return key

    def _constant(self, key: str, value: np.ndarray) -> str:
        """Enter a constant and return its key."""
        self.tensors[key] = GraphTensor(key, key, value.shape, value.dtype, data=value)
        return key


def _form(op: GraphOp) -> _Form | None:
    """Return the form of an op; None if it is none of these operators."""
    if op.kind == "QLinearConcat" and op.domain == _RUNTIMES:
        return _Form("Concat", tuple(range(2, len(op.inputs), 3)), 0)
    form = _FORMS.get(op.kind)
    return form if form is not None and form.standard != (op.domain == _RUNTIMES) else None


def _read(op: GraphOp, form: _Form) -> list[tuple[str, str, str]]:
    """Return tensor, scale and zero point of each quantized input."""
    return [(op.inputs[p], op.inputs[p + 1], op.inputs[p + 2]) for p in form.reads]


def _absent(op: GraphOp, place: int) -> bool:
    """Return whether an optional input is absent."""
    return len(op.inputs) <= place or not op.inputs[place]
