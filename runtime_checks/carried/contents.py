"""What a zip application carries beside its code, and how it comes back."""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

from ...errors import UserError

# SHA-256 of each entry by its name, and the folder of the entries that are no code.
HASHES = "carried.json"
FOLDER = "export"


def unpack(application: Path, folder: Path) -> None:
    """Check every carried byte against its SHA-256 and write what is no code into a folder.

    Raises:
        UserError: The application is damaged.
    """
    again = "Copy it again, or write it anew with `renormlite bundle`."
    try:
        with zipfile.ZipFile(application) as archive:
            carried: Mapping[str, str] = json.loads(archive.read(HASHES))
            for name, expected in carried.items():
                data = archive.read(name)
                if hashlib.sha256(data).hexdigest() != expected:
                    raise UserError(
                        f"{application} is damaged: {name} has another SHA-256. {again}"
                    )
                if name.startswith(f"{FOLDER}/"):
                    (folder / PurePosixPath(name).name).write_bytes(data)
    except (zipfile.BadZipFile, KeyError, ValueError, OSError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{application} is damaged ({error}). {again}") from error
