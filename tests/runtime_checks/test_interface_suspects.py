"""Protects that a wrong interface or altered weights are named as such, with what mends them."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from renormlite import check_parity, export_model
from renormlite.artifacts.directory import read_export
from renormlite.files import sha256
from renormlite.runtime_checks import interface_suspects
from renormlite.runtime_checks.end_to_end.target_check import judge_run
from renormlite.runtimes import Target
from renormlite.runtimes.base import Runner
from renormlite.runtimes.run import run_target
from renormlite.runtimes.session import Session

FILE = "pair.float32.onnx"


def build(seed: int):
    """Two inputs and two outputs of the same shapes, none of which may stand for the other."""
    import keras
    from keras import layers

    keras.utils.set_random_seed(seed)
    left, right = (keras.Input((6, 6, 3), name=name) for name in ("left", "right"))
    x = layers.Conv2D(5, 3, activation="relu", name="of_left")(left)
    y = layers.Conv2D(5, 3, activation="relu", name="of_right")(right)
    x = layers.Flatten()(layers.Subtract(name="difference")([x, y]))
    age, weight = (layers.Dense(4, name=name)(x) for name in ("age", "weight"))
    model = keras.Model([left, right], [age, weight], name="pair")
    rng = np.random.default_rng(seed)
    for variable in model.weights:
        variable.assign(rng.normal(0, 0.5, variable.shape))
    return model


def export_of(seed: int, folder):
    rng = np.random.default_rng(5)
    inputs = {name: rng.uniform(0, 1, (8, 6, 6, 3)).astype("f4") for name in ("left", "right")}
    model = build(seed)
    source = folder.parent / f"source{seed}"
    source.write_text(str(seed))
    export_model(model, folder, formats=("onnx",), inputs=inputs, source=source)
    return folder


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    return export_of(1, tmp_path_factory.mktemp("pair") / "pair")


@pytest.fixture(scope="module")
def retrained(tmp_path_factory):
    return export_of(2, tmp_path_factory.mktemp("retrained") / "pair")


def behind(graph, name, op, constants=(), **attributes):
    """Put an op between an input and what reads it."""
    for node in graph.node:
        for place, read in enumerate(node.input):
            if read == name:
                node.input[place] = f"{name}/changed"
    insert(graph, 0, op, name, f"{name}/changed", constants, attributes)


def before(graph, name, op, constants=(), **attributes):
    """Put an op between an output and what computes it."""
    for node in graph.node:
        for place, written in enumerate(node.output):
            if written == name:
                node.output[place] = f"{name}/original"
    insert(graph, len(graph.node), op, f"{name}/original", name, constants, attributes)


def insert(graph, place, op, read, written, constants, attributes):
    names = [f"{written}/constant{i}" for i in range(len(constants))]
    for constant, value in zip(names, constants, strict=True):
        graph.initializer.append(numpy_helper.from_array(np.asarray(value), constant))
    node = helper.make_node(op, [read, *names], [written], **attributes)
    graph.node.insert(place, node)


def renamed(graph, names):
    for node in graph.node:
        for side in (node.input, node.output):
            side[:] = [names.get(name, name) for name in side]


def altered(layer, role, change):
    """Return a fault that changes one weight of a layer."""

    def plant(graph):
        shapes = {"kernel": 2, "bias": 1}
        (entry,) = (
            entry
            for entry in graph.initializer
            if layer in entry.name and (len(entry.dims) >= 2) == (shapes[role] == 2)
        )
        value = numpy_helper.to_array(entry).copy()
        entry.CopyFrom(numpy_helper.from_array(change(value), entry.name))

    return plant


def exchanged(axis, first, second):
    def change(value):
        order = np.arange(value.shape[axis])
        order[[first, second]] = second, first
        return np.ascontiguousarray(np.take(value, order, axis))

    return change


def cut(value):
    value.reshape(-1)[value.size // 2 :] = 0
    return value


def both_inputs(graph, factor):
    for name in ("left", "right"):
        behind(graph, name, "Mul", [np.float32(factor)])


def normalized(graph):
    mean, deviation = (np.array(v, "f4") for v in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
    behind(graph, "left", "Add", [mean])
    graph.node[0].input[0] = "left/scaled"
    insert(graph, 0, "Mul", "left", "left/scaled", [deviation], {})


def two_outputs(graph):
    before(graph, "age", "Mul", [np.float32(100)])
    before(graph, "weight", "Add", [np.float32(3)])


def chained(graph, name, op, constants=(), **attributes):
    """Put another op between an input and the one that `behind` has put there."""
    graph.node[0].input[0] = f"{name}/first"
    insert(graph, 0, op, name, f"{name}/first", constants, attributes)


def blue_first_pixels(graph):
    behind(graph, "left", "Gather", [np.array([2, 1, 0])], axis=3)
    chained(graph, "left", "Mul", [np.float32(1 / 255)])


def blue_first_normalized(graph):
    behind(graph, "left", "Gather", [np.array([2, 1, 0])], axis=3)
    mean, deviation = (np.array(v, "f4") for v in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
    chained(graph, "left", "Add", [mean])
    graph.node[0].input[0] = "left/scaled"
    insert(graph, 0, "Mul", "left", "left/scaled", [deviation], {})


def channels_first_memory(graph):
    behind(graph, "left", "Transpose", perm=[0, 2, 3, 1])
    chained(graph, "left", "Reshape", [np.array([-1, 3, 6, 6])])


def inputs_and_outputs(graph):
    renamed(graph, {"left": "right", "right": "left", "age": "weight", "weight": "age"})


def exchanged_and_scaled_outputs(graph):
    before(graph, "age", "Mul", [np.float32(100)])
    renamed(graph, {"age": "weight", "weight": "age"})


def blue_first_and_labels(graph):
    behind(graph, "left", "Gather", [np.array([2, 1, 0])], axis=3)
    before(graph, "age", "Gather", [np.array([3, 2, 1, 0])], axis=1)


def exchanged_pixels(graph):
    both_inputs(graph, 1 / 255)
    renamed(graph, {"left": "right", "right": "left"})


BACKWARDS = np.arange(5, -1, -1)
BLUE_FIRST = "the channels of input 'left' are in the order (2, 1, 0) (BGR for RGB)"
EXCHANGED_INPUTS = "inputs 'left' and 'right' are exchanged"

# Parts of the sentence, all of which must be in it.
COMBINED = {
    "mirrored": (
        lambda g: behind(g, "left", "Gather", [BACKWARDS], axis=2),
        ["the file takes input 'left' reversed along axis 2: reverse what it is fed"],
    ),
    "upside down": (
        lambda g: behind(g, "left", "Gather", [BACKWARDS], axis=1),
        ["the file takes input 'left' reversed along axis 1"],
    ),
    "memory": (
        channels_first_memory,
        ["the file reads the numbers of input 'left' with channels first, in memory of the same"],
    ),
    "blue first, pixels": (
        blue_first_pixels,
        [BLUE_FIRST, "; and the file takes input 'left' multiplied by 255"],
    ),
    "blue first, normalized": (
        blue_first_normalized,
        [BLUE_FIRST, "of 0..1 normalized by ImageNet's mean and deviation"],
    ),
    "blue first, labels": (
        blue_first_and_labels,
        [BLUE_FIRST, "corrected by (3, 2, 1, 0), of output 'age'"],
    ),
    "inputs, pixels": (
        exchanged_pixels,
        [EXCHANGED_INPUTS, "the file takes inputs 'left' and 'right' multiplied by 255"],
    ),
    "inputs, outputs": (
        inputs_and_outputs,
        [EXCHANGED_INPUTS, "outputs 'age' and 'weight' are exchanged"],
    ),
    "outputs, range": (
        exchanged_and_scaled_outputs,
        ["outputs 'age' and 'weight' are exchanged", "is 100 times the trained model's"],
    ),
    "softmax": (
        lambda g: before(g, "age", "Softmax"),
        ["output 'age' has a softmax that the trained model lacks"],
    ),
    "sigmoid": (
        lambda g: before(g, "age", "Sigmoid"),
        ["output 'age' has a sigmoid that the trained model lacks"],
    ),
}
INTERFACES = {
    "inputs": (
        lambda g: renamed(g, {"left": "right", "right": "left"}),
        "inputs 'left' and 'right' are exchanged",
    ),
    "outputs": (
        lambda g: renamed(g, {"age": "weight", "weight": "age"}),
        "outputs 'age' and 'weight' are exchanged",
    ),
    "axes": (
        lambda g: behind(g, "left", "Transpose", perm=[0, 2, 1, 3]),
        "the axes of input 'left' are in another order in the file: transpose what it is fed by "
        "(0, 2, 1, 3)",
    ),
    "blue first": (
        lambda g: behind(g, "right", "Gather", [np.array([2, 1, 0])], axis=3),
        "the channels of input 'right' are in the order (2, 1, 0) (BGR for RGB)",
    ),
    "two labels": (
        lambda g: before(g, "age", "Gather", [np.array([0, 3, 2, 1])], axis=1),
        "entries 1 and 3 are exchanged of output 'age'",
    ),
    "all labels": (
        lambda g: before(g, "age", "Gather", [np.array([1, 2, 3, 0])], axis=1),
        "corrected by (3, 0, 1, 2)",
    ),
    "pixels": (
        lambda g: behind(g, "left", "Mul", [np.float32(1 / 255)]),
        "the file takes input 'left' multiplied by 255",
    ),
    "range": (
        lambda g: before(g, "weight", "Mul", [np.float32(100)]),
        "output 'weight' is 100 times the trained model's",
    ),
    "all pixels": (
        lambda g: both_inputs(g, 1 / 255),
        "the file takes inputs 'left' and 'right' multiplied by 255",
    ),
    "normalized": (normalized, "'left' of 0..1 normalized by ImageNet's mean and deviation"),
    "several": (
        two_outputs,
        "output 'age' is 100 times the trained model's: undo that where it is read, or convert "
        "again; output 'weight' is the trained model's plus 3",
    ),
}
WEIGHTS = {
    "rows": (
        altered("age", "kernel", exchanged(1, 1, 3)),
        "rows (outputs) 1 and 3 are exchanged",
    ),
    "blue first": (
        altered("of_left", "kernel", exchanged(1, 0, 2)),
        "input channels 0 and 2 are exchanged (BGR for RGB?)",
    ),
    "byte order": (
        altered("of_right", "kernel", lambda w: w.byteswap()),
        "its bytes are in the other order",
    ),
    "cut": (altered("of_right", "kernel", cut), "zero from byte 268 of its 540 on"),
    "scaled": (altered("of_left", "kernel", lambda w: w / 2), "all of it is 0.5 times"),
}


def checked(pair, tmp_path, plant):
    """Plant a fault that no hash tells, and return the result of the check."""
    folder = tmp_path / "pair"
    shutil.copytree(pair, folder)
    model = onnx.load(folder / FILE)
    plant(model.graph)
    onnx.save(model, folder / FILE)
    trust(folder)
    (result,) = check_parity(folder).results
    assert not result.passed
    return result


def trust(folder, file=FILE):
    """Let the manifest take the file for the exported one."""
    manifest = json.loads((folder / "manifest.json").read_text())
    size = (folder / file).stat().st_size
    manifest["artifacts"][0] |= {"sha256": sha256(folder / file), "bytes": size}
    (folder / "manifest.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize("fault", INTERFACES)
def test_a_wrong_interface_is_named_instead_of_a_layer(pair, tmp_path, fault):
    plant, sentence = INTERFACES[fault]
    result = checked(pair, tmp_path, plant)
    (finding,) = (f for f in result.findings if f.check == "interface")
    assert sentence in finding.message
    assert result.faults == ()


@pytest.mark.parametrize("fault", COMBINED)
def test_several_faults_of_an_interface_are_named_together(pair, tmp_path, fault):
    plant, sentences = COMBINED[fault]
    result = checked(pair, tmp_path, plant)
    (finding,) = (f for f in result.findings if f.check == "interface")
    for sentence in sentences:
        assert sentence in finding.message
    assert result.faults == ()


@pytest.mark.parametrize(
    ("shift", "sentence"),
    [
        (1, "the outputs of each sample are those of the one before (shifted by one)"),
        (-1, "the outputs of each sample are those of the one after (shifted by one)"),
    ],
)
def test_outputs_that_are_read_one_run_too_late(pair, shift, sentence):
    export = read_export(pair)
    golden, (artifact, *_) = export.read_golden(), export.artifacts
    run = run_target(pair / FILE, artifact, golden.inputs, Target("onnxruntime"))
    late = replace(run, outputs={k: np.roll(a, shift, 0) for k, a in run.outputs.items()})
    target = Target("onnxruntime")
    result = judge_run(export, artifact, golden, target, late)
    says = interface_suspects.interface_suspect(pair / FILE, artifact, golden, target, result)
    assert sentence in says


IMAGES = np.linspace(0, 1, 6)[:, None] * np.random.default_rng(0).uniform(0.2, 1, (16, 6, 6, 3))


def export_integers(folder, *, backwards=False, factor=1.0, change=None, **options):
    """Export a network as int8, calibrated on its inputs times a factor."""
    import keras
    from keras import layers

    image = keras.Input((6, 6, 3), name="image")
    x = layers.Conv2D(4, 3, activation="relu")(image[..., ::-1] if backwards else image)
    x = layers.Dense(8, activation="relu", name="hidden")(layers.Flatten()(x))
    model = keras.Model(image, layers.Dense(3, name="scores")(x), name="net")
    rng = np.random.default_rng(0)
    for variable in model.weights:
        variable.assign(rng.normal(0, 0.5, variable.shape))
    if change is not None:
        change(model)
    images = (IMAGES[..., ::-1] if backwards else IMAGES).astype("f4")
    export_model(
        model,
        folder,
        formats=("tflite",),
        precisions=("int8",),
        calibration=images * np.float32(factor),
        inputs=images,
        **options,
    )
    return folder


@pytest.fixture(scope="module")
def integers(tmp_path_factory):
    folder = tmp_path_factory.mktemp("integers") / "net"
    return export_integers(folder, quantized_io="integer")


def test_integers_of_another_calibration_are_no_obstacle(integers, tmp_path):
    """The steps of such a file are others, and so is every integer."""
    wrong = export_integers(tmp_path / "wrong" / "net", backwards=True, quantized_io="integer")
    shutil.copytree(integers, tmp_path / "net")
    shutil.copy(wrong / "net.int8.tflite", tmp_path / "net")
    trust(tmp_path / "net", "net.int8.tflite")
    (result,) = check_parity(tmp_path / "net").results
    (finding,) = (f for f in result.findings if f.check == "interface")
    assert "the channels of input 'image' are in the order (2, 1, 0)" in finding.message


def test_a_file_calibrated_on_other_pixels(integers, tmp_path):
    """Both where it was exported so, and where it is put into a right export."""
    wrong = export_integers(tmp_path / "wrong" / "net", factor=255, quantized_io="integer")
    shutil.copytree(integers, tmp_path / "net")
    shutil.copy(wrong / "net.int8.tflite", tmp_path / "net")
    trust(tmp_path / "net", "net.int8.tflite")
    for folder in (wrong, tmp_path / "net"):
        (result,) = check_parity(folder).results
        assert "were calibrated on values multiplied by 255" in result.reason
    _, finding = (f for f in result.findings if f.check == "calibration")
    assert "are those of the trained model with other factors" in finding.message
    notes = json.loads((wrong / "manifest.json").read_text())["artifacts"][0]["notes"]
    assert any("were calibrated on values multiplied by 255" in note for note in notes)


def exchanged_in(layer, axis, first, second):
    """Return a change that exchanges channels of a layer's kernel, and their biases."""

    def change(model):
        kernel, bias = model.get_layer(layer).get_weights()
        order = np.arange(kernel.shape[axis])
        order[[first, second]] = second, first
        kernel = np.take(kernel, order, axis)
        model.get_layer(layer).set_weights([kernel, bias[order] if axis == -1 else bias])

    return change


