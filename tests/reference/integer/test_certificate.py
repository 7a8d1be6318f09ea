"""Protects the portability certificate: what it says of all inputs holds for every one tried."""

from __future__ import annotations

import dataclasses
import json

import keras
import numpy as np
import pytest
import renormlite as rl
from click.testing import CliRunner
from keras import layers
from renormlite.artifacts.graphs import read_graph
from renormlite.artifacts.graphs.base import Quantization
from renormlite.cli.certify import command
from renormlite.export.quantization.portable import disputed_sums, portable_scales
from renormlite.reference.integer.base import Values
from renormlite.reference.integer.certificate import by_products
from renormlite.reference.integer.linear_sums import LinearSums, linear_ops
from renormlite.reference.integer.onnx_certificate import RULES, certify_onnx
from renormlite.reference.integer.onnx_ops import OnnxValues, fused, linear_sums
from renormlite.reference.integer.tflite_certificate import certify_tflite
from renormlite.reference.integer.tflite_ops import prepared
from renormlite.reference.rounding.quantized import Output, Quantized
from renormlite.reference.rounding.tflite_rules import AwayFromZero
from renormlite.reference.rounding.thresholds import differing_sums, thresholds
from renormlite.reference.rounding.xnnpack import TFLITE_RULES, tflite_rules
from renormlite.runtimes import Target, make_runner

XNNPACK, SINGLE = TFLITE_RULES[0], TFLITE_RULES[-1]


def _channels(count: int, seed: int):
    """Return scales of inputs, weights and outputs, and the ends of sums, as files have them."""
    generator = np.random.default_rng(seed)
    x, y = (np.float32(generator.uniform(0.01, 0.1, 1)) for _ in range(2))
    w = np.float32(10 ** generator.uniform(-4, -2, count))
    most = generator.integers(2_000, 60_000, count)
    return x, w, y, np.array([-most, most + 100])


@pytest.mark.parametrize("rule", TFLITE_RULES, ids=lambda rule: rule.name)
def test_thresholds_equal_the_rule_on_every_sum(rule):
    """For every sum between the ends, the thresholds give the result of the rule."""
    x, w, y, ends = _channels(12, 1)
    levels = np.arange(-127, 128)
    found = thresholds(
        lambda sums: rule.rounded(sums, x, w, y), x.astype(float) * w / y, ends, levels
    )
    sums = np.arange(ends[0].min(), ends[1].max() + 1)[:, None]
    given = np.clip(rule.rounded(sums, x, w, y), -128, 127)
    for channel in range(len(w)):
        inside = (sums[:, 0] >= ends[0, channel]) & (sums[:, 0] <= ends[1, channel])
        said = -128 + np.searchsorted(found[:, channel], sums[inside, 0], side="right")
        np.testing.assert_array_equal(said, given[inside, channel])


def test_the_number_of_differing_sums_equals_an_exhaustive_count():
    x, w, y, ends = _channels(40, 2)
    levels = np.arange(-127, 128)
    ratio = x.astype(float) * w / y
    sums = np.arange(ends[0].min(), ends[1].max() + 1)[:, None]
    inside = (sums >= ends[0]) & (sums <= ends[1])
    known = {}
    for rule in TFLITE_RULES:
        known[rule] = thresholds(lambda s, r=rule: r.rounded(s, x, w, y), ratio, ends, levels)
    total = 0
    for rule in TFLITE_RULES[1:]:
        one, other = (np.clip(r.rounded(sums, x, w, y), -128, 127) for r in (XNNPACK, rule))
        counted = ((one != other) & inside).sum(axis=0)
        np.testing.assert_array_equal(differing_sums(known[XNNPACK], known[rule]), counted)
        total += int(counted.sum())
    assert total > 0


@pytest.fixture(scope="module")
def files(tmp_path_factory, build_network):
    """The int8 file of a small network, and its portable twin's folder."""
    data = np.random.default_rng(5).normal(size=(32, 8, 8, 1)).astype(np.float32)
    folders = []
    for portable in (False, True):
        folder = tmp_path_factory.mktemp("certified") / "tiny"
        manifest = rl.export_model(
            build_network(),
            folder,
            formats=("tflite",),
            precisions=("int8",),
            calibration=data,
            inputs=data[:8],
            equalize="never",
            portable=portable,
        )
        folders.append((folder, manifest))
    return folders


