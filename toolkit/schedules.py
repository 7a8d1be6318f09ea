"""Bounds r_max and d_max as functions of the training step.

A schedule is any callable from the step (a scalar integer tensor) to a scalar, evaluated inside the
compiled step: a moving schedule never retraces. The classes here are Keras-serializable; so is a
user's function registered with `keras.saving.register_keras_serializable`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Literal, Protocol

import keras
from keras import ops

from ..errors import UserError
from .renorm import Tensor

# Updates of the paper's run of Inception-v3, for which its schedule is given (section 4.1).
PAPER_RUN_STEPS = 130_000


class Schedule(Protocol):
    """A bound as a function of the step."""

    def __call__(self, step: Tensor) -> Tensor:
        """Return the bound for a step (scalar integer tensor, 0 in the first step)."""
        ...


ScheduleLike = (
    float | int | Schedule | Callable[[Tensor], Tensor] | Literal["settling", "paper"] | None
)

BoundName = Literal["r_max", "d_max"]
_LEAST: dict[BoundName, float] = {"r_max": 1.0, "d_max": 0.0}  # those of batch normalization


@keras.saving.register_keras_serializable(package="renormlite")
class Constant:
    """The same bound at every step.

    Args:
        value: The bound; ``None`` means none.
    """

    def __init__(self, value: float | None) -> None:
        self.value = None if value is None or value == float("inf") else float(value)

    def __call__(self, step: Tensor) -> Tensor:
        """Return the bound as a float32 scalar; infinity where there is none."""
        return ops.convert_to_tensor(self.minimum, "float32")

    @property
    def minimum(self) -> float:
        """The smallest bound of this schedule."""
        return float("inf") if self.value is None else self.value

    def get_config(self) -> dict[str, Any]:
        """Return the constructor's arguments."""
        return {"value": self.value}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Constant:
        """Return the schedule `get_config` describes."""
        return cls(**config)

    def __repr__(self) -> str:
        return f"Constant({self.value})"


