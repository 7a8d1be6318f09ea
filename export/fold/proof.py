"""The proof: both networks rebuilt in float64 and compared on inputs that leave errors no place."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
from keras import tree
from numpy.typing import NDArray

from ...errors import UserError
from .build import build
from .graph import ActivationOp, Graph, Kept, Value
from .input_values import InputValues, input_values
from .keras_graph import read_graph
from .recognize import split_activation

# Float64 has 53 bits, 1.1e-16; a deep network amplifies a rounding by a few thousand. What is
# above this is no rounding: a wrong border is 1e-2, a float32 cast 1e-7.
TOLERANCE = 1e-10

# A few networks, such as EfficientNets with random weights, amplify much more. What the network
# itself makes of one unit in the last place of each weight tells: a fold rounds each weight a few
# times (a root, a quotient, a product) and every sum once more, in another order. Measured on seven
# networks of keras.applications, twice each: 0.6 to 3.7 times that. Three bits are allowed.
_AMPLIFIED_ROUNDINGS = 8.0

# Where more than this is allowed, a wrong border would pass: nothing is proved.
_TELLING = 1e-3

_SAMPLES = 2

# A softmax of one large logit is 1 whatever the others are, so what goes in is compared too. No
# affine passes these, so it is the same in both networks.
_SATURATING = {
    keras.activations.softmax,
    keras.activations.log_softmax,
    keras.activations.sigmoid,
}


@dataclass(frozen=True)
class Proof:
    """The float64 comparison of the original and the folded network.

    Attributes:
        passed: Whether no output differs by more than the tolerance, and the tolerance is small
            enough to tell a wrong fold by.
        worst: Greatest difference, relative to the greatest magnitude of that output.
        tolerance: What is allowed: 1e-10, more only where the original network amplifies the
            rounding of its own weights to more.
        samples: Number of input samples, by kind.
        rolled_back: Norms whose fold was found wrong and taken back.
    """

    passed: bool
    worst: float
    tolerance: float
    samples: Mapping[str, int]
    rolled_back: tuple[str, ...] = ()

    @property
    def telling(self) -> bool:
        """Whether the network amplifies rounding so little that a wrong fold would show."""
        return self.tolerance <= _TELLING

    @property
    def sentence(self) -> str:
        """Say what was proved."""
        if not self.telling:
            moved = self.tolerance / _AMPLIFIED_ROUNDINGS
            return (
                "not proved: a change of each weight in its last float64 digit moves the outputs "
                f"of the original by {moved:.0e}, so that no difference says anything; "
                "deep networks do that before they are trained"
            )
        return (
            f"{'proved' if self.passed else 'not proved'} in float64: greatest relative difference "
            f"{self.worst:.1e}, allowed {self.tolerance:.0e}, {sum(self.samples.values())} inputs"
        )

    def to_json(self) -> dict[str, Any]:
        """Return plain dictionaries, numbers and strings."""
        return {
            "passed": self.passed,
            "worst": self.worst,
            "tolerance": self.tolerance,
            "samples": dict(self.samples),
            "rolled_back": list(self.rolled_back),
            "sentence": self.sentence,
        }


def float64_twin(model: keras.Model) -> keras.Model:
    """Rebuild a network with the same weights in float64: the truth that others are measured by.

    Args:
        model: Any built Keras model; not changed.

    Returns:
        A functional model that computes in float64 throughout.
    """
    return build(read_graph(model), "float64")


class Prover:
    """Holds the original's float64 outputs, so that several folds can be compared with them."""

    def __init__(self, graph: Graph, real: Any = None) -> None:
        """Compute the original.

        Args:
            graph: The original network, as it was read.
            real: Real inputs, or None: an array, a list of arrays or a dict by input name.
        """
        made: dict[tuple[int, ...], Any] = {}
        last = {value.producer.op for value in graph.outputs}
        for call in graph.calls():
            if call.op in last and isinstance(call.op, Kept):
                split_activation(graph, call, made)
        self.hidden = [saturates(value) for value in graph.outputs]
        self.tolerance = TOLERANCE
        self._graph = graph
        self._measured = False
        self.batches = list(probes(graph, real))
        twin = self._twin()
        self.truth = [_outputs(twin, inputs) for _, inputs in self.batches]

    def _twin(self) -> keras.Model:
        return build(self._graph, "float64", _watched(self._graph, self.hidden))

    def samples(self) -> dict[str, int]:
        """Return how many samples of which kind are compared."""
        return {kind: len(inputs[0]) for kind, inputs in self.batches}

    def worst(self, graph: Graph) -> float:
        """Return the greatest relative difference of a folded network's outputs.

        A NaN or an infinity that only one of both has counts as infinitely large.
        """
        return self._worst(build(graph, "float64", _watched(graph, self.hidden)))

    def accepts(self, error: float) -> bool:
        """Return whether a difference is no more than rounding explains.

        How much this network amplifies is measured once, when a difference above the usual
        tolerance asks for it.
        """
        if error > self.tolerance and not self._measured:
            self._measured = True
            self.tolerance = max(TOLERANCE, _AMPLIFIED_ROUNDINGS * self._amplified_rounding())
        return error <= self.tolerance

    def proof(self, worst: float, rolled_back: tuple[str, ...]) -> Proof:
        """Return the proof of a network whose outputs differ by ``worst``."""
        passed = self.accepts(worst) and self.tolerance <= _TELLING
        return Proof(passed, worst, self.tolerance, self.samples(), rolled_back)

    def _amplified_rounding(self) -> float:
        """Return what one unit in the last place of each weight changes in the original's outputs.

        Infinite where that decides between numbers and NaN: then nothing can be told apart.
        """
        twin, rng = self._twin(), np.random.default_rng(0)
        for variable in twin.weights:
            if "float" in variable.dtype:
                weight = keras.ops.convert_to_numpy(variable)
                variable.assign(np.nextafter(weight, weight * rng.choice([0.5, 2.0], weight.shape)))
        return self._worst(twin)

    def _worst(self, model: keras.Model) -> float:
        worst = 0.0
        for (_, inputs), truth in zip(self.batches, self.truth, strict=True):
            for expected, got in zip(truth, _outputs(model, inputs), strict=True):
                worst = max(worst, relative_error(expected, got))
        return worst


