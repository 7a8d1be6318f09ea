"""TFLite files, through TensorFlow's converter and from one frozen graph.

The converter is `tf.compat.v1.lite.TFLiteConverter`: of the public ones only it takes a graph as
it is. The others write a SavedModel first or freeze variables again, which costs more than the
conversion itself, and they rename or reorder inputs and outputs.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ...artifacts.manifest import METADATA_KEY, TensorSpec
from ...artifacts.precisions import precision_named
from ...errors import UserError
from ...files import write_bytes
from ...quiet import stderr_without
from ...runtimes.base import Runner
from ...runtimes.litert import LiteRTRunner
from ..signature import Signature
from . import flatbuffer
from .base import Contents, Job, check_interface
from .distinct_outputs import separate_outputs
from .rewrites_3d import for_tflite

_FLEX_ADVICE = (
    "replace the layer, or allow it (allow_flex=True, --allow-flex) and ship a runtime with "
    "TensorFlow's operators linked in."
)
_DESCRIPTION = "made by renormlite"
# A line that native code writes about every int8 file.
_CONVERTER_CHATTER = "fully_quantize:"
_PER_TENSOR_DENSE = "_experimental_disable_per_channel_quantization_for_dense_layers"
_VARIABLE_OPS = {"READ_VARIABLE", "VAR_HANDLE", "ASSIGN_VARIABLE"}


class TFLite:
    """The format `tflite`."""

    name = "tflite"
    suffix = ".tflite"

    def write(self, job: Job, path: Path) -> None:
        """Convert, name and write one file."""
        import tensorflow as tf

        graph = job.graph
        graph_def = for_tflite(
            graph.graph_def,
            [tensor.op.name for tensor in (*graph.inputs, *graph.outputs)],
            quantized=precision_named(job.precision).quantized,
        )
        converter = tf.compat.v1.lite.TFLiteConverter(
            graph_def, list(graph.inputs), list(graph.outputs)
        )
        converter.exclude_conversion_metadata = True
        if job.options.allow_flex:
            converter.target_spec.supported_ops = [
                tf.lite.OpsSet.TFLITE_BUILTINS,
                tf.lite.OpsSet.SELECT_TF_OPS,
            ]
        try:
            with stderr_without(_CONVERTER_CHATTER):
                data = _CONVERSIONS[precision_named(job.precision).converter](converter, job)
        except UserError:
            raise
        except Exception as error:  # the converter has error types of its own, none of them public
            raise UserError(_refusal(error, graph.readable_name)) from error
        model = flatbuffer.parse(data)
        separate_outputs(model)
        flatbuffer.set_interface(
            model,
            [tensor.name for tensor in graph.signature.inputs],
            [tensor.name for tensor in graph.signature.outputs],
            graph.readable_name,
        )
        flatbuffer.set_metadata(model, {METADATA_KEY: job.metadata.encode()}, _DESCRIPTION)
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
        contents = Contents(content.ops, content.inputs, content.outputs)
        check_interface(path, contents, _expected(job))
        _check_signature(path, content)
        if not flex:  # a runtime with TensorFlow linked in is needed to load those
            with self.runner(path):
                pass
        return contents

    def runner(self, path: Path) -> Runner:
        """Return LiteRT with a file, one thread, so that results repeat."""
        return LiteRTRunner(path)


def _float32(converter: Any, job: Job) -> bytes:
    return _bytes(converter.convert())


def _float16(converter: Any, job: Job) -> bytes:
    import tensorflow as tf

    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.target_spec.supported_types = [tf.float16]
    return _bytes(converter.convert())


def _dynamic(converter: Any, job: Job) -> bytes:
    import tensorflow as tf

    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    # Per-channel weights in a hybrid FULLY_CONNECTED need version 12 of that operator, which
    # tflite-runtime 2.14, the last one for many boards, does not have. There is no public switch.
    if not hasattr(converter, _PER_TENSOR_DENSE):
        raise UserError(
            "This TensorFlow's converter lacks the switch that keeps dynamic-range files loadable "
            f"in tflite-runtime 2.14 ({_PER_TENSOR_DENSE}). Install the version of "
            "constraints.txt, or export int8."
        )
    converter._experimental_disable_per_channel_quantization_for_dense_layers = True
    return _bytes(converter.convert())


def _int8(converter: Any, job: Job) -> bytes:
    import tensorflow as tf

    return _calibrated(converter, job, tf.lite.OpsSet.TFLITE_BUILTINS_INT8, tf.int8)


def _int16x8(converter: Any, job: Job) -> bytes:
    import tensorflow as tf

    ops = tf.lite.OpsSet.EXPERIMENTAL_TFLITE_BUILTINS_ACTIVATIONS_INT16_WEIGHTS_INT8
    return _calibrated(converter, job, ops, tf.int16)


def _calibrated(converter: Any, job: Job, ops: Any, integer: Any) -> bytes:
    """Quantize weights and activations, the latter by the ranges the samples show."""
    import tensorflow as tf

    calibration = job.calibration
    if calibration is None:
        raise ValueError(f"{job.precision} needs calibration samples")

    def samples() -> Iterator[list[np.ndarray]]:
        for batch in calibration.batches(job.graph.signature.inputs):
            yield list(batch.values())

    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.representative_dataset = samples
    converter.target_spec.supported_ops = [ops]
    if job.options.quantized_io == "integer":
        converter.inference_input_type = converter.inference_output_type = integer
    return _bytes(converter.convert())


def _int4(converter: Any, job: Job) -> bytes:
    """Four-bit weights per channel; activations are quantized to eight bits as they come."""
    try:
        from ai_edge_quantizer import quantizer, recipe
    except ImportError as error:
        raise UserError(
            "int4 needs ai-edge-quantizer. Install it with: pip install 'renormlite[int4]'"
        ) from error
    run = quantizer.Quantizer(bytearray(_bytes(converter.convert())), recipe.dynamic_wi4_afp32())
    result = run.quantize(enable_progress_bar=False, enable_progress_report=False)
    return bytes(result.quantized_model)


_CONVERSIONS: dict[str, Callable[[Any, Job], bytes]] = {
    "float32": _float32,
    "float16": _float16,
    "dynamic": _dynamic,
    "int8": _int8,
    "int16x8": _int16x8,
    "int4": _int4,
}


def _bytes(data: Any) -> bytes:
    return bytes(data)


def _expected(job: Job) -> Signature:
    """Return the interface the file must have."""
    signature = job.graph.signature
    integer = precision_named(job.precision).integer_io
    if job.options.quantized_io != "integer" or integer is None:
        return signature

    def quantized(tensor: TensorSpec) -> TensorSpec:
        is_float = np.dtype(tensor.dtype).kind == "f"
        return dataclasses.replace(tensor, dtype=integer) if is_float else tensor

    return Signature(
        tuple(map(quantized, signature.inputs)), tuple(map(quantized, signature.outputs))
    )


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
