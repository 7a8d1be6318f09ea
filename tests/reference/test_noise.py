"""Protects the noise model: arithmetic done by hand in NumPy is as noisy as the model says."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from renormlite import check_parity
from renormlite.artifacts.directory import read_export
from renormlite.artifacts.golden_set import read_golden
from renormlite.artifacts.network import Network, Node
from renormlite.artifacts.precisions import POOLED_LIMIT, UNIT_ROUNDOFF, WORST_SAMPLE_LIMIT
from renormlite.artifacts.sample_kinds import file_inputs
from renormlite.reference.file_noise import file_noise
from renormlite.reference.integer_noise import Step
from renormlite.reference.network import evaluate_network, evaluate_node
from renormlite.reference.noise import (
    NoiseSource,
    _evaluated,
    _input_rounding,
    _mean,
    _products,
    _stepped,
    _underflow,
    denormal,
    expected_noise,
    flushing_effect,
    in_steps,
    input_step,
)
from renormlite.reference.operators import OPERATORS
from renormlite.reference.operators.base import REACH, Evaluated
from renormlite.reference.operators.pooling import coherent_mean_variance

HALF = UNIT_ROUNDOFF["float16"]
FRAME = {"strides": [1, 1], "dilation": [1, 1], "padding": "same"}


def network_of(rng, *, bias: float, width: int = 24, last: str = "linear") -> Network:
    """Return conv, relu, conv, relu, mean, dense with weights that half precision holds."""

    def weights(*shape):
        spread = np.sqrt(2 / np.prod(shape[:-1]))
        kernel = rng.normal(0, spread, shape).astype(np.float16).astype(np.float32)
        shift = (bias * rng.normal(size=shape[-1])).astype(np.float16).astype(np.float32)
        return {"kernel": kernel, "bias": shift}

    def node(name, op, source, shape, attributes, arrays):
        return Node(name, op, name, (source,), shape, attributes, arrays)

    map_ = (None, 6, 6, width)
    nodes = [
        node("a", "conv", "x", map_, FRAME, weights(3, 3, 8, width)),
        node("b", "relu", "a", map_, {}, {}),
        node("c", "conv", "b", map_, FRAME, weights(3, 3, width, width)),
        node("d", "relu", "c", map_, {}, {}),
        node("e", "global_average_pool", "d", (None, width), {}, {}),
        node("f", "dense", "e", (None, 10), {}, weights(width, 10)),
        node("g", last, "f", (None, 10), {}, {}),
    ]
    return Network({"x": (None, 6, 6, 8)}, {"y": "g"}, tuple(nodes))


def in_half(network: Network, x: np.ndarray, *, bias_first: bool) -> np.ndarray:
    """Evaluate with every product added to a sum in half precision, one after the other."""
    f16 = np.float16
    value = x.astype(f16)
    for node in network.nodes:
        if node.op in ("conv", "dense"):
            kernel = node.weights["kernel"].astype(f16)
            shift = node.weights["bias"].astype(f16)
            flat = kernel.reshape(-1, kernel.shape[-1])
            read = patches(value) if node.op == "conv" else value
            total = np.zeros((*read.shape[:-1], len(shift)), f16)
            if bias_first:
                total = total + shift
            for k in range(len(flat)):
                # The product of two halves is exact in float32: a fused multiply-add.
                product = read[..., k, None].astype(np.float32) * flat[k].astype(np.float32)
                total = (total.astype(np.float32) + product).astype(f16)
            value = total if bias_first else total + shift
        elif node.op == "global_average_pool":
            total = np.zeros((len(value), value.shape[-1]), f16)
            for row in value.reshape(len(value), -1, value.shape[-1]).transpose(1, 0, 2):
                total = total + row
            value = total / f16(value.shape[1] * value.shape[2])
        else:
            value = OPERATORS[node.op].evaluate([value], {}, {}).astype(f16)
    return value


def patches(x: np.ndarray) -> np.ndarray:
    """Return the 3 x 3 windows of (N, H, W, C), flattened as a kernel is."""
    padded = np.pad(x, [(0, 0), (1, 1), (1, 1), (0, 0)])
    high, wide = x.shape[1:3]
    parts = [padded[:, i : i + high, j : j + wide] for i in range(3) for j in range(3)]
    return np.concatenate(parts, axis=-1)


def ratios(got: np.ndarray, truth: np.ndarray, noise: np.ndarray) -> np.ndarray:
    """Return each sample's root mean square error over its expected noise."""
    return np.sqrt(np.mean(np.square(got.astype(np.float64) - truth), axis=-1)) / noise


