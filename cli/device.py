"""`renormlite device setup|remove`: emulated systems and web runtimes in the user's cache."""

from __future__ import annotations

import time
from pathlib import Path

import click

from ..devices.base import DeviceOptions
from ..devices.chromium import require_browser
from ..devices.setup import web_packages
from ..devices.setup.cache import Component, cache_root, megabytes
from ..devices.setup.emulated_systems import EMULATOR, SYSTEMS, build
from .choice import Choice
from .device_options import browser_option
from .output_file import console_beside, json_option, write_json
from .progress_bar import progress_bar

BROWSER = "browser"
KINDS = (*SYSTEMS, BROWSER)


@click.group("device")
def command() -> None:
    """Set up devices that need no hardware: emulated ARM systems, a browser."""


@command.command("setup")
@click.argument("kinds", nargs=-1, required=True, type=Choice(KINDS))
@click.option(
    "--source",
    metavar="URI",
    help="Debian mirror for the ARM systems.  [default: the one that apt uses on this machine]",
)
@browser_option
@json_option("what is set up")
def setup(
    kinds: tuple[str, ...], source: str | None, browser: Path | None, json_path: Path | None
) -> None:
    """Download and build the devices KINDS; keep existing ones.

    No privileges are needed. Downloads come from the package sources of apt, pip and npm on this
    machine. The result is stored in the user's cache folder (XDG_CACHE_HOME, or RENORMLITE_CACHE).
    """
    start = time.monotonic()
    console = console_beside(json_path)

    def progress(line: str) -> None:
        text = f"{time.monotonic() - start:6.1f} s  {line}"
        console.print(text, highlight=False, markup=False, soft_wrap=True)

    for kind in kinds:
        with progress_bar(f"set up {kind}", console):
            if kind == BROWSER:
                web_packages.build(progress=progress)
                progress(f"browser: {require_browser(DeviceOptions(browser=browser))}")
            else:
                build(SYSTEMS[kind], source=source, progress=progress)
    if json_path is not None:
        write_json(json_path, {kind: _components()[kind].record() for kind in kinds})


@command.command("remove")
@click.argument("kinds", nargs=-1, type=Choice(KINDS))
@json_option("the bytes freed")
def remove(kinds: tuple[str, ...], json_path: Path | None) -> None:
    """Remove the devices KINDS from the cache; without KINDS, all of them."""
    console = console_beside(json_path)
    components = _components()
    freed = {name: components[name].remove() for name in kinds or components}
    for name, size in freed.items():
        done = f"{megabytes(size)} freed" if size else "was not set up"
        console.print(f"{name}: {done}", highlight=False, markup=False)
    console.print(f"cache: {cache_root()}", highlight=False, markup=False, soft_wrap=True)
    if json_path is not None:
        write_json(json_path, freed)


def _components() -> dict[str, Component]:
    """Return the files of each device, and those that devices share."""
    return {
        **{kind: system.component for kind, system in SYSTEMS.items()},
        BROWSER: web_packages.PACKAGES,
        "qemu": EMULATOR,
    }
