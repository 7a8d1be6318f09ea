"""Limits on the size, the latency and the noise of a file of the precision `auto`."""

from __future__ import annotations

import dataclasses
import re

from ...errors import UserError

_UNITS = {"B": 1, "KB": 1e3, "KiB": 2**10, "MB": 1e6, "MiB": 2**20}


@dataclasses.dataclass(frozen=True)
class Budget:
    """Limits of a search, and the signal-to-noise ratio at which it stops.

    Attributes:
        bytes: Largest size in bytes; None for 10 % more than the plain int8 file.
        milliseconds: Longest time per sample on this machine; None for no limit.
        decibels: Sufficient signal-to-noise ratio; None for 13 dB more than the plain file.
    """

    bytes: float | None = None
    milliseconds: float | None = None
    decibels: float | None = None

    @classmethod
    def parse(cls, text: str) -> Budget:
        """Parse `120KB`, `2.5ms`, `40dB`, or several of them separated by commas.

        Raises:
            UserError: The text is not of this form.
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
