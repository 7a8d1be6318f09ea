"""An operator extracted from an exported file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ....artifacts.manifest import TensorSpec


@dataclass(frozen=True)
class Cut:
    """One operator as a file of its own.

    Attributes:
        data: The file.
        precision: Precision that an export gives to files of such an operator.
        ops: Number of operators of each type in the file.
        inputs: Its inputs; their Keras names are those of the values that it reads.
        output: Its result, under the Keras name "got".
    """

    data: bytes
    precision: str
    ops: Mapping[str, int]
    inputs: tuple[TensorSpec, ...]
    output: TensorSpec
