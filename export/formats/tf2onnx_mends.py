"""Corrections of tf2onnx's optimizer, which writes some wrong, invalid or varying models."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any


@contextlib.contextmanager
def mended_optimizer() -> Iterator[None]:
    """Correct tf2onnx's optimizer within the block.

    - A constant added after a convolution becomes its bias only if it varies along the channels:
      tf2onnx compares only the number of elements, and fails on a scalar.
    - No Transpose becomes a Reshape: tf2onnx uses shapes that its own passes have made outdated.
      `onnx_rewrites` does this with inferred shapes.
    - A constant that one node reads twice, such as the equal starts and axes of a Slice, is not
      changed in place when a Transpose is moved: tf2onnx counts the nodes that read it.
    - The first of several equal nodes, in order of name, is kept: tf2onnx keeps an arbitrary one,
      so that names in the file would differ between processes.
    """
    from tf2onnx.optimizer.merge_duplicated_nodes_optimizer import MergeDuplicatedNodesOptimizer
    from tf2onnx.optimizer.transpose_optimizer import TransposeOptimizer

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

    mends = (
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
