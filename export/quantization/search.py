"""Searches for the recipe that repairs an int8 file: free changes first, then more bits.

Equalization, ranges, rounding of weights and biases cost neither bytes nor time and come first.
Each is kept only where it measures better on samples that took no part. Then the layers that cost
most are given 16 bits, and where that is not enough float: one, two, four, … of them, until the
file has recovered what it should or its budget is spent.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ...errors import UserError
from .budget import Budget
from .equalization import STRENGTHS
from .recipe import Recipe

_WORTH = 0.3  # dB on held-out samples; two halves of them disagree about less
_ENOUGH = 13.0  # dB: 95 % of the noise power is gone
_FINE = 50.0  # dB: 8 bits of output give no more
_MOST_MIXED = 8  # files with layers kept apart in one way
_MORE_BYTES = 1.1  # times the plain file's, without a budget


@dataclasses.dataclass(frozen=True)
class Trial:
    """One file that was made and measured.

    Attributes:
        recipe: How it was made.
        bytes: Its size.
        milliseconds: Median time of a sample on this machine, one thread.
        snr_db: Signal-to-noise ratio on held-out samples.
        decisions: Share of them that decide as the model does; None without outputs that decide.
        accuracy: Share of labelled ones that are right; None without labels.
    """

    recipe: Recipe
    bytes: int
    milliseconds: float
    snr_db: float
    decisions: float | None = None
    accuracy: float | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the JSON form."""
        return {**dataclasses.asdict(self), "recipe": self.recipe.to_json()}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Trial:
        """Read the JSON form, in which an infinite ratio is a word."""
        recipe, ratio = Recipe.from_json(data["recipe"]), float(data["snr_db"])
        return cls(**{**data, "recipe": recipe, "snr_db": ratio})


@dataclasses.dataclass(frozen=True)
class Found:
    """The outcome of a search.

    Attributes:
        chosen: The file that was chosen.
        trials: All files in the order they were tried, the plain int8 file first.
        sentence: What helped.
    """

    chosen: Trial
    trials: tuple[Trial, ...]
    sentence: str


@dataclasses.dataclass(frozen=True)
class Culprit:
    """A layer and what it costs.

    Attributes:
        layer: Its path.
        decibels: What the file would gain without its errors.
        why: The cause.
    """

    layer: str
    decibels: float
    why: str


