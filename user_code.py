"""Imports modules of the user's own, from the current folder too."""

from __future__ import annotations

import importlib
import os
import sys
from types import ModuleType

from .errors import UserError


def import_user_module(name: str) -> ModuleType:
    """Import a module by its name, looking in the current folder first.

    Its code runs with everything that this process may do.

    Args:
        name: As in an `import` statement.

    Raises:
        UserError: There is no such module, or it cannot be imported.
    """
    folder = os.getcwd()
    sys.path.insert(0, folder)
    try:
        return importlib.import_module(name)
    except Exception as error:  # whatever the user's own code raises is the reason to report
        raise UserError(
            f"The module {name!r} cannot be imported ({type(error).__name__}: {error}). Name it "
            f"as in an import statement; modules of the folder {folder} are found."
        ) from error
    finally:
        sys.path.remove(folder)
