"""What an operator is to the checks: its exact value, and how far rounding may stray from it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

Arrays = list[np.ndarray]
Weights = Mapping[str, np.ndarray]
Attributes = Mapping[str, Any]


@dataclass(frozen=True)
class Operator:
    """One kind of operation.

    Attributes:
        evaluate: (inputs, weights, attributes) to the value, in the inputs' type.
        error: (inputs, weights, attributes, output, errors, unit) to a bound on the absolute error
            of each output element: what exact arithmetic makes of the inputs' errors, plus what
            rounding with unit roundoff `unit` adds.
        variance: (inputs, weights, attributes, output, variances, unit) to the variance of the
            error that rounding is expected to make, in units of the unit roundoff squared: what
            becomes of the inputs' variances, plus what the op's own roundings add. Only functions
            that bend over the size of an error need `unit`.
    """

    evaluate: Callable[[Arrays, Weights, Attributes], np.ndarray]
    error: Callable[[Arrays, Weights, Attributes, np.ndarray, Arrays, float], np.ndarray]
    variance: Callable[[Arrays, Weights, Attributes, np.ndarray, Arrays, float], np.ndarray]


# A rounding error is taken as uniform between -u and u times the number that is rounded.
ROUNDING = 1 / 3


def gamma(terms: int, unit: float) -> float:
    """Return the constant of a sum of ``terms`` products.

    γ_n = n u / (1 - n u), Higham, Accuracy and Stability of Numerical Algorithms, lemma 3.1; it
    holds for any order of summation, with or without fused multiply-add.
    """
    return terms * unit / (1 - terms * unit)
