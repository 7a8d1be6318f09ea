"""The command `renormlite`: imports the sub-command and converts errors to exit codes.

Exit codes: 0 success; 1 a check failed; 2 a usage error or bad input (one line that says how to fix
it, no traceback); 3 a bug in renormlite (with a log to report); 130 or 143 ended by Ctrl-C or
SIGTERM, after clean-up.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import platform
import sys
import tempfile
import traceback
import warnings
from pathlib import Path
from typing import NoReturn

import click

from ..errors import UserError, describe_os_error, did_you_mean, printable
from ..extras import MissingPackageError, missing_package
from ..locks import run_folder
from ..version import __version__
from .interruption import ended_by_signals

# The sub-commands with their lines in `--help`. A module is imported only when its command is
# called, so that `renormlite --help` and `renormlite check` start without TensorFlow.
COMMANDS = {
    "train": "Train a reference network on real data.",
    "inspect": "Show where the norms of a model fold, or the contents of an exported file.",
    "fold": "Fold every norm of a model into neighbouring layers; prove it in float64.",
    "export": "Fold a model; write TFLite and ONNX files, and the data for their checks.",
    "check": "Check that exported files compute what the trained model computes.",
    "explain": "Explain, layer by layer, why an int8 file is less accurate than its model.",
    "certify": "Determine which runtimes compute the same integers from an integer file.",
    "compare": "Compare two files of any origin, or one file on several targets.",
    "report": "Put the JSON reports of several checks side by side on one page.",
    "targets": "List the runtimes and devices that checks can run on.",
    "device": "Set up devices that need no hardware: emulated ARM systems, a browser.",
    "bundle": "Pack an export and its checks into one file that runs on a device.",
    "verify-bundle": "Check a bundle for damage without running it.",
    "bench": "Measure the inference time of exported files on runtimes and devices.",
}


class LazyGroup(click.Group):
    """A command group that imports a sub-command's module only when it is needed."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the sub-commands in the order of the workflow."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import and return one sub-command, or None if no command has that name."""
        if cmd_name not in COMMANDS:
            return None
        from .verbosity import with_verbosity

        module = importlib.import_module(f".{cmd_name.replace('-', '_')}", __package__)
        command: click.Command = module.command
        command.name = cmd_name
        return with_verbosity(command)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the sub-command; suggest the nearest name for an unknown one."""
        near = did_you_mean(args[0], COMMANDS)
        if args[0] not in COMMANDS and near:
            ctx.fail(f"No such command '{args[0]}'.{near}")
        name, command, rest = super().resolve_command(ctx, args)
        if name is not None and not ctx.resilient_parsing:
            from .project_defaults import project_defaults

            ctx.default_map = project_defaults(self, name)
        return name, command, rest

    def invoke(self, ctx: click.Context) -> object:
        """Run the sub-command, and write all of its output while an error can still be reported."""
        try:
            try:
                return super().invoke(ctx)
            finally:
                if sys.stdout is not None:
                    sys.stdout.flush()
        except BrokenPipeError as error:  # click would exit with 1, which means a failed check
            _discard_output()
            raise UserError("Standard output was closed before all was printed.") from error

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the sub-commands with their summaries without importing any of them."""
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="renormlite")
def cli() -> None:
    """Train Keras models with Batch Renormalization, fold it, export, and check the files."""


def main() -> None:
    """Run the command line and exit with its code."""
    warnings.showwarning = _show_warning
    try:
        with ended_by_signals(), run_folder():
            cli(prog_name="renormlite")
    except (UserError, MissingPackageError) as error:
        _say(str(error))
        sys.exit(2)
    except ModuleNotFoundError as error:
        missing = missing_package(error, _command_name())
        if missing is None:
            _report_bug(error)
        _say(str(missing))
        sys.exit(2)
    except MemoryError as error:
        _say(f"there is too little memory ({error}). Use smaller inputs, or fewer samples.")
        sys.exit(2)
    except OSError as error:
        _discard_output()
        _say(f"{describe_os_error(error)}. No file was left incomplete.")
        sys.exit(2)
    except Exception as error:
        _report_bug(error)


def _show_warning(message: Warning | str, *_: object, **__: object) -> None:
    """Print a warning of Python or a library as one line; it may quote names of a file."""
    _say(f"warning: {' '.join(str(message).split())}")


def _discard_output() -> None:
    """Discard what standard output did not take, so that Python does not try again at its end."""
    with contextlib.suppress(OSError, AttributeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _command_name() -> str:
    """Return the name of the command, quoted, as the subject of a sentence."""
    command = next((word for word in sys.argv[1:] if word in COMMANDS), "")
    return f"`{command}`" if command else "This"


def _report_bug(error: Exception) -> NoReturn:
    """Report an error as a bug in renormlite, name the log with the traceback, and exit."""
    _say(
        f"this is a bug in renormlite ({type(error).__name__}: {error}). Please report it with the "
        f"log {_log()}."
    )
    sys.exit(3)


def _say(sentence: str) -> None:
    """Print one line on standard error, without control characters of names and paths."""
    click.echo(f"renormlite: {printable(sentence)}", err=True)


def _log() -> Path:
    """Write the traceback of the current exception into a new file and return its path."""
    with tempfile.NamedTemporaryFile(
        "w", prefix="renormlite-", suffix=".log", delete=False, encoding="utf-8"
    ) as file:
        file.write(f"renormlite {__version__}, {platform.platform()}, {sys.version}\n")
        file.write(f"{sys.argv}\n\n{traceback.format_exc()}")
    return Path(file.name)
