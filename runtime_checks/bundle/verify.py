"""Verifies a bundle without running it."""

from __future__ import annotations

from pathlib import Path

from ...errors import UserError
from ...files import sha256
from ...runtimes.verification import verify


def verify_bundle(path: Path, expected: str | None = None) -> str:
    """Check that every entry of a bundle is unchanged, without running it.

    The hashes are inside the bundle, so this detects damage, not forgery. To verify the origin of a
    bundle, compare the SHA-256 of the whole file.

    Args:
        path: The bundle.
        expected: Expected SHA-256 of the whole file, or None.

    Returns:
        SHA-256 of the whole file.

    Raises:
        UserError: The file is missing, is damaged, or has another SHA-256.
    """
    if not path.is_file():
        raise UserError(f"There is no bundle {path}. Write one with `renormlite bundle DIR`.")
    digest = sha256(path)
    if expected is not None and expected.strip().lower() != digest:
        raise UserError(
            f"{path} is not the bundle expected: its SHA-256 is {digest}. Received: {expected}."
        )
    try:
        verify(str(path))
    except ValueError as error:
        raise UserError(
            f"{path} is damaged: {error}. Copy it again, or rewrite it with `renormlite bundle`."
        ) from error
    return digest
