"""TensorFlow's TFLite converter and quantizers, as functions of plain data.

The converter is `tf.compat.v1.lite.TFLiteConverter`, the only public one that takes a graph. The
others first write a SavedModel or freeze variables, which takes longer than the conversion, and
rename or reorder inputs and outputs.

This module does not import Keras, so that a child process can use it quickly.
"""

from __future__ import annotations

import copy
import dataclasses
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from ...artifacts.flatbuffer import operator_code, operator_kind, pack, parse, text
from ...errors import UserError
from ...extras import missing_package
from ...quiet import LOGGED, stderr_without
from ..quantization.measured_ranges import with_measured_ranges
from ..quantization.quantizer_choices import IN_FLOATS, QuantizerChoices
from ..quantization.shared_ranges import share_ranges
from ..quantization.tflite_choices import quantized, wherever_possible
from .halves import has_tiny_constants, store_halves

if TYPE_CHECKING:
    import tensorflow as tf

# Log lines of native code that appear for every file.
_CHATTER = ("fully_quantize:", *LOGGED)
# The precision of a graph with fake quantizations, which determine the integers.
TRAINED = "trained"
_CALIBRATE_ONLY = "_experimental_calibrate_only"
_LAST_STEP = "_optimize_tflite_model"  # quantizes, which float32 files are not, and shares buffers
_NOT = "no_quantize"  # ai-edge-quantizer's algorithm that leaves operators as they are
_PER_TENSOR_DENSE = "_experimental_disable_per_channel_quantization_for_dense_layers"


@dataclasses.dataclass(frozen=True)
class End:
    """An input or output of a graph.

    Attributes:
        op: Name of its op.
        dtype: TensorFlow's name of its dtype.
        shape: Its static shape; free sizes are None.
    """

    op: str
    dtype: str
    shape: tuple[int | None, ...]

    @classmethod
    def of(cls, tensor: tf.Tensor) -> End:
        """Describe a symbolic tensor."""
        return cls(tensor.op.name, tensor.dtype.name, tuple(tensor.shape.as_list()))


@dataclasses.dataclass(frozen=True)
class Request:
    """The parameters of a conversion.

    Attributes:
        inputs: Its placeholders, in order.
        outputs: Its outputs, in order.
        precision: A key of `_CONVERSIONS`, or `TRAINED`.
        allow_flex: Whether the file may call TensorFlow's operators.
        integer_io: Whether a calibrated file has integer inputs and outputs.
        samples: Calibration batches, one array per input; empty if none are needed.
        choices: Settings of single layers and ranges in an int8 file; None for the converter's
            defaults.
        light: Whether the file may be a float32 one in which constants of equal bytes have separate
            buffers. To let them share one, the converter needs three times the size of the file.
    """

    inputs: tuple[End, ...]
    outputs: tuple[End, ...]
    precision: str
    allow_flex: bool = False
    integer_io: bool = False
    samples: Sequence[Sequence[np.ndarray]] = ()
    choices: QuantizerChoices | None = None
    light: bool = False


def convert_file(graph_def: Path, request: Request) -> bytes:
    """Convert the graph in a file; see `convert`."""
    import tensorflow as tf

    return convert(tf.compat.v1.GraphDef.FromString(graph_def.read_bytes()), request)


def convert(graph_def: tf.compat.v1.GraphDef, request: Request) -> bytes:
    """Convert a graph to a TFLite file.

    Args:
        graph_def: The graph, without variables.
        request: The parameters.

    Raises:
        Exception: The converter refuses the graph; its error types are not public.
    """
    import tensorflow as tf

    with tf.Graph().as_default():
        # The converter reads the graph from `graph_def`; these provide name, type and shape.
        inputs, outputs = (
            [tf.compat.v1.placeholder(end.dtype, end.shape, end.op) for end in ends]
            for ends in (request.inputs, request.outputs)
        )
    if request.precision == TRAINED:
        return _trained(graph_def, request)
    converter = tf.compat.v1.lite.TFLiteConverter(graph_def, inputs, outputs)
    converter.exclude_conversion_metadata = True
    if request.light and hasattr(converter, _LAST_STEP):
        converter._optimize_tflite_model = lambda model, *_, **__: model
    if request.allow_flex:
        converter.target_spec.supported_ops = [
            tf.lite.OpsSet.TFLITE_BUILTINS,
            tf.lite.OpsSet.SELECT_TF_OPS,
        ]
    with stderr_without(*_CHATTER):
        return bytes(_CONVERSIONS[request.precision](converter, request))


