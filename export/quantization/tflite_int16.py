"""Converts float operators of an int8 TFLite file to integer ones with 16-bit activations.

Weights are 8-bit integers with one step per channel; accumulators have 64 bits. Activations are
symmetric, q in [-32767, 32767], as TFLite's int16x8 kernels require. A QUANTIZE converts 8-bit
activations to 16 bits.

An operator without weights stays in float if it has no form here, or if it reads floats: its
neighbours of 16 bits are converted to and from float.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from ...artifacts.flatbuffer import operator_code, operator_kind, pack, text
from ...errors import UserError
from .measured_ranges import LEAST_SUM

_FLOAT, _INT8 = schema.TensorType.FLOAT32, schema.TensorType.INT8
_INT16, _INT64 = schema.TensorType.INT16, schema.TensorType.INT64
_MOST = 32767


@dataclasses.dataclass(frozen=True)
class _Form:
    """The input layout of an operator.

    Attributes:
        version: Lowest version of the operator with 16-bit activations.
        data: Input positions of the activations.
        kernel: Input position of the kernel; None if there is none.
        bias: Input position of the bias; None if there is none.
        axis: Axis of the kernel's output channels.
        result: Step of the result that the kernels require; None if the range determines it.
        moves: Whether the result consists of integers of the input, in the same steps.
    """

    version: int
    data: tuple[int, ...]
    kernel: int | None = None
    bias: int | None = None
    axis: int = 0
    result: float | None = None
    moves: bool = False


_FORMS = {
    "CONV_2D": _Form(4, (0,), 1, 2),
    "DEPTHWISE_CONV_2D": _Form(5, (0,), 1, 2, 3),
    "FULLY_CONNECTED": _Form(7, (0,), 1, 2),
    "TRANSPOSE_CONV": _Form(3, (2,), 1, 3),
    "ADD": _Form(3, (0, 1)),
    "MUL": _Form(5, (0, 1)),
    "MEAN": _Form(2, (0,)),
    "LOGISTIC": _Form(2, (0,), result=2.0**-15),
    "TANH": _Form(2, (0,), result=2.0**-15),
    "RESHAPE": _Form(1, (0,), moves=True),
    "TRANSPOSE": _Form(2, (0,), moves=True),
    "MAX_POOL_2D": _Form(2, (0,), moves=True),
    "SPLIT": _Form(2, (1,), moves=True),
    "UNPACK": _Form(1, (0,), moves=True),
}


def with_int16(
    model: Any,
    names: set[str],
    ranges: Mapping[str, tuple[float, float]],
    *,
    required: bool = True,
) -> bytes:
    """Convert float operators of a file to integer ones with 16-bit activations.

    Args:
        model: A parsed file in which these operators compute in float; changed.
        names: Names of their output tensors.
        ranges: Range of every computed tensor, by name.
        required: Whether operators with weights must have such a form; others stay in float.

    Raises:
        UserError: An operator has no such form, and it is required.
    """
    editor = _Editor(model, ranges)
    for operator in list(model.subgraphs[0].operators):
        if text(editor.tensor(operator.outputs[0]).name) in names:
            editor.widen(operator, required=required)
    editor.sort()
    return pack(model)


class _Editor:
    """Changes the main subgraph of a file."""

    def __init__(self, model: Any, ranges: Mapping[str, tuple[float, float]]) -> None:
        self._model, self._ranges = model, ranges
        self._graph = model.subgraphs[0]
        self._wide: dict[int, int] = {}  # tensor to its copy of 16 bits
        self._buffers: dict[bytes, int] = {}  # equal constants share a buffer
        self._constants: dict[tuple[int, bytes, bytes], int] = {}  # and, with equal steps, a tensor

    def tensor(self, index: int) -> Any:
        return self._graph.tensors[index]

    def widen(self, operator: Any, *, required: bool) -> None:
        """Convert one operator to 16-bit activations, or leave it in float."""
        kind = operator_kind(self._model, operator)
        name = text(self.tensor(operator.outputs[0]).name)
        form = _FORMS.get(kind)
        if form is None and required and self._has_weights(operator):
            raise UserError(
                f"keep_int16 does not support {kind} ({name}); of the operators with weights it "
                f"supports {', '.join(k for k, f in _FORMS.items() if f.kernel is not None)}. "
                "Keep the layer in float instead (keep_float, --keep-float)."
            )
        if form is None or not self._can_widen(operator, form):
            return
        number = getattr(schema.BuiltinOperator, kind)
        version = max(form.version, self._model.operatorCodes[operator.opcodeIndex].version)
        operator.opcodeIndex = operator_code(self._model, number, version)
        inputs = [int(index) for index in operator.inputs]
        for place in form.data:
            inputs[place] = self._input(inputs[place], operator)
        if form.kernel is not None:
            scales = self._kernel(inputs, form)
            if form.bias is not None and form.bias < len(inputs) and inputs[form.bias] >= 0:
                scale = self.tensor(inputs[form.data[0]]).quantization.scale[0]
                inputs[form.bias] = self._bias(inputs[form.bias], np.float32(scale) * scales)
        operator.inputs = np.array(inputs, np.int32)
        steps = None
        if form.moves:
            steps = self.tensor(inputs[form.data[0]]).quantization
        elif form.result is not None:
            steps = _steps(np.array([form.result], np.float32), 0)
        elif kind == "ADD":
            read = max(self.tensor(i).quantization.scale[0] for i in inputs)
            steps = _symmetric(*self._range(int(operator.outputs[0]), int(operator.outputs[0])))
            steps.scale = np.maximum(steps.scale, np.float32(LEAST_SUM * read))
        results = [self._output(int(index), steps) for index in operator.outputs]
        operator.outputs = np.array(results, np.int32)

    def _has_weights(self, operator: Any) -> bool:
        """Return whether an operator reads a constant of floats with two axes or more."""
        tensors = [self.tensor(int(index)) for index in operator.inputs if index >= 0]
        return any(
            tensor.type == _FLOAT
            and self._is_constant(tensor)
            and sum(size > 1 for size in tensor.shape) > 1
            for tensor in tensors
        )

    def _is_constant(self, tensor: Any) -> bool:
        return self._model.buffers[tensor.buffer].data is not None

    def _can_widen(self, operator: Any, form: _Form) -> bool:
        """Return whether an operator can be widened.

        Its kernel must be a constant. Without a kernel, its activations must be integers that were
        converted to floats.
        """
        if form.kernel is not None:
            return self._is_constant(self.tensor(int(operator.inputs[form.kernel])))
        makers = [self._producer(int(operator.inputs[place])) for place in form.data]
        known = [
            operator_kind(self._model, maker) == "DEQUANTIZE"
            for maker in makers
            if maker is not None
        ]
        return bool(known) and all(known)

    def _input(self, index: int, reader: Any) -> int:
        """Return the 16-bit version of an input tensor; convert it if necessary."""
        tensor = self.tensor(index)
        if tensor.type == _INT16:
            return index
        if index in self._wide:
            return self._wide[index]
        if self._is_constant(tensor):
            return self._constant(index)
        source = index
        producer = self._producer(index)
        if producer is not None and operator_kind(self._model, producer) == "DEQUANTIZE":
            source = int(producer.inputs[0])
            if self.tensor(source).type == _INT16:
                return source
        low, high = self._range(index, source)
        self._wide[index] = self._add(tensor, _INT16, _symmetric(low, high), "int16")
        self._insert("QUANTIZE", source, self._wide[index])
        return self._wide[index]

    def _output(self, index: int, steps: Any) -> int:
        """Return the 16-bit tensor that replaces a float output.

        Args:
            index: The output.
            steps: Its quantization; None if its range determines it.
        """
        tensor = self.tensor(index)
        steps = steps or _symmetric(*self._range(index, index))
        wide = self._add(tensor, _INT16, steps, "int16")
        self._wide[index] = wide
        as_float = False
        for reader in self._graph.operators:
            if index not in reader.inputs:
                continue
            if operator_kind(self._model, reader) == "QUANTIZE":
                reader.inputs = np.array([wide], np.int32)
            else:
                as_float = True
        if as_float or index in self._graph.outputs:
            self._insert("DEQUANTIZE", wide, index)
        return wide

    def _range(self, index: int, source: int) -> tuple[float, float]:
        name = text(self.tensor(index).name)
        if name in self._ranges:
            return self._ranges[name]
        steps = self.tensor(source).quantization
        if steps is None or steps.scale is None:
            raise UserError(f"keep_int16: the range of {name} is unknown. Keep it in float.")
        scale, point = float(steps.scale[0]), int(steps.zeroPoint[0])
        return (-128 - point) * scale, (127 - point) * scale

    def _constant(self, index: int) -> int:
        """Return a constant operand in 16 bits."""
        values = self._floats(index)
        steps = _symmetric(float(values.min()), float(values.max()))
        integers = np.rint(values / steps.scale[0]).astype(np.int16)
        return self._stored(index, integers, _INT16, steps)

    def _kernel(self, inputs: list[int], form: _Form) -> np.ndarray:
        """Quantize the kernel to 8 bits; return the steps of its channels."""
        assert form.kernel is not None
        index = inputs[form.kernel]
        values = self._floats(index)
        others = tuple(axis for axis in range(values.ndim) if axis != form.axis)
        most = np.abs(values).max(axis=others)
        steps = np.where(most > 0, most / np.float32(127), np.float32(1)).astype(np.float32)
        shape = [1] * values.ndim
        shape[form.axis] = -1
        integers = np.clip(np.rint(values / steps.reshape(shape)), -127, 127).astype(np.int8)
        inputs[form.kernel] = self._stored(index, integers, _INT8, _steps(steps, form.axis))
        return steps

    def _bias(self, index: int, steps: np.ndarray) -> int:
        """Quantize the bias; the converter may have given it leading axes of size 1."""
        integers = np.rint(self._floats(index).ravel().astype(np.float64) / steps).astype(np.int64)
        stored = self._stored(index, integers, _INT64, _steps(steps, 0))
        self.tensor(stored).shape = np.array(integers.shape, np.int32)
        return stored

    def _floats(self, index: int) -> np.ndarray:
        tensor = self.tensor(index)
        if tensor.type != _FLOAT:
            raise UserError(
                f"keep_int16: {text(tensor.name)} is shared with an 8-bit layer. Select both."
            )
        data = bytes(bytearray(self._model.buffers[tensor.buffer].data))
        return np.frombuffer(data, np.float32).reshape(tensor.shape)

    def _stored(self, index: int, integers: np.ndarray, dtype: int, steps: Any) -> int:
        data = integers.tobytes()
        key = index, data, steps.scale.tobytes()
        if key in self._constants:
            return self._constants[key]
        if data not in self._buffers:
            buffer = schema.BufferT()
            buffer.data = np.frombuffer(data, np.uint8)
            self._model.buffers.append(buffer)
            self._buffers[data] = len(self._model.buffers) - 1
        new = self._add(self.tensor(index), dtype, steps, "")
        self.tensor(new).buffer = self._buffers[data]
        self._constants[key] = new
        return new

    def _add(self, like: Any, dtype: int, steps: Any, suffix: str) -> int:
        tensor = copy.copy(like)
        tensor.type, tensor.quantization, tensor.buffer = dtype, steps, 0
        if suffix:
            tensor.name = f"{text(like.name)}_{suffix}".encode()
        self._graph.tensors.append(tensor)
        return len(self._graph.tensors) - 1

    def _insert(self, kind: str, source: int, result: int) -> None:
        operator = schema.OperatorT()
        number = getattr(schema.BuiltinOperator, kind)
        version = 3 if kind == "DEQUANTIZE" else 2
        operator.opcodeIndex = operator_code(self._model, number, version)
        operator.inputs = np.array([source], np.int32)
        operator.outputs = np.array([result], np.int32)
        self._graph.operators.append(operator)

    def _producer(self, index: int) -> Any:
        return next((op for op in self._graph.operators if index in op.outputs), None)

    def sort(self) -> None:
        """Sort the operators topologically and remove unused ones."""
        graph, model = self._graph, self._model
        made = {int(i): op for op in graph.operators for i in op.outputs if i >= 0}
        order: dict[int, Any] = {}
        pending = [made[int(i)] for i in reversed(graph.outputs) if int(i) in made]
        while pending:
            operator = pending[-1]
            waiting = [
                made[int(i)]
                for i in operator.inputs
                if int(i) in made and id(made[int(i)]) not in order
            ]
            if waiting:
                pending.extend(reversed(waiting))
            else:
                order.setdefault(id(operator), operator)
                pending.pop()
        graph.operators = list(order.values())
        _drop_unused(model)


def _drop_unused(model: Any) -> None:
    """Remove unused tensors, buffers and operator codes."""
    graph = model.subgraphs[0]
    used = {int(i) for op in graph.operators for i in (*op.inputs, *op.outputs) if i >= 0}
    used |= {int(i) for i in (*graph.inputs, *graph.outputs)}
    kept = sorted(used)
    place = {old: new for new, old in enumerate(kept)} | {-1: -1}
    for op in graph.operators:
        op.inputs = np.array([place[int(i)] for i in op.inputs], np.int32)
        op.outputs = np.array([place[int(i)] for i in op.outputs], np.int32)
    graph.tensors = [graph.tensors[index] for index in kept]
    graph.inputs = np.array([place[int(i)] for i in graph.inputs], np.int32)
    graph.outputs = np.array([place[int(i)] for i in graph.outputs], np.int32)
    codes = sorted({op.opcodeIndex for sub in model.subgraphs for op in sub.operators})
    for sub in model.subgraphs:
        for op in sub.operators:
            op.opcodeIndex = codes.index(op.opcodeIndex)
    model.operatorCodes = [model.operatorCodes[index] for index in codes]
    read = {tensor.buffer for sub in model.subgraphs for tensor in sub.tensors}
    read |= {entry.buffer for entry in model.metadata or []}
    for index, buffer in enumerate(model.buffers):
        if index not in read:
            buffer.data = None


def _symmetric(low: float, high: float) -> Any:
    most = max(abs(low), abs(high))
    return _steps(np.array([(most or 1.0) / _MOST], np.float32), 0)


def _steps(scales: np.ndarray, axis: int) -> Any:
    steps = schema.QuantizationParametersT()
    steps.scale = scales.astype(np.float32)
    steps.zeroPoint = np.zeros(len(scales), np.int64)
    steps.quantizedDimension = axis if len(scales) > 1 else 0
    return steps