@pytest.mark.parametrize("order", ["before", "after", "reversed"])
def test_the_rows_of_a_batch_in_another_order(tmp_path, monkeypatch, order):
    """Every fourth sample is that of the other end of its batch."""
    folder = export_integers(tmp_path / "net", batch_size=4)
    moves = {"before": 1, "after": -1}

    def infer(self, inputs):
        return {
            name: np.roll(a, moves[order], 0) if order in moves else np.ascontiguousarray(a[::-1])
            for name, a in right(self, inputs).items()
        }

    right = Runner.infer
    monkeypatch.setattr(Runner, "infer", infer)
    (result,) = check_parity(folder).results
    (finding,) = (f for f in result.findings if f.check == "interface")
    says = "in reversed order" if order == "reversed" else f"those of the sample {order}"
    assert f"the rows of each batch of 4 are {says}" in finding.message


EXCHANGES = {
    "labels": (exchanged_in("scores", -1, 0, 2), "in layer 'scores' rows (outputs) 0 and 2"),
    "rows": (exchanged_in("hidden", -1, 1, 5), "in layer 'hidden' rows (outputs) 1 and 5"),
    "channels": (exchanged_in("scores", -2, 3, 4), "in layer 'scores' input channels 3 and 4"),
}


@pytest.mark.parametrize("fault", [*EXCHANGES, "none"])
def test_exchanged_channels_of_an_equalized_file_are_named(tmp_path, fault):
    """Its channels have other factors than those of the export, and so have its numbers."""
    change, sentence = EXCHANGES.get(fault, (None, ""))
    right = export_integers(tmp_path / "right" / "net", equalize="always")
    wrong = export_integers(
        tmp_path / "wrong" / "net", equalize="always", factor=1.05, change=change
    )
    shutil.copy(wrong / "net.int8.tflite", right)
    trust(right, "net.int8.tflite")
    (result,) = check_parity(right).results
    failed = {finding.check: finding.message for finding in result.findings if not finding.passed}
    if fault == "labels":
        assert "entries 0 and 2 are exchanged of output 'scores'" in failed["interface"]
    else:
        assert "with other factors for their channels" in failed["calibration"]
        assert sentence in failed["calibration"]
        assert ("in layer" in failed["calibration"]) is (fault != "none")
    assert "training" not in failed
    assert result.faults == ()


