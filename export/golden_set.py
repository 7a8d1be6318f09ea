"""The golden set: samples, with the outputs of the model and of each exported file.

`golden.npz` contains, for N samples:

    kind (N,)                    the kind of each sample (`artifacts.sample_kinds`)
    input:NAME                   the input
    truth:NAME                   output of the trained model in float64
    folded64:NAME                output of the folded model in float64
    reference:NAME               output of the trained model in Keras, float32
    noise:NAME (N,)              expected root mean square error of float32 arithmetic
    artifact:FILE:NAME           output of the file on this machine, dequantized, in Keras' order
                                 of axes
    file-noise:FILE:NAME (N,)    expected root mean square error of the file's arithmetic (float16,
                                 dynamic range or integer)
    in-floats:FILE:NAME          output of the network with the file's weights and no other rounding
                                 (int16x8, which some runtimes compute in floats)
    trained-integers:NAME        output of a quantization-aware model in Keras
    predicted:FILE:RULES:NAME    exact output of an integer file under rounding rules that agree
                                 (separated by ` | `)
    step:FILE:NAME (N,)          quantization step of that output
    saturated:FILE:         (N,) whether a sum of the sample is beyond the range of its integers
    unpredicted:FILE:REASON (N,) the reason why there is no prediction

NAME is the Keras name of an input or output. For samples with NaN or infinity, an output is NaN
wherever no value is expected.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import keras
import numpy as np

from ..artifacts.golden_set import Predictions, predictions_as_arrays
from ..artifacts.manifest import TensorSpec
from ..artifacts.precisions import SMALLEST_NORMAL
from ..artifacts.sample_checks import check_samples
from ..artifacts.sample_kinds import (
    BORDER,
    DENORMAL,
    EXTREME,
    NONFINITE,
    RANDOM,
    REAL,
    typical_samples,
)
from ..errors import UserError
from ..files import atomic_path
from .fold import InputValues, call_structure, check_values, float64_twin
from .fold.evaluation import NotComputableError
from .fold.evaluation import evaluate as run_float64
from .fold.keras_graph import read_graph
from .not_running import not_running
from .signature import Signature, built_for

FILE_NAME = "golden.npz"
Arrays = Mapping[str, np.ndarray]
Function = Callable[[Arrays], dict[str, np.ndarray]]

_UNLIKE_CHANNELS = 10.0  # ratio of ranges above which channels are treated as separate features
MOST_REAL, _RANDOM = 16, 8  # samples; border adds four, extreme, denormal and nonfinite two each
_BATCH = 8  # samples evaluated at a time, which bounds the memory
_LARGE = 1 << 26  # bytes of float32 weights from which a model is run layer by layer
_LIVE_VALUES = 3  # greatest number of large activations in memory, about
_TOLERANCE = 1e-4  # relative; rounding stays below, also in layers that compute in float32 only


@dataclasses.dataclass(frozen=True)
class Samples:
    """Inputs of a golden set.

    Attributes:
        kind: Kind of each sample, one of `artifacts.sample_kinds`.
        inputs: Input name to (N, …) array in the dtype of the input.
    """

    kind: tuple[str, ...]
    inputs: Arrays


def choose_samples(
    inputs: Sequence[TensorSpec],
    values: Sequence[InputValues],
    real: Arrays | None,
    *,
    seed: int = 0,
) -> Samples:
    """Choose the inputs of a golden set.

    Real samples show errors that random samples miss. Border samples (ones, a frame, an impulse at
    the first and at the last position) show wrong padding. Extreme samples (0.001 and 10 times the
    usual range) show lost precision and saturation. Denormal samples (denormal numbers among
    ordinary ones, and alone) show the effect of flushing them to zero. Nonfinite samples (a NaN;
    both infinities) show NaN and infinity where the trained model has none. A model without a float
    input has no denormal and nonfinite samples.

    Args:
        inputs: Name, shape (with the batch dimension) and dtype of each input; sizes must be known.
        values: The allowed values of each input.
        real: Input name to (N, …) real samples, or None; at most `MOST_REAL` are used.
        seed: Seed of the random samples.

    Raises:
        UserError: `real` lacks an input, or a shape does not fit.
    """
    if real is not None:
        check_samples(real, inputs)
        check_values(real, inputs, values)
    generator = np.random.default_rng(seed)
    columns: dict[str, np.ndarray] = {}
    kinds: list[str] = []
    for tensor, allowed in zip(inputs, values, strict=True):
        own = None if real is None else np.asarray(real[tensor.name])
        parts: list[tuple[str, np.ndarray]] = []
        if own is not None:
            spread = np.linspace(0, len(own) - 1, min(MOST_REAL, len(own))).round().astype(int)
            parts.append((REAL, own[spread]))
        parts += _synthetic(allowed, own, generator)
        if not all(entry.whole.all() for entry in values):
            parts += _unusual(allowed, np.asarray(parts[0][1][0]), seed)
        kinds = [kind for kind, values in parts for _ in range(len(values))]
        columns[tensor.name] = np.concatenate(
            [np.asarray(values).astype(tensor.dtype) for _, values in parts]
        )
    return Samples(tuple(kinds), columns)


def evaluate(model: keras.Model, signature: Signature, inputs: Arrays) -> dict[str, np.ndarray]:
    """Run a Keras model over all samples.

    Args:
        model: A built model with the inputs and outputs of the signature, in the same order.
        signature: Names of the inputs and outputs.
        inputs: Input name to (N, …) array.

    Returns:
        Output name to (N, …) array in the dtype of the model's output.
    """
    parts: list[list[np.ndarray]] = [[] for _ in signature.outputs]
    for chunk in _chunks(model, signature, inputs, _BATCH):
        packed = keras.tree.pack_sequence_as(call_structure(model), chunk)
        try:
            result = model(packed, training=False)
        except Exception as error:  # whatever the code of a layer raises
            raise not_running(error) from error
        for part, value in zip(parts, keras.tree.flatten(result), strict=True):
            part.append(keras.ops.convert_to_numpy(value))
    return _joined(signature, parts, inputs)


def float64_function(model: keras.Model, signature: Signature) -> Function:
    """Return a function that runs a Keras model in float64 over all samples.

    A large model is run layer by layer, so that no second copy of its weights is in memory.

    Args:
        model: A built model with the inputs and outputs of the signature, in the same order.
        signature: Names of the inputs and outputs.

    Returns:
        A function from input name to (N, …) array to output name to (N, …) array. It raises
        UserError if a layer cannot be computed.
    """
    weights = 4 * model.count_params()
    if weights < _LARGE:
        return functools.partial(evaluate, float64_twin(model), signature)
    graph = read_graph(model)
    values = [value for call in graph.calls() for value in call.outputs]
    largest = max(math.prod(size or 1 for size in value.shape[1:]) for value in values)
    # As many samples at a time as keep the activations smaller than the weights.
    size = max(_BATCH, weights // (_LIVE_VALUES * 8 * largest))

    def run(inputs: Arrays) -> dict[str, np.ndarray]:
        chunks = list(_chunks(model, signature, inputs, size))
        try:
            found = [run_float64(graph, [chunk], graph.outputs)[0] for chunk in chunks]
        except NotComputableError as error:
            raise not_running(error) from error
        return _joined(signature, list(zip(*found, strict=True)), inputs)

    return run


def _chunks(
    model: keras.Model, signature: Signature, inputs: Arrays, size: int
) -> Iterator[list[np.ndarray]]:
    """Yield the samples in batches of at most `size`, one array per input."""
    flat = [np.asarray(inputs[tensor.name]) for tensor in signature.inputs]
    count, fixed = len(flat[0]), built_for(model)
    size = fixed or size
    for start in range(0, count, size):
        # A model built for one batch size gets full batches; samples are repeated in the last one.
        chosen = np.arange(start, start + size if fixed else min(start + size, count))
        yield [values[chosen % count] for values in flat]


def _joined(
    signature: Signature, parts: Sequence[Sequence[np.ndarray]], inputs: Arrays
) -> dict[str, np.ndarray]:
    """Return output name to the outputs of all batches, without repeated samples."""
    count = len(inputs[signature.inputs[0].name])
    return {
        tensor.name: np.concatenate(part)[:count]
        for tensor, part in zip(signature.outputs, parts, strict=True)
    }


def require_independence(
    model: keras.Model, run: Function, inputs: Arrays, outputs: Arrays
) -> None:
    """Refuse a model whose output for a sample depends on the other samples of the batch.

    Args:
        model: A built model.
        run: Runs it in float64.
        inputs: Input name to (N, …) array, ordinary samples first.
        outputs: Its outputs for these inputs, evaluated in full batches.

    Raises:
        UserError: Half a batch has different outputs.
    """
    if built_for(model) is not None:
        return
    some = _BATCH // 2  # half of the first batch
    fewer = run({name: values[:some] for name, values in inputs.items()})
    for name, values in outputs.items():
        if values.dtype.kind != "f":
            continue
        change = np.abs(fewer[name] - values[:some]).max(initial=0)
        if change > _TOLERANCE * np.abs(values[:some]).max(initial=0):
            raise UserError(
                f"The output {name!r} of a sample depends on the other samples of its batch, so "
                "a file cannot reproduce the model. Do not reduce over the first axis, or build "
                "the model for one batch size: keras.Input(batch_shape=(N, …))."
            )


def write_golden(
    path: Path,
    samples: Samples,
    *,
    truth: Arrays,
    folded64: Arrays,
    reference: Arrays,
    artifacts: Mapping[str, Arrays],
    noise: Arrays,
    file_noise: Mapping[str, Arrays],
    in_floats: Mapping[str, Arrays],
    trained_integers: Arrays,
    predictions: Mapping[str, Predictions],
) -> None:
    """Write `golden.npz`, whole or not at all; see the module's docstring for its layout."""
    content: dict[str, np.ndarray] = {"kind": np.array(samples.kind)}
    groups = {
        "input": samples.inputs,
        "truth": truth,
        "folded64": folded64,
        "reference": {name: value.astype(np.float32) for name, value in reference.items()},
        "noise": noise,
        "trained-integers": trained_integers,
        **{f"artifact:{file}": outputs for file, outputs in artifacts.items()},
        **{f"file-noise:{file}": expected for file, expected in file_noise.items()},
        **{f"in-floats:{file}": outputs for file, outputs in in_floats.items()},
    }
    for prefix, arrays in groups.items():
        content |= {f"{prefix}:{name}": value for name, value in arrays.items()}
    content |= predictions_as_arrays(predictions, len(samples.kind))
    with atomic_path(path) as partial, open(partial, "wb") as stream:
        np.savez(stream, allow_pickle=False, **content)


