"""`python -m renormlite`, and the command `renormlite`."""

from __future__ import annotations

import atexit
import os
import signal


def _end_at_once(number: int, _frame: object) -> None:
    """End before the command has begun: there is nothing to clean up."""
    os.write(2, b"renormlite: ended by Ctrl-C.\n")
    os._exit(128 + number)


def main() -> None:
    """Run the command line; Ctrl-C ends it also while its modules are imported."""
    signal.signal(signal.SIGINT, _end_at_once)
    # Python then resets signals and unloads libraries: the command has ended, and its code stands.
    # Registered first, this runs last.
    atexit.register(signal.signal, signal.SIGINT, signal.SIG_IGN)
    from .cli.main import main as run

    run()


if __name__ == "__main__":
    main()