def saturates(value: Value) -> bool:
    """Whether a value comes out of an activation that can hide a difference, such as softmax."""
    op = value.producer.op
    if isinstance(op, ActivationOp):
        return op.function in _SATURATING
    if not isinstance(op, Kept):
        return False
    layer = op.operation
    if isinstance(layer, keras.layers.Activation):
        return layer.activation in _SATURATING
    return isinstance(layer, keras.layers.Softmax)


def _watched(graph: Graph, hidden: list[bool]) -> list[Value]:
    """Return what to compare: the outputs, and what is behind those that can hide a difference.

    A decision (argmax, a comparison) hides almost everything and turns a rounding into another
    class: in its place come the numbers that it is made from.
    """
    watched, behind = [], []
    for value, hides in zip(graph.outputs, hidden, strict=True):
        watched += [value] if _is_float(value) else _decided_by(value) or [value]
        if hides and saturates(value):
            behind.append(value.producer.inputs[0])
    return [*watched, *behind]


def _is_float(value: Value) -> bool:
    return "float" in value.dtype


def _decided_by(value: Value) -> list[Value]:
    """Return the nearest floating-point values that a value of another type is made from."""
    found: list[Value] = []
    for source in value.producer.inputs:
        found += [source] if _is_float(source) else _decided_by(source)
    return list(dict.fromkeys(found))


def relative_error(expected: NDArray[Any], got: NDArray[Any]) -> float:
    """Return the greatest difference over the greatest magnitude expected.

    Whole numbers and truth values must be the same.
    """
    if expected.dtype.kind not in "fc":
        return 0.0 if np.array_equal(expected, got) else float("inf")
    finite = np.isfinite(expected)
    if not np.array_equal(expected[~finite], got[~finite], equal_nan=True):
        return float("inf")
    if not finite.any():
        return 0.0
    difference = np.abs(expected[finite] - got[finite]).max()
    if not np.isfinite(difference):
        return float("inf")
    return float(difference / max(np.abs(expected[finite]).max(), np.finfo(np.float64).tiny))


def probes(graph: Graph, real: Any = None) -> Iterator[tuple[str, list[NDArray[Any]]]]:
    """Make the inputs to compare on, each kind a batch.

    - random: normal numbers; integers where the network takes integers;
    - border: ones, and impulses at corners and edges: a wrong border shows there;
    - extreme: magnitudes of 1e-3 and 1e3;
    - real: what the user gives.

    All but the real ones respect what each input may hold (`input_values`).
    """
    rng = np.random.default_rng(0)
    known = input_values(graph)
    counts = [value.shape[0] or _SAMPLES for value in graph.inputs]

    def batch(make: Callable[[InputValues, int], NDArray[Any]]) -> list[NDArray[Any]]:
        return [
            values.fit(make(values, count)).astype(_array_type(value.dtype))
            for values, count, value in zip(known, counts, graph.inputs, strict=True)
        ]

    yield (
        "random",
        [
            values.random(rng, count).astype(_array_type(value.dtype))
            for values, count, value in zip(known, counts, graph.inputs, strict=True)
        ],
    )
    yield "border", batch(lambda values, count: _borders(rng, (count, *values.low.shape)))
    yield "extreme", batch(lambda values, count: _extremes(rng, (count, *values.low.shape)))
    if real is not None:
        yield "real", real_inputs(graph, real)


def real_inputs(graph: Graph, real: Any) -> list[NDArray[Any]]:
    """Bring the user's inputs to the order of the network's.

    Raises:
        UserError: They are not one array for each input.
    """
    names = [value.producer.name for value in graph.inputs]
    if isinstance(real, Mapping):
        if set(real) != set(names):
            raise UserError(f"Expected inputs named {names}. Received: {sorted(real)}")
        return [np.asarray(real[name]) for name in names]
    arrays = [np.asarray(x) for x in (real if isinstance(real, (list, tuple)) else [real])]
    if len(arrays) != len(names):
        raise UserError(f"Expected {len(names)} input arrays ({names}). Received: {len(arrays)}")
    return arrays


def _array_type(dtype: str) -> str:
    """Return the type of an input's samples: floats of any width are computed in float64."""
    return "float64" if "float" in dtype else dtype


def _borders(rng: np.random.Generator, shape: tuple[int, ...]) -> NDArray[np.float64]:
    x = np.zeros(shape)
    x[0] = 1.0
    if len(shape) == 1:  # an input of one number
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


def _outputs(model: keras.Model, inputs: list[NDArray[Any]]) -> list[NDArray[Any]]:
    packed = tree.pack_sequence_as(model.input, inputs)
    return [
        np.asarray(keras.ops.convert_to_numpy(y))
        for y in tree.flatten(model(packed, training=False))
    ]
