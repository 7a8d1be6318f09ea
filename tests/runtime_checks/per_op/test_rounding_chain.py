"""Protects the bounds on what several quantized ops make of one node."""

from __future__ import annotations

import numpy as np
import pytest
from renormlite.artifacts.graphs.base import ArtifactGraph, GraphOp, GraphTensor, Quantization
from renormlite.reference.rounding.tables import wide_softmax
from renormlite.reference.rounding.tflite_rules import AwayFromZero
from renormlite.runtime_checks.per_op.function_errors import carried_errors
from renormlite.runtime_checks.per_op.rounding_chain import RoundingChain


def affine(factor: np.ndarray) -> ArtifactGraph:
    """A factor and a shift in two ops of integers."""
    steps = Quantization(np.array([0.1]), np.array([0]), np.dtype(np.int8))
    shapes = {"x": (1, 3), "product": (1, 3), "sum": (1, 3)}
    tensors = {k: GraphTensor(k, k, s, np.dtype(np.int8), steps) for k, s in shapes.items()}
    for key, data in (("factor", factor), ("shift", np.array([1, 2, 3], np.int8))):
        tensors[key] = GraphTensor(key, key, data.shape, data.dtype, steps, data)
    ops = (
        GraphOp(0, "MUL", "", ("x", "factor"), ("product",)),
        GraphOp(1, "ADD", "", ("product", "shift"), ("sum",)),
    )
    return ArtifactGraph(tensors, ("x",), ("sum",), lambda: ops)


def test_a_truncated_factor_gives_no_bound():
    """The range between factor and shift was chosen by other samples; a gate's limit is meant."""
    shown = {"x": np.ones((2, 1, 3), np.int8), "product": np.array([[[5, 6, 7]], [[5, 127, 7]]])}
    shown["product"] = shown["product"].astype(np.int8)
    by_channel = affine(np.array([2, 3, 4], np.int8))
    bounds = RoundingChain(by_channel, shown, 2).error("sum", frozenset({"x"}))
    assert np.isfinite(bounds).tolist() == [True, False]
    one = affine(np.array([2], np.int8))
    assert np.isfinite(RoundingChain(one, shown, 2).error("sum", frozenset({"x"}))).all()


def test_a_factor_whose_results_end_at_the_limit_truncates_nothing():
    """An activation with a least number, such as GELU, gives many results at the range's end."""
    product = np.array([[[30, 60, 127]]], np.int8)
    graph = affine(np.array([10, 20, 127], np.int8))

    def bound(third: int) -> np.ndarray:
        shown = {"x": np.array([[[30, 30, third]]], np.int8), "product": product}
        return RoundingChain(graph, shown, 1).error("sum", frozenset({"x"}))

    assert np.isfinite(bound(10)).all()  # 1.0 · 12.7
    assert np.isinf(bound(11)).all()  # 1.1 · 12.7, beyond the range


def test_a_factor_whose_results_exceed_the_range_by_a_step_loses_that_step():
    """The range was calibrated on floats; the factor reads numbers that were rounded up."""
    graph = affine(np.array([10, 20, 64], np.int8))

    def bound(third: int, product: int) -> float:
        shown = {
            "x": np.array([[[30, 30, third]]], np.int8),
            "product": np.array([[[30, 60, product]]], np.int8),
        }
        return RoundingChain(graph, shown, 1).error("sum", frozenset({"x"})).item()

    # 6.4 · 2.0 = 12.8 is cut by 0.1, besides 0.51 steps; 6.4 · 1.9 = 12.16 is rounded by 0.04.
    np.testing.assert_allclose(bound(20, 127) - bound(19, 122), 0.1 + 0.051 - 0.04)