@keras.saving.register_keras_serializable(package="renormlite")
class LinearRamp:
    """A bound that changes linearly from one value to another between two steps.

    Args:
        start_value: Bound up to and including ``start_step``.
        end_value: Bound from ``end_step`` on.
        start_step: Last step of the first value.
        end_step: First step of the second value, above ``start_step``.

    Examples:
        >>> import renormlite as rl
        >>> ramp = rl.LinearRamp(1.0, 3.0, start_step=5_000, end_step=40_000)
        >>> float(ramp(22_500))
        2.0
    """

    def __init__(
        self, start_value: float, end_value: float, start_step: int, end_step: int
    ) -> None:
        if not 0 <= start_step < end_step:
            raise UserError(
                "Expected 0 <= start_step < end_step. "
                f"Received: start_step={start_step}, end_step={end_step}."
            )
        self.start_value = float(start_value)
        self.end_value = float(end_value)
        self.start_step = int(start_step)
        self.end_step = int(end_step)

    def __call__(self, step: Tensor) -> Tensor:
        """Return the bound at ``step`` as a float32 scalar, exact at both ends."""
        # Integers are subtracted before the cast: float32 cannot hold every step above 2**24.
        passed = ops.cast(step - self.start_step, "float32")
        share = ops.clip(passed / (self.end_step - self.start_step), 0.0, 1.0)
        return self.start_value + (self.end_value - self.start_value) * share

    @property
    def minimum(self) -> float:
        """The smallest bound of this schedule."""
        return min(self.start_value, self.end_value)

    def scaled(self, factor: float) -> LinearRamp:
        """Return the same ramp with its steps multiplied by ``factor`` (> 0), rounded."""
        if factor <= 0:
            raise UserError(f"Expected a factor above 0. Received: {factor}.")
        start = round(self.start_step * factor)
        return LinearRamp(
            self.start_value,
            self.end_value,
            start,
            max(start + 1, round(self.end_step * factor)),
        )

    def get_config(self) -> dict[str, Any]:
        """Return the constructor's arguments."""
        return {
            "start_value": self.start_value,
            "end_value": self.end_value,
            "start_step": self.start_step,
            "end_step": self.end_step,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> LinearRamp:
        """Return the schedule `get_config` describes."""
        return cls(**config)

    def __repr__(self) -> str:
        return (
            f"LinearRamp({self.start_value} -> {self.end_value}, "
            f"steps {self.start_step} -> {self.end_step})"
        )


@keras.saving.register_keras_serializable(package="renormlite")
class Settling:
    """A bound that grows by one with each batch in the moving statistics.

        bound = start_value + step

    It suits statistics that start as the mean over all batches so far, the default (``warm_up``).
    The first step is batch normalization, since the statistics hold no batch yet; after a dozen
    batches there is no limit in practice. Neither the momentum nor the length of the run enters.

    Args:
        start_value: Bound in the first step: 1 for r_max, 0 for d_max.

    Examples:
        >>> import renormlite as rl
        >>> r_max = rl.Settling(1.0)
        >>> [float(r_max(step)) for step in (0, 1, 100)]
        [1.0, 2.0, 101.0]
    """

    def __init__(self, start_value: float) -> None:
        self.start_value = float(start_value)

    def __call__(self, step: Tensor) -> Tensor:
        """Return the bound at ``step`` as a float32 scalar."""
        return self.start_value + ops.cast(step, "float32")

    @property
    def minimum(self) -> float:
        """The smallest bound this schedule ever gives."""
        return self.start_value

    def get_config(self) -> dict[str, Any]:
        """Return the constructor's arguments."""
        return {"start_value": self.start_value}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Settling:
        """Return the schedule `get_config` describes."""
        return cls(**config)

    def __repr__(self) -> str:
        return f"Settling({self.start_value})"


PAPER_R_MAX = LinearRamp(1.0, 3.0, start_step=5_000, end_step=40_000)
PAPER_D_MAX = LinearRamp(0.0, 5.0, start_step=5_000, end_step=25_000)


def paper_schedule(total_steps: int = PAPER_RUN_STEPS) -> tuple[LinearRamp, LinearRamp]:
    """Return the paper's r_max and d_max, scaled to a run of ``total_steps`` updates.

    Batch normalization for the first 5k updates, then linear to r_max = 3 at 40k and d_max = 5 at
    25k, out of 130k (section 4.1). For a run of 1300 updates these become 50, 400 and 250.

    Args:
        total_steps: Updates the run will make: batches per epoch times epochs.

    Returns:
        ``(r_max, d_max)`` for `BatchRenormalization`.
    """
    factor = total_steps / PAPER_RUN_STEPS
    return PAPER_R_MAX.scaled(factor), PAPER_D_MAX.scaled(factor)


def as_schedule(bound: Any, name: BoundName) -> Schedule:
    """Return ``bound`` as a schedule, after checking it as far as possible.

    Args:
        bound: A number, ``None`` (no bound), a schedule, a callable, the serialized form of one, or
            the name of one: ``"settling"`` or ``"paper"``.
        name: ``"r_max"``, which is at least 1, or ``"d_max"``, which is at least 0.

    Raises:
        UserError: For a bound that is too small or is no schedule.
    """
    at_least = _LEAST[name]
    if isinstance(bound, dict):
        bound = keras.saving.deserialize_keras_object(bound)
    if bound == "settling":
        bound = _settling(at_least)
    elif bound == "paper":
        bound = {"r_max": PAPER_R_MAX, "d_max": PAPER_D_MAX}[name]
    elif bound is None or isinstance(bound, int | float):
        bound = Constant(bound)
    if not callable(bound):
        raise UserError(
            f"Expected {name} to be a number, None (no bound), 'settling', 'paper' or a callable "
            f"from the step to a number. Received: {bound!r}."
        )
    # `not >=` instead of `<` also catches NaN.
    known = isinstance(bound, Constant | LinearRamp | Settling)
    if known and not bound.minimum >= at_least:
        raise UserError(f"Expected {name} to be at least {at_least:g}. Received: {bound!r}.")
    return bound


@functools.cache
def _settling(start_value: float) -> Settling:
    """Return one schedule shared by all norms, so that `ScheduleReader` evaluates it once."""
    return Settling(start_value)
