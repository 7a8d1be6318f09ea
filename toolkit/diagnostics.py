"""Monitors batch renormalization during training: clipping, and the gap to inference.

`RenormDiagnostics` is a Keras callback; `observed` computes its values for each norm, and
`plot_diagnostics` draws them.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import math
import os
import warnings
from collections.abc import Iterable, Sequence
from typing import Any

import keras
import numpy as np

from ..errors import UserError
from .observed import (
    Observable,
    Reading,
    ScheduleReader,
    State,
    closed_share,
    observable,
    observe_step,
)
from .rebuild import layers_within

# Share of a run with closed bounds above which there is a warning; the paper's schedule has 0.04.
_MOST_CLOSED = 0.5


class RenormDiagnostics(keras.callbacks.Callback):
    """Keras callback that reports for each norm what is clipped and how large the gap is.

    For every `BatchRenormalization`, `LearnedRenormalization` and Keras `BatchNormalization` of the
    model it computes, from the change of the norm's statistics in one step, the share of channels
    whose r or d was clipped, the size of the difference between training and inference, and the
    bounds that 99 % of the channels would have stayed within. Plain batch normalization counts as
    r_max = 1 and d_max = 0: use the callback before `to_renorm` to see what a conversion would
    improve.

    The model is not modified, and the callback does nothing between the steps that it observes.

    The logs of every epoch get the means over the observed steps: ``renorm_r_clipped`` and
    ``renorm_d_clipped``, the shares of all channels of the network, and ``renorm_gap``, as root
    mean square over all channels. They appear in the progress bar, in `History`, in `CSVLogger`,
    and in Keras' `TensorBoard` callback if that comes later in the list of callbacks.

    With ``steps_per_execution`` above 1 a reading describes the average batch of one execution;
    likewise for a layer that is called more than once per step. Under a `tf.distribute` strategy
    without synchronized statistics it describes the average over the replicas. Averages are
    clipped less often.

    When training starts it warns of norms whose schedules keep r_max and d_max at those of batch
    normalization for more than half of the run.

    Args:
        every: Observe every N-th step of an epoch, starting with the first.
        per_layer: Whether the logs get each norm's numbers too, as ``NORM/r_clipped``,
            ``NORM/d_clipped`` and ``NORM/gap``. A large network fills the progress bar.
        log_dir: Folder for TensorBoard; each norm gets a curve for each value, with a point for
            each observed step. None writes nothing.

    Attributes:
        readings: All readings so far, `Reading` by `Reading`, in the order of steps and norms.
        left_out: Norms that cannot be observed, with the reason: frozen ones, those whose momentum
            is 1, and those with ghost batches, which have several r and d per step.

    Raises:
        UserError: When training starts, for a model without a norm that can be observed.

    Examples:
        >>> watch = RenormDiagnostics()
        >>> model.fit(x, y, callbacks=[watch])
        >>> plot_diagnostics(watch.readings, "diagnostics.png")
    """

    def __init__(
        self,
        every: int = 50,
        *,
        per_layer: bool = False,
        log_dir: str | os.PathLike[str] | None = None,
    ) -> None:
        super().__init__()
        if every < 1:
            raise UserError(f"Expected every to be at least 1. Received: {every}.")
        self.every = every
        self.per_layer = per_layer
        self.readings: list[Reading] = []
        self.left_out: dict[str, str] = {}
        self._board = None if log_dir is None else _Board(log_dir)
        self._norms: dict[str, Observable] = {}
        self._before: dict[str, State] = {}
        self._first_batch = 0
        self._steps = 0
        self._epoch_starts = 0
        self._unchecked = False

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Find the norms."""
        self._norms, self.left_out = {}, {}
        self._unchecked = True
        bound = ScheduleReader()
        for name, layer in _named(layers_within(self.model)):
            found = observable(layer, bound)
            if found is not None and not layer.trainable:
                found = "it is frozen, so it runs in inference mode"
            if isinstance(found, str):
                self.left_out[name] = found
            elif found is not None:
                self._norms[name] = found
        if not self._norms:
            why = "".join(f" {name}: {reason}." for name, reason in self.left_out.items())
            raise UserError(f"{self.model.name} has no norm that can be observed.{why}")

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Remember where the epoch's readings start; in the first one, look at the schedules."""
        self._epoch_starts = len(self.readings)
        params = self.params or {}
        if self._unchecked and params.get("steps") and params.get("epochs"):
            self._warn_of_closed_bounds((params["epochs"] - epoch) * params["steps"])

    def on_train_batch_begin(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Read the statistics before an observed step."""
        self._first_batch = batch
        self._before = {}
        if -batch % self.every >= self._executed_at_once():
            return
        self._hand_over_state()
        self._before = {name: norm.read() for name, norm in self._norms.items()}

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Compute the readings of the step."""
        # Of several steps executed at once, the epoch's last batches may have been fewer.
        in_epoch = (self.params or {}).get("steps") or batch + 1
        steps = min(batch, in_epoch - 1) - self._first_batch + 1
        if self._before:
            self._hand_over_state()
            new = [
                observe_step(self._steps, name, norm, self._before[name], norm.read(), moves=steps)
                for name, norm in self._norms.items()
            ]
            loss = float((logs or {}).get("loss", math.nan))
            new = [dataclasses.replace(reading, loss=loss) for reading in new]
            self.readings += new
            if self._board is not None:
                self._board.write(new)
        self._steps += steps

    def _hand_over_state(self) -> None:
        """On JAX, reading this makes the compiled step write its state back to the layers."""
        _ = self.model

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Add the epoch's means to the logs, for the callbacks that follow."""
        new = self.readings[self._epoch_starts :]
        if logs is None or not new:
            return
        logs.update({f"renorm_{key}": value for key, value in _means(new).items()})
        if self.per_layer:
            for name in self._norms:
                of_layer = [reading for reading in new if reading.layer == name]
                logs.update({f"{name}/{key}": value for key, value in _means(of_layer).items()})

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        """Close the TensorBoard writer."""
        if self._board is not None:
            self._board.flush()

    def _warn_of_closed_bounds(self, steps: int) -> None:
        """Warn of norms whose bounds stay closed in a run of ``steps`` steps."""
        self._unchecked = False
        bound = ScheduleReader()
        shares = {
            name: share
            for name, layer in _named(layers_within(self.model))
            if (share := closed_share(layer, steps, bound)) > _MOST_CLOSED
        }
        if not shares:
            return
        first, *others = shares
        norms = first if not others else f"{first} and {len(others)} more"
        warnings.warn(
            f"{norms} will train as batch normalization for {max(shares.values()):.0%} of this run "
            f"of {steps} steps: r_max is 1 and d_max is 0. Use the default bounds, 'settling', or "
            "fit the schedule to the run with rl.paper_schedule(total_steps).",
            stacklevel=2,
        )

    def _executed_at_once(self) -> int:
        return int(getattr(self._model, "steps_per_execution", None) or 1)


def _means(readings: Sequence[Reading]) -> dict[str, float]:
    """Return the means over channels; the gap as root mean square."""
    if not readings:
        return {}
    channels = np.array([reading.channels for reading in readings], np.float64)
    share = channels / channels.sum()
    return {
        "r_clipped": float(share @ [reading.r_clipped for reading in readings]),
        "d_clipped": float(share @ [reading.d_clipped for reading in readings]),
        "gap": float(np.sqrt(share @ [reading.gap**2 for reading in readings])),
    }


def _named(layers: Iterable[keras.layers.Layer]) -> list[tuple[str, keras.layers.Layer]]:
    """Return layers with names that are unique, also where nested models repeat one."""
    taken: dict[str, int] = {}
    named = []
    for layer in layers:
        count = taken[layer.name] = taken.get(layer.name, 0) + 1
        named.append((layer.name if count == 1 else f"{layer.name}_{count}", layer))
    return named


class _Board:
    """Writes readings where TensorBoard finds them."""

    def __init__(self, log_dir: str | os.PathLike[str]) -> None:
        if not importlib.util.find_spec("tensorboard"):
            raise UserError(
                "Writing for TensorBoard needs TensorBoard: pip install 'renormlite[tensorboard]'."
            )
        import tensorflow as tf

        self._summary = tf.summary
        self._writer = tf.summary.create_file_writer(os.fspath(log_dir))

    def write(self, readings: Iterable[Reading]) -> None:
        """Write a point for each number; TensorBoard groups the curves by what they show."""
        with self._writer.as_default():
            for reading in readings:
                curves = {
                    "r clipped": reading.r_clipped,
                    "d clipped": reading.d_clipped,
                    "gap": reading.gap,
                    "r 99 %": reading.r_99,
                    "d 99 %": reading.d_99,
                }
                for what, value in curves.items():
                    name = f"renorm {what}/{reading.layer}"
                    self._summary.scalar(name, value, step=reading.step)

    def flush(self) -> None:
        """Write out what is buffered."""
        self._writer.flush()