def pooled(values: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(values))))


@pytest.mark.parametrize("bias_first", [False, True])
@pytest.mark.parametrize("bias", [0.0, 1.0, 30.0])
def test_accumulation_in_half_precision_is_as_noisy_as_the_model_says(bias, bias_first):
    """A bias larger than the products makes all partial sums, and their roundings, large."""
    rng = np.random.default_rng(0)
    network = network_of(rng, bias=bias)
    x = rng.normal(size=(24, 6, 6, 8)).astype(np.float16).astype(np.float32)
    (truth,) = evaluate_network(network, {"x": x}).values()
    (noise,) = expected_noise(network, {"x": x}, arithmetic=NoiseSource(HALF)).values()
    found = ratios(in_half(network, x, bias_first=bias_first), truth, noise)
    assert pooled(found) <= POOLED_LIMIT
    assert found.max() <= WORST_SAMPLE_LIMIT
    if bias_first:
        assert pooled(found) >= 0.25


def test_adding_many_small_equal_numbers_to_a_large_one_rounds_in_one_direction():
    """As in the variance of an impulse: each partial sum is rounded by the same amount."""
    rows = np.full((1, 2048), 5.9e-7 * 2.48, np.float32)
    rows[0, 0] = 2.48
    got = np.cumsum(rows[0], dtype=np.float32)[-1] / np.float32(rows.size)
    error = abs(float(got) - float(np.mean(rows, dtype=np.float64)))
    single = np.mean(np.square(rows)) / 2 / 3 / rows.size  # of independent roundings
    unit = UNIT_ROUNDOFF["float32"]
    (found,) = coherent_mean_variance(rows, np.zeros_like(rows))
    assert error > 5 * unit * np.sqrt(single * rows.size)
    assert error <= 5 * unit * np.sqrt(found)


def eight_bits(network: Network, x: np.ndarray, *, rows: bool) -> np.ndarray:
    """Evaluate with the inputs of linear ops in 255 steps, a range for each sample or each row."""
    value = x.astype(np.float64)
    for node in network.nodes:
        if node.op in ("conv", "dense"):
            step = input_step(value)
            if rows:
                high = np.maximum(value.max(-1, keepdims=True), 0)
                step = (high - np.minimum(value.min(-1, keepdims=True), 0)) / 255
            value = np.rint(value / np.maximum(step, 1e-30)) * step
        value = evaluate_node(node, [value])
    return value


@pytest.mark.parametrize("rows", [False, True])
def test_dynamic_range_is_no_noisier_than_the_model_says(rows):
    rng = np.random.default_rng(1)
    network = network_of(rng, bias=0.3)
    x = rng.normal(size=(24, 6, 6, 8)).astype(np.float32)
    (truth,) = evaluate_network(network, {"x": x}).values()
    hybrid = {node.name: False for node in network.nodes if node.op in ("conv", "dense")}
    arithmetic = NoiseSource(hybrid=hybrid)
    (noise,) = expected_noise(network, {"x": x}, arithmetic=arithmetic, truth={"y": truth}).values()
    found = ratios(eight_bits(network, x, rows=rows), truth, noise)
    assert 0.25 <= pooled(found) <= 1.1
    assert found.max() <= WORST_SAMPLE_LIMIT
    (of_float,) = expected_noise(network, {"x": x}).values()
    assert np.all(noise > 1e3 * of_float)