def test_a_million_random_sums_find_no_difference_that_is_not_listed(files):
    graph = read_graph(files[1][0] / "tiny.int8.tflite", "tflite")
    generator = np.random.default_rng(0)
    tried = 0
    for _, sums in linear_ops(graph):
        random = generator.integers(sums.ends[0], sums.ends[1] + 1, (40_000, sums.ends.shape[1]))
        one, other = (
            sums.output.saturated(sums.rounded(rule, random)) for rule in (XNNPACK, SINGLE)
        )
        differing = (one != other).any(axis=0)
        assert not (differing & (disputed_sums(sums, sums.w) == 0)).any()
        tried += random.size
    assert tried >= 1_000_000


def test_a_portable_file_has_no_differing_sum_and_is_accurate(files):
    (plain, _), (portable, manifest) = files
    left = []
    for folder in (plain, portable):
        graph = read_graph(folder / "tiny.int8.tflite", "tflite")
        left.append(sum(int(disputed_sums(s, s.w).sum()) for _, s in linear_ops(graph)))
    assert left[0] > 0
    assert left[1] == 0
    assert any(
        "agree on every input in 40 of 40 channels" in n for n in manifest.artifacts[0].notes
    )
    assert rl.check_parity(portable, per_op=True).passed


def test_scales_change_by_at_most_a_thirtieth_of_a_step_of_the_largest_weight(files):
    graph = read_graph(files[0][0] / "tiny.int8.tflite", "tflite")
    for _, sums in linear_ops(graph):
        scales, left = portable_scales(sums)
        assert not left.any()
        assert np.abs(scales.astype(float) / sums.w - 1).max() <= 2.0**-12


@pytest.mark.parametrize("point", [-128, 0])
def test_every_difference_is_removed_for_any_usual_scale(point):
    """Scales next to fractions with odd denominators; the random ones cover 2^-14 to 2^-6."""
    generator = np.random.default_rng(3)
    x, y = np.float32([0.0173]), np.float32([0.0291])
    ratio = 2.0 ** generator.uniform(-14, -6, 400)
    most = np.int64(400 / ratio)
    steps = Quantization(y, np.array([point]), np.dtype(np.int8))
    sums = LinearSums(
        "conv", x, np.float32(ratio * y / x), Output(steps), np.array([-most, most + 7])
    )
    assert (disputed_sums(sums, sums.w) > 0).sum() > 100
    scales, left = portable_scales(sums)
    assert not left.any()
    for channel in np.flatnonzero(ratio > 2.0**-9)[::20]:  # an exhaustive check of some channels
        pair = sums.channels(np.array([channel, channel]))
        every = np.arange(-most[channel], most[channel] + 8)[:, None]
        one, other = (
            pair.output.saturated(pair.rounded(rule, every, scales[[channel, channel]]))
            for rule in (XNNPACK, SINGLE)
        )
        np.testing.assert_array_equal(one, other)


def test_rules_that_agree_give_equal_outputs(files):
    """The reference kernels follow the rule that the certificate calls portable."""
    path = files[1][0] / "tiny.int8.tflite"
    found = rl.certify(path)
    kinds = {op.kind: op.method for op in found.certificate.ops}
    assert kinds["CONV_2D"] == "thresholds"
    assert kinds["RESHAPE"] == "moves integers"
    assert not found.certificate.undecided
    assert kinds["SOFTMAX"] == "functions"
    data = np.random.default_rng(1).normal(size=(1, 8, 8, 1)).astype(np.float32)
    runs = []
    for variant in ("", "reference"):
        with make_runner(Target("litert", variant), path) as runner:
            tensors = runner.infer_all({"image": data})
            runs.append(tensors)
    graph = read_graph(path, "tflite")
    first = next(op for op in graph.ops if op.kind == "CONV_2D").outputs[0]
    entry = next(op for op in certify_tflite(graph).ops if op.kind == "CONV_2D")
    cases = [d.cases for d in entry.differences if d.kernels == "TFLite's portable kernels"]
    differing = int((runs[0][first] != runs[1][first]).sum())
    assert differing <= sum(cases) * runs[0][first].size
    assert not differing or cases


def test_the_command_and_its_refusals(files, tmp_path):
    path = files[0][0] / "tiny.int8.tflite"
    result = CliRunner().invoke(command, [str(path), "--json", str(tmp_path / "c.json")])
    assert result.exit_code == 0, result.output
    assert "against XNNPACK" in result.output
    written = json.loads((tmp_path / "c.json").read_text())
    assert len(written["ops"]) == len(rl.certify(path).certificate.ops)
    (tmp_path / "net.pt2").write_bytes(b"")
    with pytest.raises(rl.UserError, match="Expected a"):
        rl.certify(tmp_path / "net.pt2")
    with pytest.raises(rl.UserError, match="There is no file"):
        rl.certify(tmp_path / "other.tflite")


