"""Limits on the size, the latency and the noise of a file of the precision `auto`."""

from __future__ import annotations

import dataclasses
import re

from ...errors import UserError

_UNITS = {"B": 1, "KB": 1e3, "KiB": 2**10, "MB": 1e6, "MiB": 2**20}


@dataclasses.dataclass(frozen=True)
class Budget:
    """Limits that a search stays within, and the ratio at which it ends.

    Attributes:
        bytes: Most bytes; None for a tenth more than the plain int8 file's.
        milliseconds: Most time a sample takes on this machine; None for any.
        decibels: Signal-to-noise ratio that is enough; None for 13 dB more than the plain file's.
    """

    bytes: float | None = None
    milliseconds: float | None = None
    decibels: float | None = None

    @classmethod
    def parse(cls, text: str) -> Budget:
        """Read `120KB`, `2.5ms` or `40dB`; several are separated by commas.

        Raises:
            UserError: It is none of these.
        """
        found: dict[str, float] = {}
        for part in filter(None, text.split(",")):
            match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(B|KB|KiB|MB|MiB|ms|dB)\s*", part)
            if match is None:
                raise UserError(
                    "Expected a budget such as 120KB, 2.5ms or 40dB (B, KB, KiB, MB, MiB, ms, dB). "
                    f"Received: {part!r}."
                )
            number, unit = float(match[1]), match[2]
            if unit in _UNITS:
                found["bytes"] = number * _UNITS[unit]
            else:
                found["milliseconds" if unit == "ms" else "decibels"] = number
        return cls(**found)