@pytest.mark.parametrize("last", ["softmax", "sigmoid"])
def test_error_that_leaves_a_flat_region_is_within_its_deviations(last):
    """Logits k deviations off move a saturated output by no more than k times its noise."""
    rng = np.random.default_rng(2)
    logits = rng.normal(0, 6, (200, 3))
    unit, deviation = 2.0**-8, 0.7
    variances = [np.full(logits.shape, (deviation / unit) ** 2)]
    operator = OPERATORS[last]
    value = operator.evaluate([logits], {}, {})
    at = Evaluated([logits], {}, {}, value)
    variance = operator.variance(at, variances, unit)
    noise = unit * np.sqrt(variance)
    assert REACH == WORST_SAMPLE_LIMIT
    for k in range(1, int(REACH) + 1):
        for element in range(3):
            for sign in (1, -1):
                moved = logits.copy()
                moved[:, element] += sign * k * deviation
                change = np.abs(operator.evaluate([moved], {}, {}) - value)[:, element]
                assert np.all(change <= k * noise[:, element] * (1 + 1e-9))
    # To first order, where errors are small.
    small = [variance_ * 1e-12 for variance_ in variances]
    none = [np.zeros(logits.shape)]
    got = operator.variance(at, small, unit) - operator.variance(at, none, unit)
    slope = np.square(value * (1 - value))
    if last == "sigmoid":
        steep = slope > 1e-6
        np.testing.assert_allclose(got[steep], (slope * small[0])[steep], rtol=1e-2)


def test_every_kernel_stays_within_the_noise_of_a_dynamic_file(coarse_export):
    """XNNPACK takes the range of each row, the others of each sample: one bound for all."""
    targets = ("litert", "litert+builtin", "litert+reference", "onnxruntime")
    report = check_parity(coarse_export, targets)
    chosen = [r for r in report.results if r.precision in ("dynamic", "float16")]
    assert len(chosen) == 8
    for result in chosen:
        (output,) = result.outputs
        assert result.passed, result.reason
        assert "on this network" in output.bound.reason
        assert output.pooled_ratio <= 1.2


def test_noise_of_a_file_grows_with_the_error_of_its_weights(coarse_export):
    export = read_export(coarse_export)
    golden = read_golden(export.golden, [spec.name for spec in export.outputs])
    (artifact,) = [a for a in export.artifacts if a.file.endswith("dynamic.tflite")]
    (stored,) = golden.file_noise[artifact.file].values()
    path, network = export.path / artifact.file, export.read_network(artifact)
    inputs = file_inputs(golden.inputs, "dynamic")
    (noise,) = file_noise(path, "tflite", "dynamic", network, inputs, golden.truth).values()
    np.testing.assert_allclose(stored, noise, rtol=1e-6)
    moved = {name: np.nan_to_num(value) + 0.25 for name, value in golden.truth.items()}
    (further,) = file_noise(path, "tflite", "dynamic", network, inputs, moved).values()
    assert np.all(further > 0.2)
    assert file_noise(path, "tflite", "float32", network, inputs, golden.truth) == {}


@pytest.mark.parametrize("even", [True, False])
def test_mean_summed_sequentially_is_as_noisy_as_the_model_says(even):
    """Equal values round in one direction: nothing averages out over an even image."""
    rng = np.random.default_rng(0)
    x = rng.uniform(0.1, 1, (200, 1 if even else 384, 1, 3)).astype(np.float32)
    x = np.broadcast_to(x, (200, 384, 1, 3))
    node = Node("m", "global_average_pool", "m", ("x",), (None, 3), {}, {})
    network = Network({"x": (None, 384, 1, 3)}, {"y": "m"}, (node,))
    total = np.zeros((200, 3), np.float32)
    for place in range(384):
        total = np.asarray(total + x[:, place, 0], np.float32)
    got = np.asarray(total / np.float32(384), np.float64)
    noise = expected_noise(network, {"x": x})["y"]
    found = ratios(got, evaluate_network(network, {"x": x})["y"], noise)
    assert 0.3 < pooled(found) < POOLED_LIMIT
    assert found.max() < WORST_SAMPLE_LIMIT


