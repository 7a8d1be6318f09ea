"""The portability certificate of a file: which runtimes agree on its integers for all inputs."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any

from ..artifacts.graphs import format_of, read_graph
from ..errors import UserError
from ..reference.integer.certificate import Certificate
from ..reference.integer.onnx_certificate import certify_onnx
from ..reference.integer.tflite_certificate import certify_tflite

_CERTIFIED = {"tflite": certify_tflite, "onnx": certify_onnx}


@dataclasses.dataclass(frozen=True)
class FileCertificate:
    """The certificate of one file.

    Attributes:
        file: Its name.
        certificate: The certificate of its operators.
    """

    file: str
    certificate: Certificate

    @property
    def sentence(self) -> str:
        """Describe which runtimes agree on every input, and which operators are undecided."""
        found = self.certificate
        together = [" and ".join(group) for group in found.groups if len(group) > 1]
        decided = len(found.ops) - len(found.undecided)
        covered = f"for every input ({decided} of {len(found.ops)} operators are decided)"
        if len(found.groups) == 1:
            text = f"all rules agree {covered}"
        elif together:
            text = f"{'; '.join(together)} agree {covered}; no others do"
        else:
            text = f"no two rules agree {covered}"
        if not found.undecided:
            return text
        kinds = ", ".join(dict.fromkeys(op.kind for op in found.undecided))
        return f"{text}; not decided: {kinds}"

    def to_json(self) -> dict[str, Any]:
        """Return nested dictionaries for JSON."""
        groups = [list(group) for group in self.certificate.groups]
        return {
            "file": self.file,
            "sentence": self.sentence,
            "groups": groups,
            **dataclasses.asdict(self.certificate),
        }


def certify(path: str | os.PathLike[str]) -> FileCertificate:
    """Compare all known rounding rules on every input that an integer file can be fed.

    Args:
        path: A .tflite or .onnx file with operators of 8-bit integers.

    Returns:
        For each operator and channel which runtimes agree on all inputs, and where they do not.

    Raises:
        UserError: There is no such file, it is of another format, or it computes in floats.
    """
    path = Path(path)
    file_format = format_of(path)
    if file_format not in _CERTIFIED:
        raise UserError(f"Expected a .tflite or an .onnx file. Received: {path.name}.")
    found = _CERTIFIED[file_format](read_graph(path, file_format))
    if all(op.method == "floats" for op in found.ops):
        raise UserError(f"{path.name} computes in floats. Certify an int8 file.")
    return FileCertificate(path.name, found)
