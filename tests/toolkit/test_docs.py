"""Protects the examples in the docstrings: they run and print the results shown."""

import doctest
import importlib

import pytest


@pytest.mark.parametrize("module", ["schedules", "layers", "functional"])
def test_docstring_examples_run(module):
    outcome = doctest.testmod(importlib.import_module(f"renormlite.toolkit.{module}"))
    assert outcome.attempted >= 3
    assert outcome.failed == 0