@pytest.mark.parametrize("scale", [1.0, 1e-6])
def test_inputs_that_are_only_moved_are_rounded_to_half_precision(scale):
    """Below the least normal half, the error is absolute."""
    x = (scale * np.random.default_rng(0).normal(size=(50, 6))).astype(np.float32)
    node = Node("m", "reshape", "m", ("x",), (None, 2, 3), {"target_shape": [2, 3]}, {})
    network = Network({"x": (None, 6)}, {"y": "m"}, (node,))
    noise = expected_noise(network, {"x": x}, arithmetic=NoiseSource(HALF))["y"]
    found = ratios(x.astype(np.float16), x, noise)
    assert 0.5 < pooled(found) <= POOLED_LIMIT
    assert found.max() <= WORST_SAMPLE_LIMIT


def test_products_below_the_least_normal_half_are_as_noisy_as_the_model_says():
    x = (1e-3 * np.random.default_rng(0).normal(size=(50, 24))).astype(np.float16)
    node = Node("m", "multiply", "m", ("x", "x"), (None, 24), {}, {})
    network = Network({"x": (None, 24)}, {"y": "m"}, (node,))
    given = {"x": x.astype(np.float32)}
    truth = evaluate_network(network, {"x": x.astype(np.float64)})["y"]
    noise = expected_noise(network, given, arithmetic=NoiseSource(HALF))["y"]
    found = ratios(x * x, truth, noise)
    assert 0.5 < pooled(found) <= POOLED_LIMIT
    assert found.max() <= WORST_SAMPLE_LIMIT


def test_denormal_weights_may_be_replaced_by_zero():
    rng = np.random.default_rng(0)
    network = network_of(rng, bias=0.0)
    first = next(node for node in network.nodes if "kernel" in node.weights)
    small = first.weights["kernel"] * np.float32(1e-39 / np.abs(first.weights["kernel"]).max())
    nodes = [
        replace(n, weights={**n.weights, "kernel": small}) if n is first else n
        for n in network.nodes
    ]
    x = {"x": rng.normal(size=(4, 6, 6, 8)).astype(np.float32)}
    changed = replace(network, nodes=tuple(nodes))
    (truth,), (noise,) = (
        found.values() for found in (evaluate_network(changed, x), expected_noise(changed, x))
    )
    size = np.sqrt(np.mean(np.square(truth.reshape(4, -1)), axis=1))
    np.testing.assert_allclose(noise, size, rtol=1e-3)


def dense_network(kernel, bias=0.0) -> Network:
    kernel = np.array(kernel, np.float32)
    weights = {"kernel": kernel, "bias": np.full(kernel.shape[1], bias, np.float32)}
    node = Node("d", "dense", "d", ("x",), (None, kernel.shape[1]), {}, weights)
    return Network({"x": (None, len(kernel))}, {"y": "d"}, (node,))


@pytest.mark.parametrize(
    ("value", "found"),
    [(0.0, False), (2.0**-126, False), (2.0**-127, True), (-(2.0**-149), True), (-1.0, False)],
)
def test_denormal_numbers(value, found):
    inputs = {"a": np.ones((2, 3)), "b": np.array([[1.0, 1.0], [1.0, value]])}
    assert denormal(inputs).tolist() == [False, found]


def test_flushing_moves_a_sum_by_what_it_loses():
    """1e-39 is denormal, 2e-38 is not, and neither is their sum."""
    network = dense_network([[1.0], [1.0]])
    x = np.array([[1e-39, 2e-38], [2e-38, 2e-38]])
    found = flushing_effect(network, {"x": x})["y"]
    np.testing.assert_allclose(found, [1e-39, 0.0])
    weights = dense_network([[1e-39], [1.0]])
    found = flushing_effect(weights, {"x": np.array([[1.0, 0.0], [50.0, 0.0]])})["y"]
    np.testing.assert_allclose(found, [1e-39, 50e-39], rtol=1e-6)


def test_a_large_network_is_evaluated_on_some_samples():
    network = dense_network(np.ones((10, 20)))  # 200 products
    for budget, count in ((0, 4), (200 * 7, 7), (200 * 1000, 30), (np.inf, 30)):
        found = _evaluated(network, 30, budget)
        assert len(found) == count
        assert (found[0], found[-1]) == (0, 29)
        assert np.ptp(np.diff(found)) <= 1
    assert _evaluated(network, 2, 0).tolist() == [0, 1]


