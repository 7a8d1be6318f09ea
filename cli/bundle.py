"""`renormlite bundle DIR -o FILE`: one file that replays the checks on a device."""

from __future__ import annotations

from pathlib import Path

import click

from ..files import sha256
from ..runtime_checks.bundle.write import write_bundle


@click.command("bundle")
@click.argument("directory", type=click.Path(path_type=Path))
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path, dir_okay=False),
    help="The file to write. Default: DIRECTORY/NAME.parity.pyz.",
)
@click.option(
    "--artifact",
    "artifacts",
    multiple=True,
    metavar="FILE",
    help="Carry this file only; may be given several times.",
)
def command(directory: Path, output: Path | None, artifacts: tuple[str, ...]) -> None:
    """Write one file that checks the export in DIRECTORY on any device: `python3 FILE`.

    The device needs Python 3.9 or newer, NumPy and one runtime.
    """
    path = write_bundle(directory, output, artifacts=artifacts)
    click.echo(f"bundle: {path} ({path.stat().st_size / 1e6:.1f} MB)")
    click.echo(f"SHA-256: {sha256(path)}")
    click.echo(f"run it: python3 {path.name} --json verdict.json")
