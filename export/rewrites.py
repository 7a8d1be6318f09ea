"""Graph rewrites for what Keras traces and no converter can read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import tensorflow as tf


def split_grouped_conv3d(graph: tf.Graph, constants: Mapping[str, np.ndarray]) -> dict[str, str]:
    """Add to `graph` a split, one convolution a group and a concat for every grouped Conv3D.

    Neither TFLite's converter nor tf2onnx knows the group of a 3-D convolution (2-D ones they
    read off the shapes).

    Args:
        graph: The traced graph; ops are added to it.
        constants: Name of each op that stands for a weight to its value.

    Returns:
        Name of each grouped op to the name of the op that replaces it; `redirect` makes every
        reader take the latter.
    """
    import tensorflow as tf

    replaced = {}
    for op in list(graph.get_operations()):
        if op.type != "Conv3D":
            continue
        data, kernel = op.inputs
        groups = data.shape[-1] // kernel.shape[-2]
        if groups == 1:
            continue
        weights = np.split(constants[kernel.op.name], groups, axis=-1)
        with graph.as_default(), tf.name_scope(f"{op.name.rpartition('/')[0]}/groups/"):
            parts = [
                tf.nn.conv3d(
                    part,
                    tf.constant(weight),
                    op.get_attr("strides"),
                    op.get_attr("padding").decode(),
                    dilations=op.get_attr("dilations"),
                )
                for part, weight in zip(tf.split(data, groups, axis=-1), weights, strict=True)
            ]
            replaced[op.name] = tf.concat(parts, axis=-1, name="concat").op.name
    return replaced


def redirect(graph_def: tf.compat.v1.GraphDef, replaced: dict[str, str]) -> None:
    """Make every op that reads one of `replaced` read its replacement, in place.

    The replaced op itself, which nothing reads any longer, is removed.
    """
    for node in graph_def.node:
        for index, name in enumerate(node.input):
            if name in replaced and node.name != name:
                node.input[index] = replaced[name]
    kept = [node for node in graph_def.node if node.name not in replaced]
    del graph_def.node[:]
    graph_def.node.extend(kept)


def put_constants(graph_def: tf.compat.v1.GraphDef, constants: Mapping[str, np.ndarray]) -> None:
    """Turn each op named in `constants` into a constant of that value, in place."""
    import tensorflow as tf

    for node in graph_def.node:
        if node.name not in constants:
            continue
        value = constants[node.name]
        node.op = "Const"
        del node.input[:]
        node.attr.clear()
        node.attr["dtype"].type = tf.as_dtype(value.dtype).as_datatype_enum
        node.attr["value"].tensor.CopyFrom(tf.make_tensor_proto(value))
