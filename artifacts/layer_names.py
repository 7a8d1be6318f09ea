"""Names of layers that users give, exact or as patterns."""

from __future__ import annotations

import fnmatch


def is_named(path: str, pattern: str) -> bool:
    """Return whether a layer has a name or matches a pattern.

    Args:
        path: The layer's path, such as `block/conv`.
        pattern: A path, a name (`conv`) or a pattern of either (`conv*`). Since names may contain
            `*`, `?` and `[`, an exact name comes first.
    """
    names = (path, path.rpartition("/")[2])
    return pattern in names or any(fnmatch.fnmatchcase(name, pattern) for name in names)


def is_inside(path: str, pattern: str) -> bool:
    """Return whether a path, or that of a model around the layer, matches a pattern."""
    steps = path.split("/")
    return any(is_named("/".join(steps[: end + 1]), pattern) for end in range(len(steps)))
