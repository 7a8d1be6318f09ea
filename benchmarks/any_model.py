"""Models of every kind in every format and precision, checked on every runtime that is installed.

The models are those of `tests/any_models.py`. Prints one line for each file: `pass`; `refused` with
the sentence of the export; `not run` with the sentence of the check; `lossy` if the quality of the
file is too low; `fail` if the check found it wrong; or `traceback`.

    python benchmarks/any_model.py [--precision float32,int8] [MODEL ...]
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import traceback
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import keras
import renormlite as rl
from renormlite.export.formats.format_table import precisions_of

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from any_models import MODELS, Case, settle
from outcomes import outcome_of

TARGETS = {"tflite": ("litert", "litert+reference"), "onnx": ("onnxruntime", "openvino")}


def outcomes(model: keras.Model, entry: Case, precision: str) -> Iterator[tuple[str, str, str]]:
    """Yield the format, the outcome and a sentence for each file of a model."""
    for name, targets in TARGETS.items():
        if precision not in precisions_of(name):
            continue
        with tempfile.TemporaryDirectory() as folder:
            try:
                yield name, *outcome(model, entry, precision, name, targets, Path(folder, "net"))
            except Exception:
                yield name, "traceback", traceback.format_exc()


def outcome(
    model: keras.Model,
    entry: Case,
    precision: str,
    file_format: str,
    targets: tuple[str, ...],
    folder: Path,
) -> tuple[str, str]:
    """Export a model to one file and check it; return the outcome and a sentence."""
    try:
        rl.export_model(
            model,
            folder,
            formats=(file_format,),
            precisions=(precision,),
            calibration="random",
            shapes=entry.shapes,
        )
    except rl.UserError as error:
        return "refused", str(error)
    try:
        report = rl.check_parity(folder, targets=targets)
    except rl.UserError as error:
        return "not run", str(error)
    failed = [f for result in report.results for f in result.findings if not f.passed]
    return outcome_of({f.check for f in failed}), " || ".join(f.message for f in failed)


def chosen(names: list[str]) -> Iterator[tuple[str, Case]]:
    """Yield the models with the given names."""
    for name in names or [n for n, entry in MODELS.items() if entry.refusal is None]:
        yield name, MODELS[name]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="*", metavar="MODEL")
    parser.add_argument("--precision", default="float32,float16,dynamic,int8,int16x8,int4")
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    count: Counter[str] = Counter()
    for name, entry in chosen(arguments.models):
        for precision in arguments.precision.split(","):
            keras.utils.set_random_seed(1)
            model = settle(entry.build())
            for file_format, kind, sentence in outcomes(model, entry, precision):
                count[kind] += 1
                print(f"{kind:9} {name} {file_format} {precision} {sentence}", flush=True)
    print(", ".join(f"{number} {kind}" for kind, number in sorted(count.items())))


if __name__ == "__main__":
    main()
