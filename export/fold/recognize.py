"""Classifies the calls of a graph: norms, linear layers, activations, and others."""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass
from typing import Any

import keras

from .graph import ActivationOp, AffineOp, Call, Graph, Kept
from .keras_graph import kind_of, layers_inside
from .linear import Linear
from .linear_layers import find
from .norms import NotAffineError, is_norm, kept_norm, read_constant, read_norm

#: The reason why a norm of an input is kept on request.
INPUT_NORM = "it reads an input of the network, and norms of inputs are kept"


@dataclass
class Norm:
    """A norm of the network.

    Attributes:
        name: Name of its layer.
        layer_type: Name of its class.
        refusal: Reason why it cannot be folded at all; otherwise empty.
    """

    name: str
    layer_type: str
    refusal: str = ""


def recognize(
    graph: Graph,
    distrusted: Container[str] = (),
    most_norms: int | None = None,
    keep_input_norms: bool = False,
) -> list[Norm]:
    """Classify the calls of a graph as norms, linear layers and activations.

    Args:
        graph: A graph that was just read; changed in place.
        distrusted: Names of norms to leave unchanged.
        most_norms: Greatest number of norms to convert, used by the roll-back to find one that was
            read wrongly.
        keep_input_norms: Whether to keep norms that read an input of the network, or another such
            norm.

    Returns:
        The norms of the network, in the order of the calls, each once.
    """
    made: dict[tuple[int, ...], Any] = {}
    norms: dict[str, Norm] = {}
    at_inputs = set(graph.inputs if keep_input_norms else ())
    for call in graph.calls():
        op = call.op
        if not isinstance(op, Kept):
            continue
        is_constant = kind_of(op.operation) and read_constant(call) is not None
        if is_constant or kept_norm(call):
            norm = norms.setdefault(op.name, Norm(op.name, type(op.operation).__name__))
            if op.name in distrusted:
                norm.refusal = (
                    "the affine read from it is not what it computes; a function registered with "
                    "register_affine must be exact and compute in float64"
                )
            elif call.inputs[0] in at_inputs:
                at_inputs.update(call.outputs)
                norm.refusal = INPUT_NORM
                _norm(call, norm, made, stays=True)
            elif not call.inputs[0].dtype.startswith(("float", "bfloat")):
                norm.refusal = (
                    f"it converts {call.inputs[0].dtype} to floating point, which a layer after it "
                    "cannot do"
                )
            elif most_norms is None or len(norms) <= most_norms:
                _norm(call, norm, made)
            continue
        split_activation(graph, call, made)
        if isinstance(op.operation, keras.Layer):
            _inside(op, graph.opaque.get(id(op.operation), ""), norms)
    return list(norms.values())


def _norm(call: Call, norm: Norm, made: dict[tuple[int, ...], Any], *, stays: bool = False) -> None:
    """Convert a call of a norm to the affine that it computes, or record why it is not one."""
    op = call.op
    try:
        affine = read_norm(call) if kept_norm(call) else read_constant(call)
    except NotAffineError as reason:
        norm.refusal = str(reason)
        return
    assert affine is not None
    # Calls of one norm share one op, unless scalars were broadcast to different channel counts.
    key = (id(op), affine.axis, affine.size)
    if key not in made:
        made[key] = AffineOp(affine, op.name, (op.name,), op.operation, stays)
    _become_affine(call, made[key])


def _become_affine(call: Call, op: AffineOp) -> None:
    """Make a call compute an affine of its first input; masks have no effect at inference."""
    for slot, value in enumerate(call.inputs):
        if slot:
            value.uses.remove((call, slot))
    call.op, call.args, call.kwargs = op, None, None
    del call.inputs[1:]


def split_activation(graph: Graph, call: Call, made: dict[tuple[int, ...], Any]) -> None:
    """Convert a call of a linear layer to a linear op, with its activation as a separate call.

    Args:
        graph: The graph; changed in place.
        call: A call of any layer; only those of linear layers are changed.
        made: Ops created so far, so that calls of one layer share an op.
    """
    op = call.op
    kind = find(op.operation)
    if kind is None:
        return
    key: tuple[int, ...] = (id(op),)
    if key not in made:
        made[key] = Linear(op.operation, kind, op.name)
    call.op = made[key]
    function = kind.activation(op.operation)
    if function is None:
        return
    key = (id(op), 0)
    if key not in made:
        owner = op.operation.name
        name = graph.unique_name(f"{owner}_activation")
        # A layer used as an activation may have weights, so it is rebuilt as a layer.
        if isinstance(function, keras.Layer):
            made[key] = Kept(_as_called(op.operation, function), name)
        else:
            made[key] = ActivationOp(function, owner, name)
    graph.insert_after(call.output, made[key])


def _as_called(layer: keras.Layer, activation: keras.Layer) -> keras.Layer:
    """Return the activation of a linear layer as a separate layer.

    Inside `TimeDistributed` it is applied to one time step, and its weights have that shape.
    """
    if not isinstance(layer, keras.layers.TimeDistributed):
        return activation
    outer = _as_called(layer.layer, activation)
    return keras.layers.TimeDistributed(outer, dtype=layer.dtype_policy)


def _inside(op: Kept, reason: str, norms: dict[str, Norm]) -> None:
    """Record the norms inside a layer that is not expanded.

    Args:
        op: The layer.
        reason: Reason why its inner layers could not be read; empty if that was not tried.
        norms: The norms found so far, by name.
    """
    for inner in layers_inside(op.operation)[1:]:
        if is_norm(inner):
            why = f"could not be read: {reason}" if reason else "are not read"
            what = f"the layers inside {op.name!r} ({type(op.operation).__name__})"
            name = f"{op.name}/{inner.name}"
            norms[name] = Norm(name, type(inner).__name__, f"{what} {why}")
