"""LiteRT: the Interpreter of the `ai-edge-litert` package."""

from __future__ import annotations

from importlib.metadata import version
from types import ModuleType

from ...errors import UserError
from .interpreter import TensorKeeper


class LiteRTRunner(TensorKeeper):
    """Runs .tflite files on LiteRT."""

    runtime = "litert"

    def _load_module(self) -> ModuleType:
        try:
            from ai_edge_litert import interpreter
        except ImportError as error:
            raise UserError(
                "The target 'litert' needs ai-edge-litert. Install it: pip install ai-edge-litert"
            ) from error
        return interpreter

    def _version(self) -> dict[str, str]:
        return {"ai-edge-litert": version("ai-edge-litert")}