def sums_of_three(function: int) -> ArtifactGraph:
    """A sum of three activations in two ops of integers; a function may be fused into the first."""
    steps = Quantization(np.array([0.1]), np.array([0]), np.dtype(np.int8))
    keys = ("a", "b", "c", "two", "three")
    tensors = {k: GraphTensor(k, k, (1, 2), np.dtype(np.int8), steps) for k in keys}
    fused = {"fusedActivationFunction": function}
    ops = (
        GraphOp(0, "ADD", "", ("a", "b"), ("two",), fused),
        GraphOp(1, "ADD", "", ("two", "c"), ("three",), {"fusedActivationFunction": 0}),
    )
    return ArtifactGraph(tensors, ("a", "b", "c"), ("three",), lambda: ops)


def test_a_truncated_sum_of_activations_gives_no_bound():
    """An addition of three has a sum of two in between, with a range from other samples."""
    a = np.array([[[60, 70]], [[60, 57]]], np.int8)
    b = np.array([[[10, 70]], [[10, 70]]], np.int8)
    two = np.array([[[70, 127]], [[70, 127]]], np.int8)  # 14.0 is cut to 12.7; 12.7 is not
    shown = {"a": a, "b": b, "c": -a, "two": two}
    sources = frozenset({"a", "b", "c"})
    bounds = RoundingChain(sums_of_three(0), shown, 2).error("three", sources)
    assert np.isfinite(bounds).tolist() == [False, True]
    # A function such as relu6 ends at its own limit.
    assert np.isfinite(RoundingChain(sums_of_three(3), shown, 2).error("three", sources)).all()


def test_quantizing_a_float_input_is_not_an_error():
    """Nodes are evaluated on the numbers that the file reads, rounded to its input's steps."""
    steps = Quantization(np.array([0.1]), np.array([0]), np.dtype(np.int8))
    tensors = {k: GraphTensor(k, k, (1, 3), np.dtype(np.int8), steps) for k in ("read", "sum")}
    tensors["x"] = GraphTensor("x", "x", (1, 3), np.dtype(np.float32), None)
    shift = np.array([1, 2, 3], np.int8)
    tensors["shift"] = GraphTensor("shift", "shift", shift.shape, shift.dtype, steps, shift)
    ops = (
        GraphOp(0, "QUANTIZE", "", ("x",), ("read",)),
        GraphOp(1, "ADD", "", ("read", "shift"), ("sum",)),
    )
    chain = RoundingChain(ArtifactGraph(tensors, ("x",), ("sum",), lambda: ops), {}, 1)
    exact = chain.error("sum", frozenset({"read"}))
    np.testing.assert_array_equal(chain.error("sum", frozenset()), exact)


def sliced(kind: str) -> ArtifactGraph:
    """A float input, moved and then rounded by itself, before another op."""
    steps = Quantization(np.array([0.1]), np.array([0]), np.dtype(np.int8))
    floats, integers = np.dtype(np.float32), np.dtype(np.int8)
    tensors = {
        "x": GraphTensor("x", "x", (1, 3), floats, None),
        "part": GraphTensor("part", "part", (1, 2), floats, None),
        "q": GraphTensor("q", "q", (1, 2), integers, steps),
        "real": GraphTensor("real", "real", (1, 2), floats, steps),
    }
    ops = (
        GraphOp(0, kind, "", ("x",), ("part",)),
        GraphOp(1, "QuantizeLinear", "", ("part",), ("q",)),
        GraphOp(2, "DequantizeLinear", "", ("q",), ("real",)),
    )
    return ArtifactGraph(tensors, ("x",), ("real",), lambda: ops)


def test_a_part_of_an_input_is_rounded_once_and_may_be_clipped():
    """The node's value has neither. The whole input is read with its rounding and its clipping."""
    shown = {"q": np.array([[[5, 6]], [[5, 127]]], np.int8)}
    part = RoundingChain(sliced("Slice"), shown, 2).error("real", frozenset({"x"}))
    np.testing.assert_allclose(part, [0.051, np.inf])
    shown["part"] = np.array([[[0.5, 0.6]], [[0.5, 12.7]]], np.float32)  # At the limit.
    near = RoundingChain(sliced("Slice"), shown, 2).error("real", frozenset({"x"}))
    np.testing.assert_allclose(near, [0.051, 0.051])
    whole = RoundingChain(sliced("Reshape"), shown, 2).error("real", frozenset({"x"}))
    np.testing.assert_allclose(whole, [0.051, 0.051])


