"""Which Python package each runtime is, for saying what a device lacks and how to install it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Package:
    """A runtime's Python package: the module that proves it loads, and what pip calls it."""

    module: str
    requirement: str


PACKAGES = {
    "litert": Package("ai_edge_litert.interpreter", "ai-edge-litert"),
    "litert-compiled": Package("ai_edge_litert.compiled_model", "ai-edge-litert"),
    "tflite-runtime": Package("tflite_runtime.interpreter", "tflite-runtime"),
    "tf-lite": Package("tensorflow", "tensorflow"),
    "tflite-micro": Package("tflite_micro", "tflite-micro"),
    "onnxruntime": Package("onnxruntime", "onnxruntime"),
    "onnx-reference": Package("onnx.reference", "onnx"),
    "openvino": Package("openvino", "openvino"),
}
