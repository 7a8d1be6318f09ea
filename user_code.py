"""Imports modules of the user, including those in the current folder."""

from __future__ import annotations

import importlib
import os
import sys
from types import ModuleType

from .errors import UserError


def import_user_module(name: str) -> ModuleType:
    """Import a module by its name, looking in the current folder first.

    The code of the module runs with all permissions of this process.

    Args:
        name: Name of the module, as in an `import` statement.

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
            f"as in an import statement; the folder {folder} is searched first."
        ) from error
    finally:
        sys.path.remove(folder)