def squeezed(point: int) -> ArtifactGraph:
    """Integers that a Squeeze moves, rounded again with a zero point, before a Softmax."""
    first = Quantization(np.array([0.3]), np.array([5]), np.dtype(np.int8))
    again = Quantization(np.array([0.3]), np.array([point]), np.dtype(np.int8))
    floats, integers = np.dtype(np.float32), np.dtype(np.int8)
    tensors = {
        "q": GraphTensor("q", "q", (1, 1, 3), integers, first),
        "real": GraphTensor("real", "real", (1, 1, 3), floats, first),
        "moved": GraphTensor("moved", "moved", (1, 3), floats, None),
        "q2": GraphTensor("q2", "q2", (1, 3), integers, again),
        "real2": GraphTensor("real2", "real2", (1, 3), floats, again),
    }
    ops = (
        GraphOp(0, "DequantizeLinear", "", ("q",), ("real",)),
        GraphOp(1, "Squeeze", "", ("real",), ("moved",)),
        GraphOp(2, "QuantizeLinear", "", ("moved",), ("q2",)),
        GraphOp(3, "DequantizeLinear", "", ("q2",), ("real2",)),
    )
    return ArtifactGraph(tensors, ("q",), ("real2",), lambda: ops)


def test_a_second_rounding_to_the_same_steps_adds_no_error():
    """ONNX quantizes the result of every op, also of one that moves quantized numbers."""
    for point, steps in ((5, 0.51), (6, 1.01)):  # only that of the first rounding, or both
        bound = RoundingChain(squeezed(point), {}, 1).error("real2", frozenset({"q"}))
        np.testing.assert_allclose(bound, [0.3 * steps])


def softplus(steps: float) -> ArtifactGraph:
    """log(1 + exp(x)) in three ops of integers, the exponential function in coarse steps."""
    dtype = np.dtype(np.int8)
    scales = {"x": 0.02, "exp": steps, "more": steps, "log": 0.02}
    tensors = {
        k: GraphTensor(k, k, (1, 4), dtype, Quantization(np.array([s]), np.array([-128]), dtype))
        for k, s in scales.items()
    }
    one = Quantization(np.array([1 / 255]), np.array([-128]), dtype)
    tensors["one"] = GraphTensor("one", "one", (), dtype, one, np.array(127, np.int8))
    ops = (
        GraphOp(0, "EXP", "", ("x",), ("exp",)),
        GraphOp(1, "ADD", "", ("exp", "one"), ("more",)),
        GraphOp(2, "LOG", "", ("more",), ("log",)),
    )
    return ArtifactGraph(tensors, ("x",), ("log",), lambda: ops)


def test_functions_in_coarse_steps_are_bounded_by_element():
    """The bound covers each element's error, and follows the rounding of its own number."""
    graph, x = softplus(0.2), np.array([[0.0, 1.0, 2.0, 3.0]])

    def stored(key: str, numbers: np.ndarray) -> np.ndarray:
        scale = graph.tensors[key].quantization.scales[0]
        return np.clip(np.rint(numbers / scale) - 128, -128, 127).astype(np.int8)[:, None]

    real = {"x": x}
    for key, function in (("exp", np.exp), ("more", lambda e: e + 1), ("log", np.log)):
        before = list(real.values())[-1]
        real[key] = graph.tensors[key].real(stored(key, function(before)))[:, 0]
    shown = {key: stored(key, numbers) for key, numbers in real.items()}
    bound = RoundingChain(graph, shown, 1).error("log", frozenset({"x"})).reshape(-1)
    actual = np.abs(real["log"] - np.log(1 + np.exp(x)))[0]
    assert (actual <= bound).all()
    assert (np.abs(bound - actual) < 1.52 * 0.02 + 0.5 / 255).all()
    wrong = {**shown, "exp": (shown["exp"] + 8).astype(np.int8)}
    more = RoundingChain(graph, wrong, 1).error("log", frozenset({"x"})).reshape(-1)
    assert (more < 3 * 0.2 + 0.02).all()  # no op errs by more than its own rounding


