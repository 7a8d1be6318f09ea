"""Zeros that a Pad adds become pads of the convolution that reads them.

Keras pads the input of causal convolutions with an operator of its own, and users do so with
`ZeroPadding1D`. Without it, a file has one operator less.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import numpy_helper

from .onnx_external import Held
from .onnx_view import View, ints_of, text_of

Widths = list[tuple[int, int]]


def put_pads_into_convolutions(model: onnx.ModelProto) -> None:
    """Remove every Pad with zeros that only one convolution reads, along its spatial axes.

    Axes may be added or exchanged in between.

    Args:
        model: The model; changed in place.
    """
    view = View.of(model, {}, Held())
    removed = []
    for node in model.graph.node:
        widths, last = _zeros(view, node), node
        while widths is not None:
            reader = view.only_reader(last)
            if reader is None or reader.input[0] != last.output[0]:
                break
            if reader.op_type == "Conv":
                if _padded(reader, widths):
                    view.readers[node.output[0]][0].input[0] = node.input[0]
                    removed.append(node)
                break
            widths, last = _after(view, reader, widths), reader
    for node in removed:
        model.graph.node.remove(node)


def _zeros(view: View, node: onnx.NodeProto) -> Widths | None:
    """Return the zeros that a Pad adds before and after each axis; None for other nodes."""
    if node.op_type != "Pad" or len(node.input) > 3:
        return None
    if text_of(node, "mode") not in ("", "constant"):
        return None
    amounts = _numbers(view, node, 1)
    fill = _numbers(view, node, 2) if len(node.input) > 2 and node.input[2] else [0]
    if amounts is None or fill is None or any(fill) or min(amounts, default=0) < 0:
        return None
    half = len(amounts) // 2
    return list(zip(amounts[:half], amounts[half:], strict=True))


def _after(view: View, node: onnx.NodeProto, widths: Widths) -> Widths | None:
    """Return the zeros of each axis after a node that adds or exchanges axes; None for others."""
    if node.op_type == "Transpose":
        order = ints_of(node, "perm")
        return None if order is None else [widths[axis] for axis in order]
    if node.op_type != "Unsqueeze":
        return None
    axes = _numbers(view, node, 1) if len(node.input) > 1 else ints_of(node, "axes")
    if axes is None:
        return None
    rank = len(widths) + len(axes)
    added = {axis % rank for axis in axes}
    rest = iter(widths)
    return [(0, 0) if axis in added else next(rest) for axis in range(rank)]


def _padded(conv: onnx.NodeProto, widths: Widths) -> bool:
    """Add zeros to the pads of a convolution; return whether it can have them."""
    automatic = text_of(conv, "auto_pad") not in ("", "NOTSET", "VALID")
    if automatic or any(any(side) for side in widths[:2]):
        return False
    spatial = widths[2:]
    known = ints_of(conv, "pads") or [0] * 2 * len(spatial)
    added = [side[end] for end in (0, 1) for side in spatial]
    kept = [a for a in conv.attribute if a.name not in ("pads", "auto_pad")]
    del conv.attribute[:]
    conv.attribute.extend(kept)
    total = [a + b for a, b in zip(known, added, strict=True)]
    conv.attribute.append(onnx.helper.make_attribute("pads", total))
    return True


def _numbers(view: View, node: onnx.NodeProto, place: int) -> list[int] | None:
    """Return the whole numbers of a constant input; None for another one."""
    tensor = view.weights.get(node.input[place])
    if tensor is None:
        return None
    values = np.ravel(numpy_helper.to_array(tensor))
    return [int(value) for value in values] if np.array_equal(values, np.rint(values)) else None
