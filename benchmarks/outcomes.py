"""Categories of the failed checks of files that are right."""

from __future__ import annotations

from collections.abc import Collection

# Checks of the quality that a file lost by its precision.
_QUALITY = frozenset({"snr", "slices", "decisions", "accuracy", "clipped"})


def outcome_of(failed: Collection[str]) -> str:
    """Return the category of a check.

    Args:
        failed: Names of the findings that failed.

    Returns:
        "pass"; "not run" if the runtime cannot load or run the file; "lossy" if only its quality is
        too low, as with 4-bit weights of a sensitive network; otherwise "fail".
    """
    if not failed:
        return "pass"
    if "load" in failed:
        return "not run"
    return "lossy" if set(failed) <= _QUALITY else "fail"
