"""`renormlite bundle DIR -o FILE`: write one file that repeats the checks on a device."""

from __future__ import annotations

from pathlib import Path

import click

from ..files import sha256
from ..runtime_checks.bundle.write import write_bundle
from .comma_list import CommaList
from .output_file import OutputFile, console_beside, json_option, write_json


@click.command("bundle")
@click.argument("directory", type=click.Path(path_type=Path))
@click.option(
    "-o",
    "--output",
    type=OutputFile(".pyz"),
    help="The file to write.  [default: DIRECTORY/NAME.parity.pyz]",
)
@click.option(
    "--artifact",
    "artifacts",
    type=CommaList("artifact"),
    default=(),
    help="Include these files only.  [default: all]",
)
@json_option("path, size and SHA-256 of the bundle")
def command(
    directory: Path, output: Path | None, artifacts: tuple[str, ...], json_path: Path | None
) -> None:
    """Write one file that checks the export in DIRECTORY on any device: `python3 FILE`.

    The device needs Python 3.9 or newer, NumPy and one runtime.
    """
    path = write_bundle(directory, output, artifacts=artifacts)
    digest, size = sha256(path), path.stat().st_size
    console = console_beside(json_path)
    for line in (
        f"bundle: {path} ({size / 1e6:.1f} MB)",
        f"SHA-256: {digest}",
        f"run it: python3 {path.name} --json verdict.json",
    ):
        console.print(line, highlight=False, soft_wrap=True, markup=False)
    if json_path is not None:
        record = {"bundle": str(path), "bytes": size, "sha256": digest}
        write_json(json_path, record)