def _functions(tmp_path, precision):
    """Return the certificate of a file with a float input, pooling, an addition and a softmax."""
    x = keras.Input((6, 6, 2), name="x")
    y = layers.AveragePooling2D(2)(layers.Conv2D(4, 1)(x))
    y = layers.Add()([y, layers.ReLU()(y)])
    y = layers.Softmax()(layers.Dense(3)(layers.Flatten()(y)))
    data = np.cumsum(np.random.default_rng(0).normal(size=(64, 6, 6, 2)), axis=2)
    rl.export_model(
        keras.Model(x, y),
        tmp_path / "net",
        formats=("tflite",),
        precisions=(precision,),
        calibration=data.astype(np.float32),
        equalize="never",
    )
    graph = read_graph(tmp_path / "net" / f"net.{precision}.tflite", "tflite")
    return graph, {op.kind: op for op in certify_tflite(graph).ops}


def test_floats_are_quantized_differently_exactly_where_the_certificate_says(tmp_path):
    graph, ops = _functions(tmp_path, "int8")
    (entry, *_) = ops["QUANTIZE"].differences
    portable = next(rule for rule in TFLITE_RULES if rule.kernels == entry.kernels)
    scale = np.float32(graph.tensors[graph.ops[0].outputs[0]].quantization.scales)
    # Around every tie, each float in turn.
    ties = (np.arange(-127, 128) - 0.5).astype(np.float32) * scale
    near = ties.view(np.int32)[:, None] + np.arange(-40, 41)
    floats = near.astype(np.int32).view(np.float32)
    given = floats.reshape(-1, 1).repeat(8, axis=1)
    unequal = XNNPACK.quantized(given, scale) != portable.quantized(given, scale)
    levels = np.clip(XNNPACK.quantized(given, scale)[:, 0], -300, 300)
    point = int(graph.tensors[graph.ops[0].outputs[0]].quantization.zero_points[0])
    inside = (levels + point >= -128) & (levels + point <= 127)
    assert 0 < unequal[inside, 0].sum() <= entry.cases + 2
    number = np.float32(entry.example[0])
    one, other = (
        np.clip(rule.quantized(np.full((1, 8), number), scale)[0, 0] + point, -128, 127)
        for rule in (XNNPACK, portable)
    )
    assert (one, other) == (entry.first, entry.other)


def test_operators_with_one_rule_or_different_functions_are_decided(tmp_path):
    _, ops = _functions(tmp_path, "int8")
    assert ops["AVERAGE_POOL_2D"].method == "one rule"
    assert ops["SOFTMAX"].method == "functions"
    together = next(group for group in ops["SOFTMAX"].groups if "XNNPACK" in group)
    assert len(together) == 3
    assert {entry.kernels for entry in ops["SOFTMAX"].differences}.isdisjoint(together)


