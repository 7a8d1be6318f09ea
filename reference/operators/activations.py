"""Functions of one value: exact value, error of a kernel, and propagation of errors.

Runtimes compute exp, tanh, erf and similar functions by polynomials and tables, whose error cannot
be derived from the unit roundoff. `ULPS` states it in units of u·|y|, or of u where the function
saturates away from zero. docs/checks.md shows the measurements behind each number.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from ..rounding.arithmetic import Arithmetic, Finish
from ..rounding.quantized import Ints, Output, Quantized, aligned
from ..rounding.tables import (
    float32_gelu,
    float32_gelu_tanh,
    float32_sigmoid,
    hard_swish,
    tabled,
    wide_sigmoid,
    wide_tanh,
)
from ..special_functions import erf, erfc, rounded_once
from .base import (
    ROUNDING,
    Arrays,
    Attributes,
    Evaluated,
    Function,
    Integers,
    Operator,
    Weights,
    constant_error,
    greatest_error,
    steepest_secant,
)
from .softmax import LogSoftmax, Softmax, sigmoid

IntegerFunction = Callable[[Quantized, Output, Attributes], Finish]

# For exp and functions computed from it in a few operations. The runtimes state "a few units in the
# last place" for their kernels; 16 u is eight units.
ULPS = 16.0


def _relu(x: np.ndarray, attributes: Attributes) -> np.ndarray:
    slope, threshold = attributes.get("negative_slope", 0.0), attributes.get("threshold", 0.0)
    y = (
        np.where(x >= threshold, x, slope * (x - threshold))
        if slope or threshold
        else np.maximum(x, 0)
    )
    top = attributes.get("max_value")
    return y if top is None else np.minimum(y, np.asarray(top, x.dtype))


def _gelu(x: np.ndarray, attributes: Attributes) -> np.ndarray:
    if attributes.get("approximate", False):
        inner = math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)
        return 0.5 * x * (1 + np.tanh(inner))
    # erfc is exact in the tail, where 1 + erf cancels.
    return (0.5 * x * erfc(-x.astype(np.float64) / math.sqrt(2))).astype(x.dtype)


def _leaky(x: np.ndarray, attributes: Attributes) -> np.ndarray:
    return np.where(x >= 0, x, attributes["negative_slope"] * x)


def _clip(x: np.ndarray, attributes: Attributes) -> np.ndarray:
    return np.clip(x, attributes["min_value"], attributes["max_value"])


def _hard_silu(x: np.ndarray, _: Attributes) -> np.ndarray:
    return x * np.clip(x / 6 + 0.5, 0, 1)


def _selu(x: np.ndarray, _: Attributes) -> np.ndarray:
    alpha, scale = 1.6732632423543772, 1.0507009873554805
    return scale * np.where(x > 0, x, alpha * np.expm1(np.minimum(x, 0)))


def _elu(x: np.ndarray, attributes: Attributes) -> np.ndarray:
    return np.where(x > 0, x, attributes.get("alpha", 1.0) * np.expm1(np.minimum(x, 0)))


def _softplus(x: np.ndarray, _: Attributes) -> np.ndarray:
    return np.maximum(x, 0) + np.log1p(np.exp(-np.abs(x)))


def _buckets(x: np.ndarray, attributes: Attributes) -> np.ndarray:
    return np.searchsorted(attributes["boundaries"], x, side="right").astype(x.dtype)


_SCALES: dict[str, Callable[[np.ndarray, np.ndarray], Any]] = {
    "value": lambda x, y: np.abs(y),
    "one": lambda x, y: np.maximum(np.abs(y), 1),
    "input": lambda x, y: np.abs(x) + np.abs(y),
}


class Pointwise(Operator):
    """A function of bounded slope.

    Args:
        value: The function.
        slope: Its greatest slope, by which the error of the input is multiplied.
        ulps: Error of a kernel in units of u·scale; 0 for functions that only select.
        scale: What the kernel's error is relative to: "value" is |y|, "one" is 1 (sums that contain
            a constant), "input" is |x| + |y| (x times a gate).
        integer: The function of integers, if runtimes have one.
    """

    def __init__(
        self,
        value: Function,
        slope: float,
        ulps: float,
        scale: str = "value",
        integer: IntegerFunction | None = None,
    ) -> None:
        self._value, self._slope = value, slope
        self._ulps, self._scale = ulps, scale
        self._integer = integer

    def evaluate(self, inputs: Arrays, weights: Weights, attributes: Attributes) -> np.ndarray:
        """See the base class."""
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.asarray(self._value(inputs[0], attributes))

    def error_bound(self, at: Evaluated, errors: Arrays, unit: float) -> np.ndarray:
        """See the base class."""
        # Constants such as a threshold are rounded to the type too.
        constants = 2 * unit * abs(at.attributes.get("threshold", 0.0))
        own = unit * (self._ulps * self._size(at) + self._reduction(at))
        rounded = 2 * constant_error(at.attributes)  # of the formula's two constants
        if rounded:  # 0 times an infinite size would be NaN
            own = own + rounded * (self._slope * np.abs(at.inputs[0]) + np.abs(at.output))
        return np.asarray(self._carried(at, errors[0]) + own + constants)

    def _size(self, at: Evaluated) -> np.ndarray:
        """Return what the error of a kernel is relative to."""
        return _SCALES[self._scale](at.inputs[0], at.output)

    def _reduction(self, at: Evaluated) -> np.ndarray:
        """Return the error by reducing the argument to the range of a polynomial, in units of u."""
        return np.zeros(1, at.output.dtype)

    def _carried(self, at: Evaluated, error: np.ndarray) -> np.ndarray:
        slopes = (at.attributes.get(name, 0.0) for name in ("negative_slope", "alpha"))
        return np.asarray(max(self._slope, *map(abs, slopes)) * error)

    def variance(self, at: Evaluated, variances: Arrays, unit: float) -> np.ndarray:
        """See the base class."""
        deviation = unit * np.sqrt(variances[0])
        slope = self._slope_squared(at, deviation)
        # A kernel's typical error is one unit in the last place where the bound allows ULPS.
        own = ROUNDING * min(self._ulps, 2.0) ** 2
        own = own * np.square(self._size(at)) + ROUNDING * np.square(self._reduction(at))
        with np.errstate(invalid="ignore"):  # The slope does not matter where the variance is 0.
            passed = np.where(variances[0] == 0, 0.0, slope * variances[0])
        return np.asarray(passed + own)

    def _slope_squared(self, at: Evaluated, deviation: np.ndarray) -> np.ndarray:
        x, y = at.inputs[0], at.output
        step = np.maximum(2.0**-8 * (np.abs(x) + 2.0**-8), deviation)
        sides = [np.square((self._value(x + h, at.attributes) - y) / h) for h in (step, -step)]
        slope = (sides[0] + sides[1]) / 2
        if self._scale != "one":
            return np.asarray(slope)
        return np.maximum(slope, steepest_secant(self._value, x, y, deviation, at.attributes))

    def gradient(self, at: Evaluated, gradient: np.ndarray) -> Arrays:
        """See the base class; by central differences, so no table of derivatives is needed."""
        x = at.inputs[0]
        step = 2.0**-20 * (np.abs(x) + 2.0**-10)
        up, down = (self._value(x + h, at.attributes) for h in (step, -step))
        return [gradient * (up - down) / (2 * step)]

    def integer(self, at: Integers) -> Finish:
        """See the base class."""
        if self._integer is None:
            return super().integer(at)
        return self._integer(at.operands[0], at.output, at.attributes)


class Steep(Pointwise):
    """A function with unbounded slope, whose greatest change is at an end of the error interval.

    This holds for functions that are monotonic, convex or concave.
    """

    def __init__(
        self,
        value: Function,
        ulps: float,
        scale: str = "value",
        integer: IntegerFunction | None = None,
    ) -> None:
        super().__init__(value, 0.0, ulps, scale, integer)

    def _carried(self, at: Evaluated, error: np.ndarray) -> np.ndarray:
        if not error.any():
            return np.zeros_like(at.output)
        with np.errstate(all="ignore"):
            sides = [self._value(at.inputs[0] + h, at.attributes) for h in (error, -error)]
            moved = np.maximum(*(np.abs(side - at.output) for side in sides))
        same = (error == 0) | ((sides[0] == at.output) & (sides[1] == at.output))
        return np.where(same, 0.0, np.where(np.isnan(moved), np.inf, moved))

    def _slope_squared(self, at: Evaluated, deviation: np.ndarray) -> np.ndarray:
        x, y = at.inputs[0], at.output
        step = np.maximum(2.0**-8 * np.abs(x) + np.finfo(np.float32).tiny, deviation)
        with np.errstate(all="ignore"):
            sides = [np.square((self._value(x + h, at.attributes) - y) / h) for h in (step, -step)]
            # Outside the domain there is no slope; the slope of the other side is used.
            return np.fmax(*sides)

    def gradient(self, at: Evaluated, gradient: np.ndarray) -> Arrays:
        """See the base class."""
        x = at.inputs[0]
        step = 2.0**-20 * np.abs(x) + np.finfo(np.float64).tiny
        with np.errstate(all="ignore"):
            up, down = (self._value(x + h, at.attributes) for h in (step, -step))
            slope = np.nan_to_num((up - down) / (2 * step), posinf=0.0, neginf=0.0)
        return [gradient * slope]


class Exponential(Steep):
    """An exponential function, or one less a constant.

    Runtimes compute it as 2^(x·log2 e). XNNPACK and OpenVINO round this product, whose error u·|x|
    is relative in the result, and return infinity where the nearest power of two is 2^128.

    Args:
        value: The function.
        less: The constant.
    """

    def __init__(
        self, value: Function, less: float = 0.0, integer: IntegerFunction | None = None
    ) -> None:
        super().__init__(value, ULPS, integer=integer)
        self._less = less

    def _size(self, at: Evaluated) -> np.ndarray:
        power = at.output + self._less
        size = power + self._less * np.abs(at.output)
        return np.where(power < 2.0**127.5, size, np.inf).astype(size.dtype)

    def _reduction(self, at: Evaluated) -> np.ndarray:
        # Beyond ±128 the power is 0 or infinite.
        exponent = np.minimum(np.abs(at.inputs[0]), 128.0)
        return np.asarray(exponent * self._size(at))


class Periodic(Pointwise):
    """Sine or cosine.

    XNNPACK subtracts a multiple of 2π with an error of 2^-15 u·|x|, and returns arbitrary numbers
    beyond 2^25 (measured).
    """

    def __init__(self, value: Function) -> None:
        super().__init__(value, 1, ULPS, "one")

    def _reduction(self, at: Evaluated) -> np.ndarray:
        size = np.abs(at.inputs[0])
        return np.where(size < 2.0**25, 2.0**-15 * size, np.inf).astype(size.dtype)


class Step(Steep):
    """A function that is constant between steps, such as rounding."""

    def __init__(self, value: Function) -> None:
        super().__init__(value, 0.0)

    def variance(self, at: Evaluated, variances: Arrays, unit: float) -> np.ndarray:
        """Return the square of the step that an error of a few deviations can cause."""
        reach = greatest_error(variances[0], unit)
        sides = [self._value(at.inputs[0] + h, at.attributes) for h in (reach, -reach)]
        moved = np.maximum(*(np.abs(side - at.output) for side in sides))
        return np.where(reach > 0, np.square(moved / unit), 0.0).astype(at.output.dtype)

    def gradient(self, at: Evaluated, gradient: np.ndarray) -> Arrays:
        """See the base class."""
        return [np.zeros_like(gradient)]


class PRelu(Operator):
    """max(x, 0) + alpha min(x, 0) with a slope for each element."""

    def evaluate(self, inputs: Arrays, weights: Weights, attributes: Attributes) -> np.ndarray:
        """See the base class."""
        return np.where(inputs[0] >= 0, inputs[0], weights["alpha"] * inputs[0])

    def error_bound(self, at: Evaluated, errors: Arrays, unit: float) -> np.ndarray:
        """See the base class."""
        slope = np.maximum(1, np.abs(at.weights["alpha"]))
        return np.asarray(slope * errors[0] + 2 * unit * np.abs(at.output))

    def variance(self, at: Evaluated, variances: Arrays, unit: float) -> np.ndarray:
        """See the base class."""
        return np.asarray(
            np.square(self._slope(at)) * variances[0] + ROUNDING * np.square(at.output)
        )

    def gradient(self, at: Evaluated, gradient: np.ndarray) -> Arrays:
        """See the base class."""
        return [gradient * self._slope(at)]

    def _slope(self, at: Evaluated) -> np.ndarray:
        return np.where(at.inputs[0] >= 0, 1.0, at.weights["alpha"])

    def integer(self, at: Integers) -> Finish:
        """See the base class: the negative side is a product (TFLite, `reference/prelu.h`)."""
        x, slopes = aligned(at.operands[0], at.weights["alpha"])
        values, products = x.centred, x.centred * slopes.centred
        y = at.output.scale[0]
        ratios = float(x.scale[0] / y), float(x.scale[0] * slopes.scale[0] / y)

        def finish(rule: Arithmetic) -> Ints:
            positive, negative = rule.scaled(values, ratios[0]), rule.scaled(products, ratios[1])
            return at.output.saturated(np.where(values >= 0, positive, negative))

        return finish


def _elementary(function: Callable[[np.ndarray], np.ndarray]) -> Function:
    """Return a NumPy function that ignores attributes."""
    return lambda x, _: function(x)


def _ratio(x: Quantized, output: Output) -> float:
    return float(x.scale[0] / output.scale[0])


def _integer_clip(x: Quantized, output: Output, attributes: Attributes) -> Finish:
    """Rescale to the output's steps, then clip: the form of relu and clip."""
    low, high = (attributes.get(name) for name in ("min_value", "max_value"))
    limited = output.clipped(0.0 if low is None else low, np.inf if high is None else high)
    return lambda rule: limited.saturated(rule.scaled(x.centred, _ratio(x, output)))


