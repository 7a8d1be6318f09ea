"""Protects the tables of 16-bit functions: single integers as LiteRT 2.3 gave them."""

from __future__ import annotations

import numpy as np
from renormlite.reference.rounding.tables import (
    float32_gelu,
    looked_up,
    rounded_once,
    wide_softmax,
    wide_table,
)

# Each lies where another order of rounding, or an inexact function, gives the next integer.


def test_the_scale_of_a_softmax_is_a_quotient_in_double_precision():
    x = np.array([-10190, 5525, 1205, -1684, -5919, -350, -14030, 2688])
    found = wide_softmax(x, np.float32(0.000134170928504318), 1.0)
    assert found.tolist() == [1141, 9395, 5262, 3571, 2023, 4271, 682, 6421]


def test_gelu_is_a_product_with_the_complementary_error_function():
    scale = np.float32(0.0004576092178467661)
    table = wide_table(float32_gelu, scale, 0, scale, np.float32)
    found = looked_up(np.array([11811, 11786, 11738, 11722]), table)
    assert found.tolist() == [11810, 11785, 11737, 11721]


def test_exponentials_are_those_of_the_c_library():
    scale, step = np.float32(4.332368916948326e-05), np.float32(0.00012620666529983282)
    table = wide_table(rounded_once(np.exp), scale, 0, step, np.float32)
    assert looked_up(np.array([20584, 20659]), table).tolist() == [19329, 19392]


def test_points_next_to_a_tie_depend_on_the_c_library():
    """LiteRT with glibc 2.36 gave 14646 for 15109: erfcf errs by units in the last place."""
    scale, x = np.float32(0.00012391238), np.array([15109, 15119, 15129])
    least, exact, greatest = (
        looked_up(x, wide_table(float32_gelu, scale, 0, scale, np.float32, turn))
        for turn in (-16.0, 0.0, 16.0)
    )
    assert exact.tolist() == [14647, 14658, 14669]
    assert least.tolist() == [14646, 14657, 14668]
    assert greatest.tolist() == exact.tolist()
