"""Protects the rounding rules: each equals its source's arithmetic in Python's own integers."""

from __future__ import annotations

from fractions import Fraction

import keras
import numpy as np
import pytest
import renormlite as rl
from ai_edge_litert.interpreter import Interpreter, OpResolverType
from renormlite.artifacts.flatbuffer import pack, parse
from renormlite.artifacts.graphs.base import Quantization
from renormlite.reference.rounding.fixed_point import multiplier
from renormlite.reference.rounding.quantized import Output, Quantized
from renormlite.reference.rounding.tflite_rules import AwayFromZero, SingleRounding, Upward
from renormlite.reference.rounding.xnnpack import Earlier, Float32

SCALES = (0.02173, 0.9999999, 1.0, 3.7, 0.5, 2.0**-9, 0.000173)
VALUES = np.unique(
    np.concatenate(
        [
            np.arange(-70, 70),
            np.random.default_rng(0).integers(-(2**22), 2**22, 4000),
            [2**k + d for k in range(4, 22) for d in (-1, 0, 1)],
        ]
    )
)


def c_divide(a: int, b: int) -> int:
    """Divide as C does, towards zero."""
    return abs(a) // abs(b) * (1 if (a >= 0) == (b >= 0) else -1)


def gemmlowp(value: int, m: int, e: int) -> int:
    """SaturatingRoundingDoublingHighMul, then RoundingDivideByPOT, as gemmlowp defines them."""
    product = (value << max(e, 0)) * m
    nudge = 1 << 30 if product >= 0 else 1 - (1 << 30)
    high = c_divide(product + nudge, 1 << 31)
    exponent = max(-e, 0)
    mask = (1 << exponent) - 1
    remainder = high & mask
    threshold = (mask >> 1) + (1 if high < 0 else 0)
    return (high >> exponent) + (1 if remainder > threshold else 0)


def ruy(value: int, m: int, e: int) -> int:
    """The doubled product's upper half, half up; then half a step added and shifted."""
    high = ((value << max(e, 0)) * m + (1 << 30)) >> 31
    exponent = max(-e, 0)
    return (high + (1 << exponent >> 1)) >> exponent


def once(value: int, m: int, e: int) -> int:
    """The nearest integer to the whole product, half up."""
    exact = Fraction(value * m) * Fraction(2) ** (e - 31)
    return (exact + Fraction(1, 2)).__floor__()


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize(
    ("times", "oracle"),
    [
        (AwayFromZero().times, gemmlowp),
        (Upward().times_upward, ruy),
        (SingleRounding().times, once),
    ],
)
def test_fixed_point_rule_equals_its_source(times, oracle, scale):
    m, e = (int(part) for part in multiplier(scale))
    assert 2**30 <= m < 2**31
    assert abs(m * 2.0 ** (e - 31) / scale - 1) <= 2.0**-31
    got = times(VALUES, np.int64(m), np.int64(e))
    assert got.tolist() == [oracle(int(value), m, e) for value in VALUES]


@pytest.mark.parametrize("scale", SCALES)
def test_float_rule_rounds_the_float32_product_to_even(scale):
    x, w, y = np.float32(scale), np.float32(0.75), np.float32(0.75)
    # Beyond 2^20 any type of 8 bits has long been saturated.
    values = VALUES[np.abs(VALUES * scale) < 2**20]
    one = np.float32(np.float32(x * w) / y)
    expected = [round(float(np.float32(value) * one)) for value in values]
    assert Float32().rounded(values, x, w, y).tolist() == expected


def test_rules_differ_where_their_definitions_do():
    """Ties distinguish half to even, half up and half away from zero; all rules differ."""
    sums = np.array([-5, -3, -1, 1, 3, 5])
    ones = np.float32(0.5), np.float32(1), np.float32(1)
    halves = {
        rule.name: rule.rounded(sums, *ones).tolist()
        for rule in (Float32(), AwayFromZero(), Upward(), SingleRounding())
    }
    assert halves["float"] == [-2, -2, 0, 0, 2, 2]
    assert halves["single"] == [-2, -1, 0, 1, 2, 3]
    quarter = np.float32(0.25), np.float32(1), np.float32(1)
    assert AwayFromZero().rounded(np.array([-2, 2]), *quarter).tolist() == [-1, 1]
    assert Upward().rounded(np.array([-2, 2]), *quarter).tolist() == [0, 1]


