"""TensorFlow Lite as TensorFlow ships it: `tf.lite.Interpreter`."""

from __future__ import annotations

from types import ModuleType, SimpleNamespace
from typing import cast

from ..errors import UserError
from ..quiet import quiet_import
from .interpreter import TensorKeeper


class TFLiteRunner(TensorKeeper):
    """Runs .tflite files on the interpreter inside TensorFlow."""

    runtime = "tf-lite"

    def _load_module(self) -> ModuleType:
        tf = self._tensorflow()
        return cast(
            ModuleType,
            SimpleNamespace(
                Interpreter=tf.lite.Interpreter,
                OpResolverType=tf.lite.experimental.OpResolverType,
            ),
        )

    def _version(self) -> dict[str, str]:
        return {"tensorflow": self._tensorflow().__version__}

    @staticmethod
    def _tensorflow() -> ModuleType:
        try:
            tensorflow = quiet_import("tensorflow")
        except ImportError as error:
            raise UserError(
                "The target 'tf-lite' needs TensorFlow. Install it: pip install tensorflow"
            ) from error
        return tensorflow
