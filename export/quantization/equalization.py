"""Cross-layer equalization: makes the ranges of channels more equal before quantization.

All channels of a quantized activation share one scale, so a channel of small values uses few of the
bits. If only positively homogeneous operations (relu, pooling, reshapes) lie between a linear layer
and the linear layers that read it, channel i can be divided by any s_i > 0 in the first layer and
multiplied by s_i in the others:

    W2 · f(W1·x + b1)  =  (W2·S) · f((S^-1·W1)·x + S^-1·b1)        S = diag(s), f homogeneous

The rules of the fold move affines through a network in the same way, so they are used to move S.
With a_i the largest magnitude of channel i over the samples and w_i the largest share of channel i
in a row of W2,

    s_i = a_i^strength / w_i^(1 - strength)

Strength 0 uses the weights alone, as data-free equalization does (Nagel et al. 2019,
arXiv:1906.04721), strength 1 the activations alone; values in between balance the two (Xiao et al.
2022, arXiv:2211.10438). `clipped_relus` extends this to relu6, for the inputs that it clips no more
than the samples.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
import numpy as np

from ..fold.affine import Affine
from ..fold.build import build
from ..fold.graph import AffineOp, Call, Graph, Value
from ..fold.keras_graph import read_graph
from ..fold.linear import Linear
from ..fold.passes import RULES
from ..fold.plan import Plan, Refusal
from ..fold.proof import Prover
from ..fold.recognize import recognize
from ..fold.rules.merge import Merge
from ..fold.settle import settle
from .clipped_relus import ClippedRelu, Limit, clipped_relus, limited

# Larger strengths cost the weights more than the activations gain, on every network measured.
STRENGTHS = (0.0, 0.25, 0.5)

_BATCH = 16
_LARGEST = 2.0**8  # a larger scale would only move the loss to another quantizer


@dataclasses.dataclass(frozen=True, eq=False)
class _Reader:
    """A linear layer that can absorb the scale of an earlier layer.

    Attributes:
        value: Its input.
        axis: The channel axis of `value`.
        source: For each input channel, the output channel of the earlier layer that it comes from.
        share: For each input channel, its largest share in a row of the weights.
    """

    value: Value
    axis: int
    source: np.ndarray
    share: np.ndarray


@dataclasses.dataclass(frozen=True, eq=False)
class _Site:
    """A linear layer whose output channels can be scaled.

    Attributes:
        call: Its call.
        axis: Channel axis of its output.
        size: Number of its channels.
        readers: The linear layers that absorb the scale, at least one.
        limits: The clipped relus that the scale moves through.
        shares: For each channel, its largest share of the limit of a relu that clips a sample;
            empty if there is none.
    """

    call: Call
    axis: int
    size: int
    readers: tuple[_Reader, ...]
    limits: tuple[Limit, ...]
    shares: np.ndarray


class Equalizer:
    """The layers of a folded network that can be equalized, for several strengths."""

    def __init__(
        self, model: keras.Model, inputs: Sequence[np.ndarray], *, clipped: bool = False
    ) -> None:
        """Find the layers that can be scaled and measure their ranges.

        Args:
            model: The folded model; not changed.
            inputs: Real samples, one (N, …) array per input, in the model's order.
            clipped: Whether scales also move through relus that clip. The result then computes the
                same only where no channel is larger than on the samples, see `clipped_relus`.
        """
        self._model, self._clipped = model, clipped
        graph, relus = self._read()
        sites = _sites(graph, relus)
        for relu in relus:
            relu.restore()
        readers = [(reader.value, reader.axis) for site in sites for reader in site.readers]
        limits = [(limit.relu.value, limit.axis) for site in sites for limit in site.limits]
        self._ranges = _largest(graph, readers, inputs, np.abs)
        self._sites, clipping = _limited(sites, _largest(graph, limits, inputs, np.asarray))
        numbers = {limit.number for site in self._sites for limit in site.limits}
        self._unlimited = numbers - clipping

    @property
    def possible(self) -> bool:
        """Whether there is anything to equalize; with ``clipped``, whether a relu clips there."""
        if self._clipped:
            return any(site.limits for site in self._sites)
        return bool(self._sites)

    def equalized(self, strength: float) -> keras.Model | None:
        """Return the network with equalized ranges, in float32.

        Args:
            strength: Between 0 (weights) and 1 (activations).

        Returns:
            An equivalent model, verified in float64, with ``clipped`` without the limits of its
            relus; None if the verification fails, which happens if a scale reaches the limits of
            the number format.
        """
        graph, relus = self._read()
        calls = {call.name: call for call in graph.calls() if isinstance(call.op, Linear)}
        for site in self._sites:
            scale = _scale(site, self._ranges, strength)
            _scale_output(graph, calls[site.call.name], Affine.of(scale, 0.0, site.axis))
        settle(graph)
        prover = Prover(self._read()[0] if self._clipped else read_graph(self._model))
        if not prover.accepts(prover.worst(graph)):
            return None
        for number, relu in enumerate(relus):
            if number not in self._unlimited:
                relu.restore()
        return build(graph, "float32")

    def _read(self) -> tuple[Graph, list[ClippedRelu]]:
        """Return the graph to change, and its relus that clip, without their limits."""
        graph = _read(self._model)
        relus = clipped_relus(graph) if self._clipped else []
        for relu in relus:
            relu.remove()
        return graph, relus


class _Shift(Merge):
    """Scales move through an addition, ``s·x' + t = s·(x' + t/s)``; folding would merge the two."""

    def matches(self, op: Any) -> bool:
        return isinstance(op, AffineOp) and not op.affine.scales

    def forward(self, plan: Plan, call: Call, slot: int, affine: Affine) -> Refusal | None:
        mine = plan.op(call).affine
        here = affine.on_axis(mine.axis, mine.size)
        if here is None or here.shifts or not here.scale.all():
            return super().forward(plan, call, slot, affine)
        moved = Affine.of(1.0, mine.shift / here.scale, mine.axis, mine.size)
        plan.change(call, dataclasses.replace(plan.op(call), affine=moved))
        return plan.forward(call.output, here)


_RULES = (_Shift(), *RULES)


def _read(model: keras.Model) -> Graph:
    graph = read_graph(model)
    recognize(graph)
    return graph


def _sites(graph: Graph, relus: Sequence[ClippedRelu]) -> list[_Site]:
    """Find every linear layer whose scale can be absorbed by all layers that read it."""
    calls = [call for call in graph.calls() if isinstance(call.op, Linear)]
    count: dict[int, int] = {}
    for call in calls:
        count[id(call.op.layer)] = count.get(id(call.op.layer), 0) + 1
    sites = []
    for call in calls:
        if count[id(call.op.layer)] > 1:  # scaling one call of a shared layer would copy the layer
            continue
        for axis, size in call.op.kind.outputs(call.op.layer, call.output.rank).items():
            # Each channel gets a distinct scale, which identifies it in the readers.
            plan = _planned(graph, call, Affine.of(np.arange(2.0, size + 2), 0.0, axis))
            if isinstance(plan, Refusal):
                continue
            readers = _readers(plan, call)
            if readers:
                sites.append(_Site(call, axis, size, readers, _limits(plan, relus), np.empty(0)))
                break
    return sites


def _readers(plan: Plan, call: Call) -> tuple[_Reader, ...]:
    readers = []
    for other, op in plan.ops.items():
        if other is call or not isinstance(op, Linear) or op.before is None:
            continue
        before = op.before if other.op.before is None else _ratio(op.before, other.op.before)
        kernel = np.abs(_input_rows(op, other))
        rows = kernel / np.maximum(kernel.max(axis=0, keepdims=True), np.finfo(float).tiny)
        source = np.rint(before.scale).astype(int) - 2
        readers.append(_Reader(other.inputs[0], op.before.axis, source, rows.max(axis=1)))
    return tuple(readers)


def _limits(plan: Plan, relus: Sequence[ClippedRelu]) -> tuple[Limit, ...]:
    limits = []
    for number, relu in enumerate(relus):
        if relu.value in plan.recoded:
            direction, affine = plan.recoded[relu.value]
            scale = affine.scale if direction == "forward" else 1 / affine.scale
            limits.append(Limit(number, relu, affine.axis, np.rint(scale).astype(int) - 2))
    return tuple(limits)


def _limited(
    sites: Sequence[_Site], largest: Mapping[int, np.ndarray]
) -> tuple[list[_Site], set[int]]:
    """Return the sites with their shares, and the numbers of the relus that clip a sample.

    Of several sites before one of those relus, only the first is returned.

    Args:
        sites: The sites.
        largest: The largest input of each channel of the relus, by id of the value.
    """
    found: list[_Site] = []
    clipping: set[int] = set()
    for site in sites:
        clips = [e for e in site.limits if (largest[id(e.relu.value)] >= e.relu.limit).any()]
        numbers = {limit.number for limit in clips}
        if not numbers & clipping:
            clipping |= numbers
            if clips:
                shares = [e.shares(largest[id(e.relu.value)], site.size) for e in clips]
                site = dataclasses.replace(site, shares=np.max(shares, axis=0))
            found.append(site)
    return found, clipping


def _ratio(new: Affine, old: Affine) -> Affine:
    return Affine.of(new.scale / old.scale, 0.0, new.axis)


def _input_rows(op: Linear, call: Call) -> np.ndarray:
    """Return the magnitudes of a layer's weights as (input channels, outputs), 0 if unconnected.

    Layers store their kernels in different layouts, so each row is found by probing: by scaling all
    other input channels to zero.
    """
    original: Linear = call.op
    axis = op.before.axis if op.before else 0
    size = original.kind.inputs(original.layer, call.inputs[0].rank)[axis]
    rows = []
    for channel in range(size):
        only = np.zeros(size)
        only[channel] = 1
        probe = dataclasses.replace(original, before=Affine.of(only, 0.0, axis))
        kernels = original.kind.arrays(probe)
        rows.append(np.abs(original.kind.channels_last(kernels[0])).max(axis=0))
    return np.array(rows)


def _largest(
    graph: Graph,
    values: Sequence[tuple[Value, int]],
    inputs: Sequence[np.ndarray],
    size: Callable[[np.ndarray], np.ndarray],
) -> Mapping[int, np.ndarray]:
    """Return the largest number of every channel, by id of the value.

    Args:
        graph: The network.
        values: Values with their channel axes.
        inputs: The samples.
        size: Applied to the values first.
    """
    axes = {id(value): (value, axis) for value, axis in values}
    if not axes:
        return {}
    watcher = build(graph, "float32", [value for value, _ in axes.values()])
    ranges: dict[int, np.ndarray] = {}
    for start in range(0, len(inputs[0]), _BATCH):
        batch = [values_[start : start + _BATCH] for values_ in inputs]
        watched = watcher(keras.tree.pack_sequence_as(watcher.input, batch), training=False)
        results = keras.tree.flatten(watched)  # a model of one output returns no list
        for (key, (_, axis)), result in zip(axes.items(), results, strict=True):
            array = size(keras.ops.convert_to_numpy(result))
            found = array.max(axis=tuple(i for i in range(array.ndim) if i != axis))
            ranges[key] = np.maximum(found, ranges.get(key, -np.inf))
    return ranges


def _scale(site: _Site, ranges: Mapping[int, np.ndarray], strength: float) -> np.ndarray:
    """Return s, one number per channel, with geometric mean 1 unless a relu clips."""
    size = site.size
    activation, weight = np.zeros(size), np.zeros(size)
    for reader in site.readers:
        np.maximum.at(activation, reader.source, ranges[id(reader.value)])
        np.maximum.at(weight, reader.source, reader.share)
    alive = (activation > 0) & (weight > 0)
    scale = np.ones(size)
    if not alive.any():
        return scale
    exponent = strength * np.log(activation[alive]) - (1 - strength) * np.log(weight[alive])
    scale[alive] = np.exp(exponent - exponent.mean())
    if site.shares.size:
        scale = limited(scale, site.shares)
    return np.clip(scale, 1 / _LARGEST, _LARGEST)


def _planned(graph: Graph, call: Call, scale: Affine) -> Plan | Refusal:
    """Plan to divide a layer's output by `scale` and to multiply the weights of its readers."""
    plan = Plan(graph, _RULES, copy_budget=0)
    inverse = scale.inverse()
    if inverse is None:
        return Refusal("a scale is zero")
    refusal = plan.rule(call).backward(plan, call, inverse)
    refusal = refusal or plan.forward(call.output, scale)
    return refusal or plan


def _scale_output(graph: Graph, call: Call, scale: Affine) -> None:
    plan = _planned(graph, call, scale)
    if isinstance(plan, Plan):
        plan.commit()
