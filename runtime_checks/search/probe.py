"""Runs inputs on a target and measures the error in units of the expected noise."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from ...artifacts.golden_set import Arrays, joined
from ...artifacts.network import Network
from ...artifacts.precisions import SMALLEST_NORMAL, UNIT_ROUNDOFF
from ...reference.network import evaluate_network
from ...reference.noise import expected_noise
from ..end_to_end.comparison import compare_output

Run = Callable[[Arrays], Arrays]


@dataclass(frozen=True)
class Probe:
    """Inputs that were run, and their errors.

    Attributes:
        inputs: Input name to (n, …).
        ratio: (n,) error over the noise that the arithmetic explains, of the worst output; infinite
            where one is not finite though the truth is.
        errors: Output name to (n, …) target - truth, zero where either is not finite.
    """

    inputs: Arrays
    ratio: np.ndarray
    errors: Arrays

    def take(self, index: np.ndarray) -> Probe:
        """Return some of them."""
        return Probe(
            {name: array[index] for name, array in self.inputs.items()},
            self.ratio[index],
            {name: array[index] for name, array in self.errors.items()},
        )

    def joined(self, other: Probe) -> Probe:
        """Return both."""
        return Probe(
            joined(self.inputs, other.inputs),
            np.concatenate([self.ratio, other.ratio]),
            joined(self.errors, other.errors),
        )

    def worst(self, count: int) -> Probe:
        """Return those with the greatest ratio, worst first."""
        return self.take(np.argsort(-self.ratio, kind="stable")[:count])


class Objective:
    """Runs inputs on a target and measures the error that its arithmetic does not explain."""

    def __init__(self, network: Network, run: Run, usual: Mapping[str, float]) -> None:
        """Store the target.

        Args:
            network: The folded network.
            run: Returns the target's outputs for inputs, by name.
            usual: Output name to the root mean square error that a file of lower precision has in
                addition; empty for one of float32.
        """
        self.network, self._run, self._usual = network, run, usual

    def __call__(self, inputs: Arrays) -> Probe:
        """Run inputs, (n, …) each."""
        truth = evaluate_network(self.network, inputs)
        given = self._run(inputs)
        noise = expected_noise(self.network, inputs, work=np.inf)
        unit = UNIT_ROUNDOFF["float32"]
        ratios, errors = [], {}
        for name, exact in truth.items():
            metrics = compare_output(name, given[name], exact)
            least = np.maximum(unit * metrics.rms_truth, SMALLEST_NORMAL)
            allowed = np.hypot(np.maximum(noise[name], least), self._usual.get(name, 0.0))
            finite = np.isfinite(given[name]) & np.isfinite(exact)
            lost = (np.isfinite(exact) & ~finite).reshape(len(exact), -1).any(axis=1)
            ratios.append(np.where(lost, np.inf, metrics.rms_error / allowed))
            errors[name] = np.where(finite, given[name] - np.where(finite, exact, 0.0), 0.0)
        return Probe(inputs, np.max(ratios, axis=0), errors)
