"""Every operation of a folded network in NumPy: its exact value and its rounding bound."""

from __future__ import annotations

from .activations import ACTIVATIONS
from .base import Operator
from .elementwise import ELEMENTWISE
from .linear import LINEAR
from .pooling import POOLING
from .shaping import SHAPING

OPERATORS: dict[str, Operator] = {**LINEAR, **ELEMENTWISE, **POOLING, **SHAPING, **ACTIVATIONS}