@pytest.mark.parametrize("side", ["input", "output"])
def test_bytes_of_the_wrong_sign(integers, monkeypatch, side):
    def turned(arrays):
        return {name: (a.view(np.uint8) ^ 128).view(a.dtype) for name, a in arrays.items()}

    def infer(self, inputs):
        given = right(self, turned(inputs) if side == "input" else inputs)
        return turned(given) if side == "output" else given

    right = Runner.infer
    monkeypatch.setattr(Runner, "infer", infer)
    (result,) = check_parity(integers).results
    (finding,) = (f for f in result.findings if f.check == "interface")
    assert f"the bytes of {side} '" in finding.message
    assert "the wrong sign" in finding.message


@pytest.mark.parametrize("fault", WEIGHTS)
def test_the_alteration_of_a_weight_is_named(pair, tmp_path, fault):
    plant, sentence = WEIGHTS[fault]
    result = checked(pair, tmp_path, plant)
    assert any(sentence in finding.message for finding in result.findings)
    named = [finding.message for finding in result.findings if finding.check == "interface"]
    # A kernel with its input channels exchanged, or with a factor, computes what such inputs do.
    alike = {
        "blue first": "the channels of input 'left'",
        "scaled": "takes input 'left' multiplied by 2",
    }
    same = [message for message in named if fault in alike and alike[fault] in message]
    assert named == same


