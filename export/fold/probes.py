"""The inputs of the proof: random, border and extreme samples, and real ones from the user."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from keras import layers as kl
from numpy.typing import NDArray

from ...errors import UserError
from .graph import Graph, Kept, Shape, Value
from .input_values import InputValues, input_values
from .rebuild import is_float

Arrays = list[NDArray[Any]]

# Samples of each kind; rounded up to whole batches where the network's batch size is fixed.
_SAMPLES = 2

# A free size is set to the first of these that the network accepts: 32 is large enough that inner
# pixels are not affected by borders; the others are longer or have other divisors.
_FREE_SIZES = (32, 64, 60, 16, 8, 7, 49, 128, 240, 512, 1000, 1024, 2520, 4096, 1)

# Sizes that make a sample larger than this many numbers are not tried.
_LARGEST_SAMPLE = 2**21


def free_sizes(graph: Graph) -> list[int]:
    """Return the sizes to try for axes of unknown size, other than the batch axis.

    Returns:
        Sizes in the order to try them; empty if every size is known.
    """
    if not any(None in value.shape[1:] for value in graph.inputs):
        return []
    return [
        size
        for size in _FREE_SIZES
        if all(
            math.prod(size if axis is None else axis for axis in value.shape[1:]) <= _LARGEST_SAMPLE
            for value in graph.inputs
        )
    ] or [1]


def probes(
    graph: Graph, size: int | None, real: Arrays | None = None
) -> Iterator[tuple[str, Arrays]]:
    """Yield the inputs for the comparison, one batch at a time.

    - random: normal numbers; integers for inputs of lookups, padded at the end in every other
      sample; words for text inputs;
    - border: ones, and impulses at corners and edges, which show wrong borders;
    - extreme: magnitudes of 1e-3 and 1e3;
    - real: the samples of the user.

    All but the real samples respect the allowed values of each input (`input_values`).

    Args:
        graph: The network as it was read.
        size: The value of free sizes; None if there are none, or if real inputs determine them.
        real: Arrays in the order of the network's inputs.

    Yields:
        The kind of the samples, and one array per input.
    """
    batch = next((v.shape[0] for v in graph.inputs if v.shape and v.shape[0] is not None), None)
    samples = _SAMPLES if batch is None else batch * math.ceil(_SAMPLES / batch)
    shapes = [
        _static(value.shape, samples, size, None if real is None else real[i].shape)
        for i, value in enumerate(graph.inputs)
    ]
    rng = np.random.default_rng(0)
    known = _values(graph, shapes)
    for kind, make in (("random", _normal), ("border", _borders), ("extreme", _extremes)):
        arrays = [
            rng.choice(_words(value), shape)
            if value.dtype == "string"
            else _fitted(rng, value, values, make(rng, shape), kind)
            for value, shape, values in zip(graph.inputs, shapes, known, strict=True)
        ]
        yield from ((kind, part) for part in _batches(arrays, batch))
    if real is not None:
        yield from (("real", part) for part in _batches(real, batch))


def real_inputs(graph: Graph, real: Any) -> Arrays:
    """Return the user's inputs in the order of the network's inputs.

    Raises:
        UserError: There is not one fitting array for each input.
    """
    names = [value.producer.name for value in graph.inputs]
    if isinstance(real, Mapping):
        if set(real) != set(names):
            raise UserError(f"Expected inputs named {names}. Received: {sorted(real)}")
        arrays = [np.asarray(real[name]) for name in names]
    else:
        arrays = [np.asarray(x) for x in (real if isinstance(real, (list, tuple)) else [real])]
    if len(arrays) != len(names):
        raise UserError(f"Expected {len(names)} input arrays ({names}). Received: {len(arrays)}")
    for name, value, array in zip(names, graph.inputs, arrays, strict=True):
        fits = array.ndim == value.rank and all(
            wanted in (None, given)
            for wanted, given in zip(value.shape[1:], array.shape[1:], strict=True)
        )
        if not fits or not array.size or len(array) != len(arrays[0]):
            raise UserError(
                f"The input {name!r} takes arrays of shape {value.shape}, with at least one sample "
                f"and as many as the other inputs. Received: an array of shape {array.shape}"
            )
    return arrays


def _static(
    shape: Shape, samples: int, size: int | None, real: tuple[int, ...] | None
) -> tuple[int, ...]:
    if real is not None:
        return (samples, *real[1:])
    sizes = [size if axis is None else axis for axis in shape[1:]]
    return (samples, *(axis for axis in sizes if axis is not None))[: len(shape)]


def _batches(arrays: Arrays, batch: int | None) -> Iterator[Arrays]:
    """Split samples into batches if the network has a fixed batch size."""
    if batch is None:
        yield arrays
        return
    count = math.ceil(len(arrays[0]) / batch)
    repeated = [np.resize(array, (count * batch, *array.shape[1:])) for array in arrays]
    for start in range(0, count * batch, batch):
        yield [array[start : start + batch] for array in repeated]


def _values(graph: Graph, shapes: Sequence[tuple[int, ...]]) -> list[InputValues]:
    """Return the allowed values of each input, with its free sizes set temporarily."""
    before = [value.shape for value in graph.inputs]
    try:
        for value, shape in zip(graph.inputs, shapes, strict=True):
            value.shape = (value.shape[0], *shape[1:])[: len(shape)]
        return input_values(graph)
    finally:
        for value, known in zip(graph.inputs, before, strict=True):
            value.shape = known


def _fitted(
    rng: np.random.Generator, value: Value, values: InputValues, samples: NDArray[Any], kind: str
) -> NDArray[Any]:
    """Return samples that respect the allowed values of an input."""
    fitted = values.random(rng, len(samples)) if kind == "random" else values.fit(samples)
    if kind == "random" and fitted.ndim > 1 and values.whole.all() and not values.choices:
        padding = max(fitted.shape[1] // 2, 1)
        fitted[1::2, -padding:] = values.low[-padding:]  # as at the end of a short sequence
    return fitted.astype("float64" if is_float(value.dtype) else value.dtype)


def _words(value: Value) -> list[str]:
    """Return words for a text input: from the vocabulary of a layer that reads it, and others."""
    words = ["a", "b c", "no such word"]
    for call, _ in value.uses:
        operation = call.op.operation if isinstance(call.op, Kept) else None
        if isinstance(operation, (kl.TextVectorization, kl.StringLookup)):
            known = [str(word) for word in operation.get_vocabulary()[:100]]
            words += [*known, " ".join(known)]
    return words


def _normal(rng: np.random.Generator, shape: tuple[int, ...]) -> NDArray[np.float64]:
    return rng.standard_normal(shape)


def _borders(rng: np.random.Generator, shape: tuple[int, ...]) -> NDArray[np.float64]:
    x = np.zeros(shape)
    x[0] = 1.0
    if x.ndim < 2 or not x.size:
        return x
    for sample in x[1:]:
        flat = sample.reshape(-1, sample.shape[-1])
        edges = {0, len(flat) - 1, len(flat) // 2}
        if sample.ndim > 2:
            edges |= {sample.shape[1] - 1, len(flat) - sample.shape[1], sample.shape[1]}
        for position in edges:
            flat[position % len(flat)] = rng.choice([-1.0, 1.0], flat.shape[1]) * 8
    return x


def _extremes(rng: np.random.Generator, shape: tuple[int, ...]) -> NDArray[np.float64]:
    magnitudes = np.resize([1e3, 1e-3], shape[0]).reshape(-1, *[1] * (len(shape) - 1))
    extremes: NDArray[np.float64] = rng.standard_normal(shape) * magnitudes
    return extremes
