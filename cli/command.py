"""The class of the sub-commands that need TensorFlow."""

from __future__ import annotations

from typing import Any

import click

from ..quiet import quiet_import
from .option_groups import GroupedCommand


class TensorFlowCommand(GroupedCommand):
    """A command that imports TensorFlow, without its log lines, after parsing the arguments.

    The import takes seconds; `--help` and usage errors do not wait for it.
    """

    def invoke(self, ctx: click.Context) -> Any:
        """Import TensorFlow, then run the command."""
        quiet_import("tensorflow")
        return super().invoke(ctx)
