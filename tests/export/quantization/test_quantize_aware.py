"""Protects what was trained in integers: the file computes them, and nothing else is accepted."""

from pathlib import Path

import keras
import numpy as np
import pytest
import renormlite as rl
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter, OpResolverType
from keras import layers as kl
from renormlite.artifacts.flatbuffer import operator_kind
from renormlite.models.data import handwritten_digits


@pytest.fixture(scope="module")
def digits():
    return handwritten_digits()


@pytest.fixture(autouse=True)
def _same_networks_every_time() -> None:
    keras.utils.set_random_seed(0)


def norm_of(kind: str | None):
    layers = {"renorm": rl.BatchRenormalization, "batch": kl.BatchNormalization}
    return (lambda x: x) if kind is None else (lambda x: layers[kind](momentum=0.9)(x))


def residual(kind: str | None) -> keras.Model:
    norm = norm_of(kind)
    image = keras.Input((8, 8, 1), name="image")
    x = kl.ReLU()(norm(kl.Conv2D(6, 3, padding="same", name="stem")(image)))
    y = kl.ReLU(6.0)(norm(kl.DepthwiseConv2D(3, padding="same", use_bias=False, name="depth")(x)))
    y = norm(kl.Conv2D(6, 1, use_bias=False, name="point")(y))
    x = kl.Activation("relu")(kl.Add(name="sum")([x, y]))
    x = kl.MaxPooling2D()(x)
    x = kl.ReLU()(norm(kl.Conv2D(12, 3, strides=2, padding="same", name="down")(x)))
    x = kl.GlobalAveragePooling2D(name="mean")(x)
    return keras.Model(image, kl.Dense(10, name="scores")(x))


def branches(kind: str | None) -> keras.Model:
    norm = norm_of(kind)
    image = keras.Input((8, 8, 1), name="image")
    x = norm(kl.Conv2D(4, 3, activation="relu", padding="same", name="first")(image))
    a = kl.ReLU()(norm(kl.Conv2D(4, 3, padding="same", dilation_rate=2, name="wide")(x)))
    b = norm(kl.Conv2D(4, 1, name="narrow")(x))
    x = kl.Concatenate()([a, b, x])
    x = kl.ReLU()(kl.MaxPooling2D(3, strides=2, padding="same")(x))
    x = kl.ZeroPadding2D(1)(x)
    x = kl.Flatten()(norm(kl.Conv2D(8, 3, name="padded")(x)))
    x = kl.Dropout(0.1)(kl.Dense(16, activation="relu", name="hidden")(x))
    return keras.Model(image, kl.Dense(10, name="scores")(x))


def functions(kind: str | None) -> keras.Model:
    image = keras.Input((8, 8, 1), name="image")
    x = kl.Conv2D(6, 3, padding="same", activation="tanh", name="first")(image)
    y = kl.Conv2D(6, 1, activation="sigmoid", name="gate")(x)
    x = kl.Conv2D(6, 3, padding="same", name="third")(kl.Multiply()([x, y]))
    x = kl.AveragePooling2D(3, strides=2, padding="same")(kl.LeakyReLU(0.1)(x))
    x = kl.Conv2DTranspose(4, 3, strides=2, padding="same", name="up")(x)
    x = kl.Flatten()(kl.AveragePooling2D(2)(x))
    scores = kl.Dense(10, activation="softmax", name="scores")(x)
    return keras.Model(image, scores, name="functions")


def gates(kind: str | None) -> keras.Model:
    """SiLU, and separable convolutions with a norm."""
    norm = norm_of(kind)
    image = keras.Input((8, 8, 1), name="image")
    x = kl.Conv2D(6, 3, padding="same", activation="silu", name="first")(image)
    x = kl.SeparableConv2D(8, 3, padding="same", depth_multiplier=2, name="separable")(x)
    x = kl.Reshape((32, 16))(kl.Activation("swish", name="gate")(norm(x)))
    x = kl.SeparableConv1D(6, 3, strides=2, activation="relu", name="row")(x)
    return keras.Model(image, kl.Dense(10, name="scores")(kl.Flatten()(x)))


