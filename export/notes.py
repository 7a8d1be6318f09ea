"""What an export did not do as its user may expect, or did without being asked: a line each."""

from __future__ import annotations

from .formats.base import Contents, Job


def notes_on(job: Job, contents: Contents) -> tuple[str, ...]:
    """Return sentences about one file, for the manifest and the terminal."""
    return tuple(sentence for note in _NOTES for sentence in note(job, contents))


def _unrolled(job: Job, contents: Contents) -> list[str]:
    if not job.graph.steps:
        return []
    layers = ", ".join(f"{name} ({steps})" for name, steps in job.graph.steps.items())
    return [f"one time step written after the other, without a loop, in {layers}"]


_NOTES = (_unrolled,)
