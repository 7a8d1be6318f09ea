"""`renormlite export MODEL.keras`: fold, write every format and precision, and the golden set."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.console import Console
from rich.table import Table

from .command import TensorFlowCommand
from .preprocessing import preprocessing

if TYPE_CHECKING:
    from ..export.manifest import Manifest
    from ..export.progress import Progress

_TOLD = 0.5  # seconds; steps that take longer are listed with their time


@click.command("export", cls=TensorFlowCommand)
@click.argument("model", type=click.Path(path_type=Path), metavar="MODEL.keras")
@click.option(
    "-o",
    "--output",
    type=click.Path(file_okay=False, path_type=Path),
    help="Directory to write to.  [default: build/NAME]",
)
@click.option(
    "--to",
    default="tflite,onnx",
    show_default=True,
    metavar="FORMAT,…",
    help="tflite, onnx, saved_model.",
)
@click.option(
    "--precision",
    default="float32",
    show_default=True,
    metavar="PRECISION,…",
    help="float32, float16, dynamic, int8, int16x8, int4.",
)
@click.option(
    "--inputs",
    metavar="DATA",
    help="Real samples for the golden set: .npz by input name, .npy, a folder of images, or "
    "module:function.",
)
@click.option(
    "--calibration",
    metavar="DATA",
    help="Real samples that int8 takes its ranges from, as --inputs; `random` goes without and "
    "costs accuracy.  [default: those of --inputs]",
)
@click.option(
    "--calibration-samples", default=200, show_default=True, help="At most so many of them."
)
@click.option("--batch", default="1", show_default=True, help="Batch size, or `dynamic`.")
@click.option("--layout", default="nhwc", show_default=True, help="nhwc, or nchw (ONNX only).")
@click.option("--opset", default=17, show_default=True, help="ONNX operator set.")
@click.option(
    "--quantized-io",
    default="float",
    show_default=True,
    help="float, or integer: int8 TFLite files that take and give integers.",
)
@click.option(
    "--equalize",
    default="auto",
    show_default=True,
    help="Equalize ranges across layers before quantizing: auto (where it measures better), "
    "always, never.",
)
@click.option("--allow-flex", is_flag=True, help="Let TFLite files call TensorFlow operators.")
@click.option(
    "--labels",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Text file, one class a line; kept in the files.",
)
@click.option(
    "--mean",
    metavar="X[,X,X]",
    help="Pixels become (pixel - mean) * scale: kept in the files, applied to image folders.",
)
@click.option("--scale", metavar="X[,X,X]", help="See --mean.")
@click.option("--description", default="", help="One line about the model; kept in the files.")
def command(
    model: Path,
    output: Path | None,
    to: str,
    precision: str,
    inputs: str | None,
    calibration: str | None,
    calibration_samples: int,
    batch: str,
    layout: str,
    opset: int,
    quantized_io: str,
    equalize: str,
    allow_flex: bool,
    labels: Path | None,
    mean: str | None,
    scale: str | None,
    description: str,
) -> None:
    """Fold the norms of MODEL.keras and write it for the device, with what the checks need."""
    from ..export.exporter import export_model
    from ..toolkit.saving import load_model

    console = Console()
    trained = load_model(model)
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
            formats=_names(to),
            precisions=_names(precision),
            calibration=calibration,
            calibration_samples=calibration_samples,
            inputs=inputs,
            batch_size=_batch_size(batch),
            layout=layout,
            opset=opset,
            quantized_io=quantized_io,
            equalize=equalize,
            allow_flex=allow_flex,
            labels=labels.read_text(encoding="utf-8").splitlines() if labels else (),
            preprocessing=preprocessing(mean, scale),
            description=description,
            source=model,
            listener=show,
        )
    _print(console, manifest, directory)


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
    for artifact in manifest.artifacts:
        for note in artifact.notes:
            console.print(f"{artifact.file}: {note}", style="dim", highlight=False, soft_wrap=True)
    formats, precisions = manifest.options["formats"], manifest.options["precisions"]
    written = {(artifact.format, artifact.precision) for artifact in manifest.artifacts}
    for precision in precisions:
        for name in formats:
            if (name, precision) not in written:
                console.print(f"{name} has no {precision}: left out", style="yellow")
    if manifest.calibration and manifest.calibration["random"]:
        console.print(
            "Calibrated with random numbers: ranges do not fit real data, which costs accuracy.",
            style="yellow",
            soft_wrap=True,
        )


def _names(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())


def _batch_size(text: str) -> int | None:
    if text == "dynamic":
        return None
    if not text.isdigit() or int(text) < 1:
        raise click.BadParameter(f"expected a positive number or `dynamic`, got {text!r}.")
    return int(text)


def _size(count: int) -> str:
    size = float(count)
    for unit in ("B", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.2f} GiB"
