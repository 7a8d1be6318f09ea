"""The parameter type of one value among known ones; it suggests the nearest for a mistyped one."""

from __future__ import annotations

from typing import Any

import click

from ..errors import did_you_mean


class Choice(click.Choice[str]):
    """One of several words."""

    def get_invalid_choice_message(self, value: Any, ctx: click.Context | None) -> str:
        """Return click's sentence, and the nearest word."""
        return super().get_invalid_choice_message(value, ctx) + did_you_mean(
            str(value), self.choices
        )
