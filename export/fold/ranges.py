"""What a fold costs int8: how much wider the weights of a channel are spread.

Int8 gives each output channel one step, set by its largest weight. What counts is how large that is
beside the others: the peak over the root mean square. A fold backward scales all weights of a
channel alike and changes nothing; a fold forward scales them one input channel by another.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from .graph import Graph
from .linear import Array, Linear


def range_growths(graph: Graph) -> dict[str, float]:
    """Return for each layer by how much its worst channel is spread wider than it was.

    Returns:
        By name of the layer: the greatest growth of peak over root mean square of an output
        channel's weights. Layers that absorbed nothing from their input are left out: theirs is 1.
    """
    growths: dict[str, float] = {}
    for call in graph.calls():
        op = call.op
        if isinstance(op, Linear) and op.before is not None and op.name not in growths:
            plain = dataclasses.replace(op, before=None, after=None, border=None)
            growths[op.name] = _growth(_spread(plain), _spread(op))
    return growths


def _spread(op: Linear) -> Array:
    """Return peak over root mean square for each output channel; 1 where all weights are 0."""
    kernel = op.kind.channels_last(op.kind.arrays(op)[0])
    peak = np.abs(kernel).max(axis=0)
    mean = np.sqrt(np.square(kernel).mean(axis=0))
    spread: Array = np.divide(peak, mean, out=np.ones_like(peak), where=mean > 0)
    return spread


def _growth(before: Array, after: Array) -> float:
    return max(1.0, float((after / before).max()))
