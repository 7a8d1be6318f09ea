"""`renormlite train`: train a reference network on real data."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from ..models import RECIPES
from .choice import Choice
from .command import TensorFlowCommand
from .output_file import OutputFile, console_beside, json_option, write_json

if TYPE_CHECKING:
    import keras


@click.command(cls=TensorFlowCommand)
@click.argument("name", type=Choice(list(RECIPES)))
@click.option(
    "-o",
    "--output",
    type=OutputFile(".keras"),
    help="Where to save the model.  [default: build/NAME/NAME.keras]",
)
@click.option("--epochs", type=click.IntRange(min=1), help="Passes over the training data.")
@json_option("the accuracy and the file names")
@click.option(
    "--seed",
    type=int,
    default=0,
    show_default=True,
    help="Random seed of the initial weights and the order of samples.",
)
def command(
    name: str, output: Path | None, epochs: int | None, json_path: Path | None, seed: int
) -> None:
    """Train the reference network NAME on real data and print its test accuracy.

    \b
    Two files are written:
      NAME.keras          the trained model
      NAME.samples.npz    held-out real data, for calibration and checks

    The state after each epoch is in NAME.checkpoint.npz until the run is finished: after an
    interruption, the same command goes on from there and ends with the same weights.
    """
    output = output or Path("build", name, f"{name}.keras")
    checkpoint = output.with_suffix(".checkpoint.npz")
    console = console_beside(json_path)
    recipe = importlib.import_module(f"..models.{name}", __package__)
    epochs = recipe.EPOCHS if epochs is None else epochs
    with Progress(
        TextColumn(f"train {name}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("epochs  loss {task.fields[loss]}"),
        TimeRemainingColumn(),
        console=console,
    ) as progress:
        task = progress.add_task(name, total=epochs, loss="-")

        def advance(epoch: int, logs: dict[str, float]) -> None:
            progress.update(task, completed=epoch + 1, loss=f"{logs['loss']:.4f}")

        trained = recipe.train(
            epochs=epochs, seed=seed, callbacks=[_on_epoch_end(advance)], checkpoint=checkpoint
        )
    samples = trained.save(output)
    checkpoint.unlink(missing_ok=True)
    if trained.resumed:
        console.print(f"resumed after epoch {trained.resumed} of {epochs}")
    console.print(f"test accuracy {trained.accuracy:.4f} on {len(trained.test.y)} held-out samples")
    console.print(f"wrote {output} and {samples}", highlight=False, markup=False, soft_wrap=True)
    if json_path is not None:
        record = {
            "model": str(output),
            "samples": str(samples),
            "accuracy": float(trained.accuracy),
            "held_out": len(trained.test.y),
            "epochs": epochs,
            "seed": seed,
            "resumed": trained.resumed,
        }
        write_json(json_path, record)


def _on_epoch_end(call: object) -> keras.callbacks.Callback:
    import keras

    return keras.callbacks.LambdaCallback(on_epoch_end=call)
