"""The pinned versions of what emulated systems and the browser use."""

from __future__ import annotations

# Debian suite of the emulated systems: the last with Python 3.11, the newest Python for which
# tflite-runtime has wheels.
SUITE = "bookworm"
PYTHON = "3.11"
GLIBC = 36  # minor version of the suite's glibc 2.36: newest manylinux tag that runs there

# Older emulators crash on the instructions that current runtimes use.
QEMU_MAJOR = 10
QEMU_SUITE = "bookworm-backports"

LITERT = "ai-edge-litert==2.3.0"
ONNXRUNTIME = "onnxruntime==1.32.0"
ONNX = "onnx==1.23.2"
OPENVINO = "openvino==2026.4.1"
TFLITE_RUNTIME = "tflite-runtime==2.14.0"

LITERT_WEB = "2.5.3"
ONNXRUNTIME_WEB = "1.30.0"
