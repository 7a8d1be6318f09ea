"""Protects that default, bounds and command line of an option come from one definition."""

import dataclasses
import inspect
from collections.abc import Callable
from typing import Any

import click
import pytest
import renormlite as rl
from renormlite.cli.main import cli
from renormlite.devices.base import DeviceOptions
from renormlite.export.options import ExportOptions
from renormlite.options import flag_of
from renormlite.runtime_checks.end_to_end.quality_gates import QualityLimits
from renormlite.runtime_checks.options import CheckOptions

COMMANDS = [
    ("check", CheckOptions),
    ("check", QualityLimits),
    ("check", DeviceOptions),
    ("compare", DeviceOptions),
    ("bench", DeviceOptions),
    ("export", ExportOptions),
]


@pytest.mark.parametrize(("name", "kind"), COMMANDS)
def test_command_line_defaults_equal_those_of_the_definition(name: str, kind: Any) -> None:
    command = cli.get_command(click.Context(cli), name)
    assert command is not None
    parameters = command.make_context(name, [], resilient_parsing=True).params
    for field in dataclasses.fields(kind):
        flag = flag_of(field)
        if flag is not None and flag.name:
            assert (parameters[field.name] or None) == (field.default or None), flag.name


@pytest.mark.parametrize(
    ("function", "kind"), [(rl.check_parity, CheckOptions), (rl.export_model, ExportOptions)]
)
def test_python_defaults_equal_those_of_the_definition(
    function: Callable[..., Any], kind: Any
) -> None:
    parameters = inspect.signature(function).parameters
    for field in dataclasses.fields(kind):
        assert parameters[field.name].default == field.default, field.name


@pytest.mark.parametrize(
    ("kind", "values", "message"),
    [
        (CheckOptions, {"limit": 0}, "Expected limit to be a number of at least 1. Received: 0."),
        (CheckOptions, {"search": 0}, "Expected search to be a number of at least 1."),
        (CheckOptions, {"threads": (1, 1)}, "threads must be a number from 1"),
        (QualityLimits, {"max_flipped": 101}, "Expected max_flipped to be a number between 0 and"),
        (QualityLimits, {"min_snr": float("nan")}, "Expected min_snr to be a number."),
        (DeviceOptions, {"timeout_s": 0}, "Expected timeout_s to be a number above 0."),
        (DeviceOptions, {"reconnect_s": -1}, "Expected reconnect_s to be a number above 0."),
    ],
)
def test_values_out_of_bounds_are_refused(kind: Any, values: dict[str, Any], message: str) -> None:
    with pytest.raises(rl.UserError, match=message):
        kind(**values)


def test_options_of_a_comparison_are_checked_before_files_are_read() -> None:
    with pytest.raises(rl.UserError, match="Expected limit"):
        rl.compare_files("no.tflite", "such.onnx", limit=0)
