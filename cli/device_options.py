"""The device options that several sub-commands share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click

from ..devices.base import DeviceOptions
from ..errors import UserError
from .comma_list import CommaList
from .dataclass_options import options_of
from .option_groups import grouped

#: The option of commands without the other device options.
browser_option = click.option(
    "--browser",
    type=click.Path(path_type=Path),
    help="The browser to use.  [default: Chromium or Chrome on the PATH]",
)


def device_options(command: Callable[..., None]) -> Callable[..., Any]:
    """Add the device options to a command, which receives them as ``devices`` and ``cpus``."""
    decorated: Callable[..., Any] = grouped("Devices")(
        "--cpu",
        "cpus",
        default=(),
        type=CommaList("cpu"),
        help="Processors to emulate on qemu devices given without a processor, such as cortex-a53.",
    )(options_of(DeviceOptions, into="devices")(command))
    return decorated


def with_processors(targets: Sequence[str] | None, cpus: Sequence[str]) -> list[str] | None:
    """Return the targets with each qemu device repeated for each processor that it can emulate.

    Args:
        targets: As the user wrote them; None for the default targets.
        cpus: Processors; if empty, the targets are returned unchanged.

    Raises:
        UserError: A processor cannot be emulated by the device of any target.
    """
    from ..devices.setup.emulated_systems import SYSTEMS

    if not cpus:
        return None if targets is None else list(targets)
    chosen: list[str] = []
    unused = set(cpus)
    for target in targets or ():
        system = SYSTEMS.get(target.partition("@")[2])
        known = [cpu for cpu in cpus if system is not None and cpu in system.cpus]
        chosen += [f"{target}:{cpu}" for cpu in known] or [target]
        unused -= set(known)
    if unused:
        known_by = "; ".join(f"{name}: {', '.join(s.cpus)}" for name, s in SYSTEMS.items())
        raise UserError(
            f"--cpu must name processors of the qemu devices in --on ({known_by}). "
            f"Received: {', '.join(sorted(unused))}."
        )
    return chosen