@pytest.mark.parametrize(
    ("shape", "kernel", "products"),
    [((None, 20), (10, 20), 200), ((None, 6, 7, 4), (3, 3, 2, 4), 72 * 42), ((None, 5), None, 0)],
)
def test_products_of_a_node(shape, kernel, products):
    weights = {} if kernel is None else {"kernel": np.zeros(kernel, np.float32)}
    assert _products(Node("n", "conv", "n", ("x",), shape, {}, weights)) == products


def test_samples_that_are_not_evaluated_have_the_largest_noise():
    rng = np.random.default_rng(0)
    network = dense_network(rng.normal(size=(8, 4)))
    x = rng.normal(size=(9, 8)).astype(np.float32) * np.arange(1, 10)[:, None].astype(np.float32)
    x[3] = np.inf
    whole = expected_noise(network, {"x": x}, work=np.inf)["y"]
    some = expected_noise(network, {"x": x}, work=0)["y"]
    index = [0, 2, 5, 8]  # of the samples without infinity, 4 that are spread over all
    np.testing.assert_allclose(some[index], whole[index])
    others = np.setdiff1d(np.arange(9), index)
    np.testing.assert_allclose(some[others], whole[index].max())
    assert whole[3] == whole[np.arange(9) != 3].max()


def test_the_size_of_the_batch_changes_nothing():
    rng = np.random.default_rng(0)
    network = dense_network(rng.normal(size=(8, 4)))
    x = {"x": rng.normal(size=(9, 8)).astype(np.float32)}
    found = [expected_noise(network, x, batch=batch)["y"] for batch in (1, 2, 9, 100)]
    for other in found[1:]:
        np.testing.assert_allclose(other, found[0], rtol=1e-5)


def test_what_other_weights_change_counts_as_error():
    """The error of a file's weights is far above rounding: 0.5 times the input."""
    x = np.array([[1.0], [-3.0]], np.float32)
    truth = {"y": x.astype(np.float64)}
    found = expected_noise(dense_network([[1.5]]), {"x": x}, truth=truth)["y"]
    np.testing.assert_allclose(found, [0.5, 1.5], rtol=1e-5)


@pytest.mark.parametrize(
    ("x", "symmetric", "step"),
    [
        ([1.0, 3.0], False, 3 / 255),
        ([-1.0, 3.0], False, 4 / 255),
        ([-4.0, -1.0], False, 4 / 255),
        ([-4.0, 1.0], True, 4 / 127),
        ([0.0, 0.0], False, 0.0),
    ],
)
def test_the_step_of_a_dynamic_input(x, symmetric, step):
    array = np.array([x, [1.0, 2.0]], np.float64)[:, None]
    found = input_step(array, symmetric=symmetric)
    assert found.shape == (2, 1, 1)
    assert found[0, 0, 0] == pytest.approx(step)
    assert found[1, 0, 0] == pytest.approx(2 / (127 if symmetric else 255))


def test_numbers_in_steps():
    x = np.array([[0.0, 0.24, 0.26, -0.74, 1.0], [0.0] * 5])
    found = in_steps(x, np.array([[0.5], [0.0]]))
    np.testing.assert_array_equal(found, [[0, 0, 0.5, -0.5, 1.0], [0] * 5])


def test_integers_add_a_step_and_saturate():
    unit = UNIT_ROUNDOFF["float32"]
    step = Step(0.5, -1.0, 2.0)
    value = np.array([0.3, -1.0, 2.5, 2.5, -9.0])
    errors = np.array([0.2, 0.0, 0.5, 0.5 / (1.1 * REACH), 0.0])
    bounded, variance = _stepped(value, np.square(errors / unit), step, unit)
    np.testing.assert_array_equal(bounded, [0.3, -1.0, 2.0, 2.0, -1.0])
    # A value beyond the range that its errors do not bring back has no error.
    expected = [0.2**2 + 0.25, 0.25, 0.25 + 0.25, 0.0, 0.0]
    np.testing.assert_allclose(variance * unit**2, expected, rtol=1e-6)