NETWORKS = {"residual": residual, "branches": branches, "functions": functions, "gates": gates}


def trained(model: keras.Model, digits, **options) -> keras.Model:
    """Train a few steps, so that weights, statistics and ranges differ from initial values."""
    quantized = rl.quantize_aware(model, **options)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=model.name != "functions")
    # Compiling a graph takes longer than these few steps.
    quantized.compile(keras.optimizers.Adam(3e-3), loss, run_eagerly=True)
    quantized.fit(digits.train.x[:320], digits.train.y[:320], batch_size=32, verbose=0)
    return quantized


def run(path: Path, samples: np.ndarray, **options) -> np.ndarray:
    """Run a file in LiteRT, one sample at a time."""
    interpreter = Interpreter(str(path), **options)
    interpreter.allocate_tensors()
    given, got = interpreter.get_input_details()[0], interpreter.get_output_details()[0]
    outputs = []
    for sample in samples:
        interpreter.set_tensor(given["index"], sample[None])
        interpreter.invoke()
        outputs.append(interpreter.get_tensor(got["index"])[0])
    return np.array(outputs)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("residual", "renorm"),
        ("residual", "batch"),
        ("branches", "renorm"),
        ("functions", None),
        ("gates", "renorm"),
    ],
)
def test_the_file_computes_the_integers_that_were_trained(
    digits, tmp_path: Path, name: str, kind: str | None
) -> None:
    model = trained(NETWORKS[name](kind), digits)
    manifest = rl.export_model(model, tmp_path, formats=("tflite",), precisions=("int8",))
    (artifact,) = manifest.artifacts
    assert manifest.calibration is None
    expected = np.array(model(digits.test.x))
    got = run(tmp_path / artifact.file, digits.test.x)
    assert len(np.unique(expected)) > 5
    # Every output is a multiple of one step: equal numbers are equal integers.
    np.testing.assert_array_equal(got, expected)


def packed(path: Path) -> set[str]:
    """Return the kinds of operators whose weights a file holds in four bits."""
    model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(path.read_bytes()))
    (graph,) = model.subgraphs
    return {
        operator_kind(model, op)
        for op in graph.operators
        if any(graph.tensors[i].type == schema.TensorType.INT4 for i in op.inputs)
    }


@pytest.mark.parametrize("rounding", ["float", "double"])
def test_four_bits_of_weights_are_packed_where_the_integers_stay(
    digits, tmp_path: Path, rounding: str
) -> None:
    from tflite_micro.python.tflite_micro import runtime

    model = trained(residual("renorm"), digits, weight_bits=4, rounding=rounding)
    rl.export_model(
        model, tmp_path / "n", formats=("tflite",), precisions=("int8",), inputs=digits.test.x
    )
    path, samples = tmp_path / "n" / "n.int8.tflite", digits.test.x[:100]
    expected = np.array(model(samples))
    if rounding == "float":
        assert packed(path) == {"FULLY_CONNECTED"}
        np.testing.assert_array_equal(run(path, samples), expected)
        targets = ("litert",)
    else:
        assert packed(path) == {
            "CONV_2D",
            "DEPTHWISE_CONV_2D",
        }  # a dense layer is a convolution there
        options = {"experimental_op_resolver_type": OpResolverType.BUILTIN_REF}
        np.testing.assert_array_equal(run(path, samples, **options), expected)
        micro = runtime.Interpreter.from_file(str(path))
        for sample, wanted in zip(samples, expected, strict=True):
            micro.set_input(sample[None], 0)
            micro.invoke()
            np.testing.assert_array_equal(micro.get_output(0)[0], wanted)
        targets = ("litert", "litert+reference", "tflite-micro")
    assert rl.check_parity(tmp_path / "n", targets=targets).passed


