"""Protects the error function and softmax of the references: they equal SciPy's."""

import numpy as np
import pytest
from renormlite.reference.special_functions import erf, erfc, softmax
from scipy import special


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_they_equal_scipy(dtype: type) -> None:
    x = np.concatenate([np.linspace(-7, 7, 999), [0, -0.0, 1e-300, np.inf, -np.inf]]).astype(dtype)
    ulp = np.finfo(dtype).eps
    np.testing.assert_allclose(erf(x), special.erf(x), rtol=2 * ulp, atol=0)
    # exp(-x^2) turns one rounding of x^2 into x^2 of the result: 49 at the ends.
    np.testing.assert_allclose(erfc(x), special.erfc(x), rtol=49 * ulp, atol=0)
    rows = x[:990].reshape(9, 110)
    assert softmax(rows).dtype == dtype
    np.testing.assert_allclose(softmax(rows), special.softmax(rows, axis=-1), rtol=8 * ulp)