class Search:
    """One search."""

    def __init__(
        self,
        attempt: Callable[[Recipe], Trial | None],
        culprits: Callable[[], Sequence[Culprit]],
        budget: Budget,
        *,
        wide: bool,
        base: Recipe,
    ) -> None:
        """Take what a search needs.

        Args:
            attempt: Makes and measures a file; None where a recipe cannot be made.
            culprits: Returns the layers of the best file so far, the dearest first.
            budget: Limits on the file's size, latency and noise.
            wide: Whether layers get 16 bits rather than float.
            base: The recipe to begin with, layers that the user keeps in it.
        """
        self._attempt, self._culprits = attempt, culprits
        self._budget, self._wide, self._base = budget, wide, base
        self._trials: list[Trial] = []
        self._gains: list[str] = []

    def run(self) -> Found:
        """Search.

        Raises:
            UserError: Not even the plain file can be made.
        """
        plain = self._tried(self._base)
        if plain is None:
            raise UserError("auto: the int8 file cannot be made. Export int8 for the reason.")
        best = self._step(
            plain,
            [{"equalize": strength} for strength in STRENGTHS],
            lambda r: f"equalizing channels (strength {r.equalize:g})",
        )
        best = self._step(
            best, [{"ranges": "percentile"}, {"ranges": "mse"}], lambda r: f"{r.ranges} ranges"
        )
        best = self._step(best, [{"rounding": "adaptive"}], lambda r: "adaptive rounding")
        best = self._step(best, [{"bias_correction": True}], lambda r: "bias correction")
        culprits: Sequence[Culprit] = ()
        if not self._enough(best, plain):
            culprits = self._culprits()
            for field in ("keep_int16", "keep_float") if self._wide else ("keep_float",):
                if not self._enough(best, plain):
                    best = self._mixed(field, best, plain, culprits)
        return Found(best, tuple(self._trials), self._sentence(best, plain, culprits))

    def _tried(self, recipe: Recipe) -> Trial | None:
        known = [trial for trial in self._trials if trial.recipe == recipe]
        if known:
            return known[0]
        trial = self._attempt(recipe)
        if trial is not None:
            self._trials.append(trial)
        return trial

    def _step(
        self,
        best: Trial,
        changes: Sequence[dict[str, Any]],
        said: Callable[[Recipe], str],
    ) -> Trial:
        """Try changes of the best recipe so far; keep the best of them where it is better."""
        found = [
            trial
            for change in changes
            if (trial := self._tried(dataclasses.replace(best.recipe, **change))) is not None
        ]
        better = max(found, key=lambda trial: trial.snr_db, default=best)
        if better.snr_db < best.snr_db + _WORTH or not self._affordable(better):
            return best
        self._gains.append(f"{said(better.recipe)} gave {better.snr_db - best.snr_db:.1f} dB")
        return better

    def _mixed(self, field: str, best: Trial, plain: Trial, culprits: Sequence[Culprit]) -> Trial:
        """Keep the dearest layers apart, twice as many each time."""
        start, count = best, 1
        layers = [c.layer for c in culprits if c.layer not in best.recipe.keep_float]
        tried: list[Trial] = []
        for _ in range(_MOST_MIXED):
            if not layers:
                break
            count = min(count, len(layers))
            kept = (*getattr(start.recipe, field), *layers[:count])
            change: dict[str, Any] = {field: kept}
            trial = self._tried(dataclasses.replace(start.recipe, **change))
            if trial is None or not self._affordable(trial):
                del layers[count // 2 : count]  # those that came in last; others may do
                continue
            tried.append(trial)
            if self._enough(trial, plain) or count == len(layers):
                break
            count *= 2
        for trial in tried:
            if trial.snr_db >= best.snr_db + _WORTH:
                best = trial
        if best is not start:
            kept = getattr(best.recipe, field)[len(getattr(start.recipe, field)) :]
            how = "16-bit activations" if field == "keep_int16" else "float32"
            named = ", ".join(kept[:4]) + (f" and {len(kept) - 4} more" if len(kept) > 4 else "")
            self._gains.append(f"{how} of {named} gave {best.snr_db - start.snr_db:.1f} dB")
        return best

    def _enough(self, trial: Trial, plain: Trial) -> bool:
        wanted = self._budget.decibels
        if wanted is None:
            wanted = min(plain.snr_db + _ENOUGH, _FINE)
        return trial.snr_db >= wanted

    def _affordable(self, trial: Trial) -> bool:
        most = self._budget.bytes
        if most is None:
            most = _MORE_BYTES * self._trials[0].bytes
        slow = self._budget.milliseconds
        return trial.bytes <= most and (slow is None or trial.milliseconds <= slow)

    def _sentence(self, best: Trial, plain: Trial, culprits: Sequence[Culprit]) -> str:
        if best is plain:
            text = f"nothing measured better than the plain int8 file ({plain.snr_db:.1f} dB)"
        else:
            text = (
                f"{plain.snr_db:.1f} dB became {best.snr_db:.1f} dB on held-out samples: "
                f"{'; '.join(self._gains)}"
            )
        if culprits and math.isfinite(culprits[0].decibels):
            worst = culprits[0]
            text += f"; layer '{worst.layer}' cost {worst.decibels:.1f} dB: {worst.why}"
        short = [] if self._affordable(best) else ["the budget"]
        if self._budget.decibels is not None and best.snr_db < self._budget.decibels:
            short.append(f"{self._budget.decibels:g} dB")
        return text + (f"; {' and '.join(short)} was not reached" if short else "")
