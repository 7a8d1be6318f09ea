"""Build a web page on which the exported digits network recognizes drawn digits.

python examples/live_page/build.py build/live
python -m http.server --directory build/live

The page runs the float32 and the int8 file in ONNX Runtime Web and shows the results of the checks.
It consists of static files, so any web server can serve it. npm downloads the web runtime once.
"""

import argparse
import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import renormlite as rl
from renormlite.devices.setup import web_packages
from renormlite.models import digits
from renormlite.models.data import Split, handwritten_digits

HERE = Path(__file__).parent
PAGE = ("index.html", "page.mjs", "drawing.mjs", "style.css")
PRECISIONS = ("float32", "int8")


def test_digits(test: Split) -> list[dict]:
    """Return the first test image of each class: its label, and 64 levels from 0 to 16."""
    first = [int(np.flatnonzero(test.y == label)[0]) for label in range(10)]
    return [
        {"label": int(test.y[i]), "levels": np.rint(test.x[i].ravel() * 16).astype(int).tolist()}
        for i in first
    ]


def verdict(report: rl.ParityReport) -> dict:
    """Return the results of the checks for the page: the verdict, and figures of each file."""
    files = []
    for result in report.results:
        (task,), (quality,) = result.tasks, result.qualities
        files.append(
            {
                "file": result.artifact,
                "precision": result.precision,
                "target": result.target,
                "passed": result.passed,
                "snr_db": round(float(quality.snr_db), 1),
                "accuracy": round(100 * task.right_after / task.labelled, 1),
                "trained_accuracy": round(100 * task.right_before / task.labelled, 1),
            }
        )
    return {"passed": report.passed, "samples": report.samples, "files": files}


def build(folder: Path, targets: Sequence[str], epochs: int = digits.EPOCHS) -> rl.ParityReport:
    """Train, export, check, and write the page with its files.

    Args:
        folder: Where the page is written.
        targets: Where to check the files before they are shown.
        epochs: Passes over the training images.

    Raises:
        UserError: The web runtime cannot be fetched, or a target cannot be used.
    """
    web_packages.build(progress=print)
    data = handwritten_digits()
    rl.export_model(
        digits.train(epochs=epochs).model,
        folder / "digits",
        formats=("onnx",),
        precisions=PRECISIONS,
        calibration=data.train.x,
        inputs=data.test.x[:32],
    )
    inputs = {"image": data.test.x, "label": data.test.y}
    report = rl.check_parity(folder / "digits", targets, inputs)
    for name in PAGE:
        shutil.copyfile(HERE / name, folder / name)
    shutil.copytree(
        web_packages.PACKAGES.path / "packages" / "onnxruntime-web" / "dist",
        folder / "runtime",
        dirs_exist_ok=True,
    )
    (folder / "report.html").write_text(report.to_html(), encoding="utf-8")
    shown = {"verdict": verdict(report), "digits": test_digits(data.test)}
    (folder / "page.json").write_text(json.dumps(shown), encoding="utf-8")
    return report


def main() -> None:
    """Build the page, and print the command that serves it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, nargs="?", default=Path("build/live"))
    parser.add_argument("--on", default="onnxruntime", help="comma-separated targets to check on")
    parser.add_argument("--epochs", type=int, default=digits.EPOCHS)
    options = parser.parse_args()
    try:
        report = build(options.folder, options.on.split(","), options.epochs)
    except rl.UserError as error:
        parser.exit(2, f"{error}\n")
    print("passed" if report.passed else "FAILED")
    print(f"python -m http.server --directory {options.folder}")


if __name__ == "__main__":
    main()