def test_a_wrong_op_is_not_reported_as_a_wrong_interface(pair, tmp_path):
    def other_activation(graph):
        next(node for node in graph.node if node.op_type == "Relu").op_type = "Tanh"

    result = checked(pair, tmp_path, other_activation)
    assert not any(finding.check == "interface" for finding in result.findings)
    assert result.faults[0].layer == "of_left"


def test_an_unlikely_change_of_the_interface_is_run_on_one_sample(pair, tmp_path, monkeypatch):
    """A large model would be run for minutes if each of a hundred changes took all samples."""

    def other_activation(graph):
        next(node for node in graph.node if node.op_type == "Relu").op_type = "Tanh"

    tried_changes, batches = [], []

    def counted_changes(*arguments):
        for hypothesis in changes_of_inputs(*arguments):
            tried_changes.append(hypothesis.says)
            yield hypothesis

    def counted_runs(self, inputs):
        batches.append(len(next(iter(inputs.values()))))
        return run(self, inputs)

    changes_of_inputs, run = interface_suspects.changes_of_inputs, Session.run
    monkeypatch.setattr(interface_suspects, "changes_of_inputs", counted_changes)
    monkeypatch.setattr(interface_suspects.Session, "run", counted_runs)
    checked(pair, tmp_path, other_activation)
    count = len(tried_changes)
    assert count > 50
    golden, *tried = batches[: 1 + count]
    assert golden > 20
    assert sum(tried) < 1.5 * count


