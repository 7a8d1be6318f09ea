"""A hook of MkDocs: links the package as `build/docs/renormlite` for mkdocstrings.

The repository root is the package and may have any name. It also contains environments and builds,
which must not be read, so only the packages are linked.
"""

from __future__ import annotations

import shutil
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def link_package() -> None:
    """Link the package's modules and folders into `build/docs/renormlite`."""
    package = ROOT / "build/docs/renormlite"
    shutil.rmtree(package, ignore_errors=True)
    package.mkdir(parents=True)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    parts = {name.split(".")[1] for name in project["tool"]["setuptools"]["packages"][1:]}
    for source in [*ROOT.glob("*.py"), *(ROOT / part for part in parts)]:
        (package / source.name).symlink_to(source)


link_package()
