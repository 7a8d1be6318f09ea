"""`renormlite device setup|remove`: the emulated systems and web runtimes in the user's cache."""

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
@click.option(
    "--browser",
    type=click.Path(path_type=Path),
    help="The browser to use.  [default: Chromium or Chrome on the PATH]",
)
def setup(kinds: tuple[str, ...], source: str | None, browser: Path | None) -> None:
    """Download and build the devices KINDS; existing ones are kept.

    Needs no privileges. Downloads come from the package sources that apt, pip and npm use on this
    machine. The result is stored in the user's cache folder (XDG_CACHE_HOME, or RENORMLITE_CACHE).
    """
    start = time.monotonic()

    def progress(line: str) -> None:
        click.echo(f"{time.monotonic() - start:6.1f} s  {line}")

    for kind in kinds:
        if kind == BROWSER:
            web_packages.build(progress=progress)
            progress(f"browser: {require_browser(DeviceOptions(browser=browser))}")
        else:
            build(SYSTEMS[kind], source=source, progress=progress)


@command.command("remove")
@click.argument("kinds", nargs=-1, type=Choice(KINDS))
def remove(kinds: tuple[str, ...]) -> None:
    """Remove the devices KINDS from the cache; all devices if none is named."""
    components: dict[str, Component] = {
        **{kind: system.component for kind, system in SYSTEMS.items()},
        BROWSER: web_packages.PACKAGES,
        "qemu": EMULATOR,
    }
    for name in kinds or components:
        freed = components[name].remove()
        click.echo(f"{name}: {megabytes(freed)} freed" if freed else f"{name}: was not set up")
    click.echo(f"cache: {cache_root()}")
