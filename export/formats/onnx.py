"""Writes ONNX files from a frozen graph with tf2onnx."""

from __future__ import annotations

import contextlib
import logging
import math
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...artifacts.manifest import METADATA_KEY, TensorSpec
from ...artifacts.precisions import Arithmetic, precision_named
from ...child import DiedError, shared
from ...errors import UserError
from ...locks import temporary_folder
from ...runtimes.base import Runner
from ...runtimes.onnxruntime import OnnxRuntimeRunner
from ..quantization.finish_onnx import finish
from ..quantization.layer_selection import belongs
from ..quantization.onnx_quantize import quantize
from .base import Contents, Job, check_interface
from .fence import UnnamedRefusalError, fenced, first_line
from .freeze import FrozenGraph
from .onnx_canonical import bodies, canonical
from .onnx_external import Held, read_light, write_model
from .onnx_rewrites import simplify
from .rewrites import put_constants, put_placeholder
from .rewrites_integers import rewritten
from .rewrites_masks import with_near_masks
from .stand_ins import LARGE, only_readers
from .tf2onnx_handlers import HANDLERS
from .tf2onnx_mends import mended_tf2onnx

if TYPE_CHECKING:
    import numpy as np
    import onnx

# tf2onnx multiplies these into a constant kernel of the convolution before them.
_MULTIPLIED = ("Mul", "BatchNormalization")
_STANDARD_DOMAINS = ("", "ai.onnx")


class Onnx:
    """The format `onnx`."""

    name = "onnx"
    suffix = ".onnx"

    def write(self, job: Job, path: Path) -> None:
        """Convert and quantize a graph, bring it to canonical form, and write the file."""
        import onnx

        what = f"onnxruntime's quantizer ({job.precision})"
        model, held = fenced(lambda part: _made(part, job), job.graph, what)
        model.metadata_props.append(
            onnx.StringStringEntryProto(key=METADATA_KEY, value=job.metadata)
        )
        write_model(model, path, held)

    def validate(self, path: Path, job: Job) -> Contents:
        """Run ONNX's checker with full shape inference and compare the interface."""
        try:
            model = _checked(path)
        except Exception as error:  # errors of the checker and of its shape inference
            reason = job.graph.readable_name(" ".join(str(error).split()))
            raise UserError(
                f"{path.name} would be no valid ONNX file: {reason.rstrip('.')}. Replace the layer "
                "that it names, or export another format."
            ) from error
        foreign = sorted({n.op_type for n in model.graph.node if n.domain not in _STANDARD_DOMAINS})
        if foreign:
            raise UserError(f"{path.name}: {', '.join(foreign)} is no standard ONNX operator.")
        contents = Contents(
            dict(_count(model.graph)),
            tuple(map(_tensor_info, model.graph.input)),
            tuple(map(_tensor_info, model.graph.output)),
        )
        check_interface(path, contents, job.graph.signature)
        if not job.graph.weights:  # a large file is loaded once, when the export runs it
            with self.runner(path):
                pass
        return contents

    def runner(self, path: Path) -> Runner:
        """Return a runner on ONNX Runtime, with one thread for reproducible results."""
        return OnnxRuntimeRunner(path)


def _checked(path: Path) -> onnx.ModelProto:
    """Return the model in a file, without large weights, after ONNX's checker has accepted it.

    Its inference of shapes copies weights several times, so it gets large ones as inputs.
    """
    import onnx

    model = read_light(path, LARGE)
    large = [tensor for tensor in model.graph.initializer if _is_left_out(tensor)]
    if not large:
        onnx.checker.check_model(str(path), full_check=True)
        return model
    kept = [tensor for tensor in model.graph.initializer if not _is_left_out(tensor)]
    model.graph.ClearField("initializer")
    model.graph.initializer.extend(kept)
    whole = onnx.ModelProto()
    whole.CopyFrom(model)
    whole.graph.input.extend(
        onnx.helper.make_tensor_value_info(t.name, t.data_type, t.dims) for t in large
    )
    onnx.checker.check_model(whole, full_check=True)
    return model


def _is_left_out(tensor: onnx.TensorProto) -> bool:
    """Return whether an initializer was read without its weight, which is in the file."""
    fields = {field.name for field, _ in tensor.ListFields()}
    return math.prod(tensor.dims) > 0 and not any(name.endswith("_data") for name in fields)


