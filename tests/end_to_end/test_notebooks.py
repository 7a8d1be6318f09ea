"""Protects the notebooks: each runs from top to bottom in a separate kernel."""

import os
import sys
from pathlib import Path

import nbformat
import pytest
import renormlite
from nbclient import NotebookClient

ROOT = Path(renormlite.__file__).parent
NOTEBOOKS = sorted((ROOT / "examples/notebooks").glob("*.ipynb"))


def test_all_notebooks_are_tested() -> None:
    assert [page.stem for page in NOTEBOOKS] == [
        "checking_a_device",
        "first_steps",
        "quantization_aware",
        "tiny_batches",
    ]


@pytest.mark.parametrize("page", NOTEBOOKS, ids=lambda page: page.stem)
def test_a_notebook_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    programs = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    monkeypatch.setenv("PATH", programs)
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    monkeypatch.delenv("PYTEST_CURRENT_TEST")  # with it, a kernel does not record native output
    monkeypatch.delenv("TF_CPP_MIN_LOG_LEVEL", raising=False)
    notebook = nbformat.read(page, as_version=4)
    nbformat.validate(notebook)
    assert f"blob/main/examples/notebooks/{page.name}" in notebook.cells[0].source
    assert notebook.cells[1].source == "%pip install --quiet 'renormlite[tensorflow]'"
    assert all(not cell.outputs for cell in notebook.cells if cell.cell_type == "code")
    del notebook.cells[1]
    client = NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}})
    client.execute()
    outputs = [out for cell in notebook.cells for out in cell.get("outputs", [])]
    stderr = [out.text for out in outputs if out.output_type == "stream" and out.name == "stderr"]
    assert stderr == []
    assert any("text/html" in out.get("data", {}) for out in outputs)
