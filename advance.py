"""Reports the progress of a long task to a listener, such as a progress bar."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextvars import ContextVar
from typing import TypeVar

Listener = Callable[[str, float, int], None]

_Item = TypeVar("_Item")
_listener: ContextVar[Listener | None] = ContextVar("listener", default=None)
_part: ContextVar[Callable[[float], None] | None] = ContextVar("part", default=None)


@contextlib.contextmanager
def listening(listener: Listener) -> Iterator[None]:
    """Call `listener` with what is being done, how many steps are done, and of how many."""
    token = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(token)


@contextlib.contextmanager
def within(what: str, done: int, total: int, steps: int = 1) -> Iterator[None]:
    """Turn the shares that `partly_done` reports in the block into progress of the whole task.

    Args:
        what: What the block does.
        done: Steps that were done before.
        total: Steps of the whole task; in a nested block, of the outer one.
        steps: Steps that the block does.
    """
    listener, outer = _listener.get(), _part.get()

    def part(share: float) -> None:
        reached = done + steps * share
        if outer is not None:
            outer(reached / total)
        elif listener is not None:
            listener(what, reached, total)

    token = _part.set(part)
    try:
        yield
    finally:
        _part.reset(token)


def partly_done(share: float) -> None:
    """Report the share of the work of the enclosing `within` that is done, from 0 to 1."""
    part = _part.get()
    if part is not None:
        part(share)


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


def advanced(what: str, done: float, total: int) -> None:
    """Tell the listener, if there is one."""
    listener = _listener.get()
    if listener is not None:
        listener(what, done, total)
