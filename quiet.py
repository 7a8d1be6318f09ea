"""Imports packages whose native libraries print banners before any log level can apply."""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
import tempfile
from collections.abc import Iterator
from types import ModuleType


def quiet_import(name: str) -> ModuleType:
    """Import a package and hold back what its native code prints while it loads.

    TensorFlow writes a dozen lines to standard error before its own log level is in force; they
    would bury the one line a user needs. Should the import fail, they are printed after all.

    Args:
        name: The package, such as ``"tensorflow"``.

    Returns:
        The module.
    """
    if name in sys.modules:
        return sys.modules[name]
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    with _held_back_stderr():
        return importlib.import_module(name)


@contextlib.contextmanager
def _held_back_stderr() -> Iterator[None]:
    """Send file descriptor 2 to a temporary file, and print that file if the block raises."""
    sys.stderr.flush()
    saved = os.dup(2)
    with tempfile.TemporaryFile() as held:
        os.dup2(held.fileno(), 2)
        try:
            yield
        except BaseException:
            held.seek(0)
            os.write(saved, held.read())
            raise
        finally:
            sys.stderr.flush()
            os.dup2(saved, 2)
            os.close(saved)
