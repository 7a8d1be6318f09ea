"""The options about devices that several sub-commands share."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click

from ..devices.base import DeviceOptions
from ..errors import UserError
from .comma_list import CommaList
from .option_groups import grouped


def device_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add the options about devices; the command gets them as ``devices`` and ``cpus``."""
    option = grouped("Devices")

    @option(
        "--cpu",
        "cpus",
        default=(),
        type=CommaList("cpu"),
        help="Processors to emulate on the qemu devices that name none, such as cortex-a53.",
    )
    @option(
        "--browser",
        type=click.Path(path_type=Path),
        help="Browser to start for the device 'browser'. [default: Chromium or Chrome on the PATH]",
    )
    @option(
        "--device-python",
        default="python3",
        show_default=True,
        metavar="PATH",
        help="Python on a device reached by ssh or adb.",
    )
    @option(
        "--benchmark-model",
        type=click.Path(path_type=Path),
        help="LiteRT's benchmark_model built for an Android device that has no Python.",
    )
    @option(
        "--device-timeout",
        type=click.FloatRange(min=0, min_open=True),
        default=300.0,
        show_default=True,
        metavar="SECONDS",
        help="Longest time one file may take on a device.",
    )
    @functools.wraps(command)
    def collect(
        *args: Any,
        cpus: tuple[str, ...],
        browser: Path | None,
        device_python: str,
        benchmark_model: Path | None,
        device_timeout: float,
        **others: Any,
    ) -> None:
        devices = DeviceOptions(
            timeout_s=device_timeout,
            python=device_python,
            browser=browser,
            benchmark_model=benchmark_model,
        )
        command(*args, cpus=cpus, devices=devices, **others)

    return collect


def with_processors(targets: Sequence[str] | None, cpus: Sequence[str]) -> list[str] | None:
    """Return the targets with each qemu device repeated for each processor it knows.

    Args:
        targets: As the user wrote them; None for the usual ones.
        cpus: Processors; none leaves the targets as they are.

    Raises:
        UserError: No target's device knows a processor.
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
