"""Numbers that a file cannot represent are found without a device, and named by their layer."""

from __future__ import annotations

import numpy as np
import pytest
import renormlite as rl
from renormlite.artifacts.graphs.base import ArtifactGraph, GraphOp, GraphTensor, Quantization
from renormlite.artifacts.manifest import Manifest
from renormlite.artifacts.network import Network, Node
from renormlite.artifacts.ranges import GREATEST_HALF, Clipped, Misfits, Overflow
from renormlite.artifacts.record import Record
from renormlite.reference.file_weights import WeightMatch
from renormlite.reference.integer_noise import Step, rounded_values, steps_with_weights
from renormlite.runtime_checks.parity import check_parity


def export(tmp_path, size, precisions=("float16",), kernel=1):
    """A convolution whose values times 64 places are a sum; its weights are `size`."""
    import keras
    from keras import layers

    image = keras.Input((8, 8, 1), name="image")
    x = layers.Conv2D(2, kernel, name="conv")(image)
    x = layers.GlobalAveragePooling2D(name="mean")(x)
    model = keras.Model(image, layers.Dense(3, name="out")(x))
    rng = np.random.default_rng(0)
    model.set_weights(
        [
            np.full((kernel, kernel, 1, 2), size),
            np.zeros(2),
            rng.normal(size=(2, 3)) / size,
            np.zeros(3),
        ]
    )
    x = rng.uniform(0.5, 1, (8, 8, 8, 1)).astype(np.float32)
    directory = tmp_path / "net"
    rl.export_model(model, directory, precisions=precisions, formats=("tflite",), inputs=x)
    return directory, x


@pytest.mark.parametrize(
    ("size", "kernel", "found"),
    [(100.0, 1, None), (10000.0, 1, ("mean", "sum")), (20000.0, 3, ("conv", "value"))],
)
def test_half_precision_headroom(tmp_path, size, kernel, found):
    directory, _ = export(tmp_path, size, kernel=kernel)
    (artifact,) = Manifest.load(directory).artifacts
    (result,) = check_parity(directory, ("litert",)).results
    findings = [entry for entry in result.findings if entry.check == "headroom"]
    if found is None:
        assert not artifact.misfits
        assert [entry.passed for entry in findings] == [True]
        assert result.passed
        return
    first = artifact.misfits.overflows[0]
    assert (first.layer, first.what) == found
    assert first.size > GREATEST_HALF
    assert any(f"layer '{found[0]}' reaches the {found[1]}" in note for note in artifact.notes)
    assert not findings[0].passed
    assert findings[0].subject == found[0]


def test_headroom_is_measured_on_own_samples_too(tmp_path):
    directory, x = export(tmp_path, 100.0)
    (result,) = check_parity(directory, ("litert",), 1000 * x).results
    found = [entry.message for entry in result.findings if entry.check == "headroom"]
    assert "layer 'conv' reaches the value" in found[0]
    assert not result.passed


def test_own_samples_beyond_the_calibration_are_clipped(tmp_path):
    import keras

    image = keras.Input((16, 16, 1), name="image")
    conv = keras.layers.Conv2D(4, 3, activation="relu", name="conv")(image)
    model = keras.Model(image, keras.layers.GlobalAveragePooling2D()(conv))
    rng = np.random.default_rng(0)
    x = rng.normal(size=(20, 16, 16, 1)).cumsum(axis=1).cumsum(axis=2).astype(np.float32)
    x = (x - x.min()) / (x.max() - x.min())
    rl.export_model(model, tmp_path / "net", precisions=("int8",), calibration=x)
    for artifact in Manifest.load(tmp_path / "net").artifacts:
        assert all(entry.share < 5 for entry in artifact.misfits.clipped)
    report = check_parity(tmp_path / "net", ("litert", "onnxruntime"), 255 * x)
    for result in report.results:
        (finding,) = [entry for entry in result.findings if entry.check == "clipped"]
        assert not finding.passed
        assert "% of the values of input 'image' are clipped" in finding.message
        assert "the samples reach 0 to 255" in finding.message
    for result in check_parity(tmp_path / "net", ("litert", "onnxruntime"), x).results:
        assert result.passed, result.reason


