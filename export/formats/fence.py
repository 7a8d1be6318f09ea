"""Runs conversions that may crash in a child process, and finds the layer that causes a failure.

TensorFlow's converters, its calibrator and onnxruntime's quantizer end the process on some inputs
that they do not support. Float files of common operators are converted in this process, without
extra cost; all others in a child process.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TypeVar

from ...artifacts.precisions import precision_named
from ...child import DiedError
from ...errors import UserError
from .freeze import FrozenGraph

T = TypeVar("T")


class UnnamedRefusalError(UserError):
    """A converter refuses a graph in a message that may name no layer.

    Attributes:
        reason: Its message, one sentence.
    """

    def __init__(self, reason: str) -> None:
        self.reason = f"{reason.rstrip('.')}."
        super().__init__(self.reason)

    @property
    def kind(self) -> str:
        """The message without numbers, which depend on the size of the graph."""
        return re.sub(r"\d+", "", self.reason)


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
    """Convert in the child process; if that fails, find the layer that causes it.

    Args:
        convert: Converts a graph by calls of the shared child.
        graph: The graph to convert.
        what: The converter and what it makes, such as `onnxruntime's quantizer (int8)`.

    Raises:
        UserError: The child process crashed, or the converter refuses the graph.
    """
    try:
        return convert(graph)
    except DiedError as died:
        failure = f"died of {died.cause}"
        layer = _culprit(convert, graph, lambda error: isinstance(error, DiedError))
        reason = ""
    except UnnamedRefusalError as refusal:
        failure = "refused the model"
        known = refusal.kind
        layer = _culprit(convert, graph, lambda error: getattr(error, "kind", None) == known)
        reason = f": {refusal.reason.rstrip('.')}"
    raise UserError(
        f"{what} {failure} on layer {layer!r}{reason}. Replace that layer or export another "
        "precision."
        if layer
        else f"{what} {failure}{reason}. Export another precision, or give the model without the "
        "layers that are unusual in it to find the one at fault."
    )


def first_line(error: Exception) -> str:
    """Return the first line of an exception's text as a sentence."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    line = lines[0] if lines else type(error).__name__
    return line if line.endswith(".") else f"{line}."


def layer_ends(graph: FrozenGraph) -> dict[str, str]:
    """Return the path of each layer of a graph and the name of its last op, in order."""
    layers = {
        graph.layer_of(node.name): node.name
        for node in graph.graph_def.node
        if node.op not in ("Const", "Placeholder")
    }
    layers.pop("", None)
    return layers


def _culprit(
    convert: Callable[[FrozenGraph], object],
    graph: FrozenGraph,
    failure: Callable[[Exception], bool],
) -> str | None:
    """Return the first layer with which a conversion fails, found by bisection."""
    layers = layer_ends(graph)
    ends = list(layers.values())
    fine, bad = 0, len(ends)
    if not ends or not _fails(convert, graph.until(ends), failure):
        # Outputs between layers keep the converter from merging them.
        alone = (
            name for name, end in layers.items() if _fails(convert, graph.until([end]), failure)
        )
        return next(alone, None)
    while bad - fine > 1:
        middle = (fine + bad) // 2
        if _fails(convert, graph.until(ends[:middle]), failure):
            bad = middle
        else:
            fine = middle
    return list(layers)[bad - 1]


def _fails(
    convert: Callable[[FrozenGraph], object],
    graph: FrozenGraph,
    failure: Callable[[Exception], bool],
) -> bool:
    try:
        convert(graph)
    except Exception as error:  # another failure has another cause
        return failure(error)
    return False
