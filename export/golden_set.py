"""The golden set: inputs, and what float64, float32 and each exported file make of them.

`golden.npz` holds, for N samples: `kind` (N,), `input:NAME`, `truth:NAME` (the trained model in
float64), `folded64:NAME` (the folded model in float64), `reference:NAME` (the trained model as
Keras runs it) and `artifact:FILE:NAME` (each file in its host runtime, dequantized where it is
quantized, axes in Keras order), and `noise:NAME` (N,), the root mean square error that float32
arithmetic is expected to make, and `file-noise:FILE:NAME` (N,), the same for a file's own
arithmetic where it is half precision, dynamic range or integers, and `trained-integers:NAME`, what
a model that was trained in integers gives in Keras. For a file of integers
`predicted:FILE:RULES:NAME` is what it gives to the bit under rules of rounding that agree
(separated by ` | `), and `step:FILE:NAME` (N,) the step of the output's integers; or
`unpredicted:FILE:REASON` (N,) says why there is no prediction. Where a sample holds NaN or
infinity, NaN stands wherever nothing is expected (`artifacts.sample_kinds`). NAME is the Keras name
of an input or output.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import keras
import numpy as np

from ..artifacts.golden_set import Predictions, predictions_as_arrays
from ..artifacts.manifest import TensorSpec
from ..artifacts.precisions import SMALLEST_NORMAL
from ..artifacts.sample_kinds import (
    BORDER,
    DENORMAL,
    EXTREME,
    NONFINITE,
    RANDOM,
    REAL,
    typical_samples,
)
from ..artifacts.samples import check_samples
from ..errors import UserError
from ..files import atomic_path
from .fold import InputValues, call_structure, check_values
from .not_running import not_running
from .signature import Signature, built_for

FILE_NAME = "golden.npz"
Arrays = Mapping[str, np.ndarray]

_UNLIKE = 10.0  # ratio of ranges beyond which channels are features of their own
MOST_REAL, _RANDOM = 16, 8  # samples; border adds four, extreme, denormal and nonfinite two each
_BATCH = 8  # samples evaluated at a time, so that memory stays flat
_SAME = 1e-4  # relative difference that rounding stays below, in layers that have float32 only too


@dataclasses.dataclass(frozen=True)
class Samples:
    """Inputs of a golden set.

    Attributes:
        kind: One of `artifacts.sample_kinds` a sample.
        inputs: Input name to (N, …) array in the input's own type.
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

    Real samples find what random ones miss, border samples (ones, a frame, impulses in the first
    and last place) show wrong padding, extreme ones (a thousandth and ten times the usual range)
    show lost precision and saturation. Denormal ones (numbers below the least normal one among
    ordinary ones, and alone) show what becomes of numbers that runtimes may flush to zero, and
    nonfinite ones (a NaN; both infinities) whether these come where the trained model has none. A
    model without a float input has neither.

    Args:
        inputs: Name, shape (with the batch dimension) and type of each input; sizes must be known.
        values: What each input may hold.
        real: Input name to (N, …) samples of the user's own, or None; at most `MOST_REAL` are
            taken.
        seed: Of the random samples.

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
        model: Any built model with the signature's inputs and outputs, in its order.
        signature: Names to use.
        inputs: Input name to (N, …) array.

    Returns:
        Output name to (N, …) array in the model's own type.
    """
    flat = [np.asarray(inputs[tensor.name]) for tensor in signature.inputs]
    count, size = len(flat[0]), built_for(model) or _BATCH
    parts: list[list[np.ndarray]] = [[] for _ in signature.outputs]
    for start in range(0, count, size):
        # A model that is built for one batch size gets whole batches, the last one filled up.
        chosen = np.arange(start, start + size if built_for(model) else min(start + size, count))
        chunk = [values[chosen % count] for values in flat]
        packed = keras.tree.pack_sequence_as(call_structure(model), chunk)
        try:
            result = model(packed, training=False)
        except Exception as error:  # whatever the code of a layer raises
            raise not_running(error) from error
        for part, value in zip(parts, keras.tree.flatten(result), strict=True):
            part.append(keras.ops.convert_to_numpy(value))
    return {
        tensor.name: np.concatenate(part)[:count]
        for tensor, part in zip(signature.outputs, parts, strict=True)
    }


def demand_independence(
    model: keras.Model, signature: Signature, inputs: Arrays, outputs: Arrays
) -> None:
    """Refuse a model that gives a sample other outputs in other company.

    Args:
        model: A float64 model.
        signature: Names to use.
        inputs: Input name to (N, …) array, ordinary samples first.
        outputs: What the model gave for all of them.

    Raises:
        UserError: Half a batch gives something else.
    """
    if built_for(model) is not None:
        return
    some = _BATCH // 2  # of the first batch, so that their company changes
    fewer = evaluate(model, signature, {name: values[:some] for name, values in inputs.items()})
    for name, values in outputs.items():
        if values.dtype.kind != "f":
            continue
        change = np.abs(fewer[name] - values[:some]).max(initial=0)
        if change > _SAME * np.abs(values[:some]).max(initial=0):
            raise UserError(
                f"The output {name!r} of a sample depends on the other samples of its batch, so "
                "that a file cannot give what the model gives. Compute means and the like over "
                "other axes than the first, or build the model for the batch size that it will "
                "have: keras.Input(batch_shape=(N, …))."
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
    }
    for prefix, arrays in groups.items():
        content |= {f"{prefix}:{name}": value for name, value in arrays.items()}
    content |= predictions_as_arrays(predictions, len(samples.kind))
    with atomic_path(path) as partial, open(partial, "wb") as stream:
        np.savez(stream, allow_pickle=False, **content)


def snr_db(samples: Samples, truth: Arrays, outputs: Arrays) -> dict[str, float | None]:
    """Return each output's signal-to-noise ratio against float64 truth, in decibels.

    Over the real samples, or the random ones where there are none. None where the truth is zero
    throughout or the output has no error at all: then the ratio is not a number.
    """
    _, chosen = typical_samples(np.array(samples.kind))
    return {name: decibels(truth[name][chosen], outputs[name][chosen]) for name in truth}


def decibels(truth: np.ndarray, output: np.ndarray) -> float | None:
    """Return 10 log10(|truth|^2 / |output - truth|^2); None where that is no finite number."""
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
    """Return the least and the greatest real value, of each channel where channels differ much.

    A value that is usual for one raw feature can be a million standard deviations of another.
    """
    inner = tuple(range(max(1, real.ndim - 1)))
    low, high = real.min(axis=inner), real.max(axis=inner)
    sizes = np.atleast_1d(high - low)
    if sizes.max() > _UNLIKE * sizes.min(initial=np.inf, where=sizes > 0):
        return low, high
    return real.min(), real.max()


def _unusual(values: InputValues, usual: np.ndarray, seed: int) -> list[tuple[str, np.ndarray]]:
    """Return the denormal and nonfinite samples of one input, made from a usual one.

    Whole numbers stay as they are: there are no such ones.
    """
    if values.whole.all():
        return [(DENORMAL, np.stack([usual] * 2)), (NONFINITE, np.stack([usual] * 2))]
    # A generator of its own: the random samples stay the same whatever is added here.
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
    """Return ones, a frame of ones, and impulses in the first and the last place, (4, …)."""
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
