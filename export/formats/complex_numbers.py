"""Computes complex numbers as pairs of real ones, since neither TFLite nor ONNX has complex types.

| operation of z = a + ib | real and imaginary part |
| --- | --- |
| those that move or add numbers | the same of a and of b |
| (a + ib)(c + id), elementwise or of matrices | ac - bd, ad + bc |
| (a + ib) / (c + id) | (a + ib)(c - id), divided by c² + d² |
| exp z | e^a cos b, e^a sin b |
| Fourier transforms | products with sines, see `fourier` |
| |z|, angle of z | √(a² + b²), atan2(b, a) |
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ..fold.traced_functions import constant_of, run_in_graph
from . import fourier

if TYPE_CHECKING:
    import tensorflow as tf

    from .fourier import Parts

# Operations whose parts are the same operations of the parts.
_APART = frozenset((
    "AddN", "AddV2", "BatchToSpaceND", "BroadcastTo", "ConcatV2", "Cumsum", "ExpandDims",
    "GatherNd", "GatherV2", "Identity", "Mean", "Neg", "Pack", "Pad", "Reshape", "ReverseV2",
    "Roll", "Select", "SelectV2", "Slice", "SpaceToBatchND", "Squeeze", "StopGradient",
    "StridedSlice", "Sub", "Sum", "Tile", "Transpose", "ZerosLike",
))  # fmt: skip
_PRODUCTS = ("BatchMatMulV2", "Einsum", "MatMul", "Mul")

#: Operations of complex numbers that files can compute, if the sizes are known.
COMPUTED = frozenset((
    *_APART, *_PRODUCTS, *fourier.OF_COMPLEX, *fourier.OF_REAL, *fourier.TO_REAL, "Angle", "Cast",
    "Complex", "ComplexAbs", "Conj", "Const", "Exp", "Imag", "Real", "RealDiv", "Square",
))  # fmt: skip


class ComplexNumbers:
    """The parts of the complex tensors of a graph, to which they are added."""

    def __init__(self) -> None:
        self._parts: dict[str, Parts] = {}

    def real_result(self, op: tf.Operation) -> tf.Tensor | None:
        """Return the real numbers that an operation computes from complex ones.

        Args:
            op: An operation of complex numbers; those that compute its operands must come first.

        Returns:
            The result; None if it is complex, or if the parts of an operand are unknown.
        """
        if not any(tensor.dtype.is_complex for tensor in op.outputs):
            return self._real(op)
        parts = self._split(op)
        if parts is not None:
            self._parts[op.outputs[0].name] = parts
        return None

    def _real(self, op: tf.Operation) -> tf.Tensor | None:
        import tensorflow as tf

        parts = self._parts.get(op.inputs[0].name)
        if parts is None:
            return None
        real, imaginary = parts
        if op.type in fourier.TO_REAL:
            return fourier.inverse_of_real(op, parts)
        if op.type in ("Real", "Cast"):
            return tf.cast(real, op.outputs[0].dtype)
        if imaginary is None:
            imaginary = tf.zeros_like(real)
        if op.type == "Imag":
            return imaginary
        if op.type == "ComplexAbs":
            return tf.sqrt(tf.square(real) + tf.square(imaginary))
        return tf.atan2(imaginary, real) if op.type == "Angle" else None

    def _split(self, op: tf.Operation) -> Parts | None:
        import tensorflow as tf

        if op.type == "Placeholder":
            return None
        if op.type in fourier.OF_REAL:
            return fourier.transform_of_real(op)
        if op.type == "Complex":
            real, imaginary = op.inputs
            constant = tf.get_static_value(imaginary)
            zero = constant is not None and not np.any(constant)
            return real, None if zero or imaginary.op.type == "ZerosLike" else imaginary
        if op.type == "Cast" and op.inputs[0].dtype.is_floating:
            return op.inputs[0], None
        value = constant_of(op.outputs[0])
        if value is not None:
            real, imaginary = np.real(value).copy(), np.imag(value).copy()
            return tf.constant(real), tf.constant(imaginary) if imaginary.any() else None
        given = [self._parts.get(x.name) for x in op.inputs if x.dtype.is_complex]
        if not given or any(parts is None for parts in given):
            return None
        return self._of_parts(op, [parts for parts in given if parts is not None])

    def _of_parts(self, op: tf.Operation, given: list[Parts]) -> Parts | None:
        """Return the parts of the result of an operation from the parts of its operands."""
        import tensorflow as tf

        real, imaginary = given[0]
        if op.type in fourier.OF_COMPLEX:
            return fourier.transform(op, given[0])
        if op.type in ("Cast", *_APART):
            return self._apart(op, given)
        if op.type == "Conj":
            return real, None if imaginary is None else -imaginary
        if op.type in _PRODUCTS:
            return self._product(op, given[0], given[1])
        if op.type == "Square":
            return self._multiplied(given[0], given[0], tf.multiply)
        if op.type == "RealDiv":
            divisor, other = given[1]
            if other is None:
                return real / divisor, None if imaginary is None else imaginary / divisor
            upper = self._multiplied(given[0], (divisor, -other), tf.multiply)
            lower = tf.square(divisor) + tf.square(other)
            return upper[0] / lower, None if upper[1] is None else upper[1] / lower
        if op.type == "Exp":
            size = tf.exp(real)
            if imaginary is None:
                return size, None
            return size * tf.cos(imaginary), size * tf.sin(imaginary)
        return None

    def _apart(self, op: tf.Operation, given: list[Parts]) -> Parts:
        """Apply an operation to the real parts and to the imaginary parts."""
        import tensorflow as tf

        if op.type == "Cast":  # from one precision to another
            return given[0]

        def run(parts: list[tf.Tensor]) -> tf.Tensor:
            rest = iter(parts)
            operands = [next(rest) if x.dtype.is_complex else x for x in op.inputs]
            return run_in_graph(op, operands)[0]

        real = run([real for real, _ in given])
        if all(imaginary is None for _, imaginary in given):
            return real, None
        return real, run([tf.zeros_like(a) if b is None else b for a, b in given])

    def _product(self, op: tf.Operation, first: Parts, second: Parts) -> Parts | None:
        if op.type == "BatchMatMulV2":  # which conjugates what it transposes
            if op.get_attr("adj_x") and first[1] is not None:
                first = first[0], -first[1]
            if op.get_attr("adj_y") and second[1] is not None:
                second = second[0], -second[1]
        return self._multiplied(first, second, lambda x, y: run_in_graph(op, [x, y])[0])

    def _multiplied(self, first: Parts, second: Parts, product: Any) -> Parts:
        """Return the parts of (a + ib)(c + id) for a product of real tensors."""
        (a, b), (c, d) = first, second
        real = product(a, c) if b is None or d is None else product(a, c) - product(b, d)
        if b is None:
            return real, None if d is None else product(a, d)
        return real, product(b, c) if d is None else product(a, d) + product(b, c)
