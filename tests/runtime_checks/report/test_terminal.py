"""Protects what a terminal of 80 columns shows: the verdict, the budget and each failure whole."""

from __future__ import annotations

import dataclasses
import io
import re

import numpy as np
import pytest
from renormlite.runtime_checks.end_to_end.task_agreement import task_agreement
from renormlite.runtime_checks.report.terminal import print_report
from rich.console import Console


def printed(report, width: int = 80) -> str:
    stream = io.StringIO()
    print_report(report, Console(file=stream, width=width))
    return stream.getvalue()


@pytest.mark.parametrize("which", ["healthy", "failing"])
@pytest.mark.parametrize("width", [80, 120])
def test_fits_the_terminal(which, width, request):
    text = printed(request.getfixturevalue(which), width)
    assert max(len(line) for line in text.splitlines()) <= width


def test_healthy(healthy):
    lines = printed(healthy).splitlines()
    assert lines[0].startswith("digits: 34 samples (16 real, 8 random, 4 border, 2 extreme, 2 ")
    assert lines[-1].startswith("PASS digits")
    assert not [line for line in lines if line.startswith("FAIL")]
    place = lines.index("digits.int8.tflite")
    assert lines[place + 1].startswith("pass  litert")
    limits = next(line for line in lines if line.split()[:1] == ["limit"])
    assert limits.split() == ["limit", ">=", "10", "<=", "1.5x", "<=", "5x", ">=", "85", "%"]
    budget = lines.index("digits.int8.tflite", place + 1)
    assert lines[budget + 1].split()[-1] == "quantization"


def test_failure_shows_problem_place_size_limit_and_reason(failing):
    text = printed(failing)
    words = " ".join(text.split())
    assert "FAIL digits.float32.tflite on litert The weights of layer 'conv2d_1' differ" in words
    for term in (
        "why layer 'conv2d_1' (with re_lu_1) is the first op at fault output 'digit' differs by",
        "where layer 'conv2d_1', op",
        "how much",
        "allowed",
        "numbers layer 'conv2d_1' (with re_lu_1) is the first op at fault: op",
        "output 'digit' has a fault on the target, or in the file since it was exported: ",
    ):
        assert term in words
    why = words[words.index("why layer 'conv2d_1'") : words.index("where layer 'conv2d_1'")]
    assert not re.search(r"\d\.\d", why)
    assert "would pass only with a tolerance of" in words
    assert text.splitlines()[-1].startswith("FAIL digits")
    row = text.splitlines()[text.splitlines().index("digits.float32.onnx") + 1]
    assert row.split()[:5] == ["FAIL", "onnxruntime", "lost", "nan", "nan"]


def test_markup_in_names_is_text(healthy):
    result = dataclasses.replace(healthy.results[0], target="litert[red]")
    text = printed(dataclasses.replace(healthy, results=(result,), left_out=("[b]x[/b]",)))
    assert "litert[red]" in text
    assert "left out [b]x[/b]" in text


def test_accuracy_is_shown_if_labels_are_known(healthy):
    golden = dataclasses.replace(
        healthy.golden, labels=healthy.golden.truth["digit"].argmax(axis=1)
    )
    task = task_agreement("digit", golden.truth["digit"], golden, np.zeros(golden.samples))
    result = dataclasses.replace(healthy.results[0], tasks=(task,))
    lines = printed(dataclasses.replace(healthy, results=(result,))).splitlines()
    assert " ".join(lines[2:4]).split("  ")[0] == (
        "accuracy on 16 labelled samples: 100.00 % trained model, 100.00 % on the targets "
        "(allowed drop: 1.00)"
    )
    place = next(i for i, line in enumerate(lines) if line.split()[:2] == ["target", "same"])
    assert lines[place].split() == [
        "target", "same", "flips", "before", "after", "lost", "gained"
    ]  # fmt: skip
    assert lines[place + 2].split() == ["litert", "16/16", "0", "100.00", "100.00", "0", "0"]
    assert lines[place + 3].startswith("same: decisions of the trained model; flips: ")


def test_no_limits_where_nothing_was_compared(healthy):
    results = tuple(dataclasses.replace(result, outputs=()) for result in healthy.results)
    text = printed(dataclasses.replace(healthy, results=results))
    assert "no output was compared" in text
    assert "limit nan" not in text
