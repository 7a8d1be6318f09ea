"""The command that every sub-command needing TensorFlow is made with."""

from __future__ import annotations

from typing import Any

import click

from ..quiet import quiet_import
from .option_groups import GroupedCommand


class TensorFlowCommand(GroupedCommand):
    """Imports TensorFlow, without its banners, once the arguments are known to be good.

    `--help` and wrong usage answer at once; the seconds that the import takes are spent only when
    there is work to do.
    """

    def invoke(self, ctx: click.Context) -> Any:
        """Import TensorFlow, then run the command."""
        quiet_import("tensorflow")
        return super().invoke(ctx)
