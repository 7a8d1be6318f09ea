"""Protects quantization-aware training of networks as people write them: shared, nested, by ops."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import keras
import numpy as np
import pytest
import renormlite as rl
from keras import layers as kl
from keras import ops
from renormlite.runtimes.run import run_file


def network(body: Callable, shape: tuple[int | None, ...] = (8, 8, 3), name: str = "image"):
    image = keras.Input(shape, name=name)
    return keras.Model(image, body(image))


def nested() -> keras.Model:
    """A block that is called twice, with a norm and a sum inside."""

    def block(x):
        y = kl.BatchNormalization()(kl.Conv2D(6, 3, padding="same")(x))
        return kl.Add()([x, kl.ReLU()(y)])

    shared = network(block, (8, 8, 6), "block")

    def body(x):
        x = shared(kl.Conv2D(6, 3, padding="same")(x))
        return kl.Dense(4)(kl.GlobalAveragePooling2D()(shared(x)))

    return network(body)


def siamese() -> keras.Model:
    encoder = keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            kl.Conv2D(4, 3, strides=2),
            rl.BatchRenormalization(),
            kl.ReLU(),
            kl.Flatten(),
            kl.Dense(5),
        ]
    )
    a, b = (keras.Input((8, 8, 1), name=name) for name in ("a", "b"))
    difference = kl.Subtract()([encoder(a), encoder(b)])
    return keras.Model([a, b], kl.Dense(1, "sigmoid")(kl.Multiply()([difference, difference])))


def one_kernel_three_activations() -> keras.Model:
    """Calls of one convolution, whose results have other ranges and activations."""
    conv, relu6 = kl.Conv2D(4, 3, padding="same", name="shared"), kl.Activation("relu6")

    def body(x):
        parts = [kl.ReLU()(conv(x)), conv(3.0 * kl.MaxPooling2D(2)(x)), relu6(conv(-x))]
        return [kl.Flatten()(part) for part in parts]

    return network(body, (8, 8, 4))


def shared_layers() -> keras.Model:
    """Every layer without weights is called twice, with other ranges."""
    silu, relu, pool = kl.Activation("silu"), kl.ReLU(), kl.AveragePooling2D(2)
    norm, join, add, up = kl.BatchNormalization(), kl.Concatenate(), kl.Add(), kl.UpSampling2D(2)

    def body(x):
        a, b = (kl.Conv2D(4, 3, padding="same")(x) for _ in range(2))
        a, b = (relu(silu(norm(kl.MaxPooling2D(1)(value)))) for value in (a, b))
        both = add([join([a, b]), join([b, a])])
        return kl.Dense(3)(kl.Flatten()(kl.Concatenate()([both, up(pool(a)), up(pool(b))])))

    return network(body)


def shared_output() -> keras.Model:
    last = kl.Activation("tanh", name="last")
    return network(lambda x: [last(kl.Conv2D(3, 3)(x)), last(kl.Conv2D(3, 1)(x))])


def by_operations() -> keras.Model:
    """Functions of keras.ops in place of layers, with numbers."""

    def body(x):
        y = kl.Conv2D(6, 3, padding="same")(x)
        a, b = ops.split(y, 2, axis=-1)
        gate = ops.relu6(y + 3.0) * (1 / 6)
        joined = ops.concatenate([a * 2.0, ops.leaky_relu(b, 0.3) + 1.0], -1)
        best = kl.Dense(3)(ops.max(1.0 - ops.sigmoid(y), axis=(1, 2)))
        return [ops.mean(joined, axis=(1, 2)), ops.softmax(best), gate * y, ops.elu(a)]

    return network(body)


@keras.saving.register_keras_serializable("own_networks")
class Subclassed(keras.Model):
    """A model by its call method."""

    def __init__(self, **options) -> None:
        super().__init__(**options)
        self.conv, self.norm = kl.Conv2D(4, 3), rl.BatchRenormalization()
        self.scores = kl.Dense(2)

    def call(self, x, training=False):
        y = ops.relu(self.norm(self.conv(x), training=training))
        return self.scores(ops.mean(y, axis=(1, 2)))


def subclassed() -> keras.Model:
    model = Subclassed()
    model(np.zeros((1, 8, 8, 3), np.float32))
    return model


NETWORKS = {
    made.__name__: made
    for made in (
        nested,
        siamese,
        one_kernel_three_activations,
        shared_layers,
        shared_output,
        by_operations,
        subclassed,
    )
}


def trained(model: keras.Model) -> tuple[keras.Model, dict[str, np.ndarray]]:
    """Train for four steps with quantization; return the model and samples."""
    rng = np.random.default_rng(0)
    inputs = getattr(model, "inputs", None) or [keras.Input((8, 8, 3))]  # a subclass has none
    shapes = [tensor.shape[1:] for tensor in inputs]
    arrays = [rng.normal(size=(16, *shape)).astype(np.float32) for shape in shapes]
    x = arrays[0] if len(arrays) == 1 else arrays
    aware = rl.quantize_aware(model, samples=x)
    y = [np.zeros(value.shape, np.float32) for value in keras.tree.flatten(aware(x))]
    aware.compile(keras.optimizers.Adam(1e-4), ["mse"] * len(y))
    aware.fit(x, y if len(y) > 1 else y[0], batch_size=4, verbose=0)
    return aware, dict(zip([tensor.name for tensor in aware.inputs], arrays, strict=True))


@pytest.mark.parametrize("name", NETWORKS)
def test_the_file_computes_the_integers_of_the_model(name: str, tmp_path: Path) -> None:
    keras.utils.set_random_seed(0)
    aware, samples = trained(NETWORKS[name]())
    aware.save(tmp_path / "aware.keras")
    aware = rl.load_model(tmp_path / "aware.keras")
    arrays = list(samples.values())
    expected = keras.tree.flatten(aware(arrays if len(arrays) > 1 else arrays[0], training=False))
    manifest = rl.export_model(
        aware,
        tmp_path / name,
        formats=("tflite",),
        precisions=("int8",),
        inputs={key: array[:8] for key, array in samples.items()},
    )
    (artifact,) = manifest.artifacts
    found, _ = run_file("litert", tmp_path / name / artifact.file, artifact, samples)
    assert len(found) == len(expected)
    for value, given in zip(expected, found.values(), strict=True):
        np.testing.assert_array_equal(given, np.array(value))
        assert np.ptp(given) > 0


def test_one_range_covers_all_calls_of_a_layer() -> None:
    """Neither is clipped to a mean of the ranges, nor to the activation of the first call."""
    keras.utils.set_random_seed(0)
    model = one_kernel_three_activations()
    aware, samples = trained(model)
    (x,) = samples.values()
    (shared,) = [layer for layer in aware.layers if layer.name == "shared"]
    assert int(shared.output_range.step.value) == 5  # the samples and four steps, not calls
    for expected, found in zip(model(x), rl.quantize_aware(model, samples=x)(x), strict=True):
        step = float(np.ptp(expected)) / 255
        assert np.abs(np.array(expected) - np.array(found)).max() < 10 * step


@pytest.mark.parametrize(
    ("body", "shape", "said"),
    [
        (lambda x: kl.Dense(3)(kl.GlobalAveragePooling2D()(x)), (None, None, 3), "is free"),
        (lambda x: kl.Conv2D(3, 3, data_format="channels_first", name="first")(x), (3, 8, 8),
         "its channels come first"),
        (lambda x: ops.mean(kl.Conv2D(3, 3)(x), axis=-1), (8, 8, 3), "height and width only"),
    ],
)  # fmt: skip
def test_what_has_no_integer_form_is_refused_with_the_reason(body, shape, said) -> None:
    model = network(body, shape)
    samples = np.ones((4, *(12 if size is None else size for size in shape)), np.float32)
    with pytest.raises(rl.UserError, match=said):
        rl.quantize_aware(model, samples=samples)


def test_a_layer_of_floats_between_integers_does_not_change_them(tmp_path: Path) -> None:
    """TensorFlow's converter passes grids on through a mean unless something lies between."""
    keras.utils.set_random_seed(0)

    def body(x):
        y = kl.LayerNormalization(name="norm")(kl.Dense(8)(x))
        return kl.Dense(2)(kl.GlobalAveragePooling1D()(y))

    model = network(body, (10, 6), "steps")
    samples = np.random.default_rng(0).normal(size=(16, 10, 6)).astype(np.float32)
    aware = rl.quantize_aware(model, samples=samples, float_layers=("norm",))
    manifest = rl.export_model(
        aware, tmp_path / "n", formats=("tflite",), precisions=("int8",), inputs=samples[:8]
    )
    (artifact,) = manifest.artifacts
    found, _ = run_file("litert", tmp_path / "n" / artifact.file, artifact, {"steps": samples})
    (given,) = found.values()
    expected = np.array(aware(samples, training=False))
    assert np.mean(given != expected) < 0.1  # the float layer itself rounds differently
