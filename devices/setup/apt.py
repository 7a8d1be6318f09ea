"""Unpacks packages of a Debian suite and architecture into a folder, without privileges.

`apt-get` resolves, verifies and downloads, with its own state folder, from the mirror in this
machine's configuration; `dpkg-deb` unpacks. Nothing is installed and no downloaded code is
executed.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..base import DeviceError
from ..process import Finished, run
from .cache import Progress, folder_size, megabytes

_DEBIAN_KEYS = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
_OTHER_SOURCE = (
    "Give a Debian mirror: `renormlite device setup … --source URI`, with Debian's keys from the "
    "package debian-archive-keyring"
)


@dataclass(frozen=True)
class Mirror:
    """Where packages come from: a URI and, where the entry names them, the keys that sign it."""

    uri: str
    signed_by: str | None = None


def require_apt() -> None:
    """Check that apt-get and dpkg-deb are installed.

    Raises:
        DeviceError: One is missing.
    """
    for program in ("apt-get", "dpkg-deb"):
        if shutil.which(program) is None:
            raise DeviceError(
                f"Building an ARM system needs '{program}', which this machine lacks: use a Debian "
                "or Ubuntu machine, or install the packages apt and dpkg, which most "
                "distributions have, and give a mirror with --source."
            )


def mirrors(source: str | None = None) -> list[Mirror]:
    """Return the mirrors to try, from ``source`` or else from this machine's own apt configuration.

    They include security and third-party archives; reading their indexes shows which has a suite.
    """
    keys = str(_DEBIAN_KEYS) if _DEBIAN_KEYS.is_file() else None
    if source is not None:
        return [Mirror(source, keys)]
    shell = run(
        [
            "apt-config",
            "shell",
            "LIST",
            "Dir::Etc::sourcelist/f",
            "PARTS",
            "Dir::Etc::sourceparts/d",
        ],
        timeout_s=30,
    ).out.decode()
    places = dict(re.findall(r"(\w+)='([^']*)'", shell))
    files = [Path(places.get("LIST", "/etc/apt/sources.list"))]
    files += sorted(Path(places.get("PARTS", "/etc/apt/sources.list.d")).glob("*"))
    found = [
        Mirror(mirror.uri, mirror.signed_by or keys)
        for file in files
        if file.is_file()
        for mirror in _entries(file)
    ]
    if not found:
        raise DeviceError(f"This machine's apt has no source configured. {_OTHER_SOURCE}.")
    # Main archives before security archives, each once, in the order of the configuration.
    return sorted(dict.fromkeys(found), key=lambda mirror: "security" in mirror.uri)


def _entries(file: Path) -> list[Mirror]:
    """Read one sources file, in either of the two formats of sources.list(5)."""
    text = file.read_text(encoding="utf-8", errors="replace")
    found = []
    if file.suffix == ".sources":
        for stanza in re.split(r"\n\s*\n", re.sub(r"(?m)^#.*\n?", "", text)):
            fields = {
                name.lower(): value.strip()
                for name, value in re.findall(r"(?m)^([\w-]+):(.*(?:\n[ \t].*)*)", stanza)
            }
            if "deb" in fields.get("types", "").split() and fields.get("enabled", "yes") != "no":
                for uri in fields.get("uris", "").split():
                    found.append(Mirror(uri, fields.get("signed-by")))
    elif file.suffix == ".list":
        for options, uri in re.findall(r"(?m)^\s*deb\s+(?:\[([^\]]*)\]\s+)?(\S+)", text):
            keys = re.search(r"signed-by=(\S+)", options or "")
            found.append(Mirror(uri, keys.group(1) if keys else None))
    return found


class Archive:
    """One suite for one architecture, with a private apt state in a folder.

    Args:
        folder: For apt's state and the downloaded packages; the caller removes it.
        suite: Such as `bookworm`.
        architecture: Debian's name of it, such as `arm64`.
    """

    def __init__(self, folder: Path, suite: str, architecture: str) -> None:
        self.folder = folder
        self.suite = suite
        self.architecture = architecture

    def open(self, candidates: Sequence[Mirror], progress: Progress) -> Mirror:
        """Read the suite's index from the first mirror that has it, and return that mirror.

        Raises:
            DeviceError: None of them has it.
        """
        for sub in ("lists/partial", "archives/partial", "none"):
            (self.folder / sub).mkdir(parents=True, exist_ok=True)
        (self.folder / "status").touch()
        self._configure()
        reasons = []
        for mirror in candidates:
            stanza = [
                "Types: deb",
                f"URIs: {mirror.uri}",
                f"Suites: {self.suite}",
                "Components: main",
                f"Architectures: {self.architecture}",
                *([f"Signed-By: {mirror.signed_by}"] if mirror.signed_by else []),
            ]
            (self.folder / "apt.sources").write_text("\n".join(stanza) + "\n", encoding="utf-8")
            update = self._apt("update", "--error-on=any")
            if update.code == 0:
                progress(f"{self.suite} for {self.architecture}: index read from {mirror.uri}")
                return mirror
            reasons.append(f"{mirror.uri}: {update.last_line}")
        raise DeviceError(
            f"No mirror of this machine's apt has {self.suite} for {self.architecture} "
            f"({'; '.join(reasons)}). {_OTHER_SOURCE}."
        )

    def unpack(self, packages: Sequence[str], root: Path, progress: Progress) -> list[str]:
        """Download packages with their dependencies and unpack them into ``root``.

        Returns:
            The packages as `NAME_VERSION_ARCHITECTURE`.

        Raises:
            DeviceError: A package is missing, or the disk is full.
        """
        self._checked("install", "--download-only", "--yes", *packages)
        files = self._downloaded(progress)
        for file in files:
            result = run(["dpkg-deb", "--extract", str(file), str(root)], timeout_s=300)
            if result.code != 0:
                raise DeviceError(f"{file.name} could not be unpacked: {result.last_line}")
        return [file.stem for file in files]

    def download(self, package: str, progress: Progress) -> Path:
        """Download one package without its dependencies and return its file."""
        self._checked("download", package)
        (file,) = self._downloaded(progress)
        return file

    def _checked(self, *arguments: str) -> None:
        result = self._apt(*arguments)
        if result.code != 0:
            raise DeviceError(
                f"apt-get could not get packages of {self.suite} for {self.architecture}: "
                f"{result.last_line}"
            )

    def _downloaded(self, progress: Progress) -> list[Path]:
        archives = self.folder / "archives"
        files = sorted(archives.glob("*.deb"))
        progress(
            f"{self.suite} for {self.architecture}: {len(files)} packages, "
            f"{megabytes(folder_size(archives))} downloaded"
        )
        return files

    def _apt(self, *arguments: str) -> Finished:
        return run(
            ["apt-get", "--quiet", "-c", str(self.folder / "apt.conf"), *arguments],
            timeout_s=900,
            cwd=self.folder / "archives",
        )

    def _configure(self) -> None:
        """Write the configuration that apt reads after the machine's own (proxies, logins)."""
        folder = self.folder
        settings = {
            "Dir::State": folder,
            "Dir::State::status": folder / "status",
            "Dir::Cache": folder,
            "Dir::Etc::sourcelist": folder / "apt.sources",
            "Dir::Etc::sourceparts": folder / "none",
            "Dir::Etc::preferences": folder / "none",
            "Dir::Etc::preferencesparts": folder / "none",
            "APT::Architecture": self.architecture,
            "APT::Install-Recommends": "false",
            "APT::Sandbox::User": "",  # only the caller uses the folder
            "Acquire::Languages": "none",
            "Acquire::Retries": "3",
            "Debug::NoLocking": "true",
        }
        lines = [f'{key} "{value}";' for key, value in settings.items()]
        # Hooks are meant for the machine's own state.
        hooks = ("APT::Update::Pre-Invoke", "APT::Update::Post-Invoke", "DPkg::Post-Invoke")
        lines += [f"#clear {name};" for name in (*hooks, "APT::Architectures")]
        lines.append(f'APT::Architectures {{ "{self.architecture}"; }};')
        (folder / "apt.conf").write_text("\n".join(lines) + "\n", encoding="utf-8")


def extract(package: Path, names: Sequence[str], folder: Path) -> None:
    """Extract a few files of a package into a folder, reading only as much of it as needed.

    Args:
        package: The `.deb` file.
        names: Paths in the package, such as `usr/bin/qemu-arm`.
        folder: Receives each under its base name.

    Raises:
        DeviceError: One of them is not in the package, or the disk is full.
    """
    wanted = set(names)
    command = ["dpkg-deb", "--fsys-tarfile", str(package)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True
    ) as unpacking:
        try:
            with tarfile.open(fileobj=unpacking.stdout, mode="r|") as archive:
                for entry in archive:
                    name = entry.name.removeprefix("./")
                    if name in wanted:
                        entry.name = Path(name).name
                        archive.extract(entry, folder, filter="data")
                        wanted.remove(name)
                    if not wanted:
                        return
        except (tarfile.TarError, OSError) as error:
            raise DeviceError(f"{package.name} could not be unpacked: {error}") from error
        finally:
            unpacking.kill()
    raise DeviceError(f"{package.name} lacks {', '.join(sorted(wanted))}.")