def test_records_are_stored_in_the_manifest():
    found = Misfits(
        (Clipped("input 'x'", 12.5, 0.0, 1.0, -1.0, 16.0, 64),), (Overflow("gap", "sum", 2e5),)
    )
    assert Misfits.from_json(Record(found.to_json())) == found
    assert not Misfits()


def test_integers_of_a_network_are_included(tmp_path):
    """The integers of a lookup have steps of their own in an int8 file."""
    import keras
    from keras import layers

    keras.utils.set_random_seed(0)
    words = keras.Input((5,), dtype="int32", name="words")
    known = layers.IntegerLookup(vocabulary=[1, 2, 3], output_mode="multi_hot")(words)
    model = keras.Model(words, layers.Dense(2, name="out")(known))
    samples = np.random.default_rng(0).integers(0, 5, (32, 5))
    rl.export_model(model, tmp_path, formats=("tflite",), precisions=("int8",), inputs=samples)
    assert check_parity(tmp_path, ("litert",)).passed


@pytest.mark.parametrize(
    ("behind", "place"),
    [
        (("relu",), "relu1"),
        (("identity", "relu"), "relu2"),
        (("reshape", "relu"), "relu2"),
        (("global_max_pool",), "global_max_pool1"),
        (("relu", "max_pool"), "max_pool2"),
        (("exp", "relu"), "conv"),
        (("identity",), "conv"),
        ((), "conv"),
    ],
)
def test_range_of_a_layer_is_that_of_its_fused_relu(behind, place):
    """An affine that was merged, a move of numbers or a maximum between them change nothing."""
    nodes = [Node("conv", "conv", "conv", ("x",), (None, 4), {}, {})]
    for count, op in enumerate(behind, start=1):
        inputs = (nodes[-1].name,)
        nodes.append(Node(f"{op}{count}", op, op, inputs, (None, 4), {}, {}))
    network = Network({"x": (None, 4)}, {"y": nodes[-1].name}, tuple(nodes))
    step = Step(0.1, 0.0, 1.0)
    assert rounded_values(network, {"conv": step}) == {"conv": place}
    returned = Network({"x": (None, 4)}, {"y": nodes[-1].name, "z": "conv"}, tuple(nodes))
    assert rounded_values(returned, {"conv": step}) == {"conv": "conv"}


def test_ops_that_share_a_kernel_have_the_widest_of_their_ranges():
    """Each time step of a recurrent layer has a range of its own, which says nothing of others."""
    kernel = np.ones((2, 2), np.int8)
    scales = {"kernel": 1.0, "first": 0.5, "second": 2.0}
    tensors = {"x": GraphTensor("x", "x", (1, 2), np.dtype(np.float32), None)}
    for key, scale in scales.items():
        steps = Quantization(np.array([scale]), np.array([0]), np.dtype(np.int8))
        data = kernel if key == "kernel" else None
        tensors[key] = GraphTensor(key, key, (1, 2), np.dtype(np.int8), steps, data)
    ops = tuple(
        GraphOp(place, "FULLY_CONNECTED", "", ("x", "kernel"), (key,))
        for place, key in enumerate(("first", "second"))
    )
    graph = ArtifactGraph(tensors, ("x",), ("second",), lambda: ops)
    match = WeightMatch("cell", "gru", "kernel", "equal", tensors["kernel"])
    assert steps_with_weights(graph, [match]) == {"cell": Step(2.0, -256.0, 254.0)}


def test_biases_outside_the_operator_that_rounds_are_not_taken_for_clipping(tmp_path):
    """The heads of an attention split the channels; a dilated convolution gets its bias later."""
    import keras
    from keras import layers

    keras.utils.set_random_seed(0)
    x = keras.Input((6, 4), name="x")
    h = layers.Conv1D(4, 2, dilation_rate=2, padding="causal")(x)
    h = layers.Activation("tanh")(h)
    h = layers.MultiHeadAttention(2, 2)(h, h)
    model = keras.Model(x, layers.Dense(3)(h))
    for weight in model.weights:
        if weight.path.endswith("bias"):
            weight.assign(np.full(weight.shape, 1.5))
    data = np.random.default_rng(0).normal(size=(32, 6, 4)).astype(np.float32)
    manifest = rl.export_model(model, tmp_path, precisions=("int8",), calibration=data)
    assert [artifact.misfits for artifact in manifest.artifacts] == [Misfits(), Misfits()]


