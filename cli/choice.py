"""The parameter type of a value from a fixed set; a mistyped value gets a suggestion."""

from __future__ import annotations

from typing import Any

import click

from ..errors import did_you_mean


class Choice(click.Choice[str]):
    """One word from a fixed set."""

    def get_invalid_choice_message(self, value: Any, ctx: click.Context | None) -> str:
        """Return click's message with the nearest word appended."""
        return super().get_invalid_choice_message(value, ctx) + did_you_mean(
            str(value), self.choices
        )
