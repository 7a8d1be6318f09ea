"""Corrections of tf2onnx, which fails on some models and writes some wrong or varying files."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any


@contextlib.contextmanager
def mended_tf2onnx() -> Iterator[None]:
    """Correct tf2onnx's rewriters and optimizer within the block.

    - max(x, a · x) becomes a LeakyRelu, and x · (x > a) a ThresholdedRelu, only if a is one number.
    - A constant added after a convolution becomes its bias only if it varies along the channels:
      tf2onnx compares only the number of elements, and fails on a scalar.
    - No Transpose becomes a Reshape: tf2onnx uses shapes that its own passes have made outdated.
      `onnx_rewrites` does this with inferred shapes.
    - A constant that one node reads twice, such as the equal starts and axes of a Slice, is not
      changed in place when a Transpose is moved: tf2onnx counts the nodes that read it.
    - The first of several equal nodes, in order of name, is kept: tf2onnx keeps an arbitrary one,
      so that names in the file would differ between processes.
    """
    from tf2onnx.graph_matcher import GraphMatcher
    from tf2onnx.optimizer.merge_duplicated_nodes_optimizer import MergeDuplicatedNodesOptimizer
    from tf2onnx.optimizer.transpose_optimizer import TransposeOptimizer
    from tf2onnx.rewriter import leakyrelu_rewriter, thresholded_relu_rewriter

    add_handler = TransposeOptimizer._add_handler
    has_single_consumer = TransposeOptimizer._nodes_has_single_consumer_node
    merge = MergeDuplicatedNodesOptimizer._merge_nodes_that_are_duplicated

    def add_along_channels(self: Any, trans: Any, node: Any) -> Any:
        bias = node.inputs[1]
        if bias.is_const():
            value = bias.get_tensor_value(as_list=False)
            if not value.ndim or value.size != value.shape[-1]:
                return self._handle_node_having_branches(trans, node)
        return add_handler(self, trans, node)

    def are_read_once(self: Any, nodes: list[Any]) -> bool:
        return has_single_consumer(self, nodes) and not any(
            reader.input.count(node.output[0]) > 1
            for node in nodes
            if node.is_const()
            for reader in self._g.find_output_consumers(node.output[0])
        )

    def merge_by_name(self: Any, nodes: list[Any], graph: Any) -> None:
        merge(self, sorted(nodes, key=lambda node: node.name), graph)

    class OfNumbers(GraphMatcher):
        """Finds patterns whose constants are single numbers."""

        def match_ops(self, ops: list[Any]) -> Iterator[Any]:
            for match in super().match_ops(ops):
                constants = (node for node in match.get_nodes() if node.is_const())
                if not any(node.get_tensor_value(as_list=False).ndim for node in constants):
                    yield match

    mends = (
        (leakyrelu_rewriter, "GraphMatcher", OfNumbers),
        (thresholded_relu_rewriter, "GraphMatcher", OfNumbers),
        (TransposeOptimizer, "_add_handler", add_along_channels),
        (TransposeOptimizer, "_nodes_has_single_consumer_node", are_read_once),
        (TransposeOptimizer, "post_optimize_action", lambda self: None),
        (MergeDuplicatedNodesOptimizer, "_merge_nodes_that_are_duplicated", merge_by_name),
    )
    with contextlib.ExitStack() as stack:
        for owner, name, mended in mends:
            stack.callback(setattr, owner, name, getattr(owner, name))
            setattr(owner, name, mended)
        yield
