"""Extracts one op from a .tflite file, with its options, constants and quantization."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from ....artifacts.flatbuffer import names_of, operator_kind, pack, parse, sign, text
from ....artifacts.manifest import TensorSpec
from ....errors import UserError
from .base import Cut

_DTYPES = {number: name.lower() for number, name in names_of(schema.TensorType).items()}
_HOLDING = ("QUANTIZE", "DEQUANTIZE")  # these change how numbers are stored, not their values
_INTEGERS = {"int8": "int8", "uint8": "int8", "int16": "int16x8"}


def cut(path: Path, index: int, values: Mapping[str, np.ndarray], got: np.ndarray) -> Cut:
    """Extract an op from a file.

    Ops between the op and the given values are included, such as a separate padding, and those that
    only prepare its constants.

    Args:
        path: The file.
        index: Which op.
        values: Name of each value that the op reads to (P, …), in the order of its inputs.
        got: (P, …) what it computed.

    Raises:
        UserError: The file's op reads other tensors than these.
    """
    return _Cutter(parse(path.read_bytes())).cut(index, values, got)


class _Cutter:
    """A parsed file, from which one op is kept."""

    def __init__(self, model: Any) -> None:
        self.model, self.graph = model, model.subgraphs[0]
        self.tensors, self.operators = self.graph.tensors, self.graph.operators
        self.maker = {int(i): n for n, op in enumerate(self.operators) for i in op.outputs}

    def cut(self, index: int, values: Mapping[str, np.ndarray], got: np.ndarray) -> Cut:
        """Return the op as a file of its own."""
        (output,) = (int(i) for i in self.operators[index].outputs)
        kept, read = self._region(index, [array[0].size for array in values.values()])
        ordered = self._paired(read, values)
        self.graph.operators = [self.operators[i] for i in sorted(kept)]
        inputs = [self._framed(ordered[name], array, True) for name, array in values.items()]
        last = self._framed(output, got, False)
        self._keep(inputs, last)
        specs = [self._spec(i, name) for i, name in zip(self.graph.inputs, values)]
        return Cut(
            data=pack(self.model),
            precision=self._precision(),
            ops=Counter(self._kind(op) for op in self.graph.operators),
            inputs=tuple(specs),
            output=self._spec(self.graph.outputs[0], "got"),
        )

    def _region(self, index: int, wanted: list[int]) -> tuple[set[int], list[int]]:
        """Return the ops from the wanted values to the op, and the tensors that hold these.

        Args:
            index: The op.
            wanted: Number of elements of each value.
        """
        kept, read = {index}, self._computed(index)
        while True:
            sizes = [self._size(i) for i in read]
            holding = all(self._kind(self.operators[n]) in _HOLDING for n in kept)
            if sorted(sizes) == sorted(wanted) and not (holding and set(read) & set(self.maker)):
                break
            foreign = [i for i in read if holding or self._size(i) not in wanted]
            before = next((self.maker[i] for i in foreign if i in self.maker), None)
            if before is None:
                kind = self._kind(self.operators[index])
                raise UserError(
                    f"Op {index} ({kind}) reads tensors of {sizes} elements where the network's "
                    f"layer reads {wanted}; such an op cannot be cut out by itself."
                )
            kept.add(before)
            made = {int(i) for i in self.operators[before].outputs}
            read = list(
                dict.fromkeys([*(i for i in read if i not in made), *self._computed(before)])
            )
        return kept | self._preparing(kept), read

    def _paired(self, read: Sequence[int], values: Mapping[str, np.ndarray]) -> dict[str, int]:
        """Return the tensor that holds each value: of its size, in the order they are read."""
        left, found = list(read), {}
        for name, array in values.items():
            found[name] = next(i for i in left if self._size(i) == array[0].size)
            left.remove(found[name])
        return found

    def _computed(self, index: int) -> list[int]:
        """Return the tensors that an op reads and that depend on the file's inputs."""
        return [int(i) for i in self.operators[index].inputs if i >= 0 and not self._fixed(int(i))]

    def _fixed(self, tensor: int) -> bool:
        """Return whether a tensor is a constant or made of constants alone."""
        if tensor in self.maker:
            return all(self._fixed(int(i)) for i in self.operators[self.maker[tensor]].inputs)
        return tensor not in self.graph.inputs

    def _preparing(self, kept: set[int]) -> set[int]:
        """Return the ops that compute the constants of the kept ones."""
        read = {int(i) for n in kept for i in self.operators[n].inputs if i >= 0}
        makers = {self.maker[i] for i in read if i in self.maker and self._fixed(i)}
        return makers | (self._preparing(makers) if makers else set())

    def _framed(self, tensor: int, array: np.ndarray, before: bool) -> int:
        """Return a tensor of a value's shape; a reshape is inserted if the op's shape differs."""
        shape = np.array([1, *array.shape[1:]], np.int32)
        inner = self.tensors[tensor]
        if list(inner.shape) == list(shape):
            return tensor
        outer = schema.TensorT()
        outer.name, outer.shape, outer.type = inner.name + b"/framed", shape, inner.type
        outer.quantization, outer.buffer = inner.quantization, 0
        self.tensors.append(outer)
        source, target = (
            (len(self.tensors) - 1, tensor) if before else (tensor, len(self.tensors) - 1)
        )
        op, options = schema.OperatorT(), schema.ReshapeOptionsT()
        options.newShape = np.asarray(self.tensors[target].shape, np.int32)
        op.builtinOptionsType, op.builtinOptions = schema.BuiltinOptions.ReshapeOptions, options
        op.opcodeIndex, op.outputs = self._code(schema.BuiltinOperator.RESHAPE), [target]
        op.inputs = [source, self._constant(options.newShape)]
        self.graph.operators.insert(0 if before else len(self.graph.operators), op)
        return len(self.tensors) - 1

    def _code(self, builtin: int) -> int:
        code = schema.OperatorCodeT()
        code.builtinCode = code.deprecatedBuiltinCode = builtin
        code.version = 1
        self.model.operatorCodes.append(code)
        return len(self.model.operatorCodes) - 1

    def _constant(self, values: np.ndarray) -> int:
        buffer, tensor = schema.BufferT(), schema.TensorT()
        buffer.data = np.frombuffer(values.tobytes(), np.uint8)
        self.model.buffers.append(buffer)
        tensor.name, tensor.type = b"shape", schema.TensorType.INT32
        tensor.shape, tensor.buffer = np.array(values.shape, np.int32), len(self.model.buffers) - 1
        self.tensors.append(tensor)
        return len(self.tensors) - 1

    def _keep(self, inputs: Sequence[int], output: int) -> None:
        """Drop every tensor, buffer and operator code that the kept ops do not use."""
        graph, model = self.graph, self.model
        used = {int(i) for op in graph.operators for i in (*op.inputs, *op.outputs) if i >= 0}
        place = {old: new for new, old in enumerate(sorted(used))}
        graph.tensors = [self.tensors[i] for i in place]
        buffers = sorted({0, *(tensor.buffer for tensor in graph.tensors)})
        model.buffers = [model.buffers[i] for i in buffers]
        for tensor in graph.tensors:
            tensor.buffer = buffers.index(tensor.buffer)
        codes = sorted({op.opcodeIndex for op in graph.operators})
        model.operatorCodes = [model.operatorCodes[i] for i in codes]
        for op in graph.operators:
            op.opcodeIndex = codes.index(op.opcodeIndex)
            op.inputs = [place.get(int(i), -1) for i in op.inputs]
            op.outputs = [place[int(i)] for i in op.outputs]
        graph.inputs, graph.outputs = [place[i] for i in inputs], [place[output]]
        self.tensors, self.operators = graph.tensors, graph.operators
        model.subgraphs, model.metadata, model.metadataBuffer = [graph], None, None
        named = [
            [(text(graph.tensors[i].name), i) for i in side]
            for side in (graph.inputs, graph.outputs)
        ]
        sign(model, *named)

    def _spec(self, index: int, keras_name: str) -> TensorSpec:
        tensor = self.tensors[index]
        quantization = tensor.quantization
        scale = None if quantization is None else quantization.scale
        integer = scale is not None and len(scale) > 0 and _DTYPES[tensor.type].startswith("int")
        return TensorSpec(
            name=text(tensor.name),
            shape=tuple(int(size) for size in tensor.shape),
            dtype=_DTYPES[tensor.type],
            keras_name=keras_name,
            scale=float(scale[0]) if scale is not None and integer else None,
            zero_point=int(quantization.zeroPoint[0]) if integer else None,
        )

    def _precision(self) -> str:
        """Return the precision that an export gives files of such an op."""
        output = _DTYPES[self.tensors[self.graph.outputs[0]].type]
        held = {
            _DTYPES[t.type] for t in self.tensors if self.model.buffers[t.buffer].data is not None
        }
        if output in _INTEGERS:
            return _INTEGERS[output]
        if self.tensors[self.graph.inputs[0]].type != schema.TensorType.FLOAT32:
            return _INTEGERS.get(_DTYPES[self.tensors[self.graph.inputs[0]].type], "float32")
        return next((p for t, p in _HELD.items() if t in held), "float32")

    def _kind(self, op: Any) -> str:
        return operator_kind(self.model, op)

    def _size(self, tensor: int) -> int:
        shape = self.tensors[tensor].shape
        return int(np.prod(shape)) if shape is not None else 1


_HELD = {"float16": "float16", "int4": "int4", "int8": "dynamic"}