def test_softmax_of_16_bits_beyond_its_table_of_exponentials():
    """The table ends at exp(-10): many lesser numbers take that much from the greatest share."""
    scale = np.float32(2.0**-10)
    x = np.full((1, 1, 40), -20000, np.int16)
    x[..., 3] = 4000
    steps = [
        Quantization(np.array([size]), np.array([0]), np.dtype(np.int16))
        for size in (float(scale), 2.0**-15)
    ]
    tensors = {
        key: GraphTensor(key, key, (1, 40), np.dtype(np.int16), each)
        for key, each in zip(("x", "y"), steps, strict=True)
    }
    op = GraphOp(0, "SOFTMAX", "", ("x",), ("y",), {"beta": 1.0})
    graph = ArtifactGraph(tensors, ("x",), ("y",), lambda: (op,))
    y = wide_softmax(x.astype(np.int64), scale, np.float32(1))
    raised = np.exp((x - x.max()) * float(scale))
    error = np.abs(y * 2.0**-15 - raised / raised.sum()).max()
    bound = RoundingChain(graph, {"x": x, "y": y.astype(np.int16)}, 1).error("y", frozenset({"x"}))
    assert 8.5 * 2.0**-15 < error <= bound[0] < 2 * error


def test_sums_computed_twice_differ_by_both_roundings():
    """A softplus in parts reads its sums with a relu and without, each in steps of its own."""
    dtype, scales = np.dtype(np.int8), {"x": 0.1, "plain": 0.04, "relu": 0.02}
    tensors = {
        k: GraphTensor(k, k, (1, 2), dtype, Quantization(np.array([s]), np.array([0]), dtype))
        for k, s in scales.items()
    }
    kernel = Quantization(np.array([1e-3]), np.array([0]), dtype)
    tensors["kernel"] = GraphTensor("kernel", "kernel", (2, 2), dtype, kernel, np.ones((2, 2)))
    ops = (
        GraphOp(0, "FULLY_CONNECTED", "", ("x", "kernel"), ("plain",)),
        GraphOp(1, "FULLY_CONNECTED", "", ("x", "kernel"), ("relu",)),
    )
    chain = RoundingChain(ArtifactGraph(tensors, ("x",), ("relu",), lambda: ops), {}, 1)
    alone, both = (chain.error("relu", frozenset(keys)) for keys in ({"x"}, {"x", "plain"}))
    assert alone < 0.52 * 0.02
    assert 0.5 * (0.02 + 0.04) < both < 0.52 * (0.02 + 0.04)


def test_behind_a_saturated_number_no_function_has_a_bound():
    """The greatest error of a bounded function does not identify its tensor."""
    x = np.array([[0.5, 1.0]])
    op = GraphOp(0, "TANH", "", ("x",), ("y",))
    bounds = carried_errors(op, [x], [np.array([[0.01, np.inf]])])
    assert np.isfinite(bounds).tolist() == [[True, False]]


