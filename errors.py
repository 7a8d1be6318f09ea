"""The one exception a user's mistake raises; the command line prints it as one line and exits 2."""

from __future__ import annotations


class UserError(ValueError):
    """Bad input that the user can mend.

    The message states the rule that was broken, what was received, and how to mend it, in one
    paragraph without a traceback: ``Expected a .keras file. Received: 'a.h5'. Save with …``.
    """
