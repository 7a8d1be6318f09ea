"""The recipe of an int8 file: equalization, rounding, ranges, and layers in float or 16 bits.

A recipe is plain data. `export_model` writes the one it used to a JSON file, which can be edited
and used again with `recipe=` or `--recipe`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from ...errors import UserError
from .range_choice import RANGES

ROUNDINGS = ("nearest", "adaptive")


@dataclasses.dataclass(frozen=True)
class Recipe:
    """The settings of an int8 file; the defaults are those of the converters.

    Attributes:
        equalize: Strength of the equalization across layers; None for none.
        across_relu6: Whether channels are equalized across relus that clip, too. The network then
            differs where a channel is larger than on the calibration samples.
        rounding: `nearest`, or `adaptive`: weights are rounded so that the errors of a layer's
            outputs cancel on the calibration samples.
        statistics: Whether the mean and the standard deviation of each channel, the statistics of
            the norms that were folded, are estimated again with the rounded weights.
        bias_correction: Whether biases compensate the mean error of rounded weights.
        ranges: Method that determines the ranges of activations, one of `RANGES`.
        keep_float: Layers that compute in float32, by path or pattern.
        keep_int16: Layers with 16-bit activations, by path or pattern.
        fold: Whether the norms are folded; without, the converter gets the trained network, and
            only `ranges`, `keep_float` and `keep_int16` may differ from their defaults.
    """

    equalize: float | None = None
    across_relu6: bool = False
    rounding: str = "nearest"
    statistics: bool = False
    bias_correction: bool = False
    ranges: str = "min-max"
    keep_float: tuple[str, ...] = ()
    keep_int16: tuple[str, ...] = ()
    fold: bool = True

    def __post_init__(self) -> None:
        """Validate the fields.

        Raises:
            UserError: A field has an invalid value.
        """
        for name, choices in (("rounding", ROUNDINGS), ("ranges", RANGES)):
            value = getattr(self, name)
            if value not in choices:
                raise UserError(
                    f"Expected {name} of a recipe to be one of {', '.join(choices)}. "
                    f"Received: {value!r}."
                )
        strength = self.equalize
        number = isinstance(strength, (int, float)) and not isinstance(strength, bool)
        if strength is not None and not (number and 0 <= strength <= 1):
            raise UserError(
                "Expected equalize of a recipe to be null or a number from 0 to 1. "
                f"Received: {strength!r}."
            )
        for name in ("across_relu6", "statistics", "bias_correction", "fold"):
            value = getattr(self, name)
            if not isinstance(value, bool):
                raise UserError(
                    f"Expected {name} of a recipe to be true or false. Received: {value!r}."
                )
        if self.across_relu6 and strength is None:
            raise UserError(
                "across_relu6 of a recipe extends its equalization. Received equalize: null. Give "
                "equalize a strength from 0 to 1, or set across_relu6 to false."
            )
        if not self.fold and (self.equalize is not None or self.changes_weights):
            raise UserError(
                "equalize, rounding, statistics and bias_correction of a recipe change the folded "
                "network. Received fold: false. Set fold to true, or leave them out."
            )
        for name in ("keep_float", "keep_int16"):
            value = getattr(self, name)
            if not all(isinstance(entry, str) and entry for entry in value):
                raise UserError(f"Expected {name} to be names of layers. Received: {value!r}.")

    @property
    def changes_weights(self) -> bool:
        """Whether the weights of the file differ from the folded or equalized network."""
        return self.rounding != "nearest" or self.statistics or self.bias_correction

    @property
    def changes_file(self) -> bool:
        """Whether the arguments of the quantizer differ from its defaults."""
        return self.ranges != "min-max" or bool(self.keep_float or self.keep_int16)

    def to_json(self) -> dict[str, Any]:
        """Return the JSON form."""
        return {
            key: list(value) if isinstance(value, tuple) else value
            for key, value in dataclasses.asdict(self).items()
        }

    @classmethod
    def from_json(cls, data: object) -> Recipe:
        """Read the JSON form.

        Raises:
            UserError: The data is not a recipe.
        """
        if not isinstance(data, Mapping):
            raise UserError(f"Expected a recipe to be a JSON object. Received: {data!r}.")
        known = [field.name for field in dataclasses.fields(cls)]
        unknown = sorted(set(data) - set(known))
        if unknown:
            raise UserError(
                f"Expected the keys of a recipe to be among {', '.join(known)}. "
                f"Received: {', '.join(unknown)}."
            )
        values = dict(data)
        for name in ("keep_float", "keep_int16"):
            if name in values:
                if not isinstance(values[name], (list, tuple)):
                    raise UserError(
                        f"Expected {name} to be a list of layers. Received: {values[name]!r}."
                    )
                values[name] = tuple(values[name])
        return cls(**values)