def test_a_product_of_two_values_is_rounded_twice():
    """TFLite's kernels round the fixed-point product, then its shift: more than half a step."""
    scales = {"a": 0.04058144, "b": 0.03757027, "y": 0.092156}
    tensors = {}
    for key, scale in scales.items():
        steps = Quantization(np.array([scale], np.float32), np.array([0]), np.dtype(np.int8))
        tensors[key] = GraphTensor(key, key, (1, 3), np.dtype(np.int8), steps)
    ops = (GraphOp(0, "MUL", "", ("a", "b"), ("y",)),)
    graph = ArtifactGraph(tensors, ("a", "b"), ("y",), lambda: ops)
    bound = float(np.max(RoundingChain(graph, {}, 1).error("y", frozenset())))
    a, b, y = (tensors[key].quantization.scales[0] for key in scales)
    products = np.unique(np.multiply.outer(np.arange(-128, 128), np.arange(-128, 128)))
    products = products[np.abs(products * a * b / y) < 127]
    rounded = AwayFromZero().multiplied(products, a, b, y)
    error = np.abs(rounded * float(y) - products * float(a) * float(b)).max()
    assert 0.51 * y < error <= bound < 0.53 * y


def test_bounds_do_not_depend_on_the_sources_before():
    """As tensors are identified one by one, only the bounds behind them are computed again."""
    generator = np.random.default_rng(0)
    steps = Quantization(np.array([0.1]), np.array([0]), np.dtype(np.int8))
    keys = ["x", *(f"t{i}" for i in range(120))]
    tensors = {k: GraphTensor(k, k, (1, 2), np.dtype(np.int8), steps) for k in (*keys, "kernel")}
    ops = []
    for i in range(120):
        before = [keys[max(0, i - int(generator.integers(0, 6)))] for _ in range(2)]
        kind = ("ADD", "MUL", "TANH", "FULLY_CONNECTED")[int(generator.integers(4))]
        read = (before[0], "kernel") if kind == "FULLY_CONNECTED" else tuple(before)
        ops.append(GraphOp(i, kind, "", read[: 1 if kind == "TANH" else 2], (keys[i + 1],)))
    graph = ArtifactGraph(tensors, ("x",), (keys[-1],), lambda: tuple(ops))
    shown = {k: generator.integers(-128, 128, (3, 1, 2)).astype(np.int8) for k in keys}
    chain, sources = RoundingChain(graph, shown, 3), frozenset[str]()
    for source in [*generator.permutation(keys[1:])[:25], None]:
        sources = frozenset() if source is None else sources | {str(source)}
        for key in keys[1::3]:
            fresh = RoundingChain(graph, shown, 3).error(key, sources)
            np.testing.assert_array_equal(chain.error(key, sources), fresh)


@pytest.mark.parametrize("integer", [np.int8, np.int16])
@pytest.mark.parametrize(("size", "wanted"), [(4, 300), (9, 7), (8, 13)])
def test_interpolation_at_places_in_1024ths(integer: type, size: int, wanted: int) -> None:
    """TFLite's kernels add the rounding of the distance between places up over an axis."""
    dtype, x = np.dtype(integer), np.zeros((1, 1, 1, size, 1), integer)
    x[..., ::2, :], x[..., 1::2, :] = np.iinfo(dtype).max, np.iinfo(dtype).min + 1
    steps = Quantization(np.array([1.0]), np.array([0]), dtype)
    tensors = {
        "x": GraphTensor("x", "x", (1, 1, size, 1), dtype, steps),
        "y": GraphTensor("y", "y", (1, 1, wanted, 1), dtype, steps),
        "sizes": GraphTensor(
            "sizes", "sizes", (2,), np.dtype(np.int32), None, np.array([1, wanted])
        ),
    }
    op = GraphOp(0, "RESIZE_BILINEAR", "", ("x", "sizes"), ("y",), {"halfPixelCenters": True})
    graph = ArtifactGraph(tensors, ("x",), ("y",), lambda: (op,))
    y = AwayFromZero().resized(x.astype(np.int64), [1, wanted], False, True)
    places = np.clip((np.arange(wanted) + 0.5) * size / wanted - 0.5, 0, size - 1)
    exact = np.interp(places, np.arange(size), x.reshape(-1).astype(float))
    error = np.abs(y.reshape(-1) - exact).max()
    bound = RoundingChain(graph, {"x": x, "y": y.astype(integer)}, 1).error("y", frozenset({"x"}))
    assert error <= bound[0] < 2 * error + 1.5
