"""A network of raw pixels for integer files, in which the mean is a whole pixel.

The folded network subtracts the mean m in front where a layer that pads with zeros follows. The
integers of a file represent `pixel - r` exactly for a whole r only. Since `W·(p - m) + b` is
`W·(p - r) + b + W·(r - m)`, the rest can be a part of the bias. This is exact except at the border,
where the padding counts as pixels of r instead of m: half a pixel at most.
"""

from __future__ import annotations

import dataclasses

import keras
import numpy as np

from ...reference.pixel_inputs import MEAN_TOLERANCE
from ..fold.affine import Affine
from ..fold.build import build
from ..fold.graph import AffineOp, Call, Source
from ..fold.keras_graph import read_graph
from ..fold.linear import Linear
from ..fold.recognize import recognize
from .pixel_inputs import HIGHEST, whole_mean

_HALF_UP = 0.501  # rounds up ties that float32 has rounded down


@dataclasses.dataclass(frozen=True)
class WholeMean:
    """The network that integer files with pixel inputs are made from.

    Attributes:
        model: The network with a whole mean; None if it is the folded network.
        note: A note on the outputs that are not exact; empty if all are.
    """

    model: keras.Model | None = None
    note: str = ""


def with_whole_mean(model: keras.Model) -> WholeMean:
    """Return the network with a whole mean.

    Args:
        model: The folded network of raw pixels; not changed.
    """
    graph = read_graph(model)
    recognize(graph)
    call = next(filter(_reads_pixels, graph.calls()), None)
    if call is None or not call.op.affine.shifts:
        return WholeMean()
    affine: Affine = call.op.affine
    if np.all(affine.scale == 1) and whole_mean(affine.shift) is not None:
        return WholeMean()
    readers = [reader for reader, _ in call.output.uses]
    mean = -float(affine.shift[0])
    whole = float(np.floor(mean + _HALF_UP))
    same = np.all(affine.scale == 1) and np.ptp(affine.shift) < MEAN_TOLERANCE
    fits = same and 0 <= whole <= HIGHEST
    if not fits or call.output.is_output or not all(_takes(r, affine.axis) for r in readers):
        return WholeMean(
            note="the mean of the pixels is subtracted by an operator whose result is rounded to 8 "
            "bits: it is not one number from 0 to 255 for all channels, and the next layer pads "
            "with zeros"
        )
    call.op = dataclasses.replace(
        call.op, affine=dataclasses.replace(affine, shift=affine.shift * 0 - whole)
    )
    rest = Affine.of(np.ones(affine.size), np.full(affine.size, whole - mean), affine.axis)
    made: dict[int, Linear] = {}
    for reader in readers:
        made.setdefault(id(reader.op), dataclasses.replace(reader.op, before=rest))
        reader.op = made[id(reader.op)]
    return WholeMean(
        build(graph, "float32"),
        f"pixels: exact, except that the zeros padded at the border count as pixels of {whole:g} "
        f"instead of {mean:g}",
    )


def _reads_pixels(call: Call) -> bool:
    """Return whether a call is an affine of pixels after their cast."""
    if not isinstance(call.op, AffineOp):
        return False
    cast = call.inputs[0].producer
    given = cast.inputs[0] if len(cast.inputs) == 1 else None
    return given is not None and isinstance(given.producer.op, Source) and given.dtype == "uint8"


def _takes(reader: Call, axis: int) -> bool:
    """Return whether a call is of a linear layer that can absorb an affine on an axis."""
    op = reader.op
    if not isinstance(op, Linear) or op.before is not None:
        return False
    return axis in op.kind.inputs(op.layer, reader.inputs[0].rank)
