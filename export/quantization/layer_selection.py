"""Selection of layers by name or pattern, and of the operators that belong to them."""

from __future__ import annotations

import difflib
import fnmatch
import re
from collections.abc import Iterable, Sequence

from ...errors import UserError

_CALL = re.compile(r"#\d+$")


def select(patterns: Sequence[str], layers: Iterable[str], option: str) -> tuple[str, ...]:
    """Return the paths of the layers that match names or patterns.

    Args:
        patterns: Paths (`block/conv`), names (`conv`) or patterns of either (`conv*`).
        layers: Paths of all layers of the folded network.
        option: Name of the option, for messages.

    Raises:
        UserError: A pattern matches no layer.
    """
    paths = list(dict.fromkeys(_CALL.sub("", path) for path in layers if path))
    chosen: dict[str, None] = {}
    for pattern in patterns:
        found = [path for path in paths if _matches(path, pattern)]
        if not found:
            near = difflib.get_close_matches(pattern, paths, n=3) or paths[:8]
            raise UserError(
                f"{option}: no layer of the folded network is called {pattern!r}; a folded norm is "
                f"part of the layer that absorbed it. Name one of: {', '.join(near)}."
            )
        chosen.update(dict.fromkeys(found))
    return tuple(chosen)


def _matches(path: str, pattern: str) -> bool:
    return fnmatch.fnmatchcase(path, pattern) or fnmatch.fnmatchcase(
        path.rpartition("/")[2], pattern
    )


def belongs(name: str, layers: Iterable[str]) -> bool:
    """Return whether an operator belongs to one of the layers.

    Args:
        name: Readable name of the operator or its output; fused operators are separated by `;`, as
            in `block/conv/Relu;block/conv/BiasAdd`.
        layers: Paths of layers.
    """
    chosen = set(layers)
    for part in name.split(";"):
        steps = [_CALL.sub("", step) for step in part.split("/")]
        if any("/".join(steps[: end + 1]) in chosen for end in range(len(steps))):
            return True
    return False
