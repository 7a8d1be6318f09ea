"""Searches for the best recipe of an int8 file: first changes without cost, then more bits.

Equalization, ranges, rounding of weights and their statistics cost neither bytes nor time and are
tried first, those for the cause of the most expensive layers before the others. Each is kept only
if it measures better on held-out samples. Then the most expensive layers get 16-bit activations:
one, two, four, … all layers. Equalization and the rounding of weights are tried again, since the
weights limit such a file. If all that does not suffice, the most expensive layers compute in float.
The search ends as soon as a file reaches the wanted signal-to-noise ratio, or the limit of its
budget.
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

_MIN_GAIN = 0.3  # dB; smaller differences are within the variation between halves of the samples
# dB: removes 96 % of the noise power on the held-out samples, for 95 % on others.
_SUFFICIENT_GAIN = 14.0
_SUFFICIENT = 60.0  # dB
_MOST_MIXED = 8  # trials with 16-bit layers, and with float layers
_MORE_BYTES = 1.1  # size relative to the plain file, without a budget


@dataclasses.dataclass(frozen=True)
class Trial:
    """One file that was made and measured.

    Attributes:
        recipe: Its recipe.
        bytes: Its size.
        milliseconds: Median time per sample on this machine, with one thread.
        snr_db: Signal-to-noise ratio on held-out samples, in decibels.
        decisions: Share of held-out samples with the model's decision; None without class scores.
        accuracy: Share of labelled held-out samples classified correctly; None without labels.
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
        """Read the JSON form, in which an infinite ratio is a string."""
        recipe, ratio = Recipe.from_json(data["recipe"]), float(data["snr_db"])
        return cls(**{**data, "recipe": recipe, "snr_db": ratio})


@dataclasses.dataclass(frozen=True)
class SearchResult:
    """The result of a search.

    Attributes:
        chosen: The chosen file.
        trials: All files in the order of the search, the plain int8 file first.
        sentence: A summary of the changes that helped.
    """

    chosen: Trial
    trials: tuple[Trial, ...]
    sentence: str


@dataclasses.dataclass(frozen=True)
class CostlyLayer:
    """A layer and the cost of its quantization errors.

    Attributes:
        layer: Its path.
        decibels: Gain in signal-to-noise ratio if the layer had no errors.
        why: The cause, as a sentence.
        cause: The cause that a step of the search may remove: `channels`, `ranges` or `weights`;
            empty for any other.
    """

    layer: str
    decibels: float
    why: str
    cause: str = ""


@dataclasses.dataclass(frozen=True)
class _Step:
    """A change without cost.

    Attributes:
        cause: The cause of noise that it may remove, see `CostlyLayer`.
        changes: Fields of the recipe and their new values; the best of several is kept.
        described: What it does, with fields of the recipe in braces.
    """

    cause: str
    changes: tuple[dict[str, Any], ...]
    described: str


_STEPS = (
    _Step(
        "channels",
        tuple({"equalize": strength} for strength in STRENGTHS),
        "equalizing channels (strength {equalize:g})",
    ),
    _Step(
        "channels",
        tuple({"equalize": strength, "across_relu6": True} for strength in STRENGTHS),
        "equalizing channels across clipped relus (strength {equalize:g}; exact only where no "
        "channel is larger than on the calibration samples)",
    ),
    _Step("ranges", ({"ranges": "percentile"}, {"ranges": "mse"}), "{ranges} ranges"),
    _Step("weights", ({"rounding": "adaptive"},), "adaptive rounding"),
    _Step("weights", ({"statistics": True},), "re-estimated statistics"),
    _Step("weights", ({"bias_correction": True},), "bias correction"),
)

# Weights limit the file once activations have 16 bits: equalization serves them alone, or is left
# out, since for the activations it costs the weights.
_STEPS_OF_16_BITS = (
    _Step(
        "",
        ({"equalize": 0.0, "across_relu6": False}, {"equalize": 0.0, "across_relu6": True}),
        "equalizing channels for the weights alone",
    ),
    *(step for step in _STEPS if step.cause == "weights"),
    _Step(
        "",
        ({"equalize": None, "across_relu6": False},),
        "leaving out the equalization of channels again",
    ),
)


