"""Packages that only a part of renormlite needs, and the extra of the wheel that installs each."""

from __future__ import annotations

from .errors import UserError

# Module to the extra that brings it; `pip install renormlite` alone has none of them.
EXTRAS = {
    "tensorflow": "tensorflow",
    "keras": "tensorflow",
    "tf2onnx": "tensorflow",
    "sklearn": "tensorflow",
    "scipy": "tensorflow",
    "matplotlib": "tensorflow",
    "ai_edge_litert": "litert",
    "flatbuffers": "litert",
    "onnx": "onnx",
    "onnxruntime": "onnx",
    "playwright": "browser",
    "ai_edge_quantizer": "int4",
    "tensorboard": "tensorboard",
    "pyarrow": "parquet",
    "ray": "ray",
}


class MissingPackageError(UserError, ImportError):
    """A package is not installed; the message names the extra that installs it."""


def missing_package(error: ImportError, what: str) -> MissingPackageError | None:
    """Return what to tell the user when an import fails.

    Args:
        error: What the import raised.
        what: What was asked for, such as "renormlite train".

    Returns:
        The error to raise; None where no extra installs the module, or it is there and broken.
    """
    module = (error.name or "").partition(".")[0]
    if not isinstance(error, ModuleNotFoundError) or module not in EXTRAS:
        return None
    return MissingPackageError(
        f"{what} needs {module}, which is not installed here. "
        f"Install it: pip install 'renormlite[{EXTRAS[module]}]'"
    )
