"""The web runtimes in the cache: fetched by npm without scripts; only served files are kept."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..base import DeviceError
from ..process import run
from . import pins
from .cache import Component, Progress, megabytes

_KEPT = {
    "@litertjs/core": ("package.json", "dist/index.js", "wasm/*"),
    "@litertjs/wasm-utils": ("package.json", "dist/index.js"),
    "onnxruntime-web": (
        "package.json",
        "dist/ort.wasm.min.mjs",
        "dist/ort-wasm-simd-threaded.mjs",
        "dist/ort-wasm-simd-threaded.wasm",
    ),
}
_WANTED = (
    f"@litertjs/core@{pins.LITERT_WEB}",
    f"@litertjs/wasm-utils@{pins.LITERT_WEB}",
    f"onnxruntime-web@{pins.ONNXRUNTIME_WEB}",
)
PACKAGES = Component(
    "browser",
    {"packages": list(_WANTED), "kept": {name: list(kept) for name, kept in _KEPT.items()}},
    needs_bytes=400_000_000,
)
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")


def find_browser(chosen: Path | None = None) -> Path | None:
    """Return the browser to start: the requested one, or the first known one on the PATH.

    Raises:
        DeviceError: The requested one does not exist.
    """
    if chosen is not None:
        found = shutil.which(str(chosen))
        if found is None:
            raise DeviceError(f"--browser must name a program. Received: '{chosen}'.")
        return Path(found)
    return next((Path(path) for name in BROWSERS if (path := shutil.which(name))), None)


def build(*, progress: Progress) -> None:
    """Fetch the web runtimes into the cache where they are missing.

    Raises:
        DeviceError: npm is missing or failed.
    """
    if PACKAGES.record() is None and shutil.which("npm") is None:
        raise DeviceError(
            "The web runtimes are fetched by npm, which is not installed. Install it: "
            "sudo apt install npm"
        )
    PACKAGES.make(lambda folder: _fetch(folder, progress), progress)


def _fetch(folder: Path, progress: Progress) -> Mapping[str, Any]:
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        npm = ["npm", "install", "--ignore-scripts", "--no-audit", "--no-fund", "--no-save"]
        result = run([*npm, "--prefix", scratch, *_WANTED], timeout_s=600, cwd=Path(scratch))
        if result.code != 0:
            raise DeviceError(f"npm could not get {', '.join(_WANTED)}: {result.last_line}")
        for name, patterns in _KEPT.items():
            source = Path(scratch) / "node_modules" / name
            files = [file for pattern in patterns for file in sorted(source.glob(pattern))]
            if len(files) < len(patterns):
                raise DeviceError(f"The package {name} lacks files that the browser needs.")
            for file in files:
                target = folder / "packages" / name / file.relative_to(source)
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(file, target)
            size = megabytes(sum(file.stat().st_size for file in files))
            progress(f"browser: {name}, {size}")
    return {"versions": {"litert-web": pins.LITERT_WEB, "onnxruntime-web": pins.ONNXRUNTIME_WEB}}