def test_numbers_below_the_least_normal_half_have_the_error_of_their_step():
    half = UNIT_ROUNDOFF["float16"]
    found = _underflow(np.array([0.0, 2.0**-15, -(2.0**-20), 2.0**-14, 1.0]))
    own = (2.0**-24) ** 2 / 12 / half**2
    np.testing.assert_allclose(found, [0, own, own, 0, 0])


def test_inputs_are_rounded_to_half_precision():
    half = UNIT_ROUNDOFF["float16"]
    x = np.array([1.0, 1.0 + 2.0**-12, 1e6, -3.0], np.float32)
    np.testing.assert_allclose(_input_rounding(x) * half**2, [0, 2.0**-24, 0, 0])


def test_numbers_whose_squares_exceed_float32_have_noise():
    """Each product is rounded once: a uniform error of at most u times its size."""
    factor = np.full((), 3.0, np.float32)
    triple = Node("y", "multiply", "y", ("x",), (None, 4), {}, {}, {"constant": factor})
    network = Network({"x": (None, 4)}, {"y": "y"}, (triple,))
    sizes = np.array([1.0, 1e18, 1e25, 1e37])
    x = (np.ones((4, 4)) * sizes[:, None]).astype(np.float32)
    unit = UNIT_ROUNDOFF["float32"]
    found = expected_noise(network, {"x": x})["y"]
    np.testing.assert_allclose(found, unit * 3 * sizes / np.sqrt(3), rtol=1e-4)


def test_a_variance_without_a_bound_is_no_bound_of_zero():
    finite, inf, nan = [1.0, 3.0], [np.inf, 1.0], [np.nan, 1.0]
    variance = np.array([finite, inf, nan, [np.inf, np.inf], [np.nan, np.nan]])
    assert _mean(variance, np.zeros((5, 2))).tolist() == [2.0, np.inf, np.inf, np.inf, np.inf]
    # An infinite value is compared by itself.
    value = np.array([[np.inf, 0.0], [np.inf, 0.0], [np.nan, 0.0], [np.inf, np.nan], [0.0, 0.0]])
    assert _mean(variance, value).tolist() == [3.0, 1.0, 1.0, 0.0, np.inf]


@pytest.mark.parametrize("last", ["softmax", "exp"])
def test_a_mask_of_minus_infinity_is_as_noisy_as_one_of_large_numbers(last):
    """A masked score has no share in a result, and infinite numbers are not rounded."""

    def masked(by: float) -> dict[str, np.ndarray]:
        def node(name: str, op: str, source: str, *constant: float) -> Node:
            known = {"constant": np.array(constant, np.float32)} if constant else {}
            return Node(name, op, name, (source,), (None, 3), {}, {}, known)

        kernel = {"kernel": np.eye(3, dtype=np.float32) * 0.3}
        nodes = (
            Node("d", "dense", "d", ("x",), (None, 3), {}, kernel),
            node("m", "add", "d", 0, 0, by),
            node("n", "add", "m", 0.7, 0.7, 0.7),
            node("y", last, "n"),
        )
        x = np.random.default_rng(0).normal(size=(6, 3))
        return expected_noise(Network({"x": (None, 3)}, {"y": "y"}, nodes), {"x": x})

    noise = masked(-np.inf)["y"]
    assert np.all(noise > 0)
    np.testing.assert_allclose(noise, masked(-80.0)["y"], rtol=1e-6)


def test_numbers_that_overflow_have_no_bound():
    """Unlike those of a mask, infinite results of finite numbers say nothing about the error."""
    nodes = (
        Node("a", "multiply", "a", ("x",), (None, 2), {}, {}, {"constant": np.array([1e200, 1])}),
        Node("b", "multiply", "b", ("a",), (None, 2), {}, {}, {"constant": np.array([1e200, 1])}),
        Node("c", "add", "c", ("b",), (None, 2), {}, {}, {"constant": np.array([1.0, 1])}),
        Node("y", "sigmoid", "y", ("c",), (None, 2), {}, {}),
    )
    network = Network({"x": (None, 2)}, {"y": "y"}, nodes)
    assert np.isinf(expected_noise(network, {"x": np.ones((1, 2))})["y"]).all()
