"""Writes ONNX files from a frozen graph with tf2onnx."""

from __future__ import annotations

import contextlib
import logging
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ...artifacts.manifest import METADATA_KEY, TensorSpec
from ...artifacts.precisions import precision_named
from ...child import DiedError, shared
from ...errors import UserError
from ...files import write_bytes
from ...runtimes.base import Runner
from ...runtimes.onnxruntime import OnnxRuntimeRunner
from ..quantization.finish_onnx import fake_quantization, finish
from ..quantization.layer_selection import belongs
from ..quantization.onnx_quantize import quantize
from .base import Contents, Job, check_interface
from .fence import fenced, first_line
from .freeze import FrozenGraph
from .onnx_canonical import bodies, canonical
from .onnx_external import move_weights
from .onnx_rewrites import simplify
from .tf2onnx_mends import mended_optimizer

if TYPE_CHECKING:
    import onnx
    from numpy.typing import NDArray

_STANDARD_DOMAINS = ("", "ai.onnx")


class Onnx:
    """The format `onnx`."""

    name = "onnx"
    suffix = ".onnx"

    def write(self, job: Job, path: Path) -> None:
        """Convert and quantize a graph, bring it to canonical form, and write the file."""
        import onnx

        model = fenced(
            lambda part: _made(part, job), job.graph, f"onnxruntime's quantizer ({job.precision})"
        )
        model.metadata_props.append(
            onnx.StringStringEntryProto(key=METADATA_KEY, value=job.metadata)
        )
        move_weights(model, path)
        write_bytes(path, model.SerializeToString(deterministic=True))

    def validate(self, path: Path, job: Job) -> Contents:
        """Run ONNX's checker with full shape inference and compare the interface."""
        import onnx

        try:
            onnx.checker.check_model(str(path), full_check=True)
        except Exception as error:  # errors of the checker and of its shape inference
            reason = job.graph.readable_name(" ".join(str(error).split()))
            raise UserError(
                f"{path.name} would be no valid ONNX file: {reason.rstrip('.')}. Replace the layer "
                "that it names, or export another format."
            ) from error
        model = onnx.load(path, load_external_data=False)
        foreign = sorted({n.op_type for n in model.graph.node if n.domain not in _STANDARD_DOMAINS})
        if foreign:
            raise UserError(f"{path.name}: {', '.join(foreign)} is no standard ONNX operator.")
        contents = Contents(
            dict(_count(model.graph)),
            tuple(map(_tensor_info, model.graph.input)),
            tuple(map(_tensor_info, model.graph.output)),
        )
        check_interface(path, contents, job.graph.signature)
        with self.runner(path):
            pass
        return contents

    def runner(self, path: Path) -> Runner:
        """Return a runner on ONNX Runtime, with one thread for reproducible results."""
        return OnnxRuntimeRunner(path)


def _made(graph: FrozenGraph, job: Job) -> onnx.ModelProto:
    """Convert a graph to a model in the precision of the job.

    Raises:
        UserError: A converter refuses the graph.
        DiedError: The quantizer crashed in the child process.
    """
    import onnx

    try:
        simple = simplify(convert(graph, job.options.opset))
    except UserError:
        raise
    except Exception as error:  # optimizer, shape inference and version converter have many types
        raise UserError(
            f"ONNX opset {job.options.opset} cannot express the model: "
            f"{graph.readable_name(first_line(error))} Choose opset 17 or replace the layer."
        ) from error
    if job.trained is not None:
        return canonical(finish(simple, job.trained, graph.readable_name), graph.readable_name)
    model = canonical(simple, graph.readable_name)
    if job.precision == "float32":
        return model
    samples = list(job.calibration.batches(graph.signature.inputs)) if job.calibration else None
    try:
        converter = precision_named(job.precision).converter
        exact = [n.name for n in model.graph.node if belongs(n.name, job.float_layers)]
        data = shared.call(
            quantize, model.SerializeToString(), converter, samples, job.choices, exact
        )
    except (UserError, DiedError):
        raise
    except Exception as error:  # onnxruntime's tools raise whatever their internals raise
        raise UserError(
            f"onnxruntime's quantizer refuses the model in {job.precision}: {first_line(error)} "
            "Replace the layer that it names or export another precision."
        ) from error
    return canonical(onnx.ModelProto.FromString(data), str)


