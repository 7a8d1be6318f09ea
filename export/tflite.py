"""TFLite files, through TensorFlow's converter and from one frozen graph.

The converter is `tf.compat.v1.lite.TFLiteConverter`: of the public ones only it takes a graph as
it is. The others write a SavedModel first or freeze variables again, which costs more than the
conversion itself, and they rename or reorder inputs and outputs.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from ..errors import UserError
from ..files import write_bytes
from . import flatbuffer
from .formats import Contents, Job, check_interface

_FLEX_ADVICE = (
    "replace the layer, or allow it (allow_flex=True, --allow-flex) and ship a runtime with "
    "TensorFlow's operators linked in."
)
_VARIABLE_OPS = {"READ_VARIABLE", "VAR_HANDLE", "ASSIGN_VARIABLE"}


class TFLite:
    """The format `tflite`."""

    name = "tflite"
    suffix = ".tflite"
    precisions = ("float32",)

    def write(self, job: Job, path: Path) -> None:
        """Convert, name and write one file."""
        import tensorflow as tf

        graph = job.graph
        converter = tf.compat.v1.lite.TFLiteConverter(
            graph.graph_def, list(graph.inputs), list(graph.outputs)
        )
        converter.exclude_conversion_metadata = True
        if job.options.allow_flex:
            converter.target_spec.supported_ops = [
                tf.lite.OpsSet.TFLITE_BUILTINS,
                tf.lite.OpsSet.SELECT_TF_OPS,
            ]
        try:
            data = converter.convert()
        except Exception as error:  # the converter raises its own and TensorFlow's error types
            raise UserError(_refusal(error, graph.readable_name)) from error
        model = flatbuffer.parse(data)
        flatbuffer.set_interface(
            model,
            [tensor.name for tensor in graph.signature.inputs],
            [tensor.name for tensor in graph.signature.outputs],
            graph.readable_name,
        )
        flatbuffer.set_metadata(model, {}, job.description)
        write_bytes(path, flatbuffer.pack(model))

    def validate(self, path: Path, job: Job) -> Contents:
        """Check operators, variables, interface and signature, then load the file once."""
        content = flatbuffer.content_of(flatbuffer.parse(path.read_bytes()))
        flex = sorted(op for op in content.ops if op.startswith("Flex"))
        if flex and not job.options.allow_flex:
            raise UserError(f"{path.name} needs {', '.join(flex)}: {_FLEX_ADVICE}")
        variables = sorted(_VARIABLE_OPS & set(content.ops))
        if variables:
            raise UserError(
                f"{path.name} reads variables ({', '.join(variables)}) that hold no weights in "
                "the file. Create them with `self.add_weight` so that they can be exported."
            )
        expected = job.graph.signature
        check_interface(path, "input", content.inputs, expected.inputs)
        check_interface(path, "output", content.outputs, expected.outputs)
        _check_signature(path, content)
        if not flex:  # a runtime with TensorFlow linked in is needed to load those
            self.open(path)
        return Contents(content.ops, content.inputs, content.outputs)

    def open(self, path: Path) -> TFLiteSession:
        """Load a file in LiteRT."""
        return TFLiteSession(path)


class TFLiteSession:
    """A file loaded in LiteRT on the host's CPU, one thread, so that results repeat."""

    def __init__(self, path: Path) -> None:
        from ai_edge_litert.interpreter import Interpreter

        self._interpreter = Interpreter(model_path=str(path), num_threads=1)
        self._interpreter.allocate_tensors()
        self._inputs = {d["name"]: d for d in self._interpreter.get_input_details()}
        self._outputs = {d["name"]: d for d in self._interpreter.get_output_details()}

    def __call__(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Run one batch; a file with a free batch dimension is resized to it."""
        for name, value in inputs.items():
            details = self._inputs[name]
            if tuple(details["shape"]) != value.shape:
                self._interpreter.resize_tensor_input(details["index"], value.shape)
                self._interpreter.allocate_tensors()
                self._inputs = {d["name"]: d for d in self._interpreter.get_input_details()}
        for name, value in inputs.items():
            self._interpreter.set_tensor(self._inputs[name]["index"], value)
        self._interpreter.invoke()
        return {
            name: self._interpreter.get_tensor(details["index"])
            for name, details in self._outputs.items()
        }


def _check_signature(path: Path, content: flatbuffer.Content) -> None:
    for kind, tensors, named in (
        ("input", content.inputs, content.signature_inputs),
        ("output", content.outputs, content.signature_outputs),
    ):
        if {tensor.name: tensor.name for tensor in tensors} != named:
            raise UserError(f"{path.name}: its signature names other {kind}s: {named}.")


def _refusal(error: Exception, readable: Callable[[str], str]) -> str:
    """Return one sentence out of the converter's pages."""
    text = str(error)
    ops = sorted(set(re.findall(r"Flex\w+", text)) | set(re.findall(r"'(tf\.\w+)' op", text)))
    if ops:
        return f"TFLite has no operator of its own for {', '.join(ops)}: {_FLEX_ADVICE}"
    lines = [line for line in text.splitlines() if line.strip()]
    return f"The TFLite converter refused the model: {readable(lines[0] if lines else repr(error))}"
