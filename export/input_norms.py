"""The folded network with the norms of its inputs kept, for float16 and quantized files.

If raw features have very different scales, folding their norm gives the weights of the first layer
equally different scales, which float16 and int8 represent poorly. A norm that is kept computes in
float32.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import keras
import numpy as np

from ..artifacts.precisions import Arithmetic, precision_named
from .fold import Affine, FoldResult, InputValues, affines_of_inputs, fold
from .fold.keras_graph import read_graph
from .signature import Signature

_SAMPLES = 32
# Growth of a channel's ratio of peak to root mean square that costs integer weights one bit.
_ONE_BIT = 2.0


@dataclasses.dataclass(frozen=True)
class InputNorms:
    """A network that keeps the norms of its inputs.

    Attributes:
        model: The network.
        names: Names of the norms.
        range_growth: Growth of the integer range when they are folded, see `NormRecord`.
        joined: Whether another value shares the range of the input, before the first layer with
            weights, when they are folded.
        inputs: Samples drawn from the norms' statistics, by input name.
    """

    model: keras.Model
    names: tuple[str, ...]
    range_growth: float
    joined: bool
    inputs: Mapping[str, np.ndarray]

    def may_help(self, precision: str) -> bool:
        """Return whether folding the norms may reduce the accuracy of a precision."""
        arithmetic = precision_named(precision).arithmetic
        if arithmetic is Arithmetic.FLOAT32:
            return False
        if arithmetic is Arithmetic.INTEGER and self.joined:
            return True
        return arithmetic is Arithmetic.FLOAT16 or self.range_growth >= _ONE_BIT


def with_input_norms(
    model: keras.Model, folded: FoldResult, signature: Signature, values: Sequence[InputValues]
) -> InputNorms | None:
    """Return the network that keeps the norms of its inputs; None if none of them was folded.

    Args:
        model: The trained model.
        folded: The same with all norms folded.
        signature: Its inputs and outputs.
        values: The allowed values of its inputs.
    """
    affines = affines_of_inputs(model)
    if not any(affines):
        return None
    kept = fold(model, keep_input_norms=True)
    left = kept.report.input_norms
    records = [r for r in folded.report.records if r.name in left and r.outcome != "kept"]
    if not records:
        return None
    growth = max(record.range_growth for record in records)
    names = tuple(record.name for record in records)
    samples = _samples(affines, signature, values)
    return InputNorms(kept.model, names, growth, _are_joined(kept.model, names), samples)


def _are_joined(model: keras.Model, names: Sequence[str]) -> bool:
    """Return whether one of the norms is joined with another value before a layer with weights.

    A Concatenate in integers has one step for all its values: for ages of 80 years, and for the
    ones of a category.
    """
    waiting = [c.output for c in read_graph(model).calls() if c.op.name in names]
    while waiting:
        for call, _ in waiting.pop().uses:
            if len(call.inputs) > 1:
                return True
            if not getattr(call.op.operation, "weights", ()):
                waiting += call.outputs
    return False


def _samples(
    affines: Sequence[Affine | None], signature: Signature, values: Sequence[InputValues]
) -> dict[str, np.ndarray]:
    """Draw inputs that the norms map to standard normal numbers."""
    generator = np.random.default_rng(0)
    samples = {}
    for affine, tensor, allowed in zip(affines, signature.inputs, values, strict=True):
        drawn = allowed.random(generator, _SAMPLES)
        if affine is not None:
            shape = [-1 if axis == affine.axis else 1 for axis in range(drawn.ndim)]
            scale, shift = affine.scale.reshape(shape), affine.shift.reshape(shape)
            drawn = np.divide(drawn - shift, scale, out=np.zeros_like(drawn), where=scale != 0)
        samples[tensor.name] = drawn.astype(tensor.dtype)
    return samples