def snr_db(samples: Samples, truth: Arrays, outputs: Arrays) -> dict[str, float | None]:
    """Return the signal-to-noise ratio of each output against float64 truth, in decibels.

    It is taken over the real samples or, without any, over the random ones. It is None if the truth
    is zero everywhere or the output has no error, where the ratio is not a finite number, and for
    integers, such as indices of classes: the distance of two of them means nothing.
    """
    _, chosen = typical_samples(np.array(samples.kind))
    return {
        name: decibels(truth[name][chosen], outputs[name][chosen])
        if outputs[name].dtype.kind == "f"
        else None
        for name in truth
    }


def decibels(truth: np.ndarray, output: np.ndarray) -> float | None:
    """Return 10 log10(|truth|^2 / |output - truth|^2); None if it is not finite."""
    signal = float(np.sum(np.square(truth)))
    noise = float(np.sum(np.square(output.astype(np.float64) - truth)))
    if signal == 0 or noise == 0 or not math.isfinite(noise):
        return None
    return round(10 * math.log10(signal / noise), 2)


def _synthetic(
    values: InputValues, real: np.ndarray | None, generator: np.random.Generator
) -> list[tuple[str, np.ndarray]]:
    """Return the random, border and extreme samples of one input."""
    shape, size = values.low.shape, 1.0
    if real is None:
        random = values.random(generator, _RANDOM)
    elif values.whole.all():
        values = values.within(real)
        random = values.random(generator, _RANDOM)
    else:
        random = generator.uniform(*_range(real), (_RANDOM, *shape))
        random = np.where(values.whole, values.random(generator, _RANDOM), random)
        size = float(np.abs(real).max()) or 1.0
    extreme = np.stack([random[0] * 1e-3, random[1] * 10])
    ends = np.stack([np.zeros(shape), np.ones(shape)])
    return [
        (RANDOM, random),
        (BORDER, np.where(values.whole, values.fit(_borders(shape)), size * _borders(shape))),
        (EXTREME, np.where(values.whole, values.fit(ends), extreme)),
    ]


