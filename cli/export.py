"""`renormlite export MODEL.keras`: fold the norms, write the files and the golden set."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ..artifacts.html_table import size_in_words
from ..export.formats.format_table import needs_calibration
from ..export.options import ExportOptions
from .command import TensorFlowCommand
from .dataclass_options import options_of
from .model_options import model_options, print_notes, read_model
from .option_groups import grouped
from .output_file import console_beside, json_option, write_json
from .preprocessing import Numbers, preprocessing, preprocessing_options
from .progress_bar import progress_bar
from .recipes import print_trials, read_recipe
from .samples_source import SamplesSource

if TYPE_CHECKING:
    from ..artifacts.manifest import Manifest
    from ..export.progress import Progress

_LISTED_S = 0.5  # seconds; longer steps are listed with their time

_files = grouped("Files")
_data = grouped("Samples")
_quant = grouped("Quantization")
_meta = grouped("About the model")


@click.command("export", cls=TensorFlowCommand)
@click.argument("model", type=click.Path(path_type=Path), metavar="MODEL.keras")
@model_options
@_files(
    "-o",
    "--output",
    type=click.Path(file_okay=False, path_type=Path),
    help="Directory to write to.  [default: build/NAME]",
)
@_data(
    "--inputs",
    type=SamplesSource(),
    metavar="DATA",
    help="Real samples for the golden set: an .npz file with an array for each input name, an .npy "
    "file, a folder of images, or module:function, which runs code from the current folder.  "
    "[default: those of --calibration]",
)
@_quant(
    "--calibration",
    type=SamplesSource(),
    metavar="DATA",
    help="Real samples that determine the ranges of int8 and int16x8 files, in any form that "
    "--inputs takes; `random` uses random numbers, which costs accuracy.  "
    "[default: those of --inputs]",
)
@_quant(
    "--recipe",
    "recipe_path",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    metavar="FILE.json",
    help="Quantize int8 and auto files by a recipe that an earlier search wrote.",
)
@_meta(
    "--labels",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Text file with one class name per line; stored in the files.",
)
@preprocessing_options(
    "Pixels become (pixel - mean) * scale; applied to folders of images and stored in the files."
)
@options_of(ExportOptions)
@json_option("the manifest")
def command(
    model: Path,
    output: Path | None,
    inputs: str | None,
    calibration: str | None,
    recipe_path: Path | None,
    labels: Path | None,
    mean: Numbers | None,
    scale: Numbers | None,
    shapes: tuple[tuple[str, tuple[int, ...]], ...],
    imports: tuple[str, ...],
    unsafe: bool,
    json_path: Path | None,
    **options: Any,
) -> None:
    """Fold the norms of MODEL.keras; write TFLite and ONNX files, and the data for their checks.

    \b
    renormlite export net.keras
    renormlite export net.keras --inputs samples.npz --precision float32,int8
    renormlite export net.keras --to tflite --precision int8 --quantized-io integer \\
        --calibration photos/ --mean 127.5 --scale 0.00784
    renormlite export net.keras --precision auto --calibration photos/ --budget 120KB
    renormlite export net.keras --to onnx --layout nchw --batch dynamic -o out/net
    """
    from ..artifacts.class_names import read_lines
    from ..export.exporter import export_model
    from ..export.partial import PartialExportError

    console = console_beside(json_path)
    trained = read_model(model, imports, unsafe)
    directory = output or Path("build", model.stem)
    written = ExportOptions(**options, preprocessing=preprocessing(mean, scale))
    subjects: list[str] = []
    with progress_bar(f"export {model.name}", console) as advance:

        def show(progress: Progress) -> None:
            if progress.subject not in subjects:
                subjects.append(progress.subject)
            # Besides the files: the model itself before them, the golden set after them.
            done, total = len(subjects) - 1, len(written.files) + 2
            advance(f"{progress.subject}: {progress.stage}", min(done, total), total)
            if progress.seconds is not None and progress.seconds >= _LISTED_S:
                line = f"{progress.subject}: {progress.stage} {progress.seconds:.1f} s"
                console.print(line, style="dim", highlight=False, markup=False)

        refusal = None
        try:
            manifest = export_model(
                trained,
                directory,
                calibration=calibration,
                inputs=inputs,
                labels=read_lines(labels) if labels else (),
                preprocessing=preprocessing(mean, scale),
                source=model,
                shapes=dict(shapes),
                listener=show,
                recipe=None if recipe_path is None else read_recipe(recipe_path),
                **options,
            )
        except PartialExportError as partial:
            manifest, refusal = partial.manifest, partial
    _print(console, manifest, directory)
    for name, precision in written.left_out:
        console.print(f"{name} does not support {precision}: not written", style="yellow")
    if calibration and not any(needs_calibration(name, p) for name, p in written.files):
        console.print("--calibration was not used: no file needs calibration", style="yellow")
    if json_path is not None:
        write_json(json_path, manifest.to_json())
    if refusal is not None:
        raise refusal


def _print(console: Console, manifest: Manifest, directory: Path) -> None:
    """Print a table of the files, and a line for every choice that the exporter made."""
    table = Table(title=escape(f"{manifest.name}: {directory}"))
    table.add_column("file", overflow="fold")
    for column in ("size", "ops", "SNR (dB)", "time"):
        table.add_column(column, justify="right")
    for artifact in manifest.artifacts:
        ratios = [ratio for ratio in artifact.snr_db.values() if ratio is not None]
        table.add_row(
            escape(artifact.file),
            size_in_words(artifact.bytes),
            str(sum(artifact.ops.values())),
            f"{min(ratios):.1f}" if ratios else "-",
            f"{artifact.seconds:.2f} s",
        )
    console.print(table)
    print_notes(console, manifest.notes)
    for artifact in manifest.artifacts:
        print_trials(console, directory / f"{artifact.file}.recipe.json")
    proof = manifest.fold["proof"]
    if proof is not None and not proof["passed"]:
        console.print(f"fold: {proof['sentence']}", style="yellow", highlight=False, markup=False)
    chosen = (manifest.calibration or {}).get("chosen", "all")
    if chosen != "all":
        console.print(f"calibration samples: {chosen}", style="dim", highlight=False, markup=False)
    random = manifest.calibration is not None and manifest.calibration["random"]
    style = "yellow" if random else "dim"
    for artifact in manifest.artifacts:
        for note in artifact.notes:
            console.print(
                f"{artifact.file}: {note}",
                style=style,
                highlight=False,
                markup=False,
                soft_wrap=True,
            )