class Search:
    """A search for the best recipe."""

    def __init__(
        self,
        attempt: Callable[[Recipe], Trial | None],
        costly_layers: Callable[[], Sequence[CostlyLayer]],
        budget: Budget,
        *,
        wide: bool,
        base: Recipe,
    ) -> None:
        """Create a search.

        Args:
            attempt: Makes and measures a file; returns None if it cannot be made.
            costly_layers: Returns the layers of the best file so far, the most expensive first.
            budget: Limits on size, latency and noise.
            wide: Whether the format supports 16-bit activations, which are tried before float.
            base: The recipe to start from, which includes the layers that the user keeps.
        """
        self._attempt, self._costly_layers = attempt, costly_layers
        self._budget, self._wide, self._base = budget, wide, base
        self._trials: list[Trial] = []
        self._gains: list[str] = []

    def run(self) -> SearchResult:
        """Run the search.

        Raises:
            UserError: Even the plain int8 file cannot be made.
        """
        plain = self._tried(self._base)
        if plain is None:
            raise UserError("auto: the int8 file cannot be made. Export int8 for the reason.")
        unfolded = self._tried(Recipe(fold=False)) if self._base == Recipe() else None
        culprits = self._costly_layers()
        best = self._cheap(plain, culprits, plain)
        if self._wide and not self._sufficient(best, plain):
            best = self._mixed("keep_int16", best, plain, self._costly_layers())
            best = self._weights_of_16_bits(best, plain)
        if not self._sufficient(best, plain):
            best = self._mixed("keep_float", best, plain, self._costly_layers())
        if unfolded is not None and self._better(unfolded, best):
            best = unfolded
            self._gains = ["the network before folding is the best"]
        return SearchResult(best, tuple(self._trials), self._sentence(best, plain, culprits))

    def _cheap(self, best: Trial, culprits: Sequence[CostlyLayer], plain: Trial) -> Trial:
        """Try the steps without cost, those for the causes with the greatest noise first."""
        sizes: dict[str, float] = {}
        for entry in culprits:
            sizes[entry.cause] = sizes.get(entry.cause, 0.0) + entry.decibels
        for step in sorted(_STEPS, key=lambda step: -sizes.get(step.cause, 0.0)):
            if not self._sufficient(best, plain):
                best = self._step(best, step)
        return best

    def _tried(self, recipe: Recipe) -> Trial | None:
        known = [trial for trial in self._trials if trial.recipe == recipe]
        if known:
            return known[0]
        trial = self._attempt(recipe)
        if trial is not None:
            self._trials.append(trial)
        return trial

    def _step(self, best: Trial, step: _Step) -> Trial:
        """Try changes of the best recipe so far; keep the best affordable one that improves it."""
        found = [
            trial
            for change in step.changes
            if (trial := self._tried(dataclasses.replace(best.recipe, **change))) is not None
            and self._affordable(trial)
        ]
        better = max(found, key=lambda trial: trial.snr_db, default=best)
        if not self._better(better, best):
            return best
        gain = better.snr_db - best.snr_db
        described = step.described.format(**dataclasses.asdict(better.recipe))
        self._gains.append(f"{described} gained {gain:.1f} dB")
        return better

    def _better(self, trial: Trial, best: Trial) -> bool:
        """Return whether a trial is affordable, and better than the best one so far."""
        return trial.snr_db >= best.snr_db + _MIN_GAIN and self._affordable(trial)

    def _mixed(self, field: str, best: Trial, plain: Trial, costly: Sequence[CostlyLayer]) -> Trial:
        """Give the most expensive layers more bits, and double their number each time."""
        start, count = best, 1
        layers = [entry.layer for entry in costly if entry.layer not in best.recipe.keep_float]
        tried: list[Trial] = []
        for _ in range(_MOST_MIXED):
            if not layers:
                break
            count = min(count, len(layers))
            kept = (*getattr(start.recipe, field), *layers[:count])
            change: dict[str, Any] = {field: kept}
            trial = self._tried(dataclasses.replace(start.recipe, **change))
            if trial is None or not self._affordable(trial):
                del layers[count // 2 : count]  # those added last; others may fit the budget
                continue
            tried.append(trial)
            if self._sufficient(trial, plain) or count == len(layers):
                break
            count *= 2
        if field == "keep_int16" and not any(self._sufficient(trial, plain) for trial in tried):
            every = self._tried(dataclasses.replace(start.recipe, keep_int16=("*",)))
            tried += [every] if every is not None else []
        for trial in tried:
            if self._better(trial, best):
                best = trial
        if best is not start:
            kept = getattr(best.recipe, field)[len(getattr(start.recipe, field)) :]
            how = "16-bit activations" if field == "keep_int16" else "float32"
            named = ", ".join(kept[:4]) + (f" and {len(kept) - 4} more" if len(kept) > 4 else "")
            named = "all layers" if "*" in kept else named
            self._gains.append(f"{how} for {named} gained {best.snr_db - start.snr_db:.1f} dB")
        return best

    def _weights_of_16_bits(self, best: Trial, plain: Trial) -> Trial:
        """Treat the weights of the file with 16-bit activations in the most layers.

        That file need not be the best one, since its weights may hide what the activations gained.
        """
        wide = [t for t in self._trials if t.recipe.keep_int16 and self._affordable(t)]
        most = max(wide, key=_width, default=best)
        for start in dict.fromkeys([most, *([best] if best in wide else [])]):
            before, found = list(self._gains), start
            if start is not best:
                layers = (
                    "all layers" if "*" in start.recipe.keep_int16 else f"{_width(start)} layers"
                )
                gain = start.snr_db - best.snr_db
                self._gains.append(f"16-bit activations for {layers} ({gain:+.1f} dB)")
            for step in _STEPS_OF_16_BITS if wide else ():
                if not self._sufficient(found, plain):
                    found = self._step(found, step)
            if self._better(found, best):
                return found
            self._gains = before
        return best

    def _sufficient(self, trial: Trial, plain: Trial) -> bool:
        wanted = self._budget.decibels
        if wanted is None:
            wanted = min(plain.snr_db + _SUFFICIENT_GAIN, _SUFFICIENT)
        return trial.snr_db >= wanted

    def _affordable(self, trial: Trial) -> bool:
        most = self._budget.bytes
        if most is None:
            most = _MORE_BYTES * self._trials[0].bytes
        slow = self._budget.milliseconds
        return trial.bytes <= most and (slow is None or trial.milliseconds <= slow)

    def _sentence(self, best: Trial, plain: Trial, culprits: Sequence[CostlyLayer]) -> str:
        parts = []
        if culprits and math.isfinite(culprits[0].decibels):
            worst = culprits[0]
            parts.append(f"layer '{worst.layer}' cost {worst.decibels:.1f} dB: {worst.why}")
        if best is plain:
            text = f"no change improved the plain int8 file ({plain.snr_db:.1f} dB)"
        else:
            text = (
                f"improved from {plain.snr_db:.1f} dB to {best.snr_db:.1f} dB on held-out samples"
            )
            parts += self._gains
        short = [] if self._affordable(best) else ["the budget"]
        if self._budget.decibels is not None and best.snr_db < self._budget.decibels:
            short.append(f"{self._budget.decibels:g} dB")
        if short:
            parts.append(
                f"{' and '.join(short)} {'was' if len(short) == 1 else 'were'} not reached"
            )
        return f"{text}: {'; '.join(parts)}" if parts else text


def _width(trial: Trial) -> float:
    """Return the number of layers with 16-bit activations."""
    return math.inf if "*" in trial.recipe.keep_int16 else len(trial.recipe.keep_int16)
