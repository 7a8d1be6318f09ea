"""Protects the rules of TFLite's functions, relations, sums and quotients: those of its kernels."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import tensorflow as tf
from renormlite.artifacts.graphs import read_graph
from renormlite.reference.integer.prediction import predict, rules_of
from renormlite.reference.operators.activations import ULPS
from renormlite.reference.rounding.fixed_point import inverse_root, quotient
from renormlite.reference.rounding.quantized import NotKnownError

SIZE = 256  # every 8-bit integer occurs

# LiteRT's own interpreter crashes where TensorFlow's converter has run in the same process.
_RESOLVERS = tf.lite.experimental.OpResolverType
KERNELS = {
    "xnnpack": _RESOLVERS.AUTO,
    "builtin": _RESOLVERS.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
    "reference": _RESOLVERS.BUILTIN_REF,
}

FUNCTIONS = {
    "log": tf.math.log,
    "sqrt": tf.sqrt,
    "rsqrt": tf.math.rsqrt,
    "absolute": tf.abs,
    "negative": tf.negative,
    "square": tf.square,
    "unit_length": lambda x: tf.math.l2_normalize(x, -1, 1e-6),
    "largest": lambda x: tf.reduce_max(x, -1),
    "least": lambda x: tf.reduce_min(x, -1),
    "taken": lambda x: tf.gather(x, [3, 1, 5], axis=-1),
    "parts": lambda x: tf.split(x, 2, -1)[1],
    "top": lambda x: tf.math.top_k(x, 5)[0],
    "place": lambda x: tf.cast(tf.argmax(x, -1), tf.float32),
    "product": lambda x: tf.reduce_prod(tf.reshape(x, (1, 32, 8)), -1),
    "product_of_two_axes": lambda x: tf.reduce_prod(tf.reshape(x, (1, 4, 16, 4)), (1, 3)),
    "chosen": lambda x: tf.one_hot(tf.argmax(tf.reshape(x, (1, 16, 16)), -1), 16),
    "sums": lambda x: tf.cumsum(tf.reshape(x, (1, 16, 16)), 1),
    "sums_before": lambda x: tf.cumsum(tf.abs(x), -1, exclusive=True, reverse=True),
    "any": lambda x: tf.cast(tf.reduce_any(tf.reshape(x, (1, 64, 4)) > 4.0, -1), tf.float32),
    "all": lambda x: tf.cast(tf.reduce_all(tf.reshape(x, (1, 64, 4)) < 4.0, -1), tf.float32),
    "logic": lambda x: tf.where((x > 1.0) & ~(x > 2.0) | (x < -1.0), x, 0.5 * x),
    "count": lambda x: tf.cast(tf.reduce_sum(tf.cast(x > 0.0, tf.int32), -1), tf.float32),
    "triangle": lambda x: tf.linalg.band_part(tf.reshape(x, (1, 16, 16)), -1, 0),
    "taken_by_rows": lambda x: tf.gather(
        tf.reshape(x, (16, 16)), tf.argsort(tf.reshape(x, (16, 16))), batch_dims=1
    ),
    "taken_parts": lambda x: tf.gather_nd(
        tf.reshape(x, (16, 16)), tf.argmax(tf.reshape(x, (1, 16, 16)), 1)[..., None]
    ),
    "remainder": lambda x: tf.nn.relu(tf.math.floormod(x, 0.7)),
    "whole_parts": lambda x: tf.nn.relu(tf.math.floordiv(x, 0.7)),
    "sum_of_four": lambda x: tf.add_n([x, 2 * x, tf.tanh(x), tf.nn.relu(x)]),
}
PLACES = np.random.default_rng(1).integers(0, 5, 16)
KERNEL = np.random.default_rng(0).normal(size=(2, 2, 2, 4, 3)).astype("f4")


def volumes(x, strides, padding):
    return tf.nn.relu(tf.nn.conv3d(tf.reshape(x, (1, 4, 4, 4, 4)), KERNEL, strides, padding))


def by_segment(reduce):
    """Return a reduction of 16 rows to 5 by segment, of which one row has none."""
    return lambda x: tf.nn.relu(reduce(tf.reshape(x, (16, 16)), [-1, *PLACES[1:]], 5))


FUNCTIONS |= {
    "scattered": lambda x: tf.nn.relu(
        tf.scatter_nd(PLACES[:, None], tf.reshape(x, (16, 16)), (6, 16))
    ),
    "sums_of_segments": by_segment(tf.math.unsorted_segment_sum),
    "products_of_segments": by_segment(tf.math.unsorted_segment_prod),
    "largest_of_segments": by_segment(tf.math.unsorted_segment_max),
    "least_of_segments": by_segment(tf.math.unsorted_segment_min),
    "volumes": lambda x: volumes(x, [1, 1, 1, 1, 1], "SAME"),
    "volumes_in_steps": lambda x: volumes(x, [1, 2, 2, 2, 1], "VALID"),
}
# Functions that runtimes compute by polynomials in float32; rounding to 8 bits hides how.
POLYNOMIALS = {
    "sine": lambda x: tf.nn.relu(tf.sin(x)),
    "cosine": lambda x: tf.nn.relu(tf.cos(x)),
    "power": lambda x: tf.nn.relu(tf.pow(tf.abs(x), 1.3)),
    "angle": lambda x: tf.nn.relu(tf.atan2(x, x[:, ::-1])),
}
# Functions that stay in float32 in files of 16-bit integers.
SMOOTH = {
    "root": lambda x: tf.nn.relu(tf.sqrt(tf.abs(x))),
    "hard_swish": lambda x: tf.nn.relu(x * tf.nn.relu6(x + 3) / 6),
    "log_shares": lambda x: tf.nn.relu(
        6 + tf.nn.log_softmax(tf.reshape(x, (1, 32, 8)))  # from -8 to 0
    ),
}
POSITIVE = {"log", "sqrt", "rsqrt"}

RELATIONS = {
    "greater": lambda a, b: tf.where(a > b, a, 0.5 * b),
    "greater_equal": lambda a, b: tf.where(a >= b, a, b),
    "less": lambda a, b: tf.where(a < b, a, b),
    "less_equal": lambda a, b: tf.where(a <= b, b, a),
    "equal": lambda a, b: tf.where(tf.equal(a, b), a, b),
    "not_equal": lambda a, b: tf.where(tf.not_equal(a, b), a, b),
    "constant": lambda a, b: tf.where(a > 0.5, a, 0.25 * b),
    "difference": tf.math.squared_difference,
    "maximum": tf.maximum,
    "minimum": tf.minimum,
    "packed": lambda a, b: tf.stack([a, b], -1),
}


def converted(function, ranges, bits, tmp_path):
    """Return the path of a file of one function, quantized for inputs in the given ranges."""
    specs = [tf.TensorSpec((1, SIZE), tf.float32, name=f"x{i}") for i in range(len(ranges))]
    traced = tf.function(function, input_signature=specs)  # must outlive the conversion
    converter = tf.lite.TFLiteConverter.from_concrete_functions([traced.get_concrete_function()])
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.representative_dataset = lambda: (inputs(ranges, seed) for seed in range(8))
    ops = tf.lite.OpsSet
    wide = ops.EXPERIMENTAL_TFLITE_BUILTINS_ACTIVATIONS_INT16_WEIGHTS_INT8
    narrow = ops.TFLITE_BUILTINS_INT8
    converter.target_spec.supported_ops = [narrow if bits == 8 else wide, ops.TFLITE_BUILTINS]
    path = tmp_path / f"{bits}.tflite"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        path.write_bytes(converter.convert())
    return path


def inputs(ranges, seed):
    """Return samples: every step of the range for the first seed, then random numbers."""
    rng = np.random.default_rng(seed)
    found = [rng.permutation(np.linspace(low, high, SIZE)) for low, high in ranges]
    if seed:
        found = [rng.uniform(low, high, SIZE) for low, high in ranges]
    return [x[None].astype("f4") for x in found]


def run(path, kernels, samples):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        interpreter = tf.lite.Interpreter(str(path), experimental_op_resolver_type=KERNELS[kernels])
    interpreter.allocate_tensors()
    outputs = []
    for sample in samples:
        for entry in interpreter.get_input_details():
            interpreter.set_tensor(entry["index"], sample[entry["name"]])
        interpreter.invoke()
        outputs.append(interpreter.get_tensor(interpreter.get_output_details()[0]["index"]))
    return np.concatenate(outputs)


def sampled(ranges):
    return [{f"x{i}": x for i, x in enumerate(inputs(ranges, seed))} for seed in range(6)]


def predicted(path, ranges):
    """Return the predicted outputs, one array for each rule."""
    graph = read_graph(path, "tflite")
    keyed = [{k: s[graph.tensors[k].name] for k in graph.inputs} for s in sampled(ranges)]
    return [p.outputs[graph.outputs[0]] for p in predict(graph, "tflite", keyed)]


def assert_predicted(path, ranges, kinds=KERNELS):
    expected = predicted(path, ranges)
    for kernels in kinds:
        got = run(path, kernels, sampled(ranges))
        differing = [int(np.sum(one.reshape(got.shape) != got)) for one in expected]
        assert min(differing) == 0, (kernels, differing)


def check_function(name, bits, tmp_path):
    # TensorFlow's calibrator crashes at the logarithm of zero; the kernels are defined there.
    calibrated = (0.01, 4.0) if name in POSITIVE else (-3.0, 5.0)
    path = converted(FUNCTIONS[name], [calibrated], bits, tmp_path)
    assert_predicted(path, [(0.0, 4.0) if name in POSITIVE else calibrated])


@pytest.mark.parametrize("name", FUNCTIONS)
def test_function_of_8_bits(name, tmp_path):
    check_function(name, 8, tmp_path)


@pytest.mark.parametrize("name", POLYNOMIALS)
def test_polynomials_between_integers(name, tmp_path):
    path = converted(POLYNOMIALS[name], [(-3.0, 5.0)], 8, tmp_path)
    assert_predicted(path, [(-3.0, 5.0)])


def test_exponential_linear_units(tmp_path):
    """LiteRT has no reference kernel of the version that the converter writes."""
    path = converted(lambda x: tf.nn.relu(tf.nn.elu(x) + 1), [(-3.0, 5.0)], 8, tmp_path)
    assert_predicted(path, [(-3.0, 5.0)], ["xnnpack", "builtin"])


@pytest.mark.parametrize("name", [*POLYNOMIALS, *SMOOTH])
def test_polynomials_between_integers_of_16_bits(name, tmp_path):
    """Their last bits are a share of a step, so that ties may fall either way, and nothing else."""
    ranges = [(-3.0, 5.0)]
    path = converted({**POLYNOMIALS, **SMOOTH}[name], ranges, 16, tmp_path)
    graph = read_graph(path, "tflite")
    keyed = [{k: s[graph.tensors[k].name] for k in graph.inputs} for s in sampled(ranges)]
    rules = [rule.turned(turn) for rule in rules_of(graph, "tflite") for turn in (-ULPS, ULPS)]
    ends = [p.outputs[graph.outputs[0]] for p in predict(graph, "tflite", keyed, rules)]
    low, high = np.min(ends, axis=0), np.max(ends, axis=0)
    for kernels in KERNELS:
        got = run(path, kernels, sampled(ranges)).reshape(low.shape)
        assert np.all((low <= got) & (got <= high)), kernels
    assert np.mean(low != high) < 0.5  # most integers are certain


@pytest.mark.parametrize(
    "name",
    [
        *("any", "all", "count", "taken_by_rows", "taken_parts"),
        *("remainder", "whole_parts"),
        *("log", "rsqrt", "absolute", "largest", "product", "product_of_two_axes"),
        *("chosen", "sums", "sums_before", "sum_of_four"),
    ],
)
def test_function_of_16_bits(name, tmp_path):
    check_function(name, 16, tmp_path)


@pytest.mark.parametrize("size", [2, 8, 256])
@pytest.mark.parametrize(
    "ends", [(-3.0, 5.0), (-0.02, 0.01), (-9.0, 1.0), (-8.0, 8.0), (-3e3, 2e3)]
)
def test_logarithm_of_softmax(size, ends, tmp_path):
    """Tables in the optimized kernels, fixed point in the portable ones."""

    def function(x):
        rows = tf.nn.log_softmax(tf.reshape(x, (1, SIZE // size, size)))
        return tf.reshape(rows, (1, SIZE))

    path = converted(function, [ends], 8, tmp_path)
    assert_predicted(path, [ends])
    # The last integers of the type, and numbers beyond the range.
    assert_predicted(path, [(2 * ends[0], 3 * ends[1])])


def test_kernels_differ_in_the_logarithm_of_softmax(tmp_path):
    """A prediction that is equal for all rules would prove little."""

    def function(x):
        return tf.nn.log_softmax(tf.reshape(x, (1, 32, 8)))

    path = converted(function, [(-9.0, 1.0)], 8, tmp_path)
    assert len(predicted(path, [(-9.0, 1.0)])) > 1


@pytest.mark.parametrize("bits", [8, 16])
def test_product_beyond_32_bits(bits, tmp_path):
    """The kernels keep the lower 32 bits of each product, as for samples that were not expected."""

    def function(a, b):
        rows = [tf.reshape(a, (1, 16, 16)), tf.reshape(b[:, :16], (1, 1, 16))]
        return tf.reduce_prod(tf.concat(rows, 1), 1)

    path = converted(function, [(5.0, 10.0), (1e-9, 1e-8)], bits, tmp_path)
    assert_predicted(path, [(5.0, 10.0), (0.0, 3.0)])


@pytest.mark.parametrize("name", RELATIONS)
def test_relation_of_8_bits(name, tmp_path):
    ranges = [(-3.0, 3.0), (-2.0, 5.0)]
    assert_predicted(converted(RELATIONS[name], ranges, 8, tmp_path), ranges)


@pytest.mark.parametrize("name", ["less", "greater_equal", "equal", "not_equal"])
def test_relation_of_16_bits(name, tmp_path):
    ranges = [(-3.0, 3.0), (-2.0, 5.0)]
    assert_predicted(converted(RELATIONS[name], ranges, 16, tmp_path), ranges)


@pytest.mark.parametrize("bits", [8, 16])
def test_sum(bits, tmp_path):
    """The reference kernels return another number."""
    ranges = [(-3.0, 5.0)]
    path = converted(lambda x: tf.reduce_sum(x, -1, keepdims=True), ranges, bits, tmp_path)
    assert_predicted(path, ranges, ["xnnpack", "builtin"])


def test_quotient(tmp_path):
    """The kernel refuses divisors whose integer is 0, whatever number that stands for."""
    path = converted(tf.divide, [(-3.0, 3.0), (0.5, 4.0)], 8, tmp_path)
    assert_predicted(path, [(-3.0, 3.0), (0.8, 1.9)])


def test_quotient_beyond_the_shifts_of_c_is_not_predicted(tmp_path):
    ranges = [(-3.0, 3.0), (0.02, 4.0)]
    path = converted(tf.divide, ranges, 8, tmp_path)
    with pytest.raises(NotKnownError, match="shift"):
        predicted(path, ranges)


def test_fixed_point_root_and_quotient():
    x = np.array([2, 3, 100, 65025, 1 << 20, 1 << 30])
    m, e = inverse_root(x)
    np.testing.assert_allclose(m * 2.0 ** (e - 31) * np.sqrt(x), 1, atol=2e-6)
    one = [part.tolist() for part in inverse_root(np.array([0, 1]))]
    assert one == [[2**31 - 1] * 2, [0, 0]]
    a, b = np.array([200, -200, 7, 0, 250]), np.array([3, 7, -2, 5, 250])
    found, _ = quotient(a, b, np.int64(1 << 30), np.int64(5))  # times 16
    np.testing.assert_array_equal(found, np.rint(a / b * 16))
