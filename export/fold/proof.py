"""The proof: both networks rebuilt in float64 and compared on inputs that show every fault."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from .build import build
from .evaluation import Evaluation, NotComputableError, relative_error
from .graph import Graph, Kept
from .keras_graph import read_graph
from .original import Original, saturates, watched
from .probes import real_inputs
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
_CONCLUSIVE = 1e-3


@dataclass(frozen=True)
class Proof:
    """The float64 comparison of the original and the folded network.

    Attributes:
        passed: Whether no output differs by more than the tolerance, and the tolerance is small
            enough to tell a wrong fold by.
        worst: Greatest difference, relative to the greatest magnitude of that output; NaN where
            nothing was compared.
        tolerance: What is allowed: 1e-10, more only where the original network amplifies the
            rounding of its own weights to more.
        samples: Number of input samples, by kind.
        rolled_back: Norms whose fold was found wrong and taken back.
        handed_over: Layers that do not compute in float64, or return whole numbers: their inputs
            were compared, and their outputs were handed to both networks.
        problem: Why nothing was proved, where the networks could not be compared.
    """

    passed: bool
    worst: float
    tolerance: float
    samples: Mapping[str, int]
    rolled_back: tuple[str, ...] = ()
    handed_over: tuple[str, ...] = ()
    problem: str = ""

    @property
    def conclusive(self) -> bool:
        """Whether the network amplifies rounding so little that a wrong fold would show."""
        return self.tolerance <= _CONCLUSIVE

    @property
    def sentence(self) -> str:
        """Say what was proved."""
        if self.problem:
            return f"not proved: {self.problem}"
        if not self.conclusive:
            moved = self.tolerance / _AMPLIFIED_ROUNDINGS
            return (
                "not proved: changing each weight by one unit in its last float64 digit changes "
                f"the original's outputs by {moved:.0e}, so the comparison is not conclusive; "
                "untrained deep networks behave like this"
            )
        sentence = (
            f"{'proved' if self.passed else 'not proved'} in float64: greatest relative difference "
            f"{self.worst:.1e}, allowed {self.tolerance:.0e}, {sum(self.samples.values())} inputs"
        )
        if self.handed_over:
            names = ", ".join(map(repr, self.handed_over))
            sentence += f"; compared at the inputs, because not computed in float64: {names}"
        return sentence

    def to_json(self) -> dict[str, Any]:
        """Return plain dictionaries, numbers and strings."""
        return {
            "passed": self.passed,
            "worst": self.worst if np.isfinite(self.worst) else None,
            "tolerance": self.tolerance,
            "samples": dict(self.samples),
            "rolled_back": list(self.rolled_back),
            "handed_over": list(self.handed_over),
            "sentence": self.sentence,
        }


def float64_twin(model: keras.Model) -> keras.Model:
    """Rebuild a network with the same weights in float64: the truth that others are measured by.

    A layer that cannot compute in float64, because it holds a float32 constant for instance,
    computes in its own precision and gives float64.

    Args:
        model: Any built Keras model; not changed.

    Returns:
        A functional model with the names of the original that computes in float64.

    Raises:
        UserError: The model is not built or cannot be read, or a layer cannot be rebuilt.

    Example:
    ```python
    truth = rl.float64_twin(model)(images.astype("float64"))
    ```
    """
    return build(read_graph(model), "float64")


class Prover:
    """Holds the original's float64 outputs, so that several folds can be compared with them.

    Attributes:
        problem: Why the original cannot be compared with anything; empty where it can.
        tolerance: The relative difference that is allowed.
    """

    def __init__(self, graph: Graph, real: Any = None) -> None:
        """Compute the original.

        Args:
            graph: The original network, as it was read.
            real: Real inputs, or None: an array, a list of arrays or a dict by input name.

        Raises:
            UserError: The real inputs do not fit, or a layer made again computes something else.
        """
        made: dict[tuple[int, ...], Any] = {}
        last = {value.producer.op for value in graph.outputs}
        for call in graph.calls():
            if call.op in last and isinstance(call.op, Kept):
                split_activation(graph, call, made)
        self.hidden = [saturates(value) for value in graph.outputs]
        self.tolerance = TOLERANCE
        self.problem = ""
        self._graph = graph
        self._measured = False
        self._original = Original(graph, self.hidden)
        try:
            self._original.run(None if real is None else real_inputs(graph, real))
        except NotComputableError as error:
            self.problem = str(error)
        else:
            self.problem = self._original.nothing_finite()

    def samples(self) -> dict[str, int]:
        """Return how many samples of which kind are compared."""
        counts: dict[str, int] = {}
        for kind, inputs in self._original.batches:
            counts[kind] = counts.get(kind, 0) + len(inputs[0])
        return counts

    def worst(self, graph: Graph) -> float:
        """Return the greatest relative difference of a folded network's outputs.

        A NaN or an infinity that only one of both has counts as infinitely large, and so does a
        network that cannot be compared.
        """
        if self.problem:
            return float("inf")
        return self._worst(graph, Evaluation(graph, self._original.handed_over))

    def accepts(self, error: float) -> bool:
        """Return whether a difference is no more than rounding explains.

        How much this network amplifies is measured once, when a difference above the usual
        tolerance asks for it.
        """
        if error > self.tolerance and not self._measured and not self.problem:
            self._measured = True
            self.tolerance = max(TOLERANCE, _AMPLIFIED_ROUNDINGS * self._amplified_rounding())
        return error <= self.tolerance

    def proof(self, worst: float, rolled_back: tuple[str, ...]) -> Proof:
        """Return the proof of a network whose outputs differ by ``worst``."""
        names = tuple(dict.fromkeys(self._original.handed_over.values()))
        if self.problem:
            return Proof(False, float("nan"), self.tolerance, {}, (), names, self.problem)
        passed = self.accepts(worst) and self.tolerance <= _CONCLUSIVE
        return Proof(passed, worst, self.tolerance, self.samples(), rolled_back, names)

    def _amplified_rounding(self) -> float:
        """Return what one unit in the last place of each weight changes in the original's outputs.

        Infinite where that decides between numbers and NaN: then nothing can be told apart.
        """
        evaluation = Evaluation(self._graph, self._original.handed_over)
        rng = np.random.default_rng(0)
        for layer in evaluation.layers():
            for variable in getattr(layer, "weights", ()):
                if variable.dtype == "float64":
                    weight = keras.ops.convert_to_numpy(variable)
                    towards = weight * rng.choice([0.5, 2.0], weight.shape)
                    variable.assign(np.nextafter(weight, towards))
        return self._worst(self._graph, evaluation)

    def _worst(self, graph: Graph, evaluation: Evaluation) -> float:
        original, worst = self._original, 0.0
        readers = {call.number: call.inputs for call in graph.calls()}
        outputs = watched(graph, self.hidden)
        for i, (_, inputs) in enumerate(original.batches):
            given = {number: results[i] for number, results in original.given.items()}
            # A norm's mask, say, is gone with the norm.
            fed = {
                number: arrays for number, arrays in original.fed[i].items() if number in readers
            }
            expected = [*original.truth[i], *(array for arrays in fed.values() for array in arrays)]
            watch = [*outputs, *(value for number in fed for value in readers[number])]
            try:
                values = evaluation.run(inputs, watch, given)
            except NotComputableError:
                return float("inf")
            errors = [relative_error(a, b) for a, b in zip(expected, values, strict=True)]
            worst = max(worst, *errors)
        return worst
