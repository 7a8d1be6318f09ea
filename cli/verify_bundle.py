"""`renormlite verify-bundle FILE`: check a bundle without running it."""

from __future__ import annotations

from pathlib import Path

import click

from ..runtime_checks.bundle.verify import verify_bundle


@click.command("verify-bundle")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--sha256", metavar="DIGEST", help="SHA-256 that the bundle's maker gave.")
def command(file: Path, sha256: str | None) -> None:
    """Check that every entry of the bundle FILE is undamaged. Nothing of it is run.

    A bundle is a Python program. The hashes inside show damage, not forgery: run one from somebody
    else only when its SHA-256 is the one that a person you trust gave you.
    """
    click.echo(f"{file}: undamaged, SHA-256 {verify_bundle(file, sha256)}")
