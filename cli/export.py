"""`renormlite export MODEL.keras`: fold, write every format and precision, and the golden set."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.console import Console
from rich.table import Table

from ..artifacts.precisions import PRECISIONS
from ..export.formats.format_table import FORMAT_NAMES, needs_calibration
from ..export.options import EQUALIZE, LAYOUTS, OPSETS, QUANTIZED_IO, ExportOptions
from .comma_list import CommaList
from .command import TensorFlowCommand
from .model_options import model_options, read_model, say_notes
from .option_groups import grouped
from .preprocessing import Channels, Numbers, preprocessing

if TYPE_CHECKING:
    from ..artifacts.manifest import Manifest
    from ..export.progress import Progress

_TOLD = 0.5  # seconds; steps that take longer are listed with their time


class _Batch(click.ParamType):
    """A batch size, or `dynamic`, which is None."""

    name = "N|dynamic"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> int | None:
        text = str(value)
        if text == "dynamic":
            return None
        if not text.isdigit() or int(text) < 1:
            self.fail(f"expected a positive number or `dynamic`, got {text!r}.")
        return int(text)


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
@_files(
    "--to",
    "formats",
    type=CommaList("format", FORMAT_NAMES),
    default=",".join(ExportOptions.formats),
    show_default=True,
    help=f"{', '.join(FORMAT_NAMES)}.",
)
@_files(
    "--precision",
    "precisions",
    type=CommaList("precision", tuple(PRECISIONS)),
    default=",".join(ExportOptions.precisions),
    show_default=True,
    help=f"{', '.join(PRECISIONS)}. A format leaves out what it lacks.",
)
@_data(
    "--inputs",
    metavar="DATA",
    help="Real samples for the golden set: .npz by input name, .npy, a folder of images, or "
    "module:function.  [default: those of --calibration, where it takes place]",
)
@_quant(
    "--calibration",
    metavar="DATA",
    help="Real samples that int8 and int16x8 take their ranges from, as --inputs; `random` goes "
    "without and costs accuracy.  [default: those of --inputs]",
)
@_quant(
    "--calibration-samples",
    type=click.IntRange(min=1),
    default=ExportOptions.calibration_samples,
    show_default=True,
    help="At most so many of them.",
)
@_files(
    "--batch",
    "batch_size",
    type=_Batch(),
    metavar="N|dynamic",
    default=str(ExportOptions.batch_size),
    show_default=True,
    help="Batch size.",
)
@_files(
    "--layout",
    type=click.Choice(LAYOUTS),
    default=ExportOptions.layout,
    show_default=True,
    help="Order of the axes of inputs and outputs; nchw is for ONNX only.",
)
@_files(
    "--opset",
    type=click.IntRange(OPSETS[0], OPSETS[-1]),
    default=ExportOptions.opset,
    show_default=True,
    help="ONNX operator set.",
)
@_quant(
    "--quantized-io",
    type=click.Choice(QUANTIZED_IO),
    default=ExportOptions.quantized_io,
    show_default=True,
    help="What int8 and int16x8 TFLite files take and give.",
)
@_quant(
    "--equalize",
    type=click.Choice(EQUALIZE),
    default=ExportOptions.equalize,
    show_default=True,
    help="Equalize ranges across layers before quantizing; auto: where it measures better.",
)
@_files("--allow-flex", is_flag=True, help="Let TFLite files call TensorFlow operators.")
@_meta(
    "--labels",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Text file, one class a line; kept in the files.",
)
@_meta(
    "--mean",
    type=Channels(),
    help="Pixels become (pixel - mean) * scale: kept in the files, applied to image folders.",
)
@_meta("--scale", type=Channels(), help="See --mean.")
@_meta("--description", default="", help="One line about the model; kept in the files.")
def command(
    model: Path,
    output: Path | None,
    formats: tuple[str, ...],
    precisions: tuple[str, ...],
    inputs: str | None,
    calibration: str | None,
    calibration_samples: int,
    batch_size: int | None,
    layout: str,
    opset: int,
    quantized_io: str,
    equalize: str,
    allow_flex: bool,
    labels: Path | None,
    mean: Numbers | None,
    scale: Numbers | None,
    description: str,
    shapes: tuple[tuple[str, tuple[int, ...]], ...],
    imports: tuple[str, ...],
    unsafe: bool,
) -> None:
    """Fold the norms of MODEL.keras and write it for the device, with what the checks need.

    \b
    renormlite export net.keras
    renormlite export net.keras --inputs samples.npz --precision float32,int8
    renormlite export net.keras --to tflite --precision int8 --quantized-io integer \\
        --calibration photos/ --mean 127.5 --scale 0.00784
    renormlite export net.keras --to onnx --layout nchw --batch dynamic -o out/net
    """
    from ..export.exporter import export_model

    console = Console()
    trained = read_model(model, imports, unsafe)
    directory = output or Path("build", model.stem)
    with console.status(f"export {model.name}") as status:

        def show(progress: Progress) -> None:
            status.update(f"{progress.subject}: {progress.stage}")
            if progress.seconds is not None and progress.seconds >= _TOLD:
                line = f"{progress.subject}: {progress.stage} {progress.seconds:.1f} s"
                console.print(line, style="dim", highlight=False)

        manifest = export_model(
            trained,
            directory,
            formats=formats,
            precisions=precisions,
            calibration=calibration,
            calibration_samples=calibration_samples,
            inputs=inputs,
            batch_size=batch_size,
            layout=layout,
            opset=opset,
            quantized_io=quantized_io,
            equalize=equalize,
            allow_flex=allow_flex,
            labels=labels.read_text(encoding="utf-8").splitlines() if labels else (),
            preprocessing=preprocessing(mean, scale),
            description=description,
            source=model,
            shapes=dict(shapes),
            listener=show,
        )
    _print(console, manifest, directory)
    if calibration and not any(needs_calibration(name, p) for name in formats for p in precisions):
        console.print("--calibration had no use: no file is int8 or int16x8", style="yellow")


def _print(console: Console, manifest: Manifest, directory: Path) -> None:
    """Print the closing table, and a line for every choice the exporter made."""
    table = Table(title=f"{manifest.name}: {directory}")
    table.add_column("file", overflow="fold")
    for column in ("size", "ops", "SNR (dB)", "time"):
        table.add_column(column, justify="right")
    for artifact in manifest.artifacts:
        ratios = [ratio for ratio in artifact.snr_db.values() if ratio is not None]
        table.add_row(
            artifact.file,
            _size(artifact.bytes),
            str(sum(artifact.ops.values())),
            f"{min(ratios):.1f}" if ratios else "-",
            f"{artifact.seconds:.2f} s",
        )
    console.print(table)
    say_notes(console, manifest.notes)
    proof = manifest.fold["proof"]
    if proof is not None and not proof["passed"]:
        console.print(f"fold: {proof['sentence']}", style="yellow", highlight=False)
    random = manifest.calibration is not None and manifest.calibration["random"]
    style = "yellow" if random else "dim"
    for artifact in manifest.artifacts:
        for note in artifact.notes:
            console.print(f"{artifact.file}: {note}", style=style, highlight=False, soft_wrap=True)
    formats, precisions = manifest.options["formats"], manifest.options["precisions"]
    written = {(artifact.format, artifact.precision) for artifact in manifest.artifacts}
    for precision in precisions:
        for name in formats:
            if (name, precision) not in written:
                console.print(f"{name} has no {precision}: left out", style="yellow")


def _size(count: int) -> str:
    size = float(count)
    for unit in ("B", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.2f} GiB"
