"""Values that a file cannot represent: clipped by its integers, or beyond half precision.

Both are measured on the real samples at export and stored in the manifest, and on the user's own
samples when files are checked.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .record import Record

# The greatest number of IEEE half precision, the least normal one, and the step below that.
GREATEST_HALF = 65504.0
LEAST_HALF = 2.0**-14
HALF_STEP = 2.0**-24


@dataclass(frozen=True)
class Clipped:
    """Values beyond the range of a file's integers.

    Attributes:
        place: "input 'NAME'" or "layer 'NAME'".
        share: Percentage of its values that are clipped.
        low: The least number that the file represents there.
        high: The greatest.
        least: The least value there.
        most: The greatest.
        values: How many values there are; 0 if that is not known.
    """

    place: str
    share: float
    low: float
    high: float
    least: float
    most: float
    values: int = 0

    @property
    def sentence(self) -> str:
        """A sentence with the clipped share and both ranges."""
        return (
            f"{self.share:.3g} % of the values of {self.place} are clipped: the file represents "
            f"{self.low:.4g} to {self.high:.4g}, the samples reach {self.least:.4g} to "
            f"{self.most:.4g}"
        )


@dataclass(frozen=True)
class Overflow:
    """A number beyond half precision.

    Attributes:
        layer: The Keras layer.
        what: "value" or "sum".
        size: Its greatest absolute value.
    """

    layer: str
    what: str
    size: float

    @property
    def sentence(self) -> str:
        """A sentence about the number that is too large."""
        return (
            f"layer '{self.layer}' reaches the {self.what} {self.size:.4g}, beyond "
            f"{GREATEST_HALF:.0f}, the greatest number of half precision: runtimes that compute in "
            "half precision return infinity"
        )


@dataclass(frozen=True)
class Misfits:
    """The values that one file cannot represent.

    Attributes:
        clipped: The inputs, and the layers, greatest share first.
        overflows: In the order of the network.
    """

    clipped: tuple[Clipped, ...] = ()
    overflows: tuple[Overflow, ...] = ()

    def __bool__(self) -> bool:
        """Return whether there are any."""
        return bool(self.clipped or self.overflows)

    @property
    def sentences(self) -> tuple[str, ...]:
        """One sentence for each."""
        return (
            *(entry.sentence for entry in self.clipped),
            *(entry.sentence for entry in self.overflows),
        )

    def to_json(self) -> dict[str, Any]:
        """Return the JSON form."""
        return {
            "clipped": [vars(entry) for entry in self.clipped],
            "overflows": [vars(entry) for entry in self.overflows],
        }

    @classmethod
    def from_json(cls, record: Record) -> Misfits:
        """Read the JSON form."""
        clipped = [
            Clipped(
                place=entry.text("place"),
                share=_number(entry, "share"),
                low=_number(entry, "low"),
                high=_number(entry, "high"),
                least=_number(entry, "least"),
                most=_number(entry, "most"),
                values=int(entry.number("values") or 0),
            )
            for entry in record.records("clipped")
        ]
        overflows = [
            Overflow(entry.text("layer"), entry.text("what"), _number(entry, "size"))
            for entry in record.records("overflows")
        ]
        return cls(tuple(clipped), tuple(overflows))


def _number(record: Record, key: str) -> float:
    value = record.number(key)
    if value is None:
        raise record.wrong(key, "a finite number")
    return value