def convert(graph: FrozenGraph, opset: int) -> onnx.ModelProto:
    """Convert a frozen graph with the parts of tf2onnx.

    `tf2onnx.convert` copies every weight twice in each of its two dozen optimizer passes: for a
    graph to fall back to, and to rewrite a protobuf that is not read until the end. This function
    does neither, and a failing pass is an error instead of a log line.

    Args:
        graph: The network.
        opset: Version of the default ONNX operator set.

    Returns:
        The model with the order and names of tf2onnx; inputs and outputs have the names of the
        signature.

    Raises:
        UserError: An operation has no counterpart in this opset of ONNX.
    """
    import onnx
    import tensorflow as tf
    from tf2onnx import constants, optimizer, tfonnx
    from tf2onnx.tf_utils import compress_graph_def

    graph_def = tf.compat.v1.GraphDef()
    graph_def.CopyFrom(graph.graph_def)
    weights = compress_graph_def(graph_def)  # takes them out of graph_def
    native = min(opset, max(constants.OPSET_TO_IR_VERSION))
    rename = {
        symbolic.name: tensor.name
        for symbolic, tensor in zip(
            (*graph.inputs, *graph.outputs),
            (*graph.signature.inputs, *graph.signature.outputs),
            strict=True,
        )
    }
    with _quiet_tf2onnx(), tf.device("/cpu:0"), tf.Graph().as_default() as tf_graph:
        tf.import_graph_def(graph_def, name="")
        try:
            converted = tfonnx.process_tf_graph(
                tf_graph,
                continue_on_error=False,
                opset=native,
                input_names=[tensor.name for tensor in graph.inputs],
                output_names=[tensor.name for tensor in graph.outputs],
                const_node_values=weights,
                tensors_to_rename=rename,
                custom_op_handlers={name: (write, []) for name, write in _HANDLERS.items()},
            )
            converted.update_proto = _nothing
            try:
                with mended_optimizer():
                    converted = optimizer.optimize_graph(converted, catch_errors=False)
            finally:
                del converted.update_proto
        except Exception as error:  # tf2onnx raises whatever its handlers raise
            raise UserError(
                f"ONNX opset {opset} cannot express the model: "
                f"{graph.readable_name(first_line(error))} Raise the opset or replace the layer."
            ) from error
    model: onnx.ModelProto = converted.make_model("")
    _refuse_unknown(model, graph, native)
    return model if native == opset else onnx.version_converter.convert_version(model, opset)


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
            f"ONNX has no operator for {graph.with_layers(unknown)}. Replace the layer, or end the "
            "model before it."
        )


def _erfc(ctx: Any, node: Any, name: str, args: list[Any]) -> None:
    """Convert erfc, which occurs in exact GELU and which ONNX lacks: erfc(x) = 1 - erf(x)."""
    shapes, dtypes = [ctx.get_shape(node.output[0])], [ctx.get_dtype(node.output[0])]
    erf = ctx.make_node("Erf", list(node.input), name=f"{name}/erf", shapes=shapes, dtypes=dtypes)
    one = ctx.make_const(f"{name}/one", np.array(1, np.float32))
    outputs = list(node.output)
    ctx.remove_node(name)
    terms = [one.output[0], erf.output[0]]
    ctx.make_node("Sub", terms, name=name, outputs=outputs, shapes=shapes, dtypes=dtypes)


def _where(ctx: Any, node: Any, name: str, args: list[Any]) -> None:
    """Convert Select to Where; tf2onnx uses a sum of products, in which 0 · NaN is NaN."""
    shapes, dtypes = [ctx.get_shape(node.output[0])], [ctx.get_dtype(node.output[0])]
    condition, *values = node.input
    rank = len(ctx.get_shape(condition) or ())
    if node.type == "Select" and rank == 1 and len(shapes[0] or ()) > 1:  # one condition per row
        rows = ctx.make_const(f"{name}/rows", np.array([-1] + [1] * (len(shapes[0]) - 1)))
        condition = ctx.make_node("Reshape", [condition, rows.output[0]]).output[0]
    outputs = list(node.output)
    ctx.remove_node(name)
    inputs = [condition, *values]
    ctx.make_node("Where", inputs, name=name, outputs=outputs, shapes=shapes, dtypes=dtypes)