@pytest.mark.parametrize("size", [2, 3])
def test_average_pooling_has_one_rule_for_every_sum(size, tmp_path):
    """Each window of one tall image has another sum."""
    count = size * size
    sums = np.arange(-128 * count, 127 * count + 1)
    base, rest = np.divmod(sums, count)
    data = base[:, None] + (np.arange(count) < rest[:, None])
    data = data.reshape(1, -1, size, 1).astype(np.int8)
    x = keras.Input(data.shape[1:], name="x")
    rl.export_model(
        keras.Model(x, layers.AveragePooling2D(size)(x)),
        tmp_path / "n",
        formats=("tflite",),
        precisions=("int8",),
        calibration=np.linspace(-1, 1, 2 * data.size, dtype="f4").reshape(2, *data.shape[1:]),
        inputs=np.zeros((1, *data.shape[1:]), np.float32),
    )
    path = tmp_path / "n" / "n.int8.tflite"
    half_away = np.sign(sums) * ((np.abs(sums) + count // 2) // count)
    graph = read_graph(path, "tflite")
    (pool,) = (op for op in graph.ops if op.kind == "AVERAGE_POOL_2D")
    steps = graph.tensors[pool.inputs[0]].quantization
    for variant in ("", "reference"):
        with make_runner(Target("litert", variant), path) as runner:
            tensors = runner.infer_all({"x": steps.real(data).astype(np.float32)})
        np.testing.assert_array_equal(tensors[pool.inputs[0]], data)
        np.testing.assert_array_equal(tensors[pool.outputs[0]].reshape(-1), half_away)


def test_16_bit_integers_are_certified(tmp_path):
    graph, ops = _functions(tmp_path, "int16x8")
    assert len(ops["CONV_2D"].groups) == 1
    dense = graph.ops[ops["FULLY_CONNECTED"].index]
    assert not any(dense.inputs[2:])  # without a bias, some kernels sum in 32 bits
    assert {entry.kernels for entry in ops["FULLY_CONNECTED"].differences} == {
        "TFLite Micro",
        "TFLite's optimized kernels on x86",
        "TFLite's optimized kernels before 2.17",
    }
    assert {
        e.kernels for e in ops["ADD"].differences
    } == {  # from groups of 16 in the optimized ones
        "TFLite's portable kernels",
        "TFLite Micro",
        "TFLite's one-rounding build",
    }


def test_products_of_16_bit_integers_are_decided_by_thresholds():
    """Every product near a difference, and random ones, are rounded as the thresholds say."""
    steps = [
        Quantization(np.float32([s]), np.zeros(1, np.int64), np.dtype(np.int16))
        for s in (3.1e-5, 2.7e-5, 2.9e-5)
    ]
    output = Output(steps[2])
    groups, differences = by_products((steps[0], steps[1]), output, TFLITE_RULES)
    micro, entry = differences
    assert (micro.kernels, entry.kernels) == ("TFLite Micro", SINGLE.kernels)
    assert sorted(map(len, groups)) == [1, 1, len(TFLITE_RULES) - 2]
    # Micro's ratio is computed in double precision, and differs in its last bits.
    x = np.array([int(micro.example[0])])
    ratios = float(np.float32(3.1e-5)) * float(np.float32(2.7e-5)) / float(np.float32(2.9e-5))
    assert output.saturated(AwayFromZero().scaled(x, ratios))[0] == micro.other
    ratio = float(np.float32(3.1e-5) * np.float32(2.7e-5) / np.float32(2.9e-5))

    def results(products):
        return [
            output.saturated(rule.of_bits(16).scaled(products, ratio)) for rule in (XNNPACK, SINGLE)
        ]

    one, other = results(np.array([int(entry.example[0])]))
    assert (one[0], other[0]) == (entry.first, entry.other)
    # The example is a product of two integers of 16 bits.
    factors = np.arange(1, 1 << 15)
    rest, left = np.divmod(abs(int(entry.example[0])), factors)
    assert ((left == 0) & (rest < 1 << 15)).any()
    # The share of products that differ, among random integers.
    random = np.random.default_rng(0).integers(-(2**30), 2**30, 4_000_000)
    one, other = results(random)
    expected = entry.cases / entry.of * random.size
    assert abs((one != other).sum() - expected) < 5 * np.sqrt(expected)


def test_a_constant_of_several_numbers_is_covered_with_every_integer(tmp_path):
    x = keras.Input((4, 4, 3), name="x")
    y = rl.ChannelAffine(use_shift=False)(layers.MaxPooling2D(2)(x))
    model = keras.Model(x, layers.Activation("tanh")(y))
    model.layers[2].scale.assign([0.3, 1.7, -2.0])
    data = np.random.default_rng(0).normal(size=(16, 4, 4, 3)).astype(np.float32)
    rl.export_model(
        model, tmp_path / "n", formats=("tflite",), precisions=("int8",), calibration=data
    )
    graph = read_graph(tmp_path / "n" / "n.int8.tflite", "tflite")
    (entry,) = (op for op in certify_tflite(graph).ops if op.kind == "MUL")
    assert entry.method == "all inputs"
    assert all(difference.of == 256 * 3 for difference in entry.differences)


def _many_kinds():
    """Return a network with a product of matrices, means, interpolation, slopes and roots."""
    x = keras.Input((4, 4, 4), name="x")
    slopes = keras.initializers.RandomUniform(0.1, 0.7, seed=0)
    y = layers.UpSampling2D(2, interpolation="bilinear")(x)
    y = layers.PReLU(slopes, shared_axes=[1, 2])(y)
    rows = layers.Reshape((64, 4))(y)
    z = layers.Dot(axes=(1, 1))([rows, layers.Activation("tanh")(rows)])
    mean = keras.ops.mean(z, axis=-1)
    return keras.Model(x, [mean, keras.ops.mean(y, axis=(1, 2), keepdims=True)])


def _made(tmp_path, model, precision, file_format="tflite"):
    data = np.random.default_rng(0).normal(size=(32, *model.input_shape[1:])).astype("f4")
    rl.export_model(
        model,
        tmp_path / "n",
        formats=(file_format,),
        precisions=(precision,),
        calibration=data,
        equalize="never",
    )
    return read_graph(tmp_path / "n" / f"n.{precision}.{file_format}", file_format)


@pytest.mark.parametrize("precision", ["int8", "int16x8"])
def test_rules_of_one_group_agree_on_random_integers(precision, tmp_path):
    graph = _made(tmp_path, _many_kinds(), precision)
    found = certify_tflite(graph)
    assert not found.undecided, found.undecided
    ops = {op.kind: op for op in found.ops}
    assert {"BATCH_MATMUL", "MEAN", "PRELU" if precision == "int8" else "TANH"} <= set(ops)
    assert len(ops["BATCH_MATMUL"].groups) == (2 if precision == "int8" else 1)
    generator, rules = np.random.default_rng(1), tflite_rules(graph)
    for op in graph.ops:
        entry = found.ops[op.index]
        keys = [key for key in graph.activations(op) if graph.tensors[key].quantization]
        if not entry.groups or not keys:
            continue
        fed = {}
        for key in keys:
            tensor = graph.tensors[key]
            limits = np.iinfo(tensor.dtype)
            shape = (400, *tensor.shape)
            fed[key] = generator.integers(limits.min, limits.max + 1, shape, tensor.dtype)
        finish = prepared(op, Values(graph, fed))
        results = {rule.kernels: np.asarray(finish(rule)) for rule in rules}
        for group in entry.groups:
            for rule in group:
                np.testing.assert_array_equal(results[rule], results[group[0]], op.kind)
        for difference in entry.differences:
            assert (difference.first, difference.other) != (0, 0) or difference.cases


def test_moved_integers_in_other_steps_are_undecided(tmp_path):
    """A file of another converter may join integers of different steps, which rounds."""
    x = keras.Input((4,), name="x")
    graph = _made(tmp_path, keras.Model(x, layers.Concatenate()([x, layers.ReLU()(x)])), "int8")
    (op,) = (op for op in graph.ops if op.kind == "CONCATENATION")
    assert certify_tflite(graph).ops[op.index].method == "moves integers"
    tensor = graph.tensors[op.inputs[1]]
    steps = dataclasses.replace(tensor.quantization, scales=2 * tensor.quantization.scales)
    graph.tensors[tensor.key] = dataclasses.replace(tensor, quantization=steps)
    entry = certify_tflite(graph).ops[op.index]
    assert (entry.method, entry.why) == ("", "the steps change where integers are only moved")


def test_a_16_bit_dense_layer_is_compared_by_the_size_of_its_bias():
    """Without a 64-bit bias, TFLite's optimized kernels sum in 32 bits."""
    steps = Quantization(np.float32([3e-5]), np.zeros(1, np.int64), np.dtype(np.int16))
    kernel = Quantized(np.ones((3, 1)), Quantization(np.float32([0.01]), np.zeros(1, int), np.int8))
    bias = Quantized(np.ones(1), Quantization(np.ones(1), np.zeros(1, int), np.dtype(np.int64)))
    narrow = LinearSums.made("dense", steps, kernel, {}, Output(steps))
    wide = LinearSums.made("dense", steps, kernel, {"bias": bias}, Output(steps))
    upward = TFLITE_RULES[2]
    assert narrow.rescaling(upward).__func__ is type(upward).dense_narrow
    assert wide.rescaling(upward).__func__ is type(upward).dense_wide


def test_functions_in_floats_are_decided_where_no_result_is_near_a_tie(tmp_path):
    x = keras.Input((8,), name="x")
    tanh = layers.Activation("tanh")(layers.Dense(4)(x))
    graph = _made(tmp_path, keras.Model(x, layers.Dense(3)(tanh)), "int8", "onnx")
    values = OnnxValues(graph, {})
    (tanh,) = (op for op in graph.ops if op.kind == "Tanh")
    (after,) = (op for op in graph.ops if op.inputs[:1] == (tanh.outputs[0],))
    tensor = graph.tensors[values.behind(tanh.inputs[0])]
    for scale, decided in ((0.013, True), (np.arctanh(0.5 / 127.5) / 3, False)):
        found = Quantization(np.float32([scale]), np.array([128]), np.dtype(np.uint8))
        given = Quantization(np.float32([1 / 127.5]), np.array([128]), np.dtype(np.uint8))
        graph.tensors[tensor.key] = dataclasses.replace(tensor, quantization=found)
        result = graph.tensors[after.outputs[0]]
        graph.tensors[result.key] = dataclasses.replace(result, quantization=given)
        integers = np.arange(256) - 128
        exact = np.tanh(integers * np.float64(np.float32(scale))) / np.float32(1 / 127.5)
        apart = np.abs(np.abs(exact) % 1 - 0.5).min()
        assert (apart > 2.0**-11) == decided, apart
        (entry,) = (op for op in certify_onnx(graph).ops if op.index == after.index)
        assert (entry.method == "all inputs") == decided, entry
        assert decided or "too near a tie" in entry.why


@pytest.fixture(scope="module")
def onnx_file(tmp_path_factory):
    """An int8 ONNX file with a residual addition, a mean and a softmax."""
    x = keras.Input((8, 8, 2), name="x")
    y = layers.Conv2D(6, 3, padding="same", activation="relu")(x)
    y = layers.Add()([y, layers.DepthwiseConv2D(3, padding="same")(y)])
    y = layers.GlobalAveragePooling2D()(layers.MaxPooling2D(2)(y))
    model = keras.Model(x, layers.Softmax(name="shares")(layers.Dense(3)(y)))
    data = np.cumsum(np.random.default_rng(0).normal(size=(64, 8, 8, 2)), axis=2).astype("f4")
    folder = tmp_path_factory.mktemp("certified") / "net"
    rl.export_model(
        model, folder, formats=("onnx",), precisions=("int8",), calibration=data, equalize="never"
    )
    return folder / "net.int8.onnx"


def test_onnx_files_are_certified(onnx_file):
    found = rl.certify(onnx_file)
    by_kind = {op.kind: op for op in found.certificate.ops}
    assert not found.certificate.undecided, found.sentence
    methods = {kind: op.method for kind, op in by_kind.items()}
    assert methods["MaxPool"] == "moves integers"
    assert methods["Conv"] == methods["QuantizeLinear"] == "thresholds"
    assert methods["Add"] == "all inputs"
    assert methods["GlobalAveragePool"] == "all sums"
    runtime, apart, portable, single = found.certificate.rules
    # Whether multiplications and additions are fused matters for no operator but Add.
    for op in found.certificate.ops:
        together = {rule for group in op.groups if runtime in group for rule in group}
        if op.groups and op.kind != "Add":
            assert apart in together
    assert {d.kernels for d in by_kind["Conv"].differences} <= {portable, single}
    assert any(d.kernels == portable for d in by_kind["Conv"].differences)


def test_sums_of_an_onnx_file_differ_exactly_where_the_certificate_says(onnx_file):
    graph = read_graph(onnx_file, "onnx")
    values = OnnxValues(graph, {})
    op = next(o for o in graph.ops if o.kind == "QuantizeLinear" and fused(o, values))
    sums = linear_sums(fused(op, values), op, values)
    entry = next(e for e in certify_onnx(graph).ops if e.index == op.index)
    every = np.arange(sums.ends[0].min(), sums.ends[1].max() + 1)[:, None]
    inside = (every >= sums.ends[0]) & (every <= sums.ends[1])
    every = np.broadcast_to(every, inside.shape)
    one, other = (
        sums.output.saturated(sums.rounded(rule, every)) for rule in (RULES[0], RULES[-1])
    )
    counted = int(((one != other) & inside).sum())
    listed = [d.cases for d in entry.differences if d.kernels == RULES[-1].kernels]
    assert counted == sum(listed)


def test_floats_in_onnx_files_are_undecided(tmp_path):
    x = keras.Input((8,), name="x")
    model = keras.Model(x, layers.Dense(3)(layers.Dense(4, activation="leaky_relu")(x)))
    data = np.random.default_rng(0).normal(size=(16, 8)).astype(np.float32)
    rl.export_model(
        model, tmp_path / "n", formats=("onnx",), precisions=("float32", "int8"), calibration=data
    )
    found = rl.certify(tmp_path / "n" / "n.int8.onnx")
    assert [op.kind for op in found.certificate.undecided] == ["LeakyRelu"]
    assert "LeakyRelu is computed in floats" in found.certificate.undecided[0].why
    with pytest.raises(rl.UserError, match="computes in floats"):
        rl.certify(tmp_path / "n" / "n.float32.onnx")
