"""`renormlite export MODEL.keras`: fold, write every format and precision, and the golden set."""

from __future__ import annotations

from pathlib import Path

import click
from rich.console import Console
from rich.table import Table

from .command import TensorFlowCommand


@click.command("export", cls=TensorFlowCommand)
@click.argument("model", type=click.Path(path_type=Path), metavar="MODEL.keras")
@click.option(
    "-o",
    "--output",
    type=click.Path(file_okay=False, path_type=Path),
    help="Directory to write to.  [default: build/NAME]",
)
@click.option("--to", default="tflite,onnx", show_default=True, metavar="FORMAT,…")
@click.option("--precision", default="float32", show_default=True, metavar="PRECISION,…")
@click.option(
    "--inputs",
    type=click.Path(path_type=Path),
    help="Real samples for the golden set (.npz by input name, or .npy).",
)
@click.option(
    "--calibration", type=click.Path(path_type=Path), help="Samples to choose int8 ranges from."
)
@click.option("--batch", default="1", show_default=True, help="Batch size, or `dynamic`.")
@click.option("--opset", default=17, show_default=True, help="ONNX operator set.")
@click.option("--allow-flex", is_flag=True, help="Let TFLite files call TensorFlow operators.")
def command(
    model: Path,
    output: Path | None,
    to: str,
    precision: str,
    inputs: Path | None,
    calibration: Path | None,
    batch: str,
    opset: int,
    allow_flex: bool,
) -> None:
    """Fold the norms of MODEL.keras and write it for the device, with what the checks need."""
    console = Console()
    from ..toolkit.saving import load_model

    trained = load_model(model)
    from ..export.exporter import export_model
    from ..export.progress import Progress

    directory = output or Path("build", model.stem)
    with console.status(f"export {model.name}") as status:

        def show(progress: Progress) -> None:
            status.update(f"{progress.subject}: {progress.stage}")
            if progress.seconds is not None and progress.seconds >= 0.5:
                console.print(
                    f"{progress.subject}: {progress.stage} {progress.seconds:.1f} s",
                    style="dim",
                    highlight=False,
                )

        manifest = export_model(
            trained,
            directory,
            formats=_names(to),
            precisions=_names(precision),
            calibration=calibration,
            inputs=inputs,
            batch_size=_batch_size(batch),
            opset=opset,
            allow_flex=allow_flex,
            source=model,
            listener=show,
        )
    table = Table(title=f"{manifest.name}: {directory}")
    for column in ("file", "size", "ops", "SNR (dB)", "time"):
        table.add_column(column, justify="left" if column == "file" else "right")
    for artifact in manifest.artifacts:
        worst = min((v for v in artifact.snr_db.values() if v is not None), default=None)
        table.add_row(
            artifact.file,
            _size(artifact.bytes),
            str(sum(artifact.ops.values())),
            "-" if worst is None else f"{worst:.1f}",
            f"{artifact.seconds:.2f} s",
        )
    console.print(table)


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