def _trained(graph_def: tf.compat.v1.GraphDef, request: Request) -> bytes:
    """Convert a graph with fake quantizations, which contain the ranges.

    The converter for graphs requires statistics of the inputs; the one for functions does not.
    """
    import tensorflow as tf

    wrapped = tf.compat.v1.wrap_function(lambda: tf.import_graph_def(graph_def, name=""), [])
    ends = (
        [wrapped.graph.get_tensor_by_name(f"{end.op}:0") for end in ends]
        for ends in (request.inputs, request.outputs)
    )
    converter = tf.lite.TFLiteConverter.from_concrete_functions([wrapped.prune(*ends)], tf.Module())
    converter.experimental_lower_to_saved_model = False
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    if request.integer_io:
        converter.inference_input_type = converter.inference_output_type = tf.int8
    with stderr_without(*_CHATTER), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Statistics for quantized inputs were expected")
        return bytes(converter.convert())


def _float32(converter: Any, request: Request) -> bytes:
    data: bytes = converter.convert()
    return data


def _float16(converter: Any, request: Request) -> bytes:
    import tensorflow as tf

    if request.light:
        return _float32(converter, request)
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.target_spec.supported_types = [tf.float16]
    data = _float32(converter, request)
    if not has_tiny_constants(parse(data)):
        return data
    converter.optimizations = []
    plain = parse(_float32(converter, request))
    if not has_tiny_constants(plain):
        return data
    store_halves(plain)
    return pack(plain)


def _constant(model: Any, tensor: Any, data: Any) -> Any:
    """Return a copy of a tensor with other data, which a file gets as a buffer."""
    buffer = schema.BufferT()
    buffer.data = data
    model.buffers.append(buffer)
    constant = copy.copy(tensor)
    constant.buffer = len(model.buffers) - 1
    return constant


def _dynamic(converter: Any, request: Request) -> bytes:
    import tensorflow as tf

    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    # Per-channel weights in a hybrid FULLY_CONNECTED need version 12 of that operator, which
    # tflite-runtime 2.14, the last one for many boards, lacks. There is no public switch.
    if not hasattr(converter, _PER_TENSOR_DENSE):
        raise UserError(
            "This TensorFlow's converter lacks the switch that keeps dynamic-range files loadable "
            f"in tflite-runtime 2.14 ({_PER_TENSOR_DENSE}). Install the version of "
            "constraints.txt, or export int8."
        )
    converter._experimental_disable_per_channel_quantization_for_dense_layers = True
    data = _float32(converter, request)
    if IN_FLOATS.encode() not in data:
        return data
    converter.optimizations = []
    return _with_float_products(parse(data), parse(_float32(converter, request)))


def _with_float_products(model: Any, plain: Any) -> bytes:
    """Return a file in which the products with matrices of formulas have their float weights.

    The converter quantizes every weight of 1,024 numbers and more.

    Args:
        model: The parsed file; changed in place.
        plain: The parsed float32 file of the same graph.
    """
    graph, source = model.subgraphs[0], plain.subgraphs[0]
    originals = {text(source.tensors[op.outputs[0]].name): op for op in source.operators}
    for op in graph.operators:
        name = text(graph.tensors[op.outputs[0]].name)
        if IN_FLOATS not in name or name not in originals or len(op.inputs) < 2:
            continue
        original = originals[name]
        weight = source.tensors[original.inputs[1]]
        data = plain.buffers[weight.buffer].data
        if operator_kind(model, op) != operator_kind(plain, original) or data is None:
            continue
        graph.tensors[op.inputs[1]] = _constant(model, weight, data)
        code = plain.operatorCodes[original.opcodeIndex]
        op.opcodeIndex = operator_code(model, code.builtinCode, code.version)
        op.builtinOptions = original.builtinOptions
    _free_unread(model)
    return pack(model)


def _free_unread(model: Any) -> None:
    """Free the buffers of constants that no operator reads, in place."""
    for graph in model.subgraphs:
        used = [index for op in graph.operators for index in (*op.inputs, *op.outputs)]
        kept = {int(index) for index in (*used, *graph.inputs, *graph.outputs)}
        for index, tensor in enumerate(graph.tensors):
            if index not in kept:
                tensor.buffer = 0
    read = {tensor.buffer for graph in model.subgraphs for tensor in graph.tensors}
    read |= {entry.buffer for entry in model.metadata or []}
    for index, buffer in enumerate(model.buffers):
        if index not in read:
            buffer.data = None


