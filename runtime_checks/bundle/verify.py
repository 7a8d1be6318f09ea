"""Verifies a bundle without running it."""

from __future__ import annotations

from pathlib import Path

from ...errors import UserError
from ...files import sha256
from ...runtimes.verification import verify


def verify_bundle(path: Path, expected: str | None = None) -> str:
    """Check that every entry of a bundle is the one that was packed; nothing of it is run.

    The hashes are inside the bundle, so that this finds damage, not forgery: whoever wants to know
    that a bundle is the one somebody else wrote compares the SHA-256 of the whole file.

    Args:
        path: The bundle.
        expected: SHA-256 of the whole file as its maker gave it, or None.

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
            f"{path} is damaged: {error}. Copy it again, or write it anew with `renormlite bundle`."
        ) from error
    return digest
