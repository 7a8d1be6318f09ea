"""The options of an export, validated in one place."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from ..errors import UserError

PRECISIONS = ("float32",)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """How to export; see `export_model` for what each option means."""

    formats: tuple[str, ...] = ("tflite", "onnx")
    precisions: tuple[str, ...] = ("float32",)
    batch_size: int | None = 1
    opset: int = 17
    allow_flex: bool = False

    def __post_init__(self) -> None:
        from .formats import FORMAT_NAMES

        _members("formats", self.formats, FORMAT_NAMES)
        _members("precisions", self.precisions, PRECISIONS)
        if self.batch_size is not None and self.batch_size < 1:
            raise UserError(
                "Expected batch_size to be a positive number, or None for a free batch. "
                f"Received: {self.batch_size}."
            )

    def to_json(self) -> dict[str, Any]:
        """Return the options for the manifest."""
        return {
            key: list(value) if isinstance(value, tuple) else value
            for key, value in dataclasses.asdict(self).items()
        }


def _members(what: str, received: Sequence[str], known: Sequence[str]) -> None:
    if not received or not set(received) <= set(known) or len(set(received)) < len(received):
        raise UserError(
            f"Expected {what} to be different names among {', '.join(known)}. "
            f"Received: {', '.join(received) or 'none'}."
        )