def test_sixteen_bits_of_activations(digits, tmp_path: Path) -> None:
    wide = trained(residual("renorm"), digits, activation_bits=16)
    rl.export_model(
        wide, tmp_path / "w", formats=("tflite",), precisions=("int16x8",), inputs=digits.test.x
    )
    got = run(tmp_path / "w" / "w.int16x8.tflite", digits.test.x)
    # LiteRT adds 16-bit integers with another rounding: one step in one of 10,000 sums, which may
    # move the mean of their map and the scores by a few steps.
    differing = np.abs(got - np.array(wide(digits.test.x))) / (np.abs(got).max() / 32767)
    assert np.mean(differing > 0.5) < 0.1
    assert differing.max() < 3
    # What 8 bits of weights leave on most samples; the moving ranges clip the largest numbers of a
    # few after so short a training.
    golden = np.load(tmp_path / "w" / "golden.npz")
    real = golden["kind"] == "real"
    truth = golden["truth:scores"][real]
    error = truth - golden["artifact:w.int16x8.tflite:scores"][real]
    assert np.median(np.square(truth).sum(1) / np.square(error).sum(1)) > 10**3.5


@pytest.mark.parametrize("name", ["residual", "branches", "functions"])
def test_the_rounding_of_reference_kernels_and_microcontrollers_can_be_trained(
    digits, tmp_path: Path, name: str
) -> None:
    from tflite_micro.python.tflite_micro import runtime

    model = trained(NETWORKS[name]("renorm"), digits, rounding="double")
    rl.export_model(model, tmp_path, formats=("tflite",), precisions=("int8",))
    path, samples = tmp_path / f"{tmp_path.name}.int8.tflite", digits.test.x[:100]
    expected = np.array(model(samples))
    reference = run(path, samples, experimental_op_resolver_type=OpResolverType.BUILTIN_REF)
    np.testing.assert_array_equal(reference, expected)
    micro = runtime.Interpreter.from_file(str(path))
    for sample, wanted in zip(samples, expected, strict=True):
        micro.set_input(sample[None], 0)
        micro.invoke()
        np.testing.assert_array_equal(micro.get_output(0)[0], wanted)
    assert (run(path, samples) != expected).any(), "XNNPACK rounds otherwise: this can tell"


@pytest.mark.parametrize("name", ["residual", "branches", "functions"])
def test_an_onnx_file_computes_the_trained_integers(digits, tmp_path: Path, name: str) -> None:
    import onnx
    import onnxruntime

    model = trained(NETWORKS[name]("renorm"), digits)
    rl.export_model(model, tmp_path, formats=("onnx",), precisions=("int8",), inputs=digits.test.x)
    path = tmp_path / f"{tmp_path.name}.int8.onnx"
    weights = {t.name: t for t in onnx.load(path).graph.initializer}
    kinds = {onnx.TensorProto.DataType.Name(t.data_type) for t in weights.values()}
    assert {"INT8", "INT32", "UINT8"} <= kinds
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    expected = np.array(model(digits.test.x))
    got = np.concatenate([session.run(None, {"image": x[None]})[0] for x in digits.test.x])
    # ONNX Runtime adds in float32 what XNNPACK adds in fixed point, and scales shares of a softmax
    # by 255 in place of 256: ties may fall otherwise.
    assert np.mean(got != expected) <= (1e-2 if name == "functions" else 1e-3)
    assert rl.check_parity(tmp_path, targets=("onnxruntime",)).passed


def test_a_check_reports_that_the_file_adds_no_error(digits, tmp_path: Path) -> None:
    model = trained(residual("renorm"), digits)
    rl.export_model(
        model, tmp_path, formats=("tflite",), precisions=("int8",), inputs=digits.test.x
    )
    report = rl.check_parity(tmp_path, targets=("litert",))
    assert report.passed
    (budget,) = report.results[0].stages
    stages = {stage.name: stage for stage in budget.stages}
    assert stages["exported + quantized in training"].cause == "quantization"
    assert stages["quantized"].cause == "exact"
    assert "the file computes the trained integers" in budget.sentence


