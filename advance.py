"""Reports the progress of a long task to a listener, such as a progress bar."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextvars import ContextVar
from typing import TypeVar

Listener = Callable[[str, int, int], None]

_Item = TypeVar("_Item")
_listener: ContextVar[Listener | None] = ContextVar("listener", default=None)


@contextlib.contextmanager
def listening(listener: Listener) -> Iterator[None]:
    """Call `listener` with what is being done, how many steps are done, and of how many."""
    token = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(token)


def counted(items: Sequence[_Item], name: Callable[[_Item], str] = str) -> Iterable[_Item]:
    """Yield items, and tell the listener before each and after the last.

    Args:
        items: The steps.
        name: What is done with an item.
    """
    for place, item in enumerate(items):
        advanced(name(item), place, len(items))
        yield item
        advanced(name(item), place + 1, len(items))


def advanced(what: str, done: int, total: int) -> None:
    """Tell the listener, if there is one."""
    listener = _listener.get()
    if listener is not None:
        listener(what, done, total)
