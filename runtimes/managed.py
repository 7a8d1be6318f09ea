"""The context manager of runners, devices, browsers and servers."""

from __future__ import annotations

import abc
from typing import TypeVar

_Self = TypeVar("_Self", bound="Managed")


class Managed(abc.ABC):
    """Opens on entering and closes on leaving, also when opening fails half-way."""

    def __enter__(self: _Self) -> _Self:
        try:
            self._open()
            self._opened()
        except BaseException:  # also after an interrupt
            self._close()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        self._close()

    @abc.abstractmethod
    def _open(self) -> None:
        """Acquire the resources."""

    def _opened(self) -> None:  # noqa: B027 (a hook)
        """Do what a common base class does once its subclass is open."""

    @abc.abstractmethod
    def _close(self) -> None:
        """Release the resources; called also when `_open` failed half-way."""