@pytest.mark.parametrize("rule", [Float32(), AwayFromZero(), Upward(), SingleRounding()])
def test_sum_and_mean_are_within_a_step_of_exact(rule):
    rng = np.random.default_rng(1)
    a, b = rng.integers(-255, 256, (2, 5000))
    scales = np.float32(0.031), np.float32(0.017), np.float32(0.042)
    exact = (a * float(scales[0]) + b * float(scales[1])) / float(scales[2])
    assert np.abs(rule.added(a, b, scales) - exact).max() <= 0.502
    sums = rng.integers(-12000, 12000, 5000)
    mean = sums / 64 * float(scales[0]) / float(scales[2])
    got = rule.averaged(sums, 64, scales[0], scales[2])
    # A first rounding six bits below the second adds half of 2^-6 steps.
    assert np.abs(got - mean).max() <= 0.5 + 2.0**-7 + 1e-5


# Outputs measured on LiteRT 2.3 with its builtin kernels, and on tflite-runtime 2.14.
@pytest.mark.parametrize(
    ("rule", "measured"),
    [
        (Upward(), [-41, -78, -8, 8, -65, 72, -47, -78]),
        (Earlier(), [-42, -79, -9, 8, -66, 72, -48, -78]),
    ],
)
def test_averages_of_sixteen_channels_are_those_measured(rule, measured):
    sums = np.array([-194, -313, -88, -35, -271, 168, -214, -311] * 2)  # of 4 x 4 integers
    steps = np.float32(0.036180686205625534), np.float32(0.007260862272232771)
    found = rule.averaged_places(sums - 16 * -4, 16, -4, *steps) + -1
    assert found.tolist() == measured * 2


@pytest.mark.parametrize("ratio", [0.37, 0.9, 1.6])
def test_float_rule_requantizes_as_xnnpack_does(ratio):
    values = np.arange(-255, 256)
    x, y = np.float32([ratio * 0.02]), np.float32([0.02])
    multiplier_of_256 = round(256 * ratio)
    expected = [(int(value) * multiplier_of_256 + 128) // 256 for value in values]
    np.testing.assert_array_equal(Float32().requantized(values, x, y), expected)


def test_sixteen_sums_of_16_bits_are_shifted_at_once(tmp_path):
    """(4317 · 0.26734849 - 266 · 0.33089292) / 0.402996 = 2645.49997: the 17th is rounded up."""
    scales = (0.00026734849, 0.00033089292, 0.000402996)
    given = [np.full((1, 17), number) for number in (4317, -266)]
    expected = [2645] * 16 + [2646]

    steps = [
        Quantization(np.float32([s]), np.zeros(1, np.int64), np.dtype(np.int16)) for s in scales
    ]
    operands = [Quantized(array, step) for array, step in zip(given, steps[:2], strict=True)]
    assert Upward().total(operands, Output(steps[2])).tolist() == [expected]
    assert AwayFromZero().total(operands, Output(steps[2])).tolist() == [[2646] * 17]
    assert Upward().difference([operands[0], -operands[1]], Output(steps[2])).tolist() == [
        [2646] * 17
    ]

    a, b = keras.Input((17,), name="a"), keras.Input((17,), name="b")
    model = keras.Model([a, b], keras.layers.Add()([a, b]))
    samples = {name: np.random.default_rng(0).normal(size=(8, 17)) for name in "ab"}
    rl.export_model(
        model, tmp_path / "sum", formats=("tflite",), precisions=("int16x8",), calibration=samples
    )
    path = tmp_path / "sum" / "sum.int16x8.tflite"
    file = parse(path.read_bytes())
    graph = file.subgraphs[0]
    names = [file.operatorCodes[op.opcodeIndex].builtinCode for op in graph.operators]
    add = graph.operators[names.index(0)]
    for tensor, scale in zip((*add.inputs, *add.outputs), scales, strict=True):
        graph.tensors[tensor].quantization.scale = [scale]
    path.write_bytes(pack(file))
    interpreter = Interpreter(
        model_path=str(path),
        experimental_op_resolver_type=OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
        experimental_preserve_all_tensors=True,
    )
    interpreter.allocate_tensors()
    for detail in interpreter.get_input_details():
        place = "b" in detail["name"]
        numbers = (given[place] * scales[place]).astype(np.float32)
        interpreter.set_tensor(detail["index"], numbers)
    interpreter.invoke()
    assert [interpreter.get_tensor(i).tolist() for i in add.inputs] == [g.tolist() for g in given]
    assert interpreter.get_tensor(add.outputs[0]).tolist() == [expected]
