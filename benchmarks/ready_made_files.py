"""Compares trained files of published packages: one format with the other, without Keras.

    python benchmarks/ready_made_files.py [basic-pitch mediapipe]

Packages are downloaded by name and unpacked into a temporary folder, not installed; only their
model files are run. Prints one line for each comparison.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import renormlite as rl

# Requirement to (file, other file, targets). mediapipe's later versions hold no files.
PACKAGES: dict[str, tuple[str, list[tuple[str, str, list[str]]]]] = {
    "basic-pitch": (
        "basic-pitch==0.4.0",
        [("nmp.tflite", "nmp.onnx", ["litert", "onnxruntime"])],
    ),
    "mediapipe": (
        "mediapipe==0.10.14",
        [
            (name, name, ["litert", "litert+reference"])
            for name in ("face_detection_short_range.tflite", "hand_recrop.tflite")
        ],
    ),
}


def unpack(requirement: str, folder: Path) -> None:
    """Download a package's wheel and unpack it."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest"]
    subprocess.run([*command, str(folder), requirement], check=True)
    for wheel in folder.glob("*.whl"):
        zipfile.ZipFile(wheel).extractall(folder)


def main() -> None:
    """Compare the files of the given packages."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("packages", nargs="*", default=list(PACKAGES), metavar="PACKAGE")
    for package in parser.parse_args().packages:
        requirement, comparisons = PACKAGES[package]
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            unpack(requirement, folder)
            for names in comparisons:
                a, b = (next(folder.rglob(name)) for name in names[:2])
                try:
                    report = rl.compare_files(a, b, targets=names[2])
                except rl.UserError as error:
                    print(f"{package}: {a.name} and {b.name}: {error}", flush=True)
                    continue
                verdict = "pass" if report.passed else "FAIL"
                print(f"{package}: {a.name} and {b.name}: {verdict}", flush=True)
                for line in report.differences:
                    print(f"  {line}", flush=True)


if __name__ == "__main__":
    main()