def _int8(converter: Any, request: Request) -> bytes:
    import tensorflow as tf

    choices = request.choices or QuantizerChoices()
    if choices.only_int16 and not request.integer_io:
        try:
            return _sixteen_bits(converter, request, allow_float=False)
        except Exception:  # it lacks a 16-bit form of some operator; its error types are not public
            pass
    data = _with_ranges(converter, request, tf.lite.OpsSet.TFLITE_BUILTINS_INT8)
    return quantized(data, choices, request.samples, integer_io=request.integer_io)


def _int16x8(converter: Any, request: Request) -> bytes:
    import tensorflow as tf

    try:
        # Operators without a 16-bit form, such as comparisons, compute in float.
        return _sixteen_bits(converter, request, allow_float=True)
    except Exception:  # its error types are not public
        if request.integer_io:
            raise
        try:
            data = _with_ranges(converter, request, tf.lite.OpsSet.TFLITE_BUILTINS)
            return wherever_possible(data, request.samples)
        except Exception:
            pass
        raise


def _sixteen_bits(converter: Any, request: Request, *, allow_float: bool) -> bytes:
    """Quantize activations to 16 bits with TensorFlow's older quantizer.

    Without samples, it uses the ranges of the file.

    Raises:
        Exception: It cannot quantize the file, or gives an operator integers and floats.
    """
    import tensorflow as tf
    from tensorflow.lite.python.optimize.calibrator import Calibrator
    from tensorflow.lite.python.util import modify_model_io_type

    sets = tf.lite.OpsSet
    ops = [sets.EXPERIMENTAL_TFLITE_BUILTINS_ACTIVATIONS_INT16_WEIGHTS_INT8]
    ops += [sets.TFLITE_BUILTINS] if allow_float else []
    data = _with_ranges(converter, request, *ops)
    model = with_measured_ranges(data, request.samples, wide=True)
    share_ranges(model)
    io = tf.int16 if request.integer_io else tf.float32
    quantizer = Calibrator(pack(model))
    data = quantizer.calibrate_and_quantize(tuple, io, io, allow_float, tf.int16, tf.int64)
    data = bytes(modify_model_io_type(data, io, io))
    tf.lite.Interpreter(model_content=data).allocate_tensors()
    return data


def _with_ranges(converter: Any, request: Request, *ops: Any) -> bytes:
    """Convert to a float file with ranges of its tensors, those of the first sample.

    Args:
        converter: The converter.
        request: The parameters.
        ops: The sets of operators that the file may use.
    """
    import tensorflow as tf

    if not hasattr(converter, _CALIBRATE_ONLY):
        raise UserError(
            "This TensorFlow's converter cannot calibrate without quantizing "
            f"({_CALIBRATE_ONLY}). Install the version of constraints.txt."
        )
    if not request.samples:
        raise ValueError(f"{request.precision} needs calibration samples")
    converter._experimental_calibrate_only = True
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.representative_dataset = lambda: map(list, request.samples[:1])
    converter.target_spec.supported_ops = list(ops)
    return _float32(converter, request)


def _int4(converter: Any, request: Request) -> bytes:
    """Quantize weights to four bits per channel; activations are quantized at run time."""
    try:
        from ai_edge_quantizer import quantizer, recipe
        from ai_edge_quantizer.qtyping import TFLOperationName
    except ImportError as error:
        raise missing_package(error, "The precision int4") or error from error
    run = quantizer.Quantizer(bytearray(_float32(converter, request)), recipe.dynamic_wi4_afp32())
    run.update_quantization_recipe(IN_FLOATS, TFLOperationName.ALL_SUPPORTED, None, _NOT)
    result = run.quantize(enable_progress_bar=False, enable_progress_report=False)
    return bytes(result.quantized_model)


_CONVERSIONS: dict[str, Callable[[Any, Request], bytes]] = {
    "float32": _float32,
    "float16": _float16,
    "dynamic": _dynamic,
    "int8": _int8,
    "int16x8": _int16x8,
    "int4": _int4,
}