ON_DEVICE = {
    "inputs 'left' and 'right' are exchanged on the device": lambda a: {
        "left": a["right"], "right": a["left"]
    },
    "the device takes the channels of input 'left' in the order (2, 1, 0)": lambda a: {
        **a, "left": a["left"][..., ::-1]
    },
    "the device takes inputs 'left' and 'right' multiplied by 255": lambda a: {
        name: array * np.float32(255) for name, array in a.items()
    },
}  # fmt: skip


@pytest.mark.parametrize("sentence", ON_DEVICE)
def test_a_device_that_changes_its_inputs(pair, sentence):
    export = read_export(pair)
    golden, (artifact, *_) = export.read_golden(), export.artifacts
    changed = {k: np.ascontiguousarray(a) for k, a in ON_DEVICE[sentence](golden.inputs).items()}
    run = run_target(pair / FILE, artifact, changed, Target("onnxruntime"))
    board = Target.parse("onnxruntime@ssh:board")
    result = judge_run(export, artifact, golden, board, run)
    says = interface_suspects.interface_suspect(pair / FILE, artifact, golden, board, result)
    assert sentence in says


def integers_made_with(scale, point):
    """Return what an app does that quantizes with a scale and zero point of its own."""

    def change(array, spec):
        made = np.clip(np.rint(array / scale) + point, -128, 127)
        return ((made - spec.zero_point) * spec.scale).astype("f4")

    return change