def _made(graph: FrozenGraph, job: Job) -> tuple[onnx.ModelProto, Held]:
    """Convert a graph to a model in the precision of the job, and the weights that it lacks.

    Raises:
        UserError: A converter refuses the graph.
        DiedError: The quantizer crashed in the child process.
    """
    import onnx

    if job.trained is not None:
        graph = graph.with_weights()
    integers = precision_named(job.precision).arithmetic is Arithmetic.INTEGER
    if integers and job.trained is None:
        graph = rewritten(graph, ("AddV2", "RealDiv"))
        batches = job.calibration.batches(graph.signature.inputs) if job.calibration else ()
        graph = with_near_masks(graph, (list(batch.values()) for batch in batches), wide=False)
    try:
        converted, held = convert(graph, job.options.opset)
        simple = simplify(converted, held)
    except UserError:
        raise
    except Exception as error:  # optimizer, shape inference and version converter have many types
        raise UserError(
            f"ONNX opset {job.options.opset} cannot express the model: "
            f"{graph.readable_name(first_line(error))} Choose opset 17 or replace the layer."
        ) from error
    if job.trained is not None:
        finished = finish(simple, job.trained, graph.readable_name)
        return canonical(finished, graph.readable_name), held
    model = canonical(simple, graph.readable_name)
    if job.precision == "float32":
        return model, held
    samples = list(job.calibration.batches(graph.signature.inputs)) if job.calibration else None
    exact = [n.name for n in model.graph.node if belongs(n.name, job.float_layers)]
    with temporary_folder() as folder:
        path = folder / "float32.onnx"
        write_model(model, path, held)
        try:
            converter = precision_named(job.precision).converter
            data = shared.call(quantize, path, converter, samples, job.choices, exact)
        except (UserError, ImportError, DiedError):
            raise
        except Exception as error:  # onnxruntime's tools raise whatever their internals raise
            raise UnnamedRefusalError(graph.readable_name(first_line(error))) from error
    return canonical(onnx.ModelProto.FromString(data), str), Held()


def convert(graph: FrozenGraph, opset: int) -> tuple[onnx.ModelProto, Held]:
    """Convert a frozen graph with the parts of tf2onnx.

    `tf2onnx.convert` copies every weight twice in each of its two dozen optimizer passes: for a
    graph to fall back to, and to rewrite a protobuf that is not read until the end. This function
    does neither, and a failing pass is an error instead of a log line. Large weights are inputs
    during the conversion.

    Args:
        graph: The network.
        opset: Version of the default ONNX operator set.

    Returns:
        The model with the order and names of tf2onnx, and its large weights; inputs and outputs
        have the names of the signature.

    Raises:
        UserError: An operation has no counterpart in this opset of ONNX.
    """
    import onnx

    held = Held()
    if _native(opset) != opset:  # the version converter needs the weights
        model = _converted(graph.with_weights(), opset, ())
        return onnx.version_converter.convert_version(model, opset), held
    model = _converted(graph, opset, only_readers(graph.graph_def, graph.weights))
    if not _with_held(model, graph.weights, held):
        model = _converted(graph.with_weights(), opset, ())
    return model, held


def _native(opset: int) -> int:
    """Return the opset that tf2onnx writes for a given one."""
    from tf2onnx import constants

    return int(min(opset, max(constants.OPSET_TO_IR_VERSION)))


def _converted(graph: FrozenGraph, opset: int, as_inputs: Collection[str]) -> onnx.ModelProto:
    """Convert a frozen graph, with some weights as inputs; see `convert`."""
    import tensorflow as tf
    from tf2onnx import optimizer, tfonnx
    from tf2onnx.tf_utils import compress_graph_def

    graph_def = tf.compat.v1.GraphDef()
    graph_def.CopyFrom(graph.graph_def)
    others = {n: value for n, value in graph.weights.items() if n not in as_inputs}
    put_constants(graph_def, others)
    for node in graph_def.node:
        if node.name in as_inputs:
            put_placeholder(node, graph.weights[node.name])
    weights = compress_graph_def(graph_def)  # takes them out of graph_def
    native = _native(opset)
    rename = {
        symbolic.name: tensor.name
        for symbolic, tensor in zip(
            (*graph.inputs, *graph.outputs),
            (*graph.signature.inputs, *graph.signature.outputs),
            strict=True,
        )
    }
    with contextlib.ExitStack() as stack:
        for context in (_quiet_tf2onnx(), mended_tf2onnx(), tf.device("/cpu:0")):
            stack.enter_context(context)
        tf_graph = stack.enter_context(tf.Graph().as_default())
        tf.import_graph_def(graph_def, name="")
        try:
            converted = tfonnx.process_tf_graph(
                tf_graph,
                continue_on_error=False,
                opset=native,
                input_names=[*(t.name for t in graph.inputs), *(f"{n}:0" for n in as_inputs)],
                output_names=[tensor.name for tensor in graph.outputs],
                const_node_values=weights,
                tensors_to_rename=rename,
                custom_op_handlers={name: (write, []) for name, write in HANDLERS.items()},
            )
            converted.update_proto = _nothing
            try:
                converted = optimizer.optimize_graph(converted, catch_errors=False)
            finally:
                del converted.update_proto
        except Exception as error:  # tf2onnx raises whatever its handlers raise
            raise UserError(
                graph.computes_with_complex_numbers()
                or _inexpressible_loop(error, graph)
                or f"ONNX opset {opset} cannot express the model: "
                f"{graph.readable_name(first_line(error))} Raise the opset or replace the layer."
            ) from error
    model: onnx.ModelProto = converted.make_model("")
    _refuse_unknown(model, graph, native)
    for value, tensor in zip(model.graph.output, graph.signature.outputs, strict=True):
        # The optimizer writes an einsum as other operators, after which it knows no sizes.
        for size, known in zip(value.type.tensor_type.shape.dim, tensor.shape, strict=False):
            if known is not None:
                size.dim_value = known
    return model