def _integer_leaky(x: Quantized, output: Output, attributes: Attributes) -> Finish:
    """One ratio for each sign (TFLite, `reference/leaky_relu.h`)."""
    slope = np.float32(attributes["negative_slope"])
    negative = float(x.scale[0] * slope / output.scale[0])
    return lambda rule: output.saturated(rule.leaky(x.centred, _ratio(x, output), negative))


def _integer_absolute(x: Quantized, output: Output, attributes: Attributes) -> Finish:
    """The absolute value in the output's steps (TFLite, `kernels/elementwise.cc`, `AbsInt8`)."""
    size, ratio = np.abs(x.centred), _ratio(x, output)
    return lambda rule: output.saturated(size if ratio == 1 else rule.scaled(size, ratio))


def _integer_gelu(x: Quantized, output: Output, attributes: Attributes) -> Finish:
    approximate = attributes.get("approximate", False)
    return tabled(float32_gelu_tanh if approximate else float32_gelu, x, output)


def _integer_sigmoid(x: Quantized, output: Output, attributes: Attributes) -> Finish:
    if x.bits == 8:
        return tabled(float32_sigmoid, x, output)
    found = wide_sigmoid(x.integers, x.scale[0])
    return lambda rule: found


def _integer_tanh(x: Quantized, output: Output, attributes: Attributes) -> Finish:
    if x.bits == 8:
        return tabled(rounded_once(np.tanh), x, output)
    found = wide_tanh(x.integers, x.scale[0])
    return lambda rule: found


