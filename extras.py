"""Optional packages, and the extra of the wheel that installs each."""

from __future__ import annotations

# Module to the extra that installs it; `pip install renormlite` installs none of them.
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


class MissingPackageError(ImportError):
    """A package is not installed; the message names the extra that installs it.

    It is not a `UserError`, because a check that records the errors of single files must not record
    this one: without the package, nothing is known about the file.
    """


def missing_package(error: ImportError, what: str) -> MissingPackageError | None:
    """Convert a failed import of an optional package to an error for the user.

    Args:
        error: The exception that the import raised.
        what: The function that needs the package, such as "renormlite train".

    Returns:
        The error to raise; None if no extra installs the module.
    """
    module = (error.name or "").partition(".")[0]
    if module not in EXTRAS:
        return None
    needed = f"needs {module}, which is not installed here"
    if not isinstance(error, ModuleNotFoundError) or error.name != module:
        needed = f"needs {module}, which cannot be imported here ({error})"
    return MissingPackageError(
        f"{what} {needed}. Install it: pip install 'renormlite[{EXTRAS[module]}]'"
    )
