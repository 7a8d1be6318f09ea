"""Models of every kind in every format and precision, checked on every runtime that is installed.

The models are those of `tests/any_models.py`, which the tests export to float32 only. Prints one
line for each file: whether the check passed, or the message of the refusal or failure.

    python benchmarks/any_model.py [--precision float32,int8] [--on TARGET,...] [MODEL ...]
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import keras
import renormlite as rl
from renormlite.export.formats.format_table import precisions_of

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from any_models import MODELS, Case, settle

TARGETS = "litert,litert+reference,onnxruntime,openvino"


def outcomes(
    model: keras.Model, entry: Case, precision: str, targets: list[str]
) -> Iterator[tuple[str, str]]:
    """Yield the outcome for each file of a model, `pass`, `fail` or `refused`, and a sentence."""
    formats = [name for name in ("tflite", "onnx") if precision in precisions_of(name)]
    for name in formats:
        with tempfile.TemporaryDirectory() as folder:
            try:
                rl.export_model(
                    model,
                    folder,
                    formats=(name,),
                    precisions=(precision,),
                    calibration="random",
                    shapes=entry.shapes,
                )
                report = rl.check_parity(folder, targets=targets)
            except rl.UserError as error:
                yield "refused", f"{name}: {error}"
                continue
            failed = [f for result in report.results for f in result.findings if not f.passed]
            yield (
                ("fail" if failed else "pass"),
                name + "".join(f": {f.message}" for f in failed[:1]),
            )


def chosen(names: list[str]) -> Iterator[tuple[str, Case]]:
    """Yield the models with the given names."""
    for name in names or [n for n, entry in MODELS.items() if entry.refusal is None]:
        yield name, MODELS[name]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="*", metavar="MODEL")
    parser.add_argument("--precision", default="float32,float16,dynamic,int8,int16x8,int4")
    parser.add_argument("--on", default=TARGETS)
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    count: Counter[str] = Counter()
    for name, entry in chosen(arguments.models):
        for precision in arguments.precision.split(","):
            keras.utils.set_random_seed(1)
            model = settle(entry.build())
            for outcome, sentence in outcomes(model, entry, precision, arguments.on.split(",")):
                count[outcome] += 1
                print(f"{outcome:8} {name} {precision} {sentence}", flush=True)
    print(", ".join(f"{number} {outcome}" for outcome, number in sorted(count.items())))


if __name__ == "__main__":
    main()
