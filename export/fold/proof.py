"""The proof: compares the original and the folded network in float64."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from .build import build
from .evaluation import NotComputableError, evaluate, relative_error
from .faithful import in_half_precision, require_faithful
from .graph import Graph, Kept
from .keras_graph import read_graph
from .original import Original, saturates, watched
from .probes import real_inputs
from .recognize import split_activation

# Float64 has 53 bits, 1.1e-16, and a deep network amplifies rounding errors a few thousand times. A
# larger difference is not rounding: a wrong border causes 1e-2, a float32 cast 1e-7.
TOLERANCE = 1e-10

# A few networks, such as EfficientNets with random weights, amplify rounding much more. That is
# measured by the effect of one unit in the last place of each weight: a fold rounds each weight a
# few times (root, quotient, product) and changes the order of sums. On seven networks of
# keras.applications, measured twice each, folds differ by 0.6 to 3.7 times that. Three bits are
# allowed.
_AMPLIFIED_ROUNDINGS = 8.0

# With a larger tolerance, a wrong border would pass, so nothing is proved.
_CONCLUSIVE = 1e-3


@dataclass(frozen=True)
class Proof:
    """The float64 comparison of the original and the folded network.

    Attributes:
        passed: Whether no output differs by more than the tolerance, and the tolerance is small
            enough to detect a wrong fold.
        worst: Greatest difference, relative to the greatest magnitude of that output; NaN if
            nothing was compared.
        tolerance: Greatest allowed difference: 1e-10, or more if the original network amplifies
            rounding errors of its weights to more.
        samples: Number of input samples, by kind.
        rolled_back: Norms whose fold was wrong and was rolled back.
        handed_over: Layers that do not compute in float64, or return integers: their inputs were
            compared, and their outputs were used in both networks.
        problem: Reason why the networks could not be compared; otherwise empty.
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
        """Whether the tolerance is small enough to detect a wrong fold."""
        return self.tolerance <= _CONCLUSIVE

    @property
    def sentence(self) -> str:
        """A sentence that states the result."""
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
    """Rebuild a network with the same weights in float64, as a reference for others.

    A layer that cannot compute in float64, for instance because it has a float32 constant, computes
    in its own precision and returns float64.

    Args:
        model: Any built Keras model; not changed.

    Returns:
        A functional model with the original names that computes in float64.

    Raises:
        UserError: The model is not built or cannot be read, or a layer cannot be rebuilt.

    Examples:
    ```python
    truth = rl.float64_twin(model)(images.astype("float64"))
    ```
    """
    return build(read_graph(model), "float64")


def float32_twin(model: keras.Model) -> keras.Model:
    """Return a network that computes in float32: the model itself, unless it has half precision.

    Args:
        model: Any built Keras model; not changed.

    Raises:
        UserError: A layer cannot be rebuilt.
    """
    return build(read_graph(model), "float32") if in_half_precision(model) else model


class Prover:
    """The float64 outputs of the original network, for comparison with several folds.

    Attributes:
        problem: Reason why the original cannot be compared; otherwise empty.
        tolerance: The greatest allowed relative difference.
    """

    def __init__(self, graph: Graph, real: Any = None) -> None:
        """Run the original network.

        Args:
            graph: The original network, as it was read.
            real: Real inputs, or None: an array, a list of arrays or a dict by input name.

        Raises:
            UserError: The real inputs do not fit, or a rebuilt layer computes something else.
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

    def require_faithful(self, model: keras.Model) -> None:
        """Refuse a model that was read as a network that computes something else.

        Raises:
            UserError: The original network and the model return different outputs.
        """
        if not self.problem:
            require_faithful(model, self._graph.output_names, self._original)

    def samples(self) -> dict[str, int]:
        """Return the number of samples of each kind."""
        counts: dict[str, int] = {}
        for kind, inputs in self._original.batches:
            counts[kind] = counts.get(kind, 0) + len(inputs[0])
        return counts

    def worst(self, graph: Graph) -> float:
        """Return the greatest relative difference of a folded network's outputs.

        It is infinite if only one of the networks has a NaN or infinity somewhere, or if they
        cannot be compared.
        """
        if self.problem:
            return float("inf")
        return self._worst(graph)

    def accepts(self, error: float) -> bool:
        """Return whether rounding explains a difference.

        The amplification of rounding is measured once, when a difference first exceeds the default
        tolerance.
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
        """Return the change of the original's outputs if each weight moves by one ulp.

        It is infinite if finite numbers become NaN; then nothing can be proved.
        """
        rng = np.random.default_rng(0)

        def move(layer: Any) -> None:
            for variable in getattr(layer, "weights", ()):
                if variable.dtype == "float64":
                    weight = keras.ops.convert_to_numpy(variable)
                    towards = weight * rng.choice([0.5, 2.0], weight.shape)
                    variable.assign(np.nextafter(weight, towards))

        return self._worst(self._graph, move)

    def _worst(self, graph: Graph, change: Callable[[Any], None] | None = None) -> float:
        original, worst = self._original, 0.0
        readers = {call.number: call.inputs for call in graph.calls()}
        outputs = watched(graph, self.hidden)
        # A call may no longer exist, such as the mask of a folded norm.
        kept = [number for number in original.given if number in readers]
        watch = [*outputs, *(value for number in kept for value in readers[number])]
        batches = [inputs for _, inputs in original.batches]
        try:
            found = evaluate(graph, batches, watch, given=original.given, change=change)
        except NotComputableError:
            return float("inf")
        for truth, known, values in zip(original.truth, original.call_inputs, found, strict=True):
            expected = [*truth, *(array for number in kept for array in known[number])]
            errors = [relative_error(a, b) for a, b in zip(expected, values, strict=True)]
            worst = max(worst, *errors)
        return worst
