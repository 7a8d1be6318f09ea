"""Replaces operations that TFLite or ONNX lacks by operations that both support.

| operation | replacement |
| --- | --- |
| test for -0.0 at the beginning of Keras' argmax and argmin | x, since it only orders equal zeros |
| sign bit of x | x < 0 |
| test for finite and infinite x | x - x = 0, abs x = ∞ |
| relu(-x) of five axes, as in PReLU | -min(x, 0) |
| expm1, log1p, sinh, cosh | exponentials and logarithms, without cancellation near 0 |
| Bucketize (digitize, Discretization) | number of boundaries ≤ x |
| LowerBound, UpperBound (searchsorted) | number of sorted numbers < x, or ≤ x |
| DenseBincount (CategoryEncoding, multi-hot and count) | a comparison with every class, summed |
| a table of integers (IntegerLookup) | a comparison with every key, and its value |
| resizing with nonlinear kernels, or antialiased | a product with one matrix per axis |
| x + y computed as BiasAdd for a single sample | x + y |
| min(1/√x, c), as in UnitNormalization | 1/√max(x, 1/c²) |
| a matrix with a constant diagonal (eye) | the matrix, which TFLite would compute in each run |
| numbers written into a fixed block (slice_update) | the padded block where it is, x elsewhere |
| patches of an image side by side (extract_patches) | a permutation of the pixels |
| complex numbers, such as those of Fourier transforms | pairs of real ones, see `complex_numbers` |

Resizing is exact: each pixel of the result is a fixed weighted mean of pixels, with weights read
from TensorFlow's operation.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..equations import spelled_out
from ..fold.traced_functions import DIAGONALS, bincount_size, constant_of, table_of
from ..quantization.quantizer_choices import IN_FLOATS
from .complex_numbers import ComplexNumbers

if TYPE_CHECKING:
    import tensorflow as tf

# Replaced everywhere: Keras' own form, or a runtime's, gives wrong values, or it is a convolution
# with zeros and ones that only moves numbers.
_ALWAYS = ("BiasAdd", "Conv2D", "Minimum")

# TFLite's PRELU supports no more axes.
_MOST_PRELU_AXES = 4


def expand(function: Any, but: Container[str] = ()) -> dict[str, str]:
    """Add replacements for operations that formats lack to the graph of a traced function.

    Args:
        function: The concrete function.
        but: Types of operations that are not replaced, except `_ALWAYS`.

    Returns:
        Name of each op to replace to the name of its replacement, for `redirect`.
    """
    import tensorflow as tf

    replaced = {}
    numbers = ComplexNumbers()
    for op in function.graph.get_operations():
        is_complex = _is_complex(op)
        needed = op.type in _EXPANSIONS and (op.type in _ALWAYS or op.type not in but)
        if not (is_complex or needed):
            continue
        scope = op.name.rpartition("/")[0]
        with function.graph.as_default(), tf.name_scope(f"{scope}/" if scope else ""):
            result = numbers.real_result(op) if is_complex else _EXPANSIONS[op.type](op, function)
            if result is not None:
                # An identity with a new name, since the result may be an existing tensor.
                replaced[op.name] = tf.identity(result, name=op.name.rpartition("/")[2]).op.name
    return replaced


def _is_complex(op: tf.Operation) -> bool:
    """Return whether an op reads or computes complex numbers."""
    return any(tensor.dtype.is_complex for tensor in (*op.inputs, *op.outputs))


def _sum(op: tf.Operation, function: Any) -> tf.Tensor | None:
    """Return the sum that Keras computes as BiasAdd; None if it adds a bias to the last axis.

    Keras squeezes a summand of shape (1, C, 1) to a bias of C numbers. In a trace with one sample,
    values that depend on the sample have this shape too, and are added to the wrong axis if the
    last one has size C. A bias of the second axis is not supported by the formats for every rank.
    """
    import tensorflow as tf

    x, bias = op.inputs
    if bias.op.type == "Squeeze" and _is_of_samples(bias.op, function):
        return x + bias.op.inputs[0]
    if op.get_attr("data_format") != b"NCHW":
        return None
    return x + tf.reshape(bias, (1, -1, *(1,) * (len(x.shape) - 2)))


def _is_of_samples(op: tf.Operation, function: Any) -> bool:
    """Return whether an op depends on the inputs of the network."""
    arguments = len(function.inputs) - len(function.captured_inputs)
    names = {tensor.op.name for tensor in function.inputs[:arguments]}
    samples = {name for name in names if not name.startswith("weight_")}
    waiting, seen = [op], {op.name}
    while waiting:
        op = waiting.pop()
        if op.name in samples:
            return True
        before = {t.op.name: t.op for t in op.inputs if t.op.name not in seen}
        seen.update(before)
        waiting.extend(before.values())
    return False


def _bounded_rsqrt(op: tf.Operation, function: Any) -> tf.Tensor | None:
    """Return min(1/√x, c), as Keras normalizes vectors, as 1/√max(x, 1/c²).

    XNNPACK computes NaN for 1/√0.
    """
    import tensorflow as tf

    for x, other in (op.inputs, reversed(op.inputs)):
        bound = tf.get_static_value(other)
        if x.op.type == "Rsqrt" and np.size(bound) == 1 and bound is not None and bound > 0:
            return tf.math.rsqrt(tf.maximum(x.op.inputs[0], 1 / np.square(float(bound))))
    return None


def _mirrored_relu(op: tf.Operation, function: Any) -> tf.Tensor | None:
    """Return relu(-x) as -min(x, 0) if TFLite would combine it to a PReLU of too many axes."""
    import tensorflow as tf

    negative = op.inputs[0].op
    if negative.type != "Neg" or (op.inputs[0].shape.rank or 0) <= _MOST_PRELU_AXES:
        return None
    return -tf.minimum(negative.inputs[0], 0.0)


def _without_negative_zero(op: tf.Operation, function: Any) -> tf.Tensor | None:
    """Return x for a selection that replaces -0.0 in x."""
    condition = op.inputs[0].op
    terms = [tensor.op for tensor in condition.inputs] if condition.type == "LogicalAnd" else []
    found = {term.type for term in terms} == {"Equal", "Less"}
    return op.inputs[2] if found and any(_sign_bit_of(t) is not None for t in terms) else None


def _sign_bit_of(op: tf.Operation) -> tf.Tensor | None:
    """Return x if an op tests the sign bit of x, else None."""
    if op.type != "Less" or op.inputs[0].op.type != "BitwiseAnd":
        return None
    bits = op.inputs[0].op.inputs[0].op
    return bits.inputs[0] if bits.type == "Bitcast" else None


def _negative(op: tf.Operation, function: Any) -> tf.Tensor | None:
    import tensorflow as tf

    x = _sign_bit_of(op)
    return None if x is None else tf.less(x, tf.constant(0, x.dtype))


def _is_finite(op: tf.Operation, function: Any) -> tf.Tensor:
    import tensorflow as tf

    return tf.equal(op.inputs[0] - op.inputs[0], tf.constant(0, op.inputs[0].dtype))


def _is_infinite(op: tf.Operation, function: Any) -> tf.Tensor:
    import tensorflow as tf

    return tf.equal(tf.abs(op.inputs[0]), tf.constant(np.inf, op.inputs[0].dtype))


def _expm1(op: tf.Operation, function: Any) -> tf.Tensor:
    """Return exp(x) - 1; below 1 as 2t / (1 - t) with t = tanh(x/2), without cancellation."""
    import tensorflow as tf

    x = op.inputs[0]
    t = tf.tanh(tf.minimum(x, 1.0) * 0.5)
    return tf.where(x < 1.0, (t + t) / (1.0 - t), tf.exp(x) - 1.0)


def _log1p(op: tf.Operation, function: Any) -> tf.Tensor:
    """Return log(1 + x); near 0 as 2 atanh(z) = 2 (z + z³/3 + z⁵/5 + …) with z = x / (2 + x)."""
    import tensorflow as tf

    x = op.inputs[0]
    near = tf.clip_by_value(x, -0.3, 0.3)  # |z| < 0.18: the z¹³ term is below rounding error
    z = near / (near + 2.0)
    square = z * z
    series = tf.ones_like(z) / 11.0
    for divisor in (9.0, 7.0, 5.0, 3.0, 1.0):
        series = series * square + 1.0 / divisor
    return tf.where(tf.equal(x, near), 2.0 * z * series, tf.math.log(x + 1.0))


def _sinh(op: tf.Operation, function: Any) -> tf.Tensor:
    """Return (exp(x) - exp(-x)) / 2; near 0 as 2t / (1 - t²) with t = tanh(x/2)."""
    import tensorflow as tf

    x = op.inputs[0]
    t = tf.tanh(tf.clip_by_value(x, -1.0, 1.0) * 0.5)
    far = (tf.exp(x) - tf.exp(-x)) * 0.5
    return tf.where(tf.abs(x) < 1.0, (t + t) / (1.0 - t * t), far)


def _cosh(op: tf.Operation, function: Any) -> tf.Tensor:
    import tensorflow as tf

    return (tf.exp(op.inputs[0]) + tf.exp(-op.inputs[0])) * 0.5


def _einsum(op: tf.Operation, function: Any) -> tf.Tensor | None:
    """Return an einsum with letters in place of an ellipsis, which ONNX lacks."""
    import tensorflow as tf

    equation = op.get_attr("equation").decode()
    if "..." not in equation:
        return None
    terms, ranks = equation.split("->")[0].split(","), [len(tensor.shape) for tensor in op.inputs]
    free = {
        rank - len(term.replace("...", ""))
        for term, rank in zip(terms, ranks, strict=True)
        if "..." in term
    }
    if len(free) > 1:  # broadcast against each other
        return None
    return tf.einsum(spelled_out(equation, ranks), *op.inputs)


def _bucketize(op: tf.Operation, function: Any) -> tf.Tensor:
    import tensorflow as tf

    boundaries = np.array(op.get_attr("boundaries"), op.inputs[0].dtype.as_numpy_dtype)
    above = tf.greater_equal(op.inputs[0][..., None], boundaries)
    return tf.reduce_sum(tf.cast(above, tf.int32), axis=-1)


def _bound(op: tf.Operation, function: Any) -> tf.Tensor:
    """Return how many numbers of a sorted row are below each number, or not above it."""
    import tensorflow as tf

    compare = tf.less if op.type == "LowerBound" else tf.less_equal
    below = compare(op.inputs[0][:, None, :], op.inputs[1][:, :, None])
    return tf.reduce_sum(tf.cast(below, op.outputs[0].dtype), axis=-1)


def _bincount(op: tf.Operation, function: Any) -> tf.Tensor | None:
    import tensorflow as tf

    values, weights = op.inputs[0], op.inputs[2]
    size = bincount_size(op)
    if size is None or values.shape.rank is None:
        return None
    classes = np.arange(size, dtype=values.dtype.as_numpy_dtype)
    hits = tf.cast(tf.equal(values[..., None], classes), op.outputs[0].dtype)
    if op.get_attr("binary_output"):
        return tf.reduce_max(hits, axis=-2)
    if weights.shape.num_elements() != 0:
        hits *= weights[..., None]
    return tf.reduce_sum(hits, axis=-2)


def _lookup(op: tf.Operation, function: Any) -> tf.Tensor | None:
    import tensorflow as tf

    default = tf.get_static_value(op.inputs[2])
    if op.inputs[1].dtype not in (tf.int32, tf.int64) or default is None:
        return None
    if op.outputs[0].dtype not in (tf.int32, tf.int64, tf.float32):
        return None
    keys, values = table_of(op.inputs[0], function)
    hits = tf.cast(tf.equal(op.inputs[1][..., None], keys), values.dtype)
    return tf.reduce_sum(hits * (values - default), axis=-1) + default


def _resize(op: tf.Operation, function: Any) -> tf.Tensor | None:
    """Return an image resized by two matrix products, for rows and columns."""
    import tensorflow as tf

    images = op.inputs[0]
    _, height, width, channels = images.shape
    parameters = [constant_of(tensor) for tensor in op.inputs[1:]]
    if None in (height, width, channels) or any(value is None for value in parameters):
        return None
    attributes = {a.name: op.get_attr(a.name) for a in op.op_def.attr if a.name != "T"}
    rows = _resize_matrix(op.type, height, 0, parameters, attributes)
    columns = _resize_matrix(op.type, width, 1, parameters, attributes)
    images = tf.cast(images, tf.float32)
    # Each product acts on the last axis, so that it is a plain matrix product. The converter names
    # it after the reshape behind it.
    by_rows = tf.reshape(tf.transpose(images, (0, 2, 3, 1)), (-1, height))
    by_rows = tf.matmul(by_rows, rows.T, name=IN_FLOATS)
    by_rows = tf.reshape(by_rows, (-1, width, channels, len(rows)), name=IN_FLOATS)
    by_columns = tf.reshape(tf.transpose(by_rows, (0, 3, 2, 1)), (-1, width))
    by_columns = tf.matmul(by_columns, columns.T, name=IN_FLOATS)
    sizes = (-1, len(rows), channels, len(columns))
    by_columns = tf.reshape(by_columns, sizes, name=IN_FLOATS)
    return tf.transpose(by_columns, (0, 1, 3, 2))


def _diagonal(op: tf.Operation, function: Any) -> tf.Tensor | None:
    import tensorflow as tf

    value = constant_of(op.outputs[0])
    return None if value is None else tf.constant(value)


def _updated(op: tf.Operation, function: Any) -> tf.Tensor | None:
    """Return a tensor with other numbers in a fixed block of it."""
    import tensorflow as tf

    x, block = op.inputs[0], op.inputs[1]
    starts = constant_of(op.inputs[2])
    sizes, lengths = x.shape.as_list()[1:], block.shape.as_list()[1:]
    if starts is None or None in (*sizes, *lengths) or starts[0] != 0:
        return None
    if x.shape[0] != block.shape[0]:  # the block is in some samples only
        return None
    # Like XLA, move the block so that it lies inside.
    room = zip(starts[1:], sizes, lengths, strict=True)
    inside = [(min(max(int(s), 0), n - k), n, k) for s, n, k in room]
    around = [(start, size - start - length) for start, size, length in inside]
    chosen = np.pad(np.ones((1, *lengths), bool), [(0, 0), *around])
    return tf.where(chosen, tf.pad(block, [(0, 0), *around]), x)


def _patches(op: tf.Operation, function: Any) -> tf.Tensor | None:
    """Return the patches of an image, without overlap, for a convolution that copies them."""
    import tensorflow as tf

    images, kernel = op.inputs
    strides, plain = op.get_attr("strides"), op.get_attr("data_format") == b"NHWC"
    rows, columns, channels, patch = kernel.shape
    places = images.shape[1:]
    if not plain or None in (*kernel.shape, *places) or patch != rows * columns * channels:
        return None
    whole = places[0] % rows == places[1] % columns == 0 and places[2] == channels
    if not whole or op.get_attr("dilations") != [1] * 4 or strides[1:3] != [rows, columns]:
        return None
    values = constant_of(kernel)
    if values is None or not np.array_equal(values.reshape(patch, patch), np.eye(patch)):
        return None
    down, across = places[0] // rows, places[1] // columns
    apart = tf.reshape(images, (-1, down, rows, across, columns, channels))
    return tf.reshape(tf.transpose(apart, (0, 1, 3, 2, 4, 5)), (-1, down, across, patch))


def _resize_matrix(
    kind: str, size: int, axis: int, parameters: list[Any], attributes: dict[str, Any]
) -> NDArray[np.float32]:
    """Return the (new size, size) matrix that resizes one axis, by resizing unit vectors.

    Args:
        kind: Type of the op.
        size: Size of the axis.
        axis: 0 for the height, 1 for the width.
        parameters: The op's inputs after the image, each a pair for height and width.
        attributes: The op's attributes.
    """
    import tensorflow as tf

    pixels = np.eye(size, dtype=np.float32).reshape(size, size, 1, 1)
    others = (1, 1.0, 0.0)  # size, scale and translation of the axis that is not resized
    alone = [
        np.array([value[axis], other], value.dtype)
        for value, other in zip(parameters, others, strict=False)
    ]
    names = ("size", "scale", "translation")
    with tf.init_scope():
        resized = getattr(tf.raw_ops, kind)(
            images=pixels, **dict(zip(names, alone, strict=False)), **attributes
        )
        return np.asarray(resized.numpy()[:, :, 0, 0].T, np.float32)


_EXPANSIONS: Mapping[str, Callable[[tf.Operation, Any], tf.Tensor | None]] = {
    "BiasAdd": _sum,
    "Minimum": _bounded_rsqrt,
    "Relu": _mirrored_relu,
    "Conv2D": _patches,
    **dict.fromkeys(DIAGONALS, _diagonal),
    "Select": _without_negative_zero,
    "SelectV2": _without_negative_zero,
    "Less": _negative,
    "IsFinite": _is_finite,
    "IsInf": _is_infinite,
    "Expm1": _expm1,
    "Log1p": _log1p,
    "Sinh": _sinh,
    "Cosh": _cosh,
    "Einsum": _einsum,
    "Bucketize": _bucketize,
    "LowerBound": _bound,
    "UpperBound": _bound,
    "DenseBincount": _bincount,
    "LookupTableFindV2": _lookup,
    "XlaDynamicUpdateSlice": _updated,
    "ResizeBicubic": _resize,
    "ScaleAndTranslate": _resize,
}