def test_trained_clipping_is_not_reported_as_a_fault(tmp_path: Path) -> None:
    """The Keras model clips the same values; samples beyond its input's range fail as ever."""
    samples = np.random.default_rng(0).normal(size=(64, 6)).astype(np.float32)
    keras.utils.set_random_seed(0)
    features = keras.Input((6,), name="features")
    hidden = kl.Dense(8, name="hidden")(features)
    aware = rl.quantize_aware(
        keras.Model(features, kl.Dense(4, name="scores")(hidden)), samples=samples
    )
    for variable in aware.weights:
        if variable.path.endswith(("low", "high")) and "hidden" in variable.path:
            variable.assign(variable * 0.3)
    rl.export_model(aware, tmp_path, formats=("tflite",), precisions=("int8",), inputs=samples)
    told = [f for f in rl.check_parity(tmp_path).results[0].findings if f.check == "clipped"]
    assert [finding.passed for finding in told] == [True]
    assert "of layer 'hidden' are clipped" in told[0].message
    assert "the model was trained with this range" in told[0].message
    far = rl.check_parity(tmp_path, inputs=10 * samples).results[0].findings
    assert [f.subject for f in far if f.check == "clipped" and not f.passed] == ["input 'features'"]


def test_integer_inputs_and_outputs_on_request(digits, tmp_path: Path) -> None:
    model = trained(residual(None), digits)
    manifest = rl.export_model(
        model, tmp_path, formats=("tflite",), precisions=("int8",), quantized_io="integer"
    )
    (artifact,) = manifest.artifacts
    (given,), (got,) = artifact.inputs, artifact.outputs
    assert (given.dtype, got.dtype) == ("int8", "int8")
    integers = np.clip(np.rint(digits.test.x[:64] / given.scale) + given.zero_point, -128, 127)
    raw = run(tmp_path / artifact.file, integers.astype(np.int8)).astype(np.int64)
    expected = np.array(model(digits.test.x[:64]))
    np.testing.assert_array_equal(
        np.float32(raw - got.zero_point) * np.float32(got.scale), expected
    )


def test_a_range_without_statistics_is_not_exported(tmp_path: Path) -> None:
    model = rl.quantize_aware(residual(None))
    with pytest.raises(rl.UserError, match=r"image_quantizer has not observed any data. Train"):
        rl.export_model(model, tmp_path, precisions=("int8",))


def test_another_precision_is_not_exported(digits, tmp_path: Path) -> None:
    model = trained(residual(None), digits)
    with pytest.raises(rl.UserError, match=r"trained for: int8\. Received: int16x8"):
        rl.export_model(model, tmp_path, formats=("tflite",), precisions=("int16x8",))


def test_a_layer_without_an_integer_operator_is_named_or_stays_float(
    digits, tmp_path: Path
) -> None:
    image = keras.Input((8, 8, 1), name="image")
    x = kl.Conv2D(4, 3, name="conv")(image)
    x = kl.Activation("selu", name="odd")(x)
    model = keras.Model(image, kl.Dense(10, name="scores")(kl.Flatten(name="flat")(x)))
    with pytest.raises(rl.UserError, match=r"odd \(Activation\) has no integer .*\('odd',\)"):
        rl.quantize_aware(model)
    refused = keras.Model(
        image, kl.Bidirectional(kl.LSTM(4), name="both")(kl.Reshape((8, 8))(image))
    )
    with pytest.raises(rl.UserError, match=r"both \(Bidirectional\) has no integer operator here"):
        rl.quantize_aware(refused)
    model = trained(model, digits, float_layers=("odd",))
    rl.export_model(model, tmp_path, formats=("tflite",), precisions=("int8",))
    got = run(tmp_path / f"{tmp_path.name}.int8.tflite", digits.test.x)
    expected = np.array(model(digits.test.x))
    # The exponential of selu rounds as it likes; one step of the layer behind it, now and then.
    assert np.mean(got != expected) < 0.01


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weight_bits": 9}, "Expected weight_bits from 2 to 8"),
        ({"activation_bits": 4}, "Expected activation_bits to be 8 or 16"),
        ({"ranges": "guessed"}, "Expected ranges to be one of average, percentile, learned"),
        ({"ranges": "learned"}, "Learned ranges need real inputs"),
        ({"rounding": "up"}, "Expected rounding to be one of"),
        ({"float_layers": ("nobody",)}, "float_layers to be names of layers of the folded network"),
    ],
)
def test_options_out_of_range_are_refused(options, message: str) -> None:
    with pytest.raises(rl.UserError, match=message):
        rl.quantize_aware(residual(None), **options)
