"""Every operation of a folded network in NumPy, one class for each kind (`base.Operator`)."""

from __future__ import annotations

from .activations import ACTIVATIONS
from .base import Operator
from .contractions import CONTRACTIONS
from .elementwise import ELEMENTWISE
from .indexing import INDEXING
from .linear import LINEAR
from .pooling import POOLING
from .reductions import REDUCTIONS
from .shaping import SHAPING

OPERATORS: dict[str, Operator] = {
    **LINEAR,
    **CONTRACTIONS,
    **ELEMENTWISE,
    **ACTIVATIONS,
    **POOLING,
    **REDUCTIONS,
    **INDEXING,
    **SHAPING,
}
