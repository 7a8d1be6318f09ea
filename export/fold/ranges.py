"""The effect of a fold on int8: the growth of the range of a channel's weights.

In int8, the largest weight of an output channel determines its step. The relevant measure is the
ratio of the peak to the root mean square of the weights. A backward fold scales all weights of a
channel equally and does not change it; a forward fold scales each input channel differently.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from .graph import Graph
from .linear import Array, Linear


def range_growths(graph: Graph) -> dict[str, float]:
    """Return the growth of the ratio of peak to root mean square of each layer's weights.

    Returns:
        Name of a layer to the greatest growth among its output channels. Layers that absorbed
        nothing at their input are left out, since theirs is 1.
    """
    growths: dict[str, float] = {}
    for call in graph.calls():
        op = call.op
        if isinstance(op, Linear) and op.before is not None and op.name not in growths:
            plain = dataclasses.replace(op, before=None, after=None, border=None)
            growths[op.name] = _growth(_spread(plain), _spread(op))
    return growths


def _spread(op: Linear) -> Array:
    """Return the ratio of peak to root mean square per output channel; 1 if all weights are 0."""
    kernel = op.kind.channels_last(op.kind.arrays(op)[0])
    peak = np.abs(kernel).max(axis=0)
    mean = np.sqrt(np.square(kernel).mean(axis=0))
    spread: Array = np.divide(peak, mean, out=np.ones_like(peak), where=mean > 0)
    return spread


def _growth(before: Array, after: Array) -> float:
    return max(1.0, float((after / before).max()))
