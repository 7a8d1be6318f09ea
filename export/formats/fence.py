"""Runs conversions that may crash in a child process, and finds the layer that causes a crash.

TensorFlow's converters, its calibrator and onnxruntime's quantizer end the process on some inputs
that they do not support. Float files of common operators are converted in this process, without
extra cost; all others in a child process.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from ...artifacts.precisions import precision_named
from ...child import DiedError
from ...errors import UserError
from .freeze import FrozenGraph

T = TypeVar("T")

# Operators of TensorFlow that both converters support, including those of recurrent loops.
# fmt: off
_ORDINARY = frozenset((
    "Add", "AddV2", "All", "Any", "ArgMax", "AvgPool", "BatchMatMulV2", "BatchToSpaceND",
    "BiasAdd", "Cast", "Concat", "ConcatV2", "Const", "Conv2D", "Conv2DBackpropInput", "Conv3D",
    "DepthToSpace", "DepthwiseConv2dNative", "Elu", "Equal", "Erf", "Exp", "ExpandDims", "Fill",
    "FusedBatchNormV3", "GatherV2", "Greater", "GreaterEqual", "Identity", "LeakyRelu", "Less",
    "LessEqual", "Log", "LogicalAnd", "LogicalNot", "LogicalOr", "MatMul", "Max", "MaxPool",
    "Maximum", "Mean", "Min", "Minimum", "MirrorPad", "Mul", "Neg", "NotEqual", "Pack", "Pad",
    "PadV2", "Placeholder", "Pow", "Prod", "Range", "RealDiv", "Relu", "Relu6", "Reshape",
    "ResizeBilinear", "ResizeNearestNeighbor", "ReverseV2", "Round", "Rsqrt", "Select",
    "SelectV2", "Selu", "Shape", "Sigmoid", "Slice", "Softmax", "Softplus", "SpaceToBatchND",
    "SpaceToDepth", "Split", "SplitV", "Sqrt", "Square", "SquaredDifference", "Squeeze",
    "StatelessWhile", "StopGradient", "StridedSlice", "Sub", "Sum", "Tanh",
    "TensorListFromTensor", "TensorListGetItem", "TensorListReserve", "TensorListSetItem",
    "TensorListStack", "Tile", "Transpose", "Unpack", "ZerosLike",
))
# fmt: on


def needs_child(graph: FrozenGraph, precision: str) -> bool:
    """Return whether a conversion must run in a child process."""
    functions = graph.graph_def.library.function
    nodes = [*graph.graph_def.node, *(node for body in functions for node in body.node_def)]
    return precision_named(precision).quantized or any(n.op not in _ORDINARY for n in nodes)


def fenced(convert: Callable[[FrozenGraph], T], graph: FrozenGraph, what: str) -> T:
    """Convert in the child process; if it crashes, find the layer that causes it.

    Args:
        convert: Converts a graph by calls of the shared child.
        graph: The graph to convert.
        what: The converter and what it makes, such as `onnxruntime's quantizer (int8)`.

    Raises:
        UserError: The child process crashed.
    """
    try:
        return convert(graph)
    except DiedError as died:
        cause = died.cause
    layer = _culprit(convert, graph)
    place = f" on layer {layer!r}" if layer else ""
    raise UserError(
        f"{what} died of {cause}{place}. Replace that layer or export another precision."
        if layer
        else f"{what} died of {cause}. Export another precision, or give the model without the "
        "layers that are unusual in it to find the one at fault."
    )


def first_line(error: Exception) -> str:
    """Return the first line of an exception's text as a sentence."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    line = lines[0] if lines else type(error).__name__
    return line if line.endswith(".") else f"{line}."


def _culprit(convert: Callable[[FrozenGraph], object], graph: FrozenGraph) -> str | None:
    """Return the first layer with which a conversion crashes, found by bisection."""
    layers = {
        graph.layer_of(node.name): node.name
        for node in graph.graph_def.node
        if node.op not in ("Const", "Placeholder")
    }
    layers.pop("", None)
    ends = list(layers.values())
    fine, dead = 0, len(ends)
    if not ends or not _dies(convert, graph.until(ends)):
        return None
    while dead - fine > 1:
        middle = (fine + dead) // 2
        if _dies(convert, graph.until(ends[:middle])):
            dead = middle
        else:
            fine = middle
    return list(layers)[dead - 1]


def _dies(convert: Callable[[FrozenGraph], object], graph: FrozenGraph) -> bool:
    try:
        convert(graph)
    except DiedError:
        return True
    except Exception:  # a refusal is not a crash
        return False
    return False
