"""The provenance of an export, recorded in the manifest and in every file."""

from __future__ import annotations

import dataclasses
import functools
import importlib.metadata
import json
import platform
from typing import Any

from ..version import __version__
from .options import ExportOptions

CREATED_BY = f"renormlite {__version__}"

_PACKAGES = (
    "ai-edge-litert",
    "keras",
    "numpy",
    "onnx",
    "onnxruntime",
    "tensorflow",
    "tf2onnx",
)


@dataclasses.dataclass(frozen=True)
class Provenance:
    """The source and options of an export.

    Attributes:
        name: Name of the export.
        source: `model_name`, and `sha256` of the model file or None.
        options: The options of the export.
    """

    name: str
    source: dict[str, Any]
    options: ExportOptions

    def metadata(self, precision: str) -> str:
        """Return the JSON text that is stored inside a file of one precision."""
        return json.dumps(
            {
                "created_by": CREATED_BY,
                "name": self.name,
                "precision": precision,
                "source": self.source,
                "versions": versions(),
                "options": self.options.to_json(),
                **self.options.metadata(),
            },
            sort_keys=True,
        )


@functools.cache
def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that an export depends on."""
    installed = {name: importlib.metadata.version(name) for name in _PACKAGES}
    return {"renormlite": __version__, "python": platform.python_version(), **installed}
