"""Protects that a missing package ends a command with its extra, and is no fault of a file."""

from __future__ import annotations

import sys

import pytest
import renormlite as rl
from renormlite.cli.main import main
from renormlite.extras import MissingPackageError, missing_package


@pytest.mark.parametrize(("module", "format_name", "extra"), [
    ("onnx", "onnx", "onnx"), ("ai_edge_litert", "tflite", "litert"),
])  # fmt: skip
@pytest.mark.parametrize("command", ["check", "compare", "inspect"])
def test_a_file_without_its_reader(
    command, module, format_name, extra, healthy_export, monkeypatch, capsys
):
    """Exit code 1 would say that the file is wrong."""
    for name in list(sys.modules):
        if name.partition(".")[0] == module:
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, module, None)
    file = str(next(healthy_export.glob(f"*.float32.{format_name}")))
    words = {"compare": [file, file], "inspect": [file]}.get(command, [str(healthy_export)])
    monkeypatch.setattr(sys, "argv", ["renormlite", command, *words])
    with pytest.raises(SystemExit) as ended:
        main()
    said = capsys.readouterr().err
    assert ended.value.code == 2
    assert f"needs {module}, which is not installed here" in said
    assert f"pip install 'renormlite[{extra}]'" in said


def test_a_missing_package_is_an_import_error(healthy_export, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(MissingPackageError, match="needs onnx"):
        rl.check_parity(healthy_export)
    assert not issubclass(MissingPackageError, rl.UserError)


def test_a_package_that_fails_to_import_is_told_from_a_missing_one():
    broken = ImportError("libcuda.so: no such file", name="onnxruntime.capi")
    assert "cannot be imported here (libcuda.so: no such file)" in str(
        missing_package(broken, "`bench`")
    )
    assert missing_package(ModuleNotFoundError("no", name="numpy"), "`bench`") is None
