"""LiteRT: the Interpreter of the `ai-edge-litert` package."""

from __future__ import annotations

from types import ModuleType

from ..errors import UserError
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
        import ai_edge_litert

        return {"ai-edge-litert": ai_edge_litert.__version__}
