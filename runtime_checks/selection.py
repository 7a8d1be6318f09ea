"""Selects the targets of a check, and the files that each of them runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ..artifacts.directory import ExportDirectory
from ..artifacts.manifest import Artifact
from ..errors import UserError, did_you_mean
from ..runtimes import LOCAL, RUNTIMES, Target, usable_here


@dataclass(frozen=True)
class Selection:
    """The files to run on each target.

    Attributes:
        files: The files that each target runs.
        left_out: A sentence for each file that no installed runtime loads, or that a target has no
            kernels for.
    """

    files: Mapping[Target, tuple[Artifact, ...]]
    left_out: tuple[str, ...]

    @property
    def pairs(self) -> list[tuple[Target, Artifact]]:
        """Each file on each target, target by target."""
        return [(target, entry) for target, entries in self.files.items() for entry in entries]


def select(
    export: ExportDirectory,
    targets: Sequence[str] | None = None,
    *,
    artifacts: Sequence[str] = (),
    precisions: Sequence[str] = (),
) -> Selection:
    """Select the files to run on each target.

    Args:
        export: The export.
        targets: Where to run; None takes, for each format of the files, the first runtime of the
            table that is installed on this machine.
        artifacts: Names of the files to take; all by default.
        precisions: Precisions of the files to take; all by default.

    Raises:
        UserError: A target, file or precision is unknown, or a target has nothing to run.
    """
    chosen = _chosen(export, artifacts, precisions)
    left_out: list[str] = []
    if targets is None:
        wanted, left_out = _usual(chosen)
    else:
        wanted = [Target.parse(text) for text in targets]
    files = {}
    for target in wanted:
        fitting = [entry for entry in chosen if entry.format in target.formats]
        able = [entry for entry in fitting if not target.cannot_run(entry.precision)]
        sentences = [
            f"{entry.file} was not run on {target}: {target.cannot_run(entry.precision)}"
            for entry in fitting
            if entry not in able
        ]
        if not fitting:
            _refuse(export, chosen, target)
        if not able:
            raise UserError(f"{'. '.join(sentences)}. Check on another target.")
        files[target] = tuple(able)
        left_out += sentences
    return Selection(files, tuple(left_out))


def _chosen(
    export: ExportDirectory, artifacts: Sequence[str], precisions: Sequence[str]
) -> list[Artifact]:
    """Return the files with the requested names and precisions."""
    for what, received, known in (
        ("artifact", artifacts, [entry.file for entry in export.artifacts]),
        ("precision", precisions, [entry.precision for entry in export.artifacts]),
    ):
        unknown = [name for name in received if name not in known]
        if unknown:
            raise UserError(
                f"{export.path} has no {what} '{unknown[0]}'. "
                f"It has {', '.join(dict.fromkeys(known))}.{did_you_mean(unknown[0], known)}"
            )
    chosen = [
        entry
        for entry in export.artifacts
        if (not artifacts or entry.file in artifacts)
        and (not precisions or entry.precision in precisions)
    ]
    if not chosen:
        raise UserError(
            f"None of {', '.join(artifacts)} has the precision {' or '.join(precisions)}."
        )
    return chosen


def _usual(artifacts: Sequence[Artifact]) -> tuple[list[Target], list[str]]:
    """Return the first installed runtime for each format, and the files without one."""
    found: dict[str, None] = {}
    left_out = []
    for file_format in dict.fromkeys(entry.format for entry in artifacts):
        runtimes = {
            name: entry
            for name, entry in RUNTIMES.items()
            if entry.home == LOCAL and file_format in entry.formats
        }
        usable = next((name for name in runtimes if usable_here(name)), None)
        if usable is not None:
            found[usable] = None
            continue
        reason = f"was not run: no runtime loads .{file_format} files"
        if runtimes:
            advice = f"pip install {next(iter(runtimes.values())).install}"
            reason = f"was not run: no runtime for .{file_format} is installed ({advice})"
        left_out += [f"{entry.file} {reason}" for entry in artifacts if entry.format == file_format]
    if not found:
        raise UserError(". ".join(left_out) + ".")
    return [Target(name) for name in found], left_out


def _refuse(export: ExportDirectory, chosen: Sequence[Artifact], target: Target) -> None:
    """Name the targets that would run the files."""
    formats = " or ".join(f".{name}" for name in target.formats)
    present = {entry.format for entry in chosen}
    others = [name for name, entry in RUNTIMES.items() if present & set(entry.formats)]
    raise UserError(
        f"The target '{target}' loads {formats} files and {export.path} has none. "
        f"Its files run on: {', '.join(others)}."
    )
