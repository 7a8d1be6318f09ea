"""Protects that `make test-devices` cannot pass by leaving tests out."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.devices

SKIPPING = """
import unittest
import pytest

@pytest.fixture
def absent():
    pytest.skip("in a fixture")

@pytest.mark.skip(reason="by a mark")
def test_mark(): ...

@pytest.mark.skipif(True, reason="by a condition")
def test_condition(): ...

@pytest.mark.parametrize("of", [])
def test_no_parameters(of): ...

def test_fixture(absent): ...

def test_call():
    pytest.skip("by a call")

def test_import():
    pytest.importorskip("no_such_module")

def test_unittest():
    raise unittest.SkipTest

@pytest.mark.xfail
def test_expected_to_fail():
    assert False

def test_that_runs(): ...
"""


def test_every_skipped_test_fails(tmp_path: Path) -> None:
    shutil.copy(Path(__file__).with_name("conftest.py"), tmp_path)
    (tmp_path / "test_some.py").write_text(SKIPPING)
    (tmp_path / "test_none.py").write_text("import pytest; pytest.importorskip('no_such_module')")
    options = ["--import-mode=importlib", "-p", "no:cacheprovider", "-p", "no:xdist"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "--continue-on-collection-errors", *options, "."],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert "4 failed, 1 passed, 5 errors" in done.stdout
    assert done.stdout.count("a test of devices must run, and was skipped: ") >= 9
