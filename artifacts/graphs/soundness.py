"""Checks that a graph is well-formed, so that code that uses it need not check again."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import numpy as np

from ...errors import UserError, is_printable, printable
from .base import ArtifactGraph, GraphOp, GraphTensor

# Why a scale is infinite, and what to do.
BEYOND_FLOAT32 = (
    "A value of the model exceeded float32 (3.4e38) when the file was calibrated. Calibrate on "
    "samples for which all values stay below that."
)


class _InfiniteScaleError(ValueError):
    """A file is as it was written, but with a scale that is not finite."""


@contextlib.contextmanager
def reading(path: Path, what: str) -> Iterator[None]:
    """Convert every exception that a damaged or hostile file causes to one error.

    Parsers of flatbuffers and protocol buffers are not designed for hostile bytes and raise a dozen
    unrelated types.

    Raises:
        UserError: In place of any other exception.
    """
    try:
        yield
    except (UserError, NameError, ImportError):  # the last two are not caused by a file
        raise
    except _InfiniteScaleError as error:
        raise UserError(f"{path} cannot be used: {error}. {BEYOND_FLOAT32}") from error
    except Exception as error:
        text = f"unknown {error}" if isinstance(error, KeyError) else str(error)
        reason = printable(text)[:200] or type(error).__name__
        raise UserError(f"{path} cannot be read as {what}: {reason}. Copy it again.") from error


class TooLargeError(UserError):
    """A file would fill the memory of whatever runs it."""


# A network may compute large tensors from large inputs or weights. Larger ones from little are a
# damaged shape, or a file that is made to exhaust memory.
_GREATEST = 1 << 30  # bytes
_GROWTH = 1024  # bytes computed, for a byte given


def demand_bounded_tensors(
    path: Path,
    size: int,
    tensors: Mapping[str, GraphTensor],
    inputs: Iterable[str],
    computed: Iterable[GraphTensor],
) -> None:
    """Refuse a file that computes gigabytes from much less.

    Args:
        path: The file.
        size: Its bytes.
        tensors: Its tensors by key, with the weights.
        inputs: Keys of its inputs.
        computed: The tensors that it computes, among others; free sizes count as one.

    Raises:
        TooLargeError: The size of all tensors is out of proportion.
    """
    weights = sum(tensor.data.nbytes for tensor in tensors.values() if tensor.data is not None)
    given = size + weights + sum(_size_of(tensors[key]) for key in inputs)
    sizes = {tensor.key: (_size_of(tensor), tensor) for tensor in computed if tensor.data is None}
    total = sum(size for size, _ in sizes.values())
    if total > max(_GREATEST, _GROWTH * given):
        most, largest = max(sizes.values(), key=lambda pair: pair[0])
        raise TooLargeError(
            f"{path} computes {total / 1e9:.3g} GB from {given} bytes of file, weights and inputs: "
            f"the largest tensor, {printable(largest.name)!r}, has the shape "
            f"{list(largest.shape)} ({most / 1e9:.3g} GB). At most 1 GB, or 1,024 times the bytes "
            "given, is expected, since more may fill the memory. Correct that shape."
        )


def _size_of(tensor: GraphTensor) -> int:
    """Return the bytes of a tensor; free sizes count as one."""
    return math.prod(max(size, 1) for size in tensor.shape) * tensor.dtype.itemsize


def demand_sound_tensors(graph: ArtifactGraph) -> None:
    """Check the tensors of a graph, and that its inputs and outputs are among them.

    Raises:
        ValueError: A reference is invalid, a name contains control characters, or a quantization
            does not fit its tensor.
    """
    for role, keys in (("input", graph.inputs), ("output", graph.outputs)):
        for key in keys:
            if key not in graph.tensors:
                raise ValueError(f"an {role} of the graph is the unknown tensor {key!a}")
    names = (tensor.name for tensor in (*graph.tensors.values(), *graph.inner_constants))
    _demand_printable("a tensor", names)
    for tensor in graph.tensors.values():
        _demand_sound_quantization(tensor)


def demand_sound_ops(graph: ArtifactGraph, ops: Sequence[GraphOp]) -> None:
    """Check that the ops of a graph read and write its tensors.

    Raises:
        ValueError: A reference is invalid, or a name contains control characters.
    """
    _demand_printable("an op", (text for op in ops for text in (op.kind, op.name, op.domain)))
    made = set(graph.inputs)
    for op in ops:
        for key in (*op.inputs, *op.outputs):
            if key and key not in graph.tensors:
                raise ValueError(f"op {op.index} ({op.kind}) uses the unknown tensor {key!a}")
        twice = made & set(filter(None, op.outputs))
        if twice:
            raise ValueError(f"op {op.index} ({op.kind}) computes {min(twice)!a} once more")
        made.update(filter(None, op.outputs))
    _demand_no_cycle(ops)


def _demand_no_cycle(ops: Sequence[GraphOp]) -> None:
    """Check that no op reads what is computed from its own outputs; their order does not matter."""
    makers = {key: number for number, op in enumerate(ops) for key in op.outputs}
    read = {
        number: [makers[key] for key in op.inputs if key and key in makers]
        for number, op in enumerate(ops)
    }
    try:
        TopologicalSorter(read).prepare()
    except CycleError as error:
        op = ops[min(error.args[1])]
        raise ValueError(f"op {op.index} ({op.kind}) reads what is computed from it") from error


def _demand_printable(what: str, texts: Iterable[str]) -> None:
    everything = list(texts)
    if not is_printable("".join(everything)):
        bad = next(text for text in everything if not is_printable(text))
        raise ValueError(f"the name of {what} holds control characters: {bad!a}")


def _demand_sound_quantization(tensor: GraphTensor) -> None:
    steps = tensor.quantization
    if steps is None:
        return
    if not np.isfinite(steps.scales).all():
        raise _InfiniteScaleError(f"the scale of tensor {tensor.name!a} is not finite")
    if steps.scales.size > 1 and tensor.shape:
        rank = len(tensor.shape)
        if not -rank <= steps.axis < rank:
            raise ValueError(f"tensor {tensor.name!a} is quantized along axis {steps.axis}")
        size = tensor.shape[steps.axis]
        if size > 0 and steps.scales.size != size:
            raise ValueError(
                f"tensor {tensor.name!a} has {steps.scales.size} scales for {size} channels"
            )
    if steps.zero_points.size not in (1, steps.scales.size):
        raise ValueError(
            f"tensor {tensor.name!a} has {steps.zero_points.size} zero points for "
            f"{steps.scales.size} scales"
        )
