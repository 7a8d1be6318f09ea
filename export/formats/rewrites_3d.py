"""Rewrites 3-D convolutions and pooling with operators that the converters support.

The rewrites are exact: each output is the same sum, mean or maximum of the same numbers.

- Converters support groups in 2-D convolutions only. A grouped 3-D convolution is replaced by a
  split, one convolution per group, and a concatenation.
- TFLite has no dilated or quantized 3-D convolution, and no 3-D pooling. A convolution over D, H, W
  is replaced by one over H, W, whose channels are those of all planes that the kernel covers,
  concatenated (s is the stride, δ the dilation of D):

      y[d] = sum_i K[i] * x[d s + i δ] = [K[0], K[1], …] * [x[d s], x[d s + δ], …]

  A maximum or mean over a box is computed over planes, after pooling within each plane.

Keras traces a dilated convolution as an undilated one between SpaceToBatchND, which also pads, and
BatchToSpaceND, which also crops.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from .rewrites import redirect

if TYPE_CHECKING:
    import tensorflow as tf

_POOLING = ("MaxPool3D", "AvgPool3D")
_OURS = ("Conv3D", *_POOLING)


@dataclasses.dataclass(frozen=True)
class _Convolution:
    """A 3-D convolution of a graph, channels last.

    Attributes:
        conv: The Conv3D.
        last: The op with the result: the Conv3D or the BatchToSpaceND after it.
        data: The input.
        strides: Strides of depth, height and width.
        dilations: Dilations of depth, height and width.
        pads: Zeros before and after depth, height and width, (3, 2).
    """

    conv: tf.Operation
    last: tf.Operation
    data: tf.Tensor
    strides: np.ndarray
    dilations: np.ndarray
    pads: np.ndarray

    @property
    def kernel(self) -> tf.Tensor:
        """The weights, (depth, height, width, inputs, filters)."""
        return self.conv.inputs[1]

    @property
    def dilated(self) -> bool:
        """Whether any dilation exceeds 1."""
        return self.last is not self.conv

    def again(self, data: tf.Tensor, kernel: tf.Tensor) -> tf.Tensor:
        """Return the same convolution with another input and other weights."""
        import tensorflow as tf

        first = self.conv.inputs[0].op
        if self.dilated:
            data = tf.space_to_batch(data, *first.inputs[1:])
        result = tf.nn.conv3d(
            data, kernel, self.conv.get_attr("strides"), self.conv.get_attr("padding").decode()
        )
        return tf.batch_to_space(result, *self.last.inputs[1:]) if self.dilated else result


def split_grouped_conv3d(graph: tf.Graph, constants: Mapping[str, np.ndarray]) -> dict[str, str]:
    """Add a split, one convolution per group and a concatenation for every grouped Conv3D.

    Args:
        graph: The traced graph; ops are added to it.
        constants: Name of the placeholder op of each weight to its value.

    Returns:
        Name of each op to replace to the name of its replacement, for `redirect`.
    """
    import tensorflow as tf

    replaced = {}
    for found in list(_convolutions(graph)):
        groups = found.data.shape[-1] // found.kernel.shape[-2]
        if groups == 1:
            continue
        weights = np.split(constants[found.kernel.op.name], groups, axis=-1)
        with graph.as_default(), tf.name_scope(f"{_scope(found.last)}/groups/"):
            parts = tf.split(found.data, groups, axis=-1)
            results = [
                found.again(part, tf.constant(weight))
                for part, weight in zip(parts, weights, strict=True)
            ]
            replaced[found.last.name] = tf.concat(results, axis=-1, name="concat").op.name
    return replaced


def for_tflite(
    graph_def: tf.compat.v1.GraphDef, interface: Sequence[str], *, quantized: bool
) -> tf.compat.v1.GraphDef:
    """Replace the 3-D operators that TFLite does not support.

    Args:
        graph_def: A frozen graph; not changed.
        interface: Names of its inputs and outputs.
        quantized: Whether activations will be integers, which CONV_3D does not support.
    """
    import tensorflow as tf

    if not any(node.op in _OURS for node in graph_def.node):
        return graph_def
    with tf.Graph().as_default() as graph:
        tf.import_graph_def(graph_def, name="")
        pools = [op for op in graph.get_operations() if op.type in _POOLING and _channels_last(op)]
        convolutions = [c for c in _convolutions(graph) if c.dilated or quantized]
        replaced = {}
        for op in pools:
            with tf.name_scope(f"{_scope(op)}/planes/"):
                replaced[op.name] = _pooled_by_planes(op).op.name
        for found in convolutions:
            with tf.name_scope(f"{_scope(found.last)}/planes/"):
                last, result = _convolved_by_planes(found)
                replaced[last.name] = result.op.name
        rewritten = graph.as_graph_def()
    redirect(rewritten, replaced, interface)
    return rewritten


def _convolutions(graph: tf.Graph) -> Iterator[_Convolution]:
    """Yield every channels-last 3-D convolution with known sizes."""
    for conv in graph.get_operations():
        if conv.type != "Conv3D" or not _channels_last(conv):
            continue
        reader = _only_reader(conv)
        if reader is not None and reader.type == "BatchToSpaceND":
            found = _dilated(conv, reader)
            if found is not None:
                yield found
            continue
        data, kernel = conv.inputs
        strides = np.array(conv.get_attr("strides")[1:-1])
        pads = np.zeros((3, 2), int)
        if conv.get_attr("padding") == b"SAME":
            pads = _same(data.shape[1:-1], kernel.shape[:3], strides, np.ones(3, int))
        yield _Convolution(conv, conv, data, strides, np.ones(3, int), pads)


def _dilated(conv: tf.Operation, back: tf.Operation) -> _Convolution | None:
    import tensorflow as tf

    batch = conv.inputs[0].op
    if batch.type != "SpaceToBatchND" or conv.get_attr("padding") != b"VALID":
        return None
    parameters = [tf.get_static_value(t) for t in (*batch.inputs[1:], *back.inputs[1:])]
    if any(value is None or len(value) != 3 for value in parameters):
        return None
    dilations, pads, back_dilations, crops = parameters
    pads = np.stack([pads[:, 0], pads[:, 1] - crops[:, 1]], axis=1)
    if not np.array_equal(dilations, back_dilations) or crops[:, 0].any() or (pads < 0).any():
        return None
    strides = np.array(conv.get_attr("strides")[1:-1])
    return _Convolution(conv, back, batch.inputs[0], strides, dilations, pads)


def _same(
    sizes: Sequence[int], kernel: Sequence[int], strides: np.ndarray, dilations: np.ndarray
) -> np.ndarray:
    """Return the numbers of zeros before and after each axis for `SAME` padding, (axes, 2)."""
    reach = (np.array(kernel) - 1) * dilations + 1
    total = (-(-np.array(sizes) // strides) - 1) * strides + reach - sizes
    total = np.maximum(total, 0)
    return np.stack([total // 2, total - total // 2], axis=1)


def _convolved_by_planes(found: _Convolution) -> tuple[tf.Operation, tf.Tensor]:
    """Return a 3-D convolution as a 2-D one over the concatenated channels of planes.

    Bias and activation are included, since the converter fuses them only without a Reshape between.
    The first result is the last op that is replaced.
    """
    import tensorflow as tf

    shape, filters = found.data.shape, found.kernel.shape
    (stride, *strides), (dilation, *dilations) = found.strides, found.dilations
    pads = [found.pads[0], *np.zeros((2, 2), int)]
    padding = "VALID"
    if found.pads[1:].any():
        same = _same(shape[2:4], filters[1:3], found.strides[1:], found.dilations[1:])
        if np.array_equal(found.pads[1:], same):
            padding = "SAME"
        else:
            pads = list(found.pads)
    data = found.data
    if np.any(pads):
        data = tf.pad(data, [(0, 0), *map(tuple, pads), (0, 0)])
    sizes = [int(size) + int(sum(pad)) for size, pad in zip(shape[1:4], pads, strict=True)]
    reach = (filters[0] - 1) * dilation + 1
    last = (sizes[0] - reach) // stride * stride + 1
    planes = [data[:, i : i + last : stride] for i in range(0, reach, dilation)]
    beside = tf.reshape(tf.concat(planes, axis=-1), (-1, *sizes[1:], filters[0] * filters[3]))
    # The kernel is a constant, or a part of one, as in ConvLSTM3D.
    weights = tf.transpose(found.kernel, (1, 2, 0, 3, 4))
    weights = tf.reshape(weights, (*filters[1:3], filters[0] * filters[3], filters[4]))
    result = tf.nn.conv2d(beside, weights, strides, padding, dilations=dilations)
    op = found.last
    fused = {"BiasAdd": tf.nn.bias_add, "Relu": tf.nn.relu, "Relu6": tf.nn.relu6}
    while (reader := _only_reader(op)) is not None and reader.type in fused:
        result = fused[reader.type](result, *reader.inputs[1:])
        op = reader
    return op, tf.reshape(result, (-1, (last - 1) // stride + 1, *result.shape[1:]))


def _only_reader(op: tf.Operation) -> tf.Operation | None:
    readers = op.outputs[0].consumers()
    return readers[0] if len(readers) == 1 else None


def _pooled_by_planes(op: tf.Operation) -> tf.Tensor:
    """Return 3-D pooling as pooling within each plane, then over the planes.

    It is exact for means as well, since all planes of a window contain the same number of elements
    inside the padding.
    """
    import tensorflow as tf

    pool = {"MaxPool3D": tf.nn.max_pool2d, "AvgPool3D": tf.nn.avg_pool2d}[op.type]
    _, depth, height, width, channels = op.inputs[0].shape
    new_depth, new_height, new_width = op.outputs[0].shape[1:4]
    _, planes, *window, _ = op.get_attr("ksize")
    _, step, *steps, _ = op.get_attr("strides")
    padding = op.get_attr("padding").decode()
    flat = tf.reshape(op.inputs[0], (-1, height, width, channels))
    flat = pool(flat, window, steps, padding)
    flat = tf.reshape(flat, (-1, depth, new_height * new_width, channels))
    flat = pool(flat, (planes, 1), (step, 1), padding)
    return tf.reshape(flat, (-1, new_depth, new_height, new_width, channels))


def _channels_last(op: tf.Operation) -> bool:
    return op.get_attr("data_format") == b"NDHWC"


def _scope(op: tf.Operation) -> str:
    """Return the scope of an op, which begins with the name of its layer."""
    return op.name.rpartition("/")[0]