FED = {
    "made with the scale 0.00392157 and zero point -128; manifest.json has": integers_made_with(
        1 / 255, -128
    ),
    "made with the scale 1 and zero point 0; manifest.json has": integers_made_with(1.0, 0),
    "multiplied by 10": lambda array, spec: array * np.float32(10),
    "multiplied by 2": lambda array, spec: array * np.float32(2),
    "divided by 255": lambda array, spec: array / np.float32(255),
    "multiplied by 127.5": lambda array, spec: array * np.float32(127.5),
    "cut to whole numbers": lambda array, spec: np.trunc(array),
    "of mean 0 and deviation 1 in each sample": lambda array, spec: np.stack(
        [(one - one.mean()) / one.std() for one in array]
    ),
}


@pytest.fixture(scope="module")
def wide_images(tmp_path_factory):
    """A network in every precision, with inputs of -4 to 4."""
    import keras
    from keras import layers

    keras.utils.set_random_seed(0)
    image = keras.Input((6, 6, 3), name="image")
    x = layers.Conv2D(4, 3, activation="relu")(image)
    x = layers.Dense(8, activation="tanh")(layers.Flatten()(x))
    images = (8 * IMAGES - 4).astype("f4")
    folder = tmp_path_factory.mktemp("wide") / "net"
    export_model(
        keras.Model(image, layers.Dense(3, name="scores")(x), name="net"),
        folder,
        formats=("tflite",),
        precisions=("float32", "float16", "dynamic", "int8", "int16x8"),
        calibration=images,
        inputs=images,
        quantized_io="integer",
    )
    return folder


