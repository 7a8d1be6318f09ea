"""Web runtimes in a real browser: LiteRT.js and ONNX Runtime Web.

They implement the interface of every other runner; each inference is one call into a page. Times
are measured inside the page.
"""

from __future__ import annotations

import base64
import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from ..runtimes.base import ArtifactError, Runner, TensorInfo
from .base import DeviceOptions
from .chromium import Browser
from .setup.cache import Component
from .setup.web_packages import PACKAGES

_OPEN = 'async options => (await import("/harness.mjs")).open(options)'
_RUN = "inputs => globalThis.renormliteRun(inputs)"


class WebRunner(Runner):
    """Runs one artifact in its own page.

    Args:
        artifact: The file to load.
        threads: Threads that the runtime may use.
        variant: One of `variants`.
        browser: The browser to use; None starts one for this artifact alone.

    Attributes:
        load_ms: Load time, set on entering.
    """

    packages: ClassVar[Component] = PACKAGES
    accelerators: ClassVar[Mapping[str, str]] = {"": "wasm"}

    def __init__(
        self,
        artifact: Path,
        *,
        threads: int = 1,
        variant: str = "",
        browser: Browser | None = None,
    ) -> None:
        super().__init__(artifact, threads=threads, variant=variant)
        self.load_ms = 0.0
        self._elapsed_ms = 0.0
        self.peak_memory_bytes: int | None = None
        self._own = browser is None
        self._browser = browser or Browser(DeviceOptions())
        self._resources = contextlib.ExitStack()
        self._page: Any = None
        self._loaded: dict[str, Any] = {}

    def _open(self) -> None:
        if self._own:
            self._resources.enter_context(self._browser)
        self._browser.server.artifact = self.artifact
        self._loaded = self._browser.ask(self._open_page)
        self.load_ms = self._loaded["load_ms"]

    def _open_page(self) -> dict[str, Any]:
        self._page = self._browser.new_page()
        complaints: list[str] = []
        # LiteRT.js logs everything to console.error; only lines that it marks as errors are errors.
        self._page.on("console", lambda said: complaints.append(said.text))
        self._page.goto(self._browser.server.url)
        options = {
            "runtime": self.runtime,
            "threads": self.threads,
            "accelerator": self.accelerators[self.variant],
        }
        return self._evaluate(_OPEN, options, "load", complaints)

    def _evaluate(
        self, script: str, argument: object, verb: str, complaints: list[str]
    ) -> dict[str, Any]:
        from playwright.sync_api import Error

        try:
            found: dict[str, Any] = self._page.evaluate(script, argument)
        except Error as error:
            errors = [text for text in complaints if text.startswith("ERROR")]
            reason = "; ".join([error.message.splitlines()[0], *errors])
            raise ArtifactError(
                f"{self.runtime} cannot {verb} {self.artifact.name}: {reason}"
            ) from error
        return found

    def _close(self) -> None:
        if self._page is not None:
            page, self._page = self._page, None
            if self._browser.running:  # not so after it hung
                self._browser.ask(lambda: page.context.close())
        self._resources.close()

    def _signature(self) -> tuple[tuple[TensorInfo, ...], tuple[TensorInfo, ...]]:
        return self._infos("inputs"), self._infos("outputs")

    def _infos(self, side: str) -> tuple[TensorInfo, ...]:
        infos = tuple(
            TensorInfo(entry["name"], tuple(entry["shape"]), np.dtype(entry["dtype"]))
            for entry in self._loaded[side]
        )
        for info in infos:
            if info.dtype.kind != "f":
                # No web runtime reports scale and zero point; the file has them.
                raise ArtifactError(
                    f"{self.runtime} shows {info.dtype} for '{info.name}' of {self.artifact.name} "
                    "without its scale: export it with float inputs and outputs for the browser."
                )
        return infos

    def _infer(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        tensors = [
            {
                "name": info.name,
                "dtype": str(info.dtype),
                "shape": list(inputs[info.name].shape),
                "data": base64.b64encode(inputs[info.name].tobytes()).decode(),
            }
            for info in self.inputs
        ]
        answer = self._browser.ask(lambda: self._evaluate(_RUN, tensors, "run", []))
        self._elapsed_ms = answer["elapsed_ms"]
        return {
            tensor["name"]: np.frombuffer(
                base64.b64decode(tensor["data"]), np.dtype(tensor["dtype"])
            ).reshape(tensor["shape"])
            for tensor in answer["outputs"]
        }

    @property
    def seconds(self) -> float:
        """Time of the last inference, as the page measured it."""
        return self._elapsed_ms / 1e3

    def measured(self) -> dict[str, Any]:
        """Return load time and peak memory of the page's process, as the page saw them."""
        return {
            "load_ms": self.load_ms,
            "peak_memory_bytes": self._browser.ask(self._browser.peak_memory_bytes),
        }

    def describe(self) -> dict[str, object]:
        """Return versions, browser, kernels and threads."""
        noted = self.packages.record() or {"versions": {}}
        record: dict[str, object] = {
            "runtime": self.runtime,
            "versions": {self.runtime: noted["versions"].get(self.runtime)},
            "browser": self._browser.version,
            "kernels": self.variants[self.variant],
            "threads": self.threads,
        }
        if self._loaded["accelerated"] is not None:
            record["fully_accelerated"] = self._loaded["accelerated"]
        if self.variant and not self._loaded["accelerated"]:
            record["fallback"] = f"{self.variant} was required but did not take every op"
        elif self.threads > 1 and not self._loaded["isolated"]:
            record["fallback"] = f"{self.threads} threads were required but the page got one"
        return record


class LiteRTWebRunner(WebRunner):
    """LiteRT.js: the npm package @litertjs/core."""

    runtime = "litert-web"
    variants: ClassVar[Mapping[str, str]] = {
        "": "WebAssembly, XNNPACK",
        "webgpu": "WebGPU required for every op",
    }
    accelerators: ClassVar[Mapping[str, str]] = {"": "wasm", "webgpu": "webgpu"}


class OnnxRuntimeWebRunner(WebRunner):
    """ONNX Runtime Web: the npm package onnxruntime-web."""

    runtime = "onnxruntime-web"
    variants: ClassVar[Mapping[str, str]] = {"": "WebAssembly, SIMD"}


WEB_RUNNERS: Mapping[str, type[WebRunner]] = {
    kind.runtime: kind for kind in (LiteRTWebRunner, OnnxRuntimeWebRunner)
}
