"""`renormlite verify-bundle FILE`: check a bundle without running it."""

from __future__ import annotations

from pathlib import Path

import click

from ..runtime_checks.bundle.verify import verify_bundle
from .output_file import console_beside, json_option, write_json


@click.command("verify-bundle")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--sha256", metavar="DIGEST", help="Expected SHA-256, as its author published it.")
@json_option("the path and SHA-256")
def command(file: Path, sha256: str | None, json_path: Path | None) -> None:
    """Check that every entry of the bundle FILE is undamaged, without running it.

    A bundle is a Python program. The hashes inside detect damage, not forgery: run a bundle from
    someone else only if its SHA-256 is the one that a person you trust gave you.
    """
    digest = verify_bundle(file, sha256)
    console_beside(json_path).print(
        f"{file}: undamaged, SHA-256 {digest}", highlight=False, soft_wrap=True, markup=False
    )
    if json_path is not None:
        write_json(json_path, {"bundle": str(file), "sha256": digest})