def test_a_bias_added_to_rounded_sums_is_not_taken_for_clipping(tmp_path):
    """TFLite's transposed convolution of volumes computes in floats, and integers add its bias."""
    import keras
    from keras import layers

    x = keras.Input((3, 3, 3, 2), name="x")
    y = layers.Conv3DTranspose(2, 2, activation="elu", name="y")(x)
    model = keras.Model(x, y)
    model.set_weights([np.full((2, 2, 2, 2, 2), 0.01), np.full(2, 2.5)])
    data = np.random.default_rng(0).normal(size=(32, 3, 3, 3, 2)).astype(np.float32)
    manifest = rl.export_model(model, tmp_path, precisions=("int8",), calibration=data)
    assert [artifact.misfits for artifact in manifest.artifacts] == [Misfits(), Misfits()]
    report = check_parity(tmp_path, ("litert", "onnxruntime"))
    assert report.passed, [result.reason for result in report.results]


def test_own_samples_are_clipped_behind_a_bias(tmp_path):
    """In both formats; in ONNX, biases are integers that are dequantized."""
    import keras
    from keras import layers

    x = keras.Input((4, 4, 2), name="x")
    model = keras.Model(x, layers.Conv2D(1, 1, name="sum")(x))
    model.set_weights([np.ones((1, 1, 2, 1)), np.full(1, 0.5)])
    part = np.random.default_rng(0).uniform(size=(32, 4, 4, 1)).astype(np.float32)
    data = np.concatenate([part, 1 - part], axis=-1)
    rl.export_model(model, tmp_path, precisions=("int8",), calibration=data)
    for result in check_parity(tmp_path, ("litert", "onnxruntime"), np.ones_like(data)).results:
        (finding,) = [entry for entry in result.findings if entry.check == "clipped"]
        assert not finding.passed
        assert "100 % of the values of layer 'sum' are clipped" in finding.message
        assert "the samples reach 2.5" in finding.message
    for result in check_parity(tmp_path, ("litert", "onnxruntime"), data).results:
        assert result.passed, result.reason


def test_half_precision_headroom_behind_an_embedding(tmp_path):
    """Indices are integers, and the values looked up are not."""
    import keras
    from keras import layers

    tokens = keras.Input((4,), dtype="int32", name="tokens")
    x = layers.Dense(3, name="large")(layers.Embedding(5, 2, name="table")(tokens))
    model = keras.Model(tokens, layers.Dense(2)(x))
    model.get_layer("table").set_weights([np.full((5, 2), 5.0)])
    model.get_layer("large").set_weights([np.full((2, 3), 2e4), np.zeros(3)])
    samples = np.array([[0, 1, 2, 3], [4, 3, 2, 1]], np.int32)
    rl.export_model(
        model, tmp_path / "net", formats=("tflite",), precisions=("float16",), inputs=samples
    )
    (artifact,) = Manifest.load(tmp_path / "net").artifacts
    found = {entry.layer: entry.size for entry in artifact.misfits.overflows}
    assert found["large"] == pytest.approx(2 * 5.0 * 2e4)


@pytest.mark.parametrize(
    ("kind", "sample", "size"),
    [
        ("bool", np.ones(12, bool), 12e4),  # twelve true values, not one
        ("uint8", np.full(12, 200, np.uint8), 2400e4),  # not 2400 modulo 256
        ("int32", np.full(12, 3, np.int32), 36e4),
    ],
)
def test_sums_of_inputs_that_are_not_floats_are_those_of_their_numbers(
    tmp_path, kind, sample, size
):
    """The model casts such an input before it sums, and the network has no casts."""
    import keras
    from keras import layers, ops

    x = keras.Input((12,), dtype=kind, name="x")
    count = ops.sum(ops.cast(x, "float32"), axis=1, keepdims=True)
    model = keras.Model(x, layers.Dense(1)(layers.Dense(2, name="large")(count)))
    model.get_layer("large").set_weights([np.full((1, 2), 1e4), np.zeros(2)])
    rl.export_model(
        model,
        tmp_path / "net",
        formats=("tflite",),
        precisions=("float16",),
        inputs=np.stack([sample, sample]),
    )
    (artifact,) = Manifest.load(tmp_path / "net").artifacts
    found = {entry.layer: entry.size for entry in artifact.misfits.overflows}
    assert found["large"] == pytest.approx(size)
