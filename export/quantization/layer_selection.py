"""Selection of layers by name or pattern, and of the operators that belong to them."""

from __future__ import annotations

import difflib
import functools
import re
from collections.abc import Iterable, Mapping, Sequence

from ...artifacts.layer_names import is_inside, is_named
from ...errors import UserError

_CALL = re.compile(r"#\d+$")


def select(
    patterns: Sequence[str],
    layers: Iterable[str],
    option: str,
    nested: Mapping[str, str] | None = None,
) -> tuple[str, ...]:
    """Return the layers that match names or patterns.

    Args:
        patterns: Paths (`block/conv`), names (`conv`) or patterns of either (`conv*`), of layers or
            of nested models that contain them.
        layers: Names of all layers of the folded network.
        option: Name of the option, for messages.
        nested: Name of a layer in the folded network to its path in the model.

    Raises:
        UserError: A pattern matches no layer.
    """
    named = {path: _CALL.sub("", path) for path in layers if path}
    # The second call of a layer has its path and a number; a layer may have such a name too.
    paths = [path for path, first in named.items() if first == path or first not in named]
    chosen: dict[str, None] = {}
    for pattern in patterns:
        found = [path for path in paths if is_named(path, pattern)]
        around = nested or {}
        found = found or [p for p in paths if p in around and is_inside(around[p], pattern)]
        if not found:
            raise UserError(
                f"{option}: no layer of the folded network is called {pattern!r}; a folded norm is "
                f"part of the layer that absorbed it. Name one of: {_proposed(pattern, paths)}."
            )
        chosen.update(dict.fromkeys(found))
    return tuple(chosen)


def _proposed(pattern: str, paths: Sequence[str]) -> str:
    """Return names like a wrong one, that of a layer in it first; some names if there are none."""
    inner = [path for path in paths if path == pattern.rpartition("/")[2]]
    near = [*inner, *difflib.get_close_matches(pattern, paths, n=3)]
    return ", ".join(repr(path) for path in dict.fromkeys(near or paths[:8]))


def belongs(name: str, layers: Iterable[str]) -> bool:
    """Return whether an operator belongs to one of the layers.

    Args:
        name: Readable name of the operator or its output; fused operators are separated by `;`, as
            in `block/conv/Relu;block/conv/BiasAdd`.
        layers: Paths of layers.
    """
    return any(_beginning(path).search(name) for path in layers)


@functools.lru_cache(maxsize=1024)
def _beginning(path: str) -> re.Pattern[str]:
    """Return the pattern of names of a layer's operators, in any call of the layer.

    Names of layers may contain `;`, so that a name cannot be split there.
    """
    steps = "/".join(rf"{re.escape(step)}(#\d+)?" for step in path.split("/"))
    return re.compile(rf"(^|;){steps}($|[;/])")