def _integer_exp(x: Quantized, output: Output, attributes: Attributes) -> Finish:
    return tabled(rounded_once(np.exp), x, output)


def _integer_hard_silu(x: Quantized, output: Output, attributes: Attributes) -> Finish:
    found = hard_swish(x, output)
    return lambda rule: found


ACTIVATIONS: dict[str, Operator] = {
    "linear": Pointwise(lambda x, a: x, 1, 0),
    "relu": Pointwise(_relu, 1, 2, integer=_integer_clip),
    "leaky_relu": Pointwise(_leaky, 1, 2, integer=_integer_leaky),
    "clip": Pointwise(_clip, 1, 0, integer=_integer_clip),
    "elu": Pointwise(_elu, 1, ULPS, "one"),
    "selu": Pointwise(_selu, 1.7581, ULPS, "one"),
    "gelu": Pointwise(_gelu, 1.13, ULPS, "input", _integer_gelu),
    "silu": Pointwise(lambda x, a: x * sigmoid(x, a), 1.1, ULPS, "input"),
    "sigmoid": Pointwise(sigmoid, 0.25, ULPS, "one", _integer_sigmoid),
    "tanh": Pointwise(_elementary(np.tanh), 1, ULPS, "one", _integer_tanh),
    "hard_sigmoid": Pointwise(lambda x, a: np.clip(x / 6 + 0.5, 0, 1), 1 / 6, 4, "one"),
    "hard_silu": Pointwise(_hard_silu, 1.5, 6, "input", _integer_hard_silu),
    "softplus": Pointwise(_softplus, 1, ULPS, "input"),
    "softsign": Pointwise(lambda x, a: x / (1 + np.abs(x)), 1, 4),
    "mish": Pointwise(lambda x, a: x * np.tanh(_softplus(x, a)), 1.1, 2 * ULPS, "input"),
    "softmax": Softmax(ULPS),
    "log_softmax": LogSoftmax(ULPS),
    "prelu": PRelu(),
    "negative": Pointwise(_elementary(np.negative), 1, 0),
    "absolute": Pointwise(_elementary(np.abs), 1, 0, integer=_integer_absolute),
    "erf": Pointwise(_elementary(erf), 1.1284, ULPS, "one"),
    "erfc": Pointwise(_elementary(erfc), 1.1284, ULPS, "one"),
    "sin": Periodic(_elementary(np.sin)),
    "cos": Periodic(_elementary(np.cos)),
    "atan": Pointwise(_elementary(np.arctan), 1, ULPS, "one"),
    "square": Steep(_elementary(np.square), 1),
    "sqrt": Steep(_elementary(np.sqrt), 4),
    "rsqrt": Steep(lambda x, a: 1 / np.sqrt(x), ULPS),
    "reciprocal": Steep(_elementary(np.reciprocal), 2),
    "exp": Exponential(_elementary(np.exp), integer=_integer_exp),
    "expm1": Exponential(_elementary(np.expm1), less=1.0),
    "log": Steep(_elementary(np.log), ULPS, "one"),
    "log1p": Steep(_elementary(np.log1p), ULPS, "input"),
    "floor": Step(_elementary(np.floor)),
    "ceil": Step(_elementary(np.ceil)),
    "round": Step(_elementary(np.rint)),
    "truncate": Step(_elementary(np.trunc)),
    "sign": Step(_elementary(np.sign)),
    "sign_bit": Step(lambda x, a: np.signbit(x).astype(x.dtype)),
    "nonzero": Step(lambda x, a: (x != 0).astype(x.dtype)),
    "logical_not": Step(lambda x, a: (x == 0).astype(x.dtype)),
    "is_nan": Step(lambda x, a: np.isnan(x).astype(x.dtype)),
    "is_finite": Step(lambda x, a: np.isfinite(x).astype(x.dtype)),
    "bucketize": Step(_buckets),
}

# Functions with unbounded slope, such as the square and the logarithm.
STEEP = {name for name, operator in ACTIVATIONS.items() if isinstance(operator, Steep)}
