"""The command `renormlite`: finds the sub-command, loads only that one, turns errors to exit codes.

Exit codes: 0 all well, 1 a check failed, 2 wrong usage or bad input (one line that says how to
mend it, no traceback), 130 or 143 ended by Ctrl-C or by a signal, with everything cleaned up.
"""

from __future__ import annotations

import importlib
import signal
import sys

import click

from ..errors import UserError
from ..version import __version__

# Where each sub-command lives and what `--help` says of it; a module is imported only when called,
# so `renormlite --help` and `renormlite check` start without TensorFlow.
COMMANDS = {
    "train": "Train a reference network on real data.",
    "inspect": "Show which norms would fold where, and why not (dry run of fold).",
    "fold": "Fold every norm of a model into its neighbours and prove it in float64.",
    "export": "Fold, write TFLite and ONNX files, and the golden set to check them with.",
    "check": "Check that exported files compute what the trained model computes.",
    "targets": "List the runtimes and devices that checks can run on, and what they lack.",
    "device": "Set up devices that need no hardware: emulated ARM systems, a browser.",
    "bundle": "Pack an export and its checks into one file that runs on a device.",
    "verify-bundle": "Check a bundle for damage without running it.",
    "bench": "Time one inference of every exported file on every runtime, in turn.",
}


class LazyGroup(click.Group):
    """A command group that imports a sub-command's module only when it is needed."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the sub-commands in the order a model travels."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import and return one sub-command, or None when there is none of that name."""
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(f".{cmd_name.replace('-', '_')}", __package__)
        command: click.Command = module.command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the sub-commands with their summaries without importing any of them."""
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="renormlite")
def cli() -> None:
    """Train with Batch Renormalization, fold it away, export, prove that it computes the same."""


def _end(number: int, _frame: object) -> None:
    """Leave by way of every clean-up: what was begun here or on a device goes with the command."""
    sys.exit(128 + number)


def main() -> None:
    """Run the command line and exit with its code."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _end)
    try:
        cli(prog_name="renormlite")
    except UserError as error:
        click.echo(f"renormlite: {error}", err=True)
        sys.exit(2)