def is_named(precision, sentence):
    """Return whether a file of a precision tells a change from all others.

    Only int8 inputs are bytes. In integers, few numbers are left of inputs divided by 255, and all
    are at the ends if multiplied by 127.5, as with other factors.
    """
    if "zero point" in sentence:
        return precision == "int8"
    coarse = precision in ("int8", "int16x8")
    return not (coarse and sentence in ("divided by 255", "multiplied by 127.5"))


@pytest.mark.parametrize(
    ("precision", "sentence"),
    [
        (precision, sentence)
        for precision in ("float32", "float16", "dynamic", "int8", "int16x8")
        for sentence in FED
        if is_named(precision, sentence)
    ],
)
def test_an_app_that_feeds_other_values(wide_images, precision, sentence):
    export = read_export(wide_images)
    golden = export.read_golden()
    (artifact,) = (a for a in export.artifacts if a.precision == precision)
    (spec,) = artifact.inputs
    with np.errstate(all="ignore"):
        changed = {"image": FED[sentence](golden.inputs["image"], spec).astype("f4")}
    path = wide_images / artifact.file
    run = run_target(path, artifact, changed, Target("litert"))
    board = Target.parse("litert@ssh:board")
    result = judge_run(export, artifact, golden, board, run)
    says = interface_suspects.interface_suspect(path, artifact, golden, board, result)
    assert sentence in says


@pytest.mark.parametrize(("factor", "shift"), [(2.0, 0), (1.0, 5), (0.5, -3)])
def test_an_app_that_reads_integers_with_other_steps(wide_images, factor, shift):
    export = read_export(wide_images)
    golden = export.read_golden()
    (artifact,) = (a for a in export.artifacts if a.precision == "int8")
    (spec,) = artifact.outputs
    run = run_target(wide_images / artifact.file, artifact, golden.inputs, Target("litert"))
    integers = np.rint(run.outputs["scores"] / spec.scale) + spec.zero_point
    scale, point = factor * spec.scale, spec.zero_point + shift
    outputs = {"scores": ((integers - point) * scale).astype("f4")}
    board = Target.parse("litert@ssh:board")
    result = judge_run(export, artifact, golden, board, replace(run, outputs=outputs))
    path = wide_images / artifact.file
    says = interface_suspects.interface_suspect(path, artifact, golden, board, result)
    assert f"its integers are read with the scale {scale:.4g} and zero point {point}" in says
    assert f"manifest.json has {spec.scale:.4g} and {spec.zero_point}: use these" in says


def test_a_file_of_another_training(pair, retrained, tmp_path):
    folder = tmp_path / "pair"
    shutil.copytree(pair, folder)
    shutil.copy(retrained / FILE, folder / FILE)
    trust(folder)
    (result,) = check_parity(folder).results
    (finding,) = (f for f in result.findings if f.check == "training")
    sources = [json.loads((d / "manifest.json").read_text())["source"] for d in (retrained, pair)]
    found, expected = (source["sha256"][:12] for source in sources)
    assert f"names the model {found}…, manifest.json {expected}…" in finding.message
    assert result.faults == ()
