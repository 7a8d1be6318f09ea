"""What a gradient is to the search: from that by a value to those by what it was made of."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ..operators.base import Arrays, Attributes, Weights

# (inputs, weights, attributes, output, gradient by it) to the gradients by the inputs.
Backward = Callable[[Arrays, Weights, Attributes, np.ndarray, np.ndarray], Arrays]
