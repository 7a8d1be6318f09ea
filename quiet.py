"""Suppresses output of native code that log levels do not control."""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import IO

# Prefixes of the lines that TensorFlow's native code logs before its log level takes effect.
START_UP = (
    "WARNING: All log messages before absl::InitializeLog",
    "To enable the following instructions:",
    "I0000 00:00:",
    "W0000 00:00:",
    "E0000 00:00:",
)
# Prefixes of its information and warnings, such as those of the converter.
LOGGED = ("I0000 00:00:", "W0000 00:00:")

_held_back = True


@contextlib.contextmanager
def nothing_held_back() -> Iterator[None]:
    """Print all output of native code inside the block; TensorFlow logs everything."""
    global _held_back
    before, _held_back = _held_back, False
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "0"
    try:
        yield
    finally:
        _held_back = before


def quiet_import(name: str) -> ModuleType:
    """Import a package with the output of its native code suppressed.

    TensorFlow writes a dozen lines to standard error before its log level takes effect, which would
    hide the line that a user needs. They are printed if the import fails.

    Args:
        name: The package, such as ``"tensorflow"``.

    Returns:
        The module.
    """
    if name in sys.modules:
        return sys.modules[name]
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    printed: Callable[[], str] = str
    try:
        with held_back_stderr() as printed:
            return importlib.import_module(name)
    except BaseException:
        if _held_back:
            sys.stderr.write(printed())
        raise


@contextlib.contextmanager
def held_back_stderr() -> Iterator[Callable[[], str]]:
    """Redirect file descriptor 2 to a temporary file, in memory if possible, within the block.

    Yields:
        A function that returns the output so far, also after the block has ended.
    """
    if sys.stderr is None:  # there is no standard error, as under pythonw
        yield str
        return
    sys.stderr.flush()
    saved = os.dup(2)
    text = ""
    with _temporary() as held:

        def printed() -> str:
            if held.closed:
                return text
            held.seek(0)
            return held.read().decode(errors="replace")

        os.dup2(held.fileno(), 2)
        try:
            yield printed
        finally:
            sys.stderr.flush()
            os.dup2(saved, 2)
            os.close(saved)
            text = printed()
            if not _held_back:
                sys.stderr.write(text)


def _temporary() -> IO[bytes]:
    """Open a file without a name."""
    if hasattr(os, "memfd_create"):  # Linux
        return open(os.memfd_create("stderr"), "w+b")
    import tempfile  # takes longer than `import renormlite` without it

    return tempfile.TemporaryFile()


@contextlib.contextmanager
def stderr_without(*starts: str) -> Iterator[None]:
    """Suppress lines on standard error that begin with one of `starts`.

    Other lines are printed after the block. If the block raises, nothing is printed, since the
    exception has the reason.

    Args:
        starts: Prefixes of the unwanted lines of native code.
    """
    with held_back_stderr() as printed:
        yield
    if _held_back and sys.stderr is not None:
        kept = [line for line in printed().splitlines(True) if not line.startswith(starts)]
        sys.stderr.write("".join(kept))


def start_quietly() -> None:
    """Suppress the start-up output of TensorFlow on standard error, whichever code imports it.

    If TensorFlow is already loaded, only the message about a missing GPU can still be suppressed.
    The first operation would print it; listing the GPUs prints it now.
    """
    tensorflow = sys.modules.get("tensorflow")
    if tensorflow is None:
        if not any(isinstance(finder, _QuietTensorFlow) for finder in sys.meta_path):
            sys.meta_path.insert(0, _QuietTensorFlow())
    elif not os.path.exists("/dev/nvidiactl") and hasattr(tensorflow, "config"):
        with stderr_without(*START_UP):
            tensorflow.config.list_physical_devices("GPU")


class _QuietTensorFlow:
    """An import hook that suppresses the start-up output of TensorFlow; all else is printed."""

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return the usual spec of TensorFlow, whose loader runs quietly; None for all else."""
        if name != "tensorflow":
            return None
        spec = PathFinder.find_spec(name, path, target)
        if spec is not None and spec.loader is not None:
            load = spec.loader.exec_module

            def load_quietly(module: ModuleType) -> None:
                os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
                with stderr_without(*START_UP):
                    load(module)

            spec.loader.exec_module = load_quietly  # type: ignore[method-assign]
        return spec