def _floor_division(ctx: Any, node: Any, name: str, args: list[Any]) -> None:
    """Convert a floor division or its remainder; tf2onnx rounds integers towards zero.

    ONNX rounds the quotient of integers towards zero, and its integer Mod has the sign of the
    divisor. For floats, Mod has the sign of the dividend, so it is computed with Floor.
    """
    import onnx

    shapes, dtypes = [ctx.get_shape(node.output[0])], [ctx.get_dtype(node.output[0])]
    remainder, (x, y), outputs = node.type == "FloorMod", node.input, list(node.output)
    floats = {onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.DOUBLE}
    ctx.remove_node(name)

    def make(kind: str, *inputs: str, last: bool = False) -> str:
        which = {"name": name, "outputs": outputs} if last else {}
        made = ctx.make_node(kind, list(inputs), shapes=shapes, dtypes=dtypes, **which)
        result: str = made.output[0]
        return result

    if dtypes[0] in floats and remainder:
        make("Sub", x, make("Mul", make("Floor", make("Div", x, y)), y), last=True)
    elif dtypes[0] in floats:
        make("Floor", make("Div", x, y), last=True)
    elif remainder:
        make("Mod", x, y, last=True)
    else:
        make("Div", make("Sub", x, make("Mod", x, y)), y, last=True)


def _resize(ctx: Any, node: Any, name: str, args: list[Any]) -> None:
    """Write a resizing with scales that give its sizes; tf2onnx rounds them to float32.

    5/12 in float32, times 12, is below 5: runtimes would make 4 of it. The next number is used.
    Sizes in place of scales would not survive the conversion to half precision.
    """
    from tf2onnx.onnx_opset.nn import Resize

    before, after = ctx.get_shape(node.input[0]), ctx.get_shape(node.output[0])
    Resize.version_11(ctx, node)
    scales = ctx.get_node_by_output(ctx.get_node_by_name(name).input[0]).inputs[2]
    if not scales.is_const() or not scales.get_tensor_value(as_list=False).size:
        return
    factors = scales.get_tensor_value(as_list=False).copy()
    short = factors[2:].astype(np.float64) * before[1:3] < after[1:3]
    factors[2:] = np.where(short, np.nextafter(factors[2:], np.float32(np.inf)), factors[2:])
    scales.set_tensor_value(factors)


def _resize_to_nearest(ctx: Any, node: Any, name: str, args: list[Any]) -> None:
    """Write a resizing that repeats or leaves out pixels; by their indices if a ratio is odd.

    A runtime divides by the scale. If float32 does not hold it exactly, the quotient may be on the
    other side of a whole number, which selects another pixel: from 12 to 5, that of 2.5 · 12/5.
    """
    before, after = (np.array(ctx.get_shape(key)[1:3]) for key in (node.input[0], node.output[0]))
    known = (before > 0).all() and (after > 0).all()
    if not known or (np.float32(after / before).astype(np.float64) * before == after).all():
        _resize(ctx, node, name, args)
        return
    corners, centers = (
        bool(node.get_attr_value(key)) for key in ("align_corners", "half_pixel_centers")
    )
    shape, dtype = ctx.get_shape(node.output[0]), ctx.get_dtype(node.output[0])
    value, outputs = node.input[0], list(node.output)
    ctx.remove_node(name)
    for axis in (1, 2):
        size, new = int(before[axis - 1]), int(after[axis - 1])
        chosen = _nearest_pixels(size, new, corners=corners, centers=centers)
        indices = ctx.make_const(f"{name}/pixels_{axis}", chosen)
        last = {"name": name, "outputs": outputs} if axis == 2 else {}
        sizes = [*shape[:axis], new, *ctx.get_shape(value)[axis + 1 :]]
        made = ctx.make_node(
            "Gather",
            [value, indices.output[0]],
            attr={"axis": axis},
            shapes=[sizes],
            dtypes=[dtype],
            **last,
        )
        value = made.output[0]


def _nearest_pixels(size: int, new: int, *, corners: bool, centers: bool) -> NDArray[np.int64]:
    """Return the pixel that TensorFlow's kernel chooses for each of ``new`` ones, in float32."""
    spans = (size - 1, new - 1) if corners and new > 1 else (size, new)
    scale = np.float32(spans[0]) / np.float32(spans[1])
    places = (np.arange(new, dtype=np.float32) + np.float32(0.5 if centers else 0)) * scale
    nearest = np.floor(places + np.float32(0.5)) if corners else np.floor(places)
    return np.clip(nearest, 0, size - 1).astype(np.int64)


_HANDLERS = {
    "Erfc": _erfc,
    "FloorDiv": _floor_division,
    "FloorMod": _floor_division,
    "FakeQuantWithMinMaxVars": fake_quantization,
    "ResizeBilinear": _resize,
    "ResizeNearestNeighbor": _resize_to_nearest,
    "Select": _where,
    "SelectV2": _where,
}


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
