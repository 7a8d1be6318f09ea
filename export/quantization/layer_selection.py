"""Which layers of a network the user named, and which operators of a file belong to them."""

from __future__ import annotations

import difflib
import fnmatch
import re
from collections.abc import Iterable, Sequence

from ...errors import UserError

_CALL = re.compile(r"#\d+$")


def select(patterns: Sequence[str], layers: Iterable[str], option: str) -> tuple[str, ...]:
    """Return the paths of the layers that names or patterns stand for.

    Args:
        patterns: Paths (`block/conv`), names (`conv`) or patterns of either (`conv*`).
        layers: Paths of all layers of the network, without those that were folded away.
        option: Name of the option, for messages.

    Raises:
        UserError: A pattern stands for no layer.
    """
    paths = list(dict.fromkeys(_CALL.sub("", path) for path in layers if path))
    chosen: dict[str, None] = {}
    for pattern in patterns:
        found = [path for path in paths if _matches(path, pattern)]
        if not found:
            near = difflib.get_close_matches(pattern, paths, n=3) or paths[:8]
            raise UserError(
                f"{option}: no layer of the folded network is called {pattern!r}; norms that were "
                f"folded into a layer go by its name. Name one of: {', '.join(near)}."
            )
        chosen.update(dict.fromkeys(found))
    return tuple(chosen)


def _matches(path: str, pattern: str) -> bool:
    return fnmatch.fnmatchcase(path, pattern) or fnmatch.fnmatchcase(
        path.rpartition("/")[2], pattern
    )


def belongs(name: str, layers: Iterable[str]) -> bool:
    """Tell whether an operator belongs to one of some layers.

    Args:
        name: Readable name of the operator or of its output: `block/conv/Relu;block/conv/BiasAdd`,
            the parts those of operators that were fused.
        layers: Paths of layers.
    """
    chosen = set(layers)
    for part in name.split(";"):
        steps = [_CALL.sub("", step) for step in part.split("/")]
        if any("/".join(steps[: end + 1]) in chosen for end in range(len(steps))):
            return True
    return False
