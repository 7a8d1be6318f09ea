"""Translates TensorFlow operations of a trace to operators of the network."""

from __future__ import annotations

from .arithmetic import ARITHMETIC
from .indexing import INDEXING
from .linear import LINEAR
from .moves import MOVES
from .reductions import REDUCTIONS
from .values import Translation

TRANSLATIONS: dict[str, Translation] = {
    **ARITHMETIC,
    **LINEAR,
    **REDUCTIONS,
    **MOVES,
    **INDEXING,
}