def _range(real: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the least and greatest real value, per channel if the channels differ a lot.

    A typical value of one raw feature can be a million standard deviations of another.
    """
    inner = tuple(range(max(1, real.ndim - 1)))
    low, high = real.min(axis=inner), real.max(axis=inner)
    sizes = np.atleast_1d(high - low)
    if sizes.max() > _UNLIKE_CHANNELS * sizes.min(initial=np.inf, where=sizes > 0):
        return low, high
    return real.min(), real.max()


def _unusual(values: InputValues, usual: np.ndarray, seed: int) -> list[tuple[str, np.ndarray]]:
    """Return the denormal and nonfinite samples of one input, derived from a typical sample.

    Integers are unchanged, since they have no such values.
    """
    if values.whole.all():
        return [(DENORMAL, np.stack([usual] * 2)), (NONFINITE, np.stack([usual] * 2))]
    # A separate generator: the random samples do not depend on what is drawn here.
    generator = np.random.default_rng([seed, 1])
    sizes = SMALLEST_NORMAL * 2.0 ** -generator.integers(1, 23, usual.shape, endpoint=True)
    tiny = np.where(generator.random(usual.shape) < 0.5, -sizes, sizes)
    third = generator.integers(0, 3, usual.shape)
    third.flat[0] = 1
    mixed = np.choose(third, [usual, tiny, np.zeros(usual.shape)])
    alone = np.where(third == 0, 0.0, tiny)
    nan, infinite = usual.astype(np.float64), usual.astype(np.float64)
    centre = tuple(size // 2 for size in usual.shape)
    nan[centre] = np.nan
    infinite.flat[-1] = -np.inf
    infinite[centre] = np.inf
    return [
        (kind, np.where(values.whole, usual, np.stack(pair)))
        for kind, pair in ((DENORMAL, (mixed, alone)), (NONFINITE, (nan, infinite)))
    ]


def _borders(shape: tuple[int, ...]) -> np.ndarray:
    """Return ones, a frame of ones, and impulses at the first and last position, (4, …)."""
    if not shape:  # an input of one number
        return np.array([1.0, 1.0, 1.0, 0.0])
    frame = np.ones(shape)
    spatial = shape[:-1] if len(shape) > 1 else shape
    inner = tuple(slice(1, -1) if size > 2 else slice(0, 0) for size in spatial)
    frame[inner] = 0
    first, last = np.zeros(shape), np.zeros(shape)
    first[(0,) * len(spatial)] = 1
    last[(-1,) * len(spatial)] = 1
    return np.stack([np.ones(shape), frame, first, last])
