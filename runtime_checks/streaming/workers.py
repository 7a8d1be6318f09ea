"""Calls a function on parts in this process, in several processes, or on a Ray cluster.

Results are in the order of the parts. Parts are read only as they are needed.
"""

from __future__ import annotations

import collections
import concurrent.futures
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from ...child import Child, DiedError
from ...errors import UserError

T = TypeVar("T")
P = TypeVar("P")

# How many processes are tried for one part before the check fails.
_TRIES = 3


def in_processes(work: Callable[[P], T], parts: Iterable[P], count: int) -> Iterator[T]:
    """Yield what a function returns for each part, computed in several processes.

    Args:
        work: A function at the top level of a module, or a partial of one.
        parts: Its arguments.
        count: Number of processes; 1 for this process only.

    Raises:
        UserError: Processes ended three times on the same part.
    """
    if count == 1:
        yield from map(work, parts)
        return
    children: list[Child] = []
    local, stopped = threading.local(), threading.Event()

    def call(part: P) -> T:
        if not hasattr(local, "child"):
            local.child = Child()
            children.append(local.child)
        for _ in range(_TRIES):
            if stopped.is_set():
                raise concurrent.futures.CancelledError
            try:
                result: T = local.child.call(work, part)
                return result
            except DiedError as died:
                last = died
        raise UserError(
            f"The process that judged a part of the samples ended {_TRIES} times ({last.cause}). "
            "If memory is short, use fewer --workers."
        ) from last

    with concurrent.futures.ThreadPoolExecutor(count) as pool:
        try:
            yield from in_order(lambda part: pool.submit(call, part), _result, parts, 2 * count)
        finally:
            stopped.set()
            pool.shutdown(wait=False, cancel_futures=True)
            for child in children:
                child.kill()
            for child in children:
                child.close()


def _result(future: concurrent.futures.Future[T]) -> T:
    return future.result()


F = TypeVar("F")


def in_order(
    submit: Callable[[P], F], result: Callable[[F], T], parts: Iterable[P], most: int
) -> Iterator[T]:
    """Yield results in the order of the parts, with at most `most` of them pending."""
    waiting: collections.deque[F] = collections.deque()
    for part in parts:
        if len(waiting) == most:
            yield result(waiting.popleft())
        waiting.append(submit(part))
    while waiting:
        yield result(waiting.popleft())
