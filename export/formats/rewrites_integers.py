"""Rewrites for TFLite, of operations that the converter makes wrong or imprecise.

In files of integers:

- All integers are finite. The test x - x = 0 is wrong after rounding.
- A mean over the steps that a mask keeps divides by 1 if it keeps none, since integers represent no
  NaN, nor the small number that is added to a count, or is its least value.
- A value replaced by another without changing gradients, x + (q - x), is q: in integers, the
  difference has the steps of x.
- A sum is the mean times the number of summands: the sums of 16-bit integers, and those of TFLite's
  reference kernels, ignore the steps of their input and output.
- Negation, squares and squared differences are products, which have 16-bit kernels.
- The converter computes selu from exp(x) for positive x too, whose range is much larger than that
  of the result.

In all files:

- The converter computes softplus as log(exp(x) + 1), which overflows beyond 88. The range of exp(x)
  is too large for integers.
- It moves a reshape, or a transposition that is one, from x in c - x to the result, and computes
  x - c.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Container, Mapping
from typing import TYPE_CHECKING

import numpy as np

from .freeze import FrozenGraph
from .rewrites import VIEWS, redirect

if TYPE_CHECKING:
    import tensorflow as tf

# Klambauer et al., Self-Normalizing Neural Networks (2017), equation 14.
_SELU_ALPHA, _SELU_SCALE = 1.6732632423543772, 1.0507009873554805


def rewritten(graph: FrozenGraph, kinds: Container[str]) -> FrozenGraph:
    """Return a network with some operations in a form that is converted correctly.

    Args:
        graph: The network; not changed.
        kinds: Types of the operations to rewrite.
    """
    import tensorflow as tf

    if not any(node.op in kinds for node in graph.graph_def.node):
        return graph
    with tf.Graph().as_default() as changed:
        tf.import_graph_def(graph.graph_def, name="")
        replaced = {}
        for op in changed.get_operations():
            if op.type in kinds:
                with tf.name_scope(f"{op.name}/"):
                    result = _REWRITES[op.type](op)
                if result is not None:
                    replaced[op.name] = result.op.name
        graph_def = changed.as_graph_def()
    redirect(graph_def, replaced, [tensor.op.name for tensor in (*graph.inputs, *graph.outputs)])
    return dataclasses.replace(graph, graph_def=graph_def)


def _finite(op: tf.Operation) -> tf.Tensor | None:
    """Return x for a selection of x where it is finite."""
    return op.inputs[1] if _tested_finite(op.inputs[0].op) is op.inputs[1] else None


def _always_finite(op: tf.Operation) -> tf.Tensor | None:
    """Return true values for a test that numbers are finite."""
    import tensorflow as tf

    x = _tested_finite(op)
    return None if x is None or not x.shape.is_fully_defined() else tf.ones(x.shape, tf.bool)


def _tested_finite(op: tf.Operation) -> tf.Tensor | None:
    """Return x for a test x - x = 0; see `expansions`."""
    while op.type == "Identity":
        op = op.inputs[0].op
    difference = op.inputs[0].op if op.type == "Equal" else None
    if difference is None or difference.type != "Sub":
        return None
    x, other = difference.inputs
    return x if x is other else None


def _scaled_mean(op: tf.Operation) -> tf.Tensor | None:
    """Return a sum of floats over static axes as a scaled mean."""
    import tensorflow as tf

    x, axes = op.inputs[0], tf.get_static_value(op.inputs[1])
    if x.dtype != tf.float32 or axes is None or x.shape.rank is None:
        return None
    sizes = [x.shape[int(axis)] for axis in np.ravel(axes)]
    if None in sizes:
        return None
    mean = tf.reduce_mean(x, np.ravel(axes).tolist(), keepdims=op.get_attr("keep_dims"))
    return mean * float(np.prod(sizes))


def _selu(op: tf.Operation) -> tf.Tensor:
    """Return selu(x) = λ (max(x, 0) + α (exp(min(x, 0)) - 1))."""
    import tensorflow as tf

    x = op.inputs[0]
    below = (tf.exp(tf.minimum(x, 0.0)) - 1.0) * (_SELU_SCALE * _SELU_ALPHA)
    return tf.nn.relu(x) * _SELU_SCALE + below


def _softplus(op: tf.Operation) -> tf.Tensor:
    """Return softplus(x) = max(x, 0) - log(sigmoid(|x|))."""
    import tensorflow as tf

    x = op.inputs[0]
    return tf.nn.relu(x) - tf.math.log(tf.sigmoid(tf.abs(x)))


def _reversed_difference(op: tf.Operation) -> tf.Tensor | None:
    """Return c - x as c + (-1) x if x is reshaped or transposed, and c constant."""
    import tensorflow as tf

    c, x = op.inputs
    moved = x.op.type in (*VIEWS, "Transpose") and x.dtype == tf.float32
    return x * -1.0 + c if moved and tf.get_static_value(c) is not None else None


def _negative(op: tf.Operation) -> tf.Tensor | None:
    """Return -x as a product, except in a GELU, which the converter recognizes."""
    scaled = [x for reader in op.outputs[0].consumers() for x in reader.outputs]
    in_gelu = any(reader.type == "Erfc" for x in scaled for reader in x.consumers())
    return op.inputs[0] * -1.0 if op.inputs[0].dtype.is_floating and not in_gelu else None


def _square(op: tf.Operation) -> tf.Tensor | None:
    (x,) = op.inputs
    return x * x if x.dtype.is_floating else None


def _squared_difference(op: tf.Operation) -> tf.Tensor | None:
    difference = op.inputs[0] - op.inputs[1]
    return difference * difference if difference.dtype.is_floating else None


def _mean_of_kept(op: tf.Operation) -> tf.Tensor | None:
    """Return a quotient by a number of true values, with the divisor 1 instead of 0."""
    import tensorflow as tf

    count = op.inputs[1].op
    while count.type in VIEWS or _has_small_term(count):
        count = count.inputs[0].op
    if count.type != "Sum" or not _is_of_booleans(count.inputs[0].op):
        return None
    return op.inputs[0] / tf.maximum(op.inputs[1], 1.0)


def _has_small_term(op: tf.Operation) -> bool:
    """Return whether an operation adds a number below 1, or takes it as the least value."""
    import tensorflow as tf

    if op.type not in ("AddV2", "Maximum"):
        return False
    number = tf.get_static_value(op.inputs[1])
    return number is not None and bool(np.all((number > 0) & (number < 1e-2)))


def _straight_through(op: tf.Operation) -> tf.Tensor | None:
    """Return q for a sum x + (q - x)."""
    for x, other in (op.inputs, op.inputs[::-1]):
        difference = other.op
        while difference.type in ("StopGradient", "Identity"):
            difference = difference.inputs[0].op
        if difference.type == "Sub" and difference.inputs[1] is x:
            return difference.inputs[0]
    return None


def _is_of_booleans(op: tf.Operation) -> bool:
    while op.type in (*VIEWS, "Cast", "StridedSlice", "Transpose"):
        op = op.inputs[0].op
        if op.outputs[0].dtype.name == "bool":
            return True
    return False


_REWRITES: Mapping[str, Callable[[tf.Operation], tf.Tensor | None]] = {
    "AddV2": _straight_through,
    "Equal": _always_finite,
    "Neg": _negative,
    "RealDiv": _mean_of_kept,
    "Select": _finite,
    "SelectV2": _finite,
    "Selu": _selu,
    "Softplus": _softplus,
    "Square": _square,
    "SquaredDifference": _squared_difference,
    "Sub": _reversed_difference,
    "Sum": _scaled_mean,
}

FLOATS = ("Softplus", "Sub")
_ONLY_SIXTEEN_BITS = ("Neg", "Square", "SquaredDifference")
EIGHT_BITS = tuple(kind for kind in _REWRITES if kind not in _ONLY_SIXTEEN_BITS)
# With 16 bits, the quantizer requantizes the operand of the minimum in selu.
SIXTEEN_BITS = tuple(kind for kind in _REWRITES if kind != "Selu")
