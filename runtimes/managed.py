"""What is opened and closed: one context manager for runners, devices, browsers and servers."""

from __future__ import annotations

import abc
from typing import TypeVar

_Self = TypeVar("_Self", bound="Managed")


class Managed(abc.ABC):
    """Opens when it is entered, closes when it is left, and also when opening fails half-way."""

    def __enter__(self: _Self) -> _Self:
        try:
            self._open()
            self._opened()
        except BaseException:  # an interrupt leaves nothing behind either
            self._close()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        self._close()

    @abc.abstractmethod
    def _open(self) -> None:
        """Take what is needed."""

    def _opened(self) -> None:  # noqa: B027 (a hook)
        """Do what a common base class does once its subclass is open."""

    @abc.abstractmethod
    def _close(self) -> None:
        """Release what `_open` took; called also when it failed half-way."""