def _inexpressible_loop(error: Exception, graph: FrozenGraph) -> str:
    """Return the refusal of a loop if an error of tf2onnx is about one; else empty."""
    used = {node.op for node in graph.graph_def.node}
    loops = [kind for kind in ("StatelessWhile", "While") if kind in used]
    if not loops or "loop" not in str(error).lower():
        return ""
    place = graph.with_layers(loops[:1]).partition("(")[2].rstrip(")")
    return (
        f"The loop of {place} cannot be written as one of ONNX. Write it as a loop of Python over "
        "a known number of steps, or export TFLite only."
    )


def _with_held(model: onnx.ModelProto, weights: Mapping[str, np.ndarray], held: Held) -> bool:
    """Turn the inputs that stand for weights into initializers whose values are held.

    Args:
        model: The converted model; changed in place.
        weights: Name of each weight to its value.
        held: Where to put them.

    Returns:
        Whether tf2onnx does the same with inputs as with constants.
    """
    graph = model.graph
    values = {f"{name}:0": value for name, value in weights.items()}
    inputs = [value for value in graph.input if value.name not in values]
    waiting = {value.name: values[value.name] for value in graph.input if value.name in values}
    nodes, products = [], set[str]()
    for node in graph.node:
        if node.op_type in _MULTIPLIED and not products.isdisjoint(node.input):
            return False
        if node.op_type == "Transpose" and node.input[0] in waiting:
            perm = _attributes(node)["perm"]
            waiting[node.output[0]] = waiting[node.input[0]].transpose(perm)
            continue
        read = {index for index, name in enumerate(node.input) if name in waiting}
        if read and (read != {1} or node.op_type not in ("MatMul", "Gemm", "Conv")):
            return False
        products.update(node.output if read else ())
        nodes.append(node)
    if any(value.name in waiting for value in graph.output):
        return False
    used = {name for node in nodes for name in node.input}
    graph.initializer.extend(held.tensor(v, n) for n, v in waiting.items() if n in used)
    del graph.node[:]
    graph.node.extend(nodes)
    del graph.input[:]
    graph.input.extend(inputs)
    return True


def _attributes(node: onnx.NodeProto) -> dict[str, Any]:
    """Return the attributes of a node by name."""
    import onnx

    return {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}


def _refuse_unknown(model: onnx.ModelProto, graph: FrozenGraph, opset: int) -> None:
    """Refuse operators that tf2onnx did not convert.

    Raises:
        UserError: There is such an operator; the message names its layers.
    """
    import onnx

    def is_known(node: onnx.NodeProto) -> bool:
        return node.domain in _STANDARD_DOMAINS and onnx.defs.has(node.op_type, opset, "")

    unknown = sorted({node.op_type for node in _nodes(model.graph) if not is_known(node)})
    if unknown:
        raise UserError(
            graph.draws_random_numbers(unknown)
            or graph.computes_with_complex_numbers(unknown)
            or f"ONNX has no operator for {graph.with_layers(unknown)}. Replace the layer, or end "
            "the model before it."
        )


@contextlib.contextmanager
def _quiet_tf2onnx() -> Iterator[None]:
    """Suppress log messages of tf2onnx that are raised as errors as well."""
    logger = logging.getLogger("tf2onnx")
    before = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(before)


def _count(graph: onnx.GraphProto) -> Counter[str]:
    """Count the operators of a graph, including those in the bodies of loops."""
    return Counter(node.op_type for node in _nodes(graph))


def _nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    """Yield the nodes of a graph, including those in the bodies of loops."""
    for node in graph.node:
        yield node
        for body in bodies(node):
            yield from _nodes(body)


def _nothing(external_tensor_storage: Any = None) -> None:
    """Do nothing, in place of `Graph.update_proto`, while the protobuf is not read."""


def _tensor_info(value: onnx.ValueInfoProto) -> TensorSpec:
    import onnx

    tensor = value.type.tensor_type
    return TensorSpec(
        value.name,
        tuple(d.dim_value if d.HasField("dim_value") else None for d in tensor.shape.dim),
        onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type).name,
    )
