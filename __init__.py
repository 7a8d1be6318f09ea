"""renormlite: train with Batch Renormalization, fold, export, and prove parity on the device.

Names are loaded on first use (PEP 562). Importing renormlite does not import TensorFlow, so that
the parity checks run with only Python, NumPy and a runtime.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING

from .quiet import quiet_import, start_quietly
from .version import __version__ as __version__

if TYPE_CHECKING:
    from .against_model.files import check_files as check_files
    from .artifacts.images import Preprocessing as Preprocessing
    from .artifacts.manifest import Manifest as Manifest
    from .errors import UserError as UserError
    from .export.exporter import export_model as export_model
    from .export.fold import Affine as Affine
    from .export.fold import FoldResult as FoldResult
    from .export.fold import float64_twin as float64_twin
    from .export.fold import fold as fold
    from .export.fold import register_affine as register_affine
    from .export.partial import PartialExportError as PartialExportError
    from .export.quantization.quantize_aware import quantize_aware as quantize_aware
    from .export.quantization.recipe import Recipe as Recipe
    from .runtime_checks.certification import FileCertificate as FileCertificate
    from .runtime_checks.certification import certify as certify
    from .runtime_checks.explanation import Explanation as Explanation
    from .runtime_checks.explanation import explain as explain
    from .runtime_checks.foreign.compare import ComparisonReport as ComparisonReport
    from .runtime_checks.foreign.compare import compare_files as compare_files
    from .runtime_checks.parity import ParityReport as ParityReport
    from .runtime_checks.parity import check_parity as check_parity
    from .runtimes import register_runtime as register_runtime
    from .toolkit.channel_affine import ChannelAffine as ChannelAffine
    from .toolkit.convert import to_batch_norm as to_batch_norm
    from .toolkit.convert import to_renorm as to_renorm
    from .toolkit.diagnostics import RenormDiagnostics as RenormDiagnostics
    from .toolkit.diagnostics_plot import plot_diagnostics as plot_diagnostics
    from .toolkit.functional import RenormState as RenormState
    from .toolkit.functional import batch_renorm as batch_renorm
    from .toolkit.layers import BatchRenormalization as BatchRenormalization
    from .toolkit.learned import LearnedRenormalization as LearnedRenormalization
    from .toolkit.quantize_aware.diagnostics import (
        QuantizationDiagnostics as QuantizationDiagnostics,
    )
    from .toolkit.quantize_aware.freezing import FreezeQuantization as FreezeQuantization
    from .toolkit.saving import load_model as load_model
    from .toolkit.schedules import LinearRamp as LinearRamp
    from .toolkit.schedules import Settling as Settling
    from .toolkit.schedules import paper_schedule as paper_schedule

_HOME = {
    "Affine": ".export.fold",
    "BatchRenormalization": ".toolkit.layers",
    "ComparisonReport": ".runtime_checks.foreign.compare",
    "ChannelAffine": ".toolkit.channel_affine",
    "Explanation": ".runtime_checks.explanation",
    "FileCertificate": ".runtime_checks.certification",
    "FoldResult": ".export.fold",
    "LearnedRenormalization": ".toolkit.learned",
    "LinearRamp": ".toolkit.schedules",
    "Manifest": ".artifacts.manifest",
    "ParityReport": ".runtime_checks.parity",
    "PartialExportError": ".export.partial",
    "Preprocessing": ".artifacts.images",
    "FreezeQuantization": ".toolkit.quantize_aware.freezing",
    "QuantizationDiagnostics": ".toolkit.quantize_aware.diagnostics",
    "Recipe": ".export.quantization.recipe",
    "RenormDiagnostics": ".toolkit.diagnostics",
    "RenormState": ".toolkit.functional",
    "Settling": ".toolkit.schedules",
    "UserError": ".errors",
    "batch_renorm": ".toolkit.functional",
    "certify": ".runtime_checks.certification",
    "check_files": ".against_model.files",
    "check_parity": ".runtime_checks.parity",
    "compare_files": ".runtime_checks.foreign.compare",
    "explain": ".runtime_checks.explanation",
    "export_model": ".export.exporter",
    "float64_twin": ".export.fold",
    "fold": ".export.fold",
    "load_model": ".toolkit.saving",
    "paper_schedule": ".toolkit.schedules",
    "plot_diagnostics": ".toolkit.diagnostics_plot",
    "quantize_aware": ".export.quantization.quantize_aware",
    "register_affine": ".export.fold",
    "register_runtime": ".runtimes",
    "to_batch_norm": ".toolkit.convert",
    "to_renorm": ".toolkit.convert",
}

# The subpackages that import Keras.
_ON_KERAS = ("toolkit", "export", "against_model")

__all__ = ["__version__", *sorted(_HOME)]


def __getattr__(name: str) -> object:
    """Import a public name from the module it lives in, on first use."""
    if name not in _HOME:
        raise AttributeError(f"module 'renormlite' has no attribute {name!r}")
    value = getattr(_module(name), name)
    globals()[name] = value
    return value


def _module(name: str) -> ModuleType:
    """Import the module of a public name; the output of TensorFlow is suppressed."""
    from .extras import missing_package

    try:
        if _HOME[name].split(".")[1] in _ON_KERAS:
            quiet_import("keras")
        return importlib.import_module(_HOME[name], __name__)
    except ModuleNotFoundError as error:
        raise missing_package(error, f"renormlite.{name}") or error from error


def __dir__() -> list[str]:
    return sorted(__all__)


start_quietly()

if __name__ == "renormlite" and "keras" in sys.modules:
    # Keras finds the class of a saved layer only after it is registered, and a program that has
    # imported Keras may load a model next. The name is checked because pytest also imports this
    # file under the name of its folder, and would register a second set of classes.
    importlib.import_module(".toolkit.saving", __name__)
