"""Models of many kinds, as users have them: each exports, or is refused in one sentence.

Each function builds one model; its decorator states the expectation. The outputs of a file must
equal those of Keras, unless the entry names another oracle.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import keras
import numpy as np
import renormlite as rl
from keras import layers, ops

Arrays = Mapping[str, np.ndarray]
Oracle = Callable[[keras.Model, list[np.ndarray]], Any]

Norm = rl.BatchRenormalization
Input = keras.Input
FIRST = {"data_format": "channels_first"}


@dataclasses.dataclass(frozen=True)
class Case:
    """One model.

    Attributes:
        build: Builds the model.
        refusal: Pattern of the refusal; None if the model exports.
        note: Pattern of a note of the export; None if there is none.
        shapes: Sizes for free axes of the inputs.
        oracle: Computes the expected outputs from the model and its inputs; None for Keras.
        least_snr: Smallest allowed signal-to-noise ratio against the oracle, in decibels.
        precision: Precision that is tested beside float32; None for one that follows from the name.
    """

    build: Callable[[], keras.Model]
    refusal: str | None = None
    note: str | None = None
    shapes: Mapping[str, tuple[int, ...]] | None = None
    oracle: Oracle | None = None
    least_snr: float = 100.0
    precision: str | None = None


MODELS: dict[str, Case] = {}


def case(**expected: Any) -> Callable[[Callable[[], keras.Model]], Callable[[], keras.Model]]:
    """Enter a model into the table."""

    def enter(build: Callable[[], keras.Model]) -> Callable[[], keras.Model]:
        MODELS[build.__name__] = Case(build, **expected)
        return build

    return enter


def settle(model: keras.Model) -> keras.Model:
    """Set statistics of norms and values of biases, as training would."""
    generator = np.random.default_rng(0)
    for weight in model.weights:
        shape = tuple(weight.shape)
        name = weight.path.rpartition("/")[2]
        if name in ("moving_variance", "gamma"):
            weight.assign(generator.uniform(0.5, 2, shape))
        elif name in ("moving_mean", "beta", "bias") and "float" in weight.dtype:
            weight.assign(generator.normal(0, 0.3, shape))
    return model


def head(x: Any) -> Any:
    return layers.Dense(3, name="y")(x)


def block(x: Any, filters: int = 4, **options: Any) -> Any:
    axis = 1 if options.get("data_format") == "channels_first" else -1
    return layers.ReLU()(Norm(axis=axis)(layers.Conv2D(filters, 3, use_bias=False, **options)(x)))


# --- inputs ---------------------------------------------------------------------------------------


@case()
def embedding_of_a_float_input() -> keras.Model:
    ids = Input((6,), name="ids")
    x = Norm()(layers.Dense(4, use_bias=False)(layers.Embedding(5, 4)(ids)))
    return keras.Model(ids, head(layers.GlobalAveragePooling1D()(x)))


@case()
def embeddings_of_two_float_inputs() -> keras.Model:
    user, item = Input((1,), name="user"), Input((1,), name="item")
    tables = layers.Embedding(20, 4)(user), layers.Embedding(30, 4)(item)
    return keras.Model([user, item], layers.Dot(1, name="y")([layers.Flatten()(t) for t in tables]))


@case()
def embedding_of_some_columns() -> keras.Model:
    table = Input((6,), name="columns")
    x = layers.Flatten()(layers.Embedding(7, 4)(table[:, 2:4]))
    return keras.Model(table, head(layers.Concatenate()([x, table[:, :2], table[:, 4:]])))


@case()
def embedding_behind_cast_and_reshape() -> keras.Model:
    x = Input((6,), name="x")
    ids = ops.cast(ops.transpose(ops.reshape(x, (-1, 3, 2)), (0, 2, 1)), "int32")
    return keras.Model(x, head(layers.Flatten()(layers.Embedding(9, 4)(ids))))


@case()
def embedding_of_bytes() -> keras.Model:
    ids = Input((6,), dtype="uint8", name="ids")
    return keras.Model(ids, head(layers.Flatten()(layers.Embedding(9, 4)(ids))))


@case()
def masked_embedding() -> keras.Model:
    ids = Input((6,), dtype="int32", name="ids")
    x = layers.Embedding(9, 4, mask_zero=True, embeddings_initializer="normal")(ids)
    return keras.Model(ids, head(layers.GlobalAveragePooling1D()(x)))


@case()
def one_hot_of_an_input() -> keras.Model:
    ids = Input((4,), dtype="int32", name="ids")
    return keras.Model(ids, head(layers.Flatten()(ops.one_hot(ids, 5))))


@case()
def rows_of_a_constant() -> keras.Model:
    ids = Input((4,), dtype="int32", name="ids")
    rows = ops.take(np.arange(21, dtype="float32").reshape(7, 3) / 9, ids, axis=0)
    return keras.Model(ids, head(layers.Flatten()(rows)))


@case()
def rows_of_another_input() -> keras.Model:
    x, places = Input((8, 3), name="x"), Input((2,), dtype="int32", name="places")
    rows = ops.take_along_axis(x, ops.repeat(ops.expand_dims(places, -1), 3, -1), axis=1)
    return keras.Model([x, places], head(layers.Flatten()(rows)))


@case()
def truth_values() -> keras.Model:
    x, flags = Input((4,), name="x"), Input((4,), dtype="bool", name="flags")
    return keras.Model([x, flags], head(ops.where(flags, x, -x)))


@case(refusal=r"layer 'shear' \(RandomShear\) .*Keras cannot load such a layer either: change its")
def layer_that_keras_cannot_load() -> keras.Model:
    image = Input((8, 8, 3), name="image")
    return keras.Model(
        image, layers.Conv2D(2, 3)(layers.RandomShear(0.1, 0.1, name="shear")(image))
    )


@case()
def one_number() -> keras.Model:
    x = Input((), name="x")
    return keras.Model(x, head(ops.expand_dims(x, -1)))


@case(refusal=r"Input 'x' has the shape \(0\), so it is empty")
def no_number() -> keras.Model:
    x = Input((0,), name="x")
    return keras.Model(x, head(x))


@case(note="built for batches of 4")
def fixed_batch() -> keras.Model:
    x = Input(batch_shape=(4, 6, 2), name="x")
    return keras.Model(x, head(ops.reshape(layers.Dense(3)(x), (4, 18))))


@case(refusal=r"'photo' has the shape \(free, free, 3\).*--shape photo=SIZE,SIZE")
def free_sizes_not_given() -> keras.Model:
    photo = Input((None, None, 3), name="photo")
    return keras.Model(photo, head(layers.GlobalAveragePooling2D()(block(photo))))


@case(shapes={"photo": (12, 10)})
def free_sizes() -> keras.Model:
    return free_sizes_not_given()


@case(shapes={"sound": (100,)})
def free_length_that_is_cropped() -> keras.Model:
    sound = Input((None, 3), name="sound")
    x = layers.Cropping1D(40)(Norm()(layers.Conv1D(4, 3, use_bias=False)(sound)))
    return keras.Model(sound, head(layers.GlobalAveragePooling1D()(x)))


@case(shapes={"sound": (50,)}, refusal=r"cropping")
def length_too_short() -> keras.Model:
    return free_length_that_is_cropped()


@case(shapes={"video": (8,)}, refusal=r"Expected shapes of the inputs sound\. Received: video")
def shape_of_no_input() -> keras.Model:
    return free_length_that_is_cropped()


@case(note=r"norm 'rescaling[_0-9]*' leaves 1 operation: it converts uint8")
def bytes_rescaled() -> keras.Model:
    image = Input((8, 8, 3), dtype="uint8", name="image")
    return keras.Model(
        image, head(layers.GlobalAveragePooling2D()(block(layers.Rescaling(1 / 127.5, -1)(image))))
    )


# --- text and lookups -----------------------------------------------------------------------------


def behind(layer: str) -> Oracle:
    """Return the oracle of a model that is cut off after a layer: Keras' outputs for the rest."""

    def run(model: keras.Model, inputs: list[np.ndarray]) -> Any:
        cut = model.get_layer(layer).output
        kept = [tensor for tensor in model.inputs if tensor.dtype.startswith("float")]
        return keras.Model([*kept, cut], model.outputs)(inputs)

    return run


@case(note=r"'text' takes text.*'words' \(TextVectorization\).*int64.*\(N, 6\)",
      oracle=behind("words"))  # fmt: skip
def text() -> keras.Model:
    sentence = Input((1,), dtype="string", name="text")
    words = layers.TextVectorization(
        vocabulary=["hello", "there", "word"], output_sequence_length=6, name="words"
    )(sentence)
    x = Norm()(layers.Conv1D(4, 3, use_bias=False)(layers.Embedding(6, 4)(words)))
    return keras.Model(sentence, head(layers.GlobalMaxPooling1D()(layers.ReLU()(x))))


@case(note=r"'words' takes text.*StringLookup", oracle=behind("ids"))
def words_beside_numbers() -> keras.Model:
    words, numbers = Input((2,), dtype="string", name="words"), Input((3,), name="numbers")
    ids = layers.StringLookup(vocabulary=["a", "b", "c"], name="ids")(words)
    x = layers.Flatten()(layers.Embedding(6, 4)(ids))
    return keras.Model([words, numbers], head(layers.Concatenate()([numbers, x])))


@case(refusal="only processes text")
def text_alone() -> keras.Model:
    words = Input((2,), dtype="string", name="words")
    return keras.Model(words, layers.StringLookup(vocabulary=["a", "b"])(words))


@case(note=r"output .* is text.*the app must look it up",
      oracle=lambda model, inputs: keras.Model(model.inputs, model.get_layer("best").output)(
          inputs))  # fmt: skip
def numbers_to_words() -> keras.Model:
    x = Input((4,), name="x")

    class Best(layers.Layer):
        def call(self, inputs: Any) -> Any:
            return ops.argmax(inputs, axis=-1)

    best = Best(name="best")(layers.Dense(4)(x))
    return keras.Model(x, layers.StringLookup(vocabulary=["a", "b", "c"], invert=True)(best))


@case(note=r"hashed as text.*Hashing", oracle=behind("bins"))
def hashed_numbers() -> keras.Model:
    codes = Input((3,), dtype="int64", name="codes")
    bins = layers.Hashing(8, name="bins")(codes)
    return keras.Model(codes, head(layers.Flatten()(layers.Embedding(8, 3)(bins))))


@case(note=r"hashed as text.*HashedCrossing", oracle=behind("cross"))
def crossed_numbers() -> keras.Model:
    a, b = (Input((1,), dtype="int64", name=name) for name in "ab")
    cross = layers.HashedCrossing(8, name="cross")((a, b))
    return keras.Model([a, b], head(layers.Flatten()(layers.Embedding(8, 3)(cross))))


@case()
def integer_lookup() -> keras.Model:
    codes = Input((2,), dtype="int64", name="codes")
    ids = layers.IntegerLookup(vocabulary=[10, -20, 30])(codes)
    return keras.Model(codes, head(layers.Flatten()(layers.Embedding(6, 4)(ids))))


@case()
def integer_lookup_with_mask_and_bins() -> keras.Model:
    codes = Input((5,), dtype="int64", name="codes")
    lookup = layers.IntegerLookup(vocabulary=[10, 20, 30], mask_token=0, num_oov_indices=3)
    return keras.Model(codes, head(layers.Flatten()(layers.Embedding(8, 4)(lookup(codes)))))


@case()
def integer_lookup_one_hot() -> keras.Model:
    code = Input((1,), dtype="int64", name="code")
    return keras.Model(
        code, head(layers.IntegerLookup(vocabulary=[7, 8], output_mode="one_hot")(code))
    )


@case()
def integer_lookup_counts() -> keras.Model:
    codes = Input((4,), dtype="int64", name="codes")
    lookup = layers.IntegerLookup(vocabulary=[1, 2, 3], output_mode="count")
    return keras.Model(codes, head(lookup(codes)))


@case()
def buckets_of_unknown_numbers() -> keras.Model:
    codes = Input((4,), dtype="int64", name="codes")
    signed = ops.mod(codes, 7) - 5
    lookup = layers.IntegerLookup(vocabulary=[1], num_oov_indices=2, output_mode="multi_hot")
    return keras.Model(codes, head(lookup(signed)))


@case()
def floor_division_of_negative_numbers() -> keras.Model:
    codes = Input((4,), dtype="int32", name="codes")
    signed = ops.mod(codes, 7) - 5
    parts = [ops.floor_divide(signed, 3), *(ops.mod(signed, n) for n in (3, -3))]
    halves = ops.cast(signed, "float32") / 2
    parts += [ops.floor_divide(halves, 2.0), ops.mod(halves, 2.0)]
    floats = [ops.cast(part, "float32") for part in parts]
    return keras.Model(codes, head(ops.concatenate(floats, axis=-1)))


@case()
def categories() -> keras.Model:
    codes = Input((3,), dtype="int32", name="codes")
    return keras.Model(codes, head(layers.CategoryEncoding(6, output_mode="multi_hot")(codes)))


@case()
def weighted_counts() -> keras.Model:
    codes, weights = Input((3,), dtype="int32", name="codes"), Input((3,), name="weights")
    encoded = layers.CategoryEncoding(6, output_mode="count")(codes, count_weights=weights)
    return keras.Model([codes, weights], head(encoded))


@case()
def bins() -> keras.Model:
    x = Input((3,), name="x")
    ids = layers.Discretization([-1.0, 0.0, 0.5])(x)
    return keras.Model(x, head(layers.Flatten()(layers.Embedding(4, 3)(ids))))


@case()
def normalization() -> keras.Model:
    x = Input((4,), name="x")
    layer = layers.Normalization(mean=[1.0, 2.0, 3.0, 4.0], variance=[1.0, 4.0, 9.0, 16.0])
    return keras.Model(x, head(layer(x)))


# --- channels first -------------------------------------------------------------------------------


def compiled(model: keras.Model, inputs: list[np.ndarray]) -> Any:
    """Return the compiled outputs: on a CPU, Keras computes channels first only when compiled."""
    import tensorflow as tf

    run = tf.function(lambda data: model(data, training=False), jit_compile=True)
    return run(inputs[0] if len(inputs) == 1 else inputs)


def first(**expected: Any) -> Callable[..., Any]:
    return case(note="channels-first layers were converted", oracle=compiled, **expected)


@first()
def channels_first_residual() -> keras.Model:
    image = Input((3, 12, 11), name="image")
    x = block(image, 8, padding="same", **FIRST)
    y = Norm(axis=1)(layers.DepthwiseConv2D(3, padding="same", **FIRST)(x))
    x = layers.MaxPooling2D(2, **FIRST)(layers.Add()([x, y]))
    return keras.Model(image, head(layers.GlobalAveragePooling2D(**FIRST)(x)))


@first()
def channels_first_flattened() -> keras.Model:
    image = Input((3, 8, 7), name="image")
    x = block(image, **FIRST)
    flat = layers.Flatten()(x), layers.Flatten(data_format="channels_first")(x)
    return keras.Model(image, head(layers.Concatenate()(flat)))


@first()
def channels_first_map() -> keras.Model:
    image = Input((3, 8, 7), name="image")
    x = layers.Conv2D(4, 3, padding="same", **FIRST)(image)
    x = layers.PReLU(shared_axes=[2, 3], alpha_initializer="uniform")(x)
    x = layers.UpSampling2D(2, **FIRST)(x)
    x = layers.ZeroPadding2D(((1, 0), (2, 1)), **FIRST)(x)
    x = layers.Conv2DTranspose(5, 3, strides=2, padding="same", **FIRST)(x)
    x = layers.Cropping2D(((1, 2), (0, 1)), **FIRST)(x)
    x = layers.SeparableConv2D(4, 3, **FIRST)(layers.AveragePooling2D(2, **FIRST)(x))
    x = layers.LayerNormalization(axis=1)(layers.Concatenate(axis=1)([x, x]))
    return keras.Model(image, layers.Softmax(axis=1, name="map")(x))


@first()
def channels_first_full_prelu() -> keras.Model:
    image = Input((3, 6, 5), name="image")
    x = layers.PReLU(alpha_initializer="uniform")(layers.Conv2D(4, 3, **FIRST)(image))
    return keras.Model(image, head(ops.mean(x, axis=(2, 3))))


@first()
def channels_first_own_layer() -> keras.Model:
    image = Input((3, 8, 8), name="image")

    class Gain(layers.Layer):
        def build(self, shape: Any) -> None:
            self.gain = self.add_weight(shape=(1, shape[1], 1, 1), initializer="normal")

        def call(self, inputs: Any) -> Any:
            return inputs * self.gain

    x = block(Gain()(block(image, **FIRST)), **FIRST)
    return keras.Model(image, head(layers.GlobalMaxPooling2D(**FIRST)(x)))


@first()
def channels_first_sound() -> keras.Model:
    sound = Input((3, 16), name="sound")
    x = layers.Conv1D(4, 3, use_bias=False, **FIRST)(sound)
    x = layers.MaxPooling1D(2, **FIRST)(layers.ReLU()(Norm(axis=1)(x)))
    return keras.Model(sound, head(layers.GlobalMaxPooling1D(**FIRST)(x)))


@case(note="channels-first layers were converted")
def channels_first_volume() -> keras.Model:
    volume = Input((2, 6, 5, 6), name="volume")
    x = layers.Conv3D(4, 3, use_bias=False, **FIRST)(volume)
    x = layers.GlobalAveragePooling3D(**FIRST)(layers.ReLU()(Norm(axis=1)(x)))
    return keras.Model(volume, head(x))


# --- heads and operations -------------------------------------------------------------------------


def dense(*size: int) -> tuple[Any, Any]:
    x = Input(size or (6,), name="x")
    return x, layers.Dense(5, name="scores")(x)


@case()
def segmentation() -> keras.Model:
    image = Input((8, 8, 3), name="image")
    return keras.Model(image, ops.argmax(layers.Conv2D(4, 1)(block(image)), axis=-1))


@case()
def scores_and_label() -> keras.Model:
    x, scores = dense()
    labels = {"label": ops.argmax(scores, axis=-1), "least": ops.argmin(scores, axis=-1)}
    return keras.Model(x, {"scores": scores, **labels})


@case()
def best_three() -> keras.Model:
    x, scores = dense()
    values, classes = ops.top_k(scores, 3)
    return keras.Model(x, {"values": values, "classes": classes})


@case()
def sorted_scores() -> keras.Model:
    x, scores = dense()
    return keras.Model(x, {"s": ops.sort(scores, axis=-1), "order": ops.argsort(scores, axis=-1)})


@case()
def decisions() -> keras.Model:
    x, scores = dense()
    return keras.Model(x, ops.logical_and(ops.greater(scores, -0.5), ops.less(scores, 0.5)))


class Learned(layers.Layer):
    """A weight, called on the input for its batch size only, or not even that."""

    def __init__(
        self, size: Any, declared: bool = True, batched: bool = False, **options: Any
    ) -> None:
        super().__init__(**{"name": "learned", **options})
        self.size, self.declared, self.batched = size, declared, batched

    def build(self, input_shape: Any) -> None:
        self.rows = self.add_weight(shape=(1, *self.size), initializer="normal", name="rows")

    def compute_output_shape(self, input_shape: Any) -> tuple[int | None, ...]:
        return (None if self.declared and self.batched else 1, *self.size)

    def call(self, x: Any) -> Any:
        if not self.batched:
            return self.rows * 1.0
        return ops.broadcast_to(self.rows, (ops.shape(x)[0], *self.size))


class Spread(layers.Layer):
    """Repeats the first input for each sample of the second."""

    def call(self, rows: Any, x: Any) -> Any:
        return ops.repeat(rows, ops.shape(x)[0], axis=0)


def perceiver(build: Callable[[Any], Any]) -> keras.Model:
    """Return a network in which latents that are weights attend to the input."""
    x = Input((10, 6), name="x")
    latents = build(x)
    latents = latents + layers.MultiHeadAttention(2, 4, name="cross")(latents, x)
    latents = latents + layers.MultiHeadAttention(2, 4, name="self")(latents, latents)
    return keras.Model(x, head(ops.mean(latents, axis=1)))


@case()
def latents_in_another_layer() -> keras.Model:
    return perceiver(lambda x: Spread()(Learned((4, 8))(x), x))


@case()
def latents_of_a_wrongly_declared_shape() -> keras.Model:
    return perceiver(lambda x: Learned((4, 8), declared=False, batched=True)(x))


@case()
def learned_positions() -> keras.Model:
    x = Input((10, 6), name="x")
    y = layers.Dense(6)(layers.Add()([x, Learned((10, 6))(x)]))
    return keras.Model(x, head(layers.Flatten()(Norm()(y))))


@case(refusal=r"output 'learned' is a constant without a batch axis")
def constant_output() -> keras.Model:
    x = Input((10, 6), name="x")
    return keras.Model(x, [layers.Dense(2)(x), Learned((10, 6))(x)])


@case(refusal=r"layer 'mean[_0-9]*' combines all samples of a batch")
def mean_over_the_batch() -> keras.Model:
    x, scores = dense()
    return keras.Model(x, head(scores - ops.mean(scores, axis=0, keepdims=True)))


@case(refusal=r"output 'y' of a sample depends on the other samples of its batch")
def order_in_the_batch() -> keras.Model:
    x, scores = dense()
    return keras.Model(x, head(scores - ops.roll(scores, 1, axis=0)))


@case(precision="float16")
def whole_numbers() -> keras.Model:
    x = Input((4,), dtype="int32", name="x")
    return keras.Model(x, {"sum": ops.sum(x, axis=-1), "next": ops.add(ops.multiply(x, 2), 1)})


@case()
def celu() -> keras.Model:
    x, scores = dense()
    return keras.Model(x, head(layers.Activation("celu")(scores)))


@case()
def logarithms() -> keras.Model:
    x, scores = dense()
    return keras.Model(x, head(ops.log1p(ops.abs(scores)) + ops.expm1(-ops.abs(scores))))


@case()
def experts_of_a_router() -> keras.Model:
    """Of three experts, each token takes the one that its router prefers."""
    x = Input((6, 8), name="x")
    scores = layers.Dense(3, activation="softmax", name="router")(x)
    chosen = ops.one_hot(ops.argmax(scores, axis=-1), 3) * scores
    experts = [layers.Dense(8)(layers.Dense(12, activation="relu")(x)) for _ in range(3)]
    y = ops.sum(ops.stack(experts, axis=2) * ops.expand_dims(chosen, -1), axis=2)
    return keras.Model(x, head(layers.GlobalAveragePooling1D()(x + y)))


@case()
def angles() -> keras.Model:
    x = Input((5, 2), name="x")
    return keras.Model(x, head(ops.arctan2(x[..., 0], x[..., 1])))


@case()
def hyperbolic() -> keras.Model:
    x, scores = dense()
    return keras.Model(x, head(ops.sinh(scores) + ops.cosh(scores)))


@case()
def digitized() -> keras.Model:
    x, scores = dense()
    bins = ops.digitize(scores, np.array([-0.5, 0.0, 0.5], np.float32))
    return keras.Model(x, head(ops.cast(bins, "float32")))


@case(refusal=r"TFLite has no operator for Erfinv \(layer 'erfinv[_0-9]*'\)")
def inverse_error_function() -> keras.Model:
    x, scores = dense()
    return keras.Model(x, head(ops.erfinv(ops.tanh(scores))))


@case(refusal=r"TFLite has no operator for Cumprod \(layer 'products'\)")
def running_products() -> keras.Model:
    class Products(layers.Layer):
        def call(self, inputs: Any) -> Any:
            return ops.cumprod(inputs, axis=-1)

    x, scores = dense()
    return keras.Model(x, head(Products(name="products")(scores)))


@case()
def equation_with_an_ellipsis() -> keras.Model:
    x = Input((3, 4), name="x")
    y = layers.EinsumDense("...a,ab->...b", 5, bias_axes="b")(x)
    return keras.Model(x, head(layers.Flatten()(y)))


@case(refusal="The output 'buckets' is made from text by a layer that neither TFLite nor ONNX can")
def hashed_numbers_that_are_returned() -> keras.Model:
    number = Input((3,), dtype="int32", name="number")
    hashed = layers.Hashing(5, output_mode="multi_hot", name="buckets")(number)
    return keras.Model(number, [head(hashed), hashed])


@case(refusal=r"order than it computes.*EinsumDense\('abce,ef->abcf', \(None, None, 2\), …\)")
def ellipsis_of_several_axes() -> keras.Model:
    image = Input((4, 3, 5), name="image")
    x = layers.EinsumDense("...e,ef->...f", 2)(image)
    return keras.Model(image, layers.Conv2D(3, 2)(x))


@case()
def strides_beyond_a_transposed_kernel() -> keras.Model:
    image = Input((4, 5, 3), name="image")
    x = layers.Conv2DTranspose(4, 2, strides=3, padding="same")(block(image, padding="same"))
    x = layers.Conv2DTranspose(3, (1, 3), strides=(3, 2))(x)
    return keras.Model(image, layers.Conv2D(2, 1, name="y")(x))


@case(refusal=r"Keras cannot run the model in a layer of type Pool: Negative dimension size")
def sizes_that_do_not_fit() -> keras.Model:
    class Pool(layers.Layer):
        def compute_output_shape(self, shape: Any) -> Any:
            return shape

        def call(self, inputs: Any) -> Any:
            return ops.average_pool(inputs, 9) if inputs.shape[0] == 1 else inputs

    image = Input((8, 8, 3), name="image")
    return keras.Model(image, head(layers.Flatten()(Pool()(image))))


@case(refusal=r"Keras cannot run the model in a layer of type Lambda: Cannot convert 2.0 to")
def floats_declared_for_integers() -> keras.Model:
    # Keras declares the result of Dot as floats, and it is integers.
    x = Input((4,), name="x", dtype="int32")
    products = layers.Flatten()(layers.Dot(1)([x, x]))
    scaled = layers.Lambda(lambda v: v * 2.0)(products)
    return keras.Model(x, layers.RMSNormalization()(ops.add(scaled, scaled)))


@case(refusal=r"Keras cannot run the model: Input 0 with name .* expected axis -1 of input shape")
def input_that_does_not_fit() -> keras.Model:
    class Doubled(layers.Layer):
        def compute_output_shape(self, shape: Any) -> Any:
            return shape

        def call(self, inputs: Any) -> Any:
            return ops.tile(inputs, (1, 2)) if inputs.shape[0] == 1 else inputs

    x = Input((4,), name="x")
    return keras.Model(x, head(Doubled()(x)))


@case(note=r"norm 'multiply\w*' leaves 1 operation")
def slopes_and_thresholds_of_channels() -> keras.Model:
    image = Input((6, 6, 4), name="image")
    x = layers.Conv2D(4, 3)(image)
    x = ops.maximum(x, x * np.array([0.1, -0.2, 0.3, 1.4], "float32"))
    x = x * ops.cast(x > np.array([0.1, 0.2, 0.3, 0.4], "float32"), "float32")
    x = ops.maximum(x, 0.3 * x)
    x = ops.maximum(x, ops.multiply(np.array([0.4], "float32"), x))
    return keras.Model(image, head(layers.Flatten()(x * ops.cast(x > 0.05, "float32"))))


@case()
def pixels_divided_in_float64() -> keras.Model:
    class Scaled(layers.Layer):
        def call(self, inputs: Any) -> Any:
            return ops.cast(inputs / 255, "float32")

    image = Input((6, 6, 3), dtype="int32", name="image")
    return keras.Model(image, head(layers.Flatten()(block(Scaled()(image)))))


@case()
def average_of_whole_numbers() -> keras.Model:
    a, b = (Input((5,), dtype="int32", name=name) for name in "ab")
    return keras.Model([a, b], head(layers.Average()([a, b])))


@case()
def added_pool() -> keras.Model:
    image = Input((8, 8, 3), name="image")
    x = block(image)
    x = layers.Add()([x, layers.GlobalAveragePooling2D(keepdims=True)(x)])
    return keras.Model(image, head(layers.GlobalAveragePooling2D()(x)))


@case()
def sums_that_look_like_biases() -> keras.Model:
    # With one sample Keras treats the second summand as a bias of the last axis.
    square, column = Input((5, 5), name="square"), Input((5, 1), name="column")
    row = layers.Dense(1, use_bias=False)(column)
    return keras.Model([square, column], [square + column, layers.Add()([column, row])])


@case()
def one_number_added_to_products() -> keras.Model:
    x = Input((6,), name="x")
    y = layers.Dense(4, use_bias=False, activation="hard_sigmoid")(x)
    y = layers.Dense(5, use_bias=False)(y) + 0.7
    y = ops.add(layers.Dense(5, use_bias=False)(y), np.full((1, 1), -0.3, "float32"))
    return keras.Model(x, head(ops.relu(y)))


@case()
def constants_behind_convolutions() -> keras.Model:
    image = Input((4, 5, 3), name="image")
    x = layers.Conv2D(4, 1, use_bias=False, activation="hard_sigmoid")(image)
    x = layers.Conv2DTranspose(4, 1, use_bias=False)(x)
    # Along the rows, which are as many as the channels, so that TensorFlow may add it to these.
    x = x + np.arange(4, dtype="float32").reshape(1, 4, 1, 1)
    return keras.Model(image, layers.Conv2D(2, 1, name="y", activation="tanh")(x))


@case()
def numbers_added_to_transposed_convolutions() -> keras.Model:
    image = Input((4, 4, 3), name="image")
    a = layers.Conv2DTranspose(3, 3, use_bias=False, activation="hard_sigmoid")(image)
    b = layers.Conv2DTranspose(3, 3, use_bias=False)(image) / 2 - 0.7
    c = 0.7 - layers.Conv2DTranspose(3, 3)(image)
    row = layers.Conv1DTranspose(3, 3, use_bias=False)(layers.Reshape((4, 12))(image))
    joined = layers.Concatenate(axis=1)([layers.Reshape((108, 1))(x) for x in (a, b, c)])
    return keras.Model(image, [joined, row + 0.7])


@case()
def prelu_of_five_axes() -> keras.Model:
    volume = Input((3, 2, 3, 2), name="volume")
    x = layers.PReLU(shared_axes=[1], alpha_initializer="uniform")(volume)
    return keras.Model(volume, head(layers.Flatten()(x)))


# The reciprocal of a length near zero is beyond half precision, and leaves integers no steps.
@case(note=r"norm 'unit_normalization[_0-9]*' leaves", precision="dynamic")
def lengths_of_nothing() -> keras.Model:
    image = Input((3, 3, 2), name="image")
    x = layers.ZeroPadding2D(1)(image)
    return keras.Model(image, [layers.UnitNormalization()(x), ops.normalize(x, axis=-1)])


@case()
def similarities_of_states() -> keras.Model:
    x = Input((4, 3), name="x")
    y = layers.SimpleRNN(3, return_sequences=True)(x)
    return keras.Model(x, layers.Dot(2, normalize=True, name="y")([y, x]))


@case()
def gated() -> keras.Model:
    image, weight = Input((8, 8, 3), name="image"), Input((1,), name="weight")
    gate = layers.Conv2D(1, 3, activation="sigmoid")(image)
    x = layers.Multiply()([layers.Multiply()([block(image), gate]), weight])
    return keras.Model([image, weight], head(layers.GlobalAveragePooling2D()(x)))


@case()
def expected_places() -> keras.Model:
    """Heatmaps and the mean place in each, by an einsum that ends the model."""
    x = Input((6, 6, 3), name="x")
    heat = layers.Softmax(axis=1)(layers.Reshape((36, 4))(layers.Conv2D(4, 3, padding="same")(x)))
    places = np.stack(np.meshgrid(np.arange(6.0), np.arange(6.0)), -1).reshape(36, 2)
    return keras.Model(x, [ops.einsum("bpk,pc->bkc", heat, places.astype(np.float32)), heat])


@case()
def space_and_depth() -> keras.Model:
    image = Input((8, 8, 3), name="image")
    x = layers.Conv2D(8, 3, padding="same")(ops.nn.space_to_depth(image, 2))
    return keras.Model(image, ops.nn.depth_to_space(x, 2))


@case()
def spectrum() -> keras.Model:
    sound = Input((256,), name="sound")
    real, imaginary = ops.stft(sound, 64, 32, 64)
    x = ops.sqrt(real * real + imaginary * imaginary + 1e-6)
    x = Norm()(layers.Conv1D(4, 3, use_bias=False)(x))
    return keras.Model(sound, head(layers.GlobalAveragePooling1D()(x)))


@case()
def transformed() -> keras.Model:
    sound = Input((50,), name="sound")
    padded, cut = ops.rfft(sound, 64), ops.rfft(sound, 32)
    y = layers.Concatenate()([*padded, *cut])
    return keras.Model(sound, head(y))


def mixed(tokens: Any) -> Any:
    """Return the real part of the Fourier transform of tokens, as FNet mixes them."""
    return tokens + ops.fft2((tokens, ops.zeros_like(tokens)))[0]


@case()
def fourier_mixing() -> keras.Model:
    tokens = Input((8, 6), name="tokens")
    x = mixed(layers.Dense(6)(mixed(tokens)))
    return keras.Model(tokens, head(layers.GlobalAveragePooling1D()(x)))


@case()
def filtered_frequencies() -> keras.Model:
    sound = Input((6, 50), name="sound")
    gate = layers.Dense(26, activation="sigmoid")(sound)
    real, imaginary = ops.rfft(sound)
    filtered = [ops.irfft((real * gate, imaginary * gate), n) for n in (None, 49, 20, 60)]
    return keras.Model(sound, layers.Concatenate()(filtered))


@case()
def sound_from_its_spectrum() -> keras.Model:
    sound = Input((256,), name="sound")
    real, imaginary = ops.stft(sound, 64, 32, 64)
    return keras.Model(sound, ops.istft((real * 0.5, imaginary), 64, 32, 64))


@case()
def transformed_complex_numbers() -> keras.Model:
    real, imaginary = Input((3, 5, 7), name="real"), Input((3, 5, 7), name="imaginary")
    forth, back = ops.fft2((real, imaginary)), ops.ifft2((real, imaginary))
    rows = ops.fft((imaginary, real))
    y = layers.Concatenate()([layers.Flatten()(part) for part in (*forth, *back, *rows)])
    return keras.Model([real, imaginary], y)


class OfTensorFlow(layers.Layer):
    """A layer that calls a function of TensorFlow, and declares its output's shape."""

    def __init__(self, run: Callable[[Any], Any], shape: tuple[int, ...], **options: Any) -> None:
        super().__init__(**options)
        self.run, self.shape = run, shape

    def call(self, inputs: Any) -> Any:
        return self.run(inputs)

    def compute_output_shape(self, shape: Any) -> Any:
        return (shape[0], *self.shape)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "run": self.run, "shape": self.shape}


def calling(run: Callable[[Any], Any], size: tuple[int, ...], shape: tuple[int, ...]) -> Any:
    """Return a model of a function of TensorFlow, with the sizes of its input and its output."""
    x = Input(size, name="x")
    return keras.Model(x, head(layers.Flatten()(OfTensorFlow(run, shape, name="own")(x))))


@case()
def coefficients_of_a_mel_spectrum() -> keras.Model:
    """MFCC as in TensorFlow's guide: a spectrum, mel bands, and a cosine transform by an FFT."""
    import tensorflow as tf

    def run(sound: Any) -> Any:
        powers = tf.square(tf.abs(tf.signal.stft(sound, 64, 32)))
        bands = tf.signal.linear_to_mel_weight_matrix(12, 33, 8000, 20.0, 4000.0)
        logarithms = tf.math.log(tf.tensordot(powers, bands, 1) + 1e-6)
        return tf.signal.mfccs_from_log_mel_spectrograms(logarithms)[..., :8]

    return calling(run, (256,), (7, 8))


def pairs(x: Any) -> Any:
    """Return complex numbers of the two halves of the last axis."""
    import tensorflow as tf

    half = x.shape[-1] // 2
    return tf.complex(x[..., :half], x[..., half:])


@case()
def computed_complex_numbers() -> keras.Model:
    import tensorflow as tf

    matrix = (np.arange(12).reshape(4, 3) / 9 + 1j * np.cos(np.arange(12)).reshape(4, 3)) / 2

    def run(x: Any) -> Any:
        z = pairs(x)
        mixed = tf.matmul(z, tf.constant(matrix, tf.complex64))
        turned = tf.exp(1j * mixed) / (mixed + (3 + 1j))
        both = tf.concat([tf.math.conj(z), tf.square(turned), tf.cast(x, tf.complex64)], -1)
        total = tf.reduce_sum(both, -1, keepdims=True) - tf.reduce_mean(z, -1, keepdims=True)
        parts = [tf.math.real(both), tf.math.imag(total), tf.abs(turned), tf.math.angle(both)]
        return tf.concat(parts, -1)

    return calling(run, (8,), (34,))


@case()
def adjoint_of_complex_numbers() -> keras.Model:
    import tensorflow as tf

    def run(x: Any) -> Any:
        z = pairs(x)
        return tf.math.imag(tf.matmul(z, z, adjoint_b=True)) + tf.math.real(tf.matmul(z, z))

    return calling(run, (2, 4), (2, 2))


@case()
def transformed_images() -> keras.Model:
    import tensorflow as tf

    gain = np.linspace(0, 1, 24, dtype=np.float32).reshape(6, 4)

    def run(x: Any) -> Any:
        spectrum = tf.signal.rfft2d(x)
        filtered = tf.signal.irfft2d(spectrum * tf.cast(gain, tf.complex64), [6, 7])
        return tf.concat([filtered, tf.math.imag(tf.signal.ifft2d(spectrum))], -1)

    return calling(run, (6, 7), (6, 11))


@case(refusal=r"can compute with complex numbers: .* part of Sqrt \(layer 'own'\) as two tensors")
def roots_of_complex_numbers() -> keras.Model:
    import tensorflow as tf

    return calling(lambda x: tf.abs(tf.sqrt(pairs(x))), (8,), (4,))


@case(refusal=r"complex numbers: let RFFT \(layer 'own'\) transform at most 2048 numbers")
def long_transform() -> keras.Model:
    import tensorflow as tf

    return calling(lambda x: tf.math.real(tf.signal.rfft(x)[:, ::64]), (4096,), (33,))


@case()
def scaled_and_flattened_in_layers() -> keras.Model:
    """A converter multiplies the kernel behind the flattening instead of the pixels."""
    return calling(lambda x: x / 255, (4, 6, 3), (4, 6, 3))


@case()
def written_into_a_block() -> keras.Model:
    class Put(layers.Layer):
        def call(self, inputs: Any) -> Any:
            return ops.slice_update(inputs, (0, 2, 1), -inputs[:, :3, 2:])

    x = Input((6, 4), name="x")
    return keras.Model(x, head(layers.Flatten()(Put(name="put")(x))))


def one_by_one(model: keras.Model, inputs: list[np.ndarray]) -> np.ndarray:
    """Return the outputs of a model with one input for batches of one sample."""
    return np.concatenate([model(sample[None], training=False) for sample in inputs[0]])


@case(note="MelSpectrogram 'mel' clips .* the loudest of each sample", oracle=one_by_one)
def mel_spectrogram() -> keras.Model:
    sound = Input((512,), name="sound")
    layer = layers.MelSpectrogram(
        *(64, 32), num_mel_bins=8, sampling_rate=8000, top_db=20.0, ref_power=0.3, name="mel"
    )
    return keras.Model(sound, head(layers.Flatten()(layer(sound))))


@case(oracle=one_by_one)
def mel_spectrogram_of_one_sound() -> keras.Model:
    sound = Input(batch_shape=(1, 512), name="sound")
    layer = layers.MelSpectrogram(64, 32, num_mel_bins=8, sampling_rate=8000, top_db=20.0)
    return keras.Model(sound, head(layers.Flatten()(layer(sound))))


@case()
def mel_powers() -> keras.Model:
    sound = Input((512,), name="sound")
    layer = layers.MelSpectrogram(64, 32, num_mel_bins=8, sampling_rate=8000, power_to_db=False)
    return keras.Model(sound, head(layers.Flatten()(layer(sound))))


def resized(kind: str, size: tuple[int, int], **options: Any) -> None:
    def build() -> keras.Model:
        image = Input((8, 9, 3), name="image")
        x = ops.image.resize(image, size, interpolation=kind, **options)
        return keras.Model(image, layers.Conv2D(2, 1, name="y")(x))

    build.__name__ = "_".join(("resized", kind, str(size[0]), *options))
    case()(build)


resized("nearest", (12, 7))
resized("nearest", (7, 13))  # scales 7/8 and 13/9; 13/9 in float32, times 9, is below 13
resized("nearest", (5, 3))  # pixel 2.5 * 8/5 is exactly 4; a rounded quotient must not be below it
resized("bilinear", (12, 7))
resized("bicubic", (13, 6))
resized("bicubic", (4, 5), antialias=True)
resized("bilinear", (5, 20), antialias=True)
resized("lanczos3", (11, 4))


# --- precisions -----------------------------------------------------------------------------------


def quantized(mode: str) -> None:
    def build() -> keras.Model:
        ids, x = Input((3,), dtype="int32", name="ids"), Input((8,), name="x")
        y = layers.Flatten()(layers.Embedding(9, 8)(ids))
        y = layers.Concatenate()([y, layers.ReLU()(Norm()(layers.Dense(16, use_bias=False)(x)))])
        z = layers.EinsumDense("ab,cb->ac", 16, bias_axes="c")(y)
        model = settle(keras.Model([ids, x], head(z)))
        with warnings.catch_warnings():  # the warning that an Input has no weights
            warnings.simplefilter("ignore")
            model.quantize(mode)
        return model

    build.__name__ = f"quantized_{mode}"
    # Keras rounds activations too: to 8 bits per row, 0.4 % of the maximum, or to float8.
    case(
        note=rf"had {mode} weights",
        least_snr={"int8": 30, "int4": 20, "float8": 20}[mode],
    )(build)


for mode in ("int8", "int4", "float8"):
    quantized(mode)


def of_policy(policy: str, least_snr: float) -> None:
    def build() -> keras.Model:
        image, k = Input((8, 8, 3), name="image"), {"dtype": policy}
        x = layers.ReLU(**k)(Norm(**k)(layers.Conv2D(8, 3, use_bias=False, **k)(image)))
        x = layers.GlobalAveragePooling2D(**k)(x)
        return keras.Model(image, layers.Dense(3, dtype="float32", name="y")(x))

    build.__name__ = f"policy_{policy}"
    case(least_snr=least_snr)(build)


# Keras computes these models in the precision of the policy (10 and 7 bits), the files in float32.
of_policy("mixed_float16", 45)
of_policy("mixed_bfloat16", 28)
of_policy("float16", 45)
of_policy("float64", 100)


# --- names and structures -------------------------------------------------------------------------


@case()
def odd_names() -> keras.Model:
    def branch(name: str) -> keras.Model:
        image = Input((8, 8, 4))
        x = layers.Conv2D(4, 3, use_bias=False, name="conv_1")(image)
        return keras.Model(image, layers.ReLU(name="act")(Norm(name="norm")(x)), name=name)

    a, b = Input((8, 8, 4), name="Bild groesse"), Input((8, 8, 4), name="2nd input:b")
    one, two = branch("zweig_a"), branch("branch.b")
    u, v, w = one(a), two(b), one(b)
    lists = [layers.Conv2D(3, 1, name="beta_2")(v), u]
    nested = {"k1": layers.Add(name="sum")([u, w]), "k": u}
    return keras.Model([a, b], {"z": layers.Conv2D(2, 1, name="z")(u), "a": lists, "m": nested})


@case()
def names_of_any_language() -> keras.Model:
    x = Input((4,), name="größe")
    return keras.Model(x, layers.Dense(2, name="schärfe €")(layers.Dense(3, name="a b;c,d'e")(x)))


@case(note=r"norm 'Maß' leaves 1 operation")
def names_of_any_language_inside_layers() -> keras.Model:
    ids = Input((6,), name="x")
    x = layers.Embedding(9, 4, name="größe 1", embeddings_initializer="normal")(ids)
    x = layers.TimeDistributed(layers.Dense(3, name="schärfe €"), name="für alle")(x)
    x = layers.Bidirectional(layers.GRU(2, name="hin & her"), name="beide")(x)
    return keras.Model(ids, layers.Dense(2, name="y")(layers.LayerNormalization(name="Maß")(x)))


@case()
def one_name_twice() -> keras.Model:
    x = Input((4,), name="x")
    inner = keras.Sequential([Input((4,)), layers.Dense(3, name="same")], name="inner")
    return keras.Model(x, [layers.Dense(3, name="same")(x), inner(x)])


@case()
def nested_inputs() -> keras.Model:
    a, b, c = Input((4,), name="p"), Input((3,), name="q"), Input((2,), name="h")
    return keras.Model({"g": [a, b], "h": c}, head(layers.Concatenate()([a, b, c])))


@case(note=r"norm '[a-z_0-9]+' leaves 2 operations: .* is not linear")
def called_by_keywords() -> keras.Model:
    x = Input((12, 8), name="x")
    q = Norm()(layers.Dense(8, use_bias=False)(x))
    v = Norm()(layers.Conv1D(8, 3, padding="same", use_bias=False)(x))
    y = Norm()(layers.Add()([layers.MultiHeadAttention(2, 4)(query=q, value=v, key=q), q]))
    y = ops.concatenate([y, layers.Attention()([y, v])], axis=-1)
    return keras.Model(x, head(layers.GlobalAveragePooling1D()(y)))


class Subclassed(keras.Model):
    """A subclassed model."""

    def __init__(self) -> None:
        super().__init__()
        self.first = layers.Dense(4, use_bias=False)
        self.norm = Norm()
        self.last = layers.Dense(2)

    def call(self, inputs: Any, training: bool = False) -> Any:
        x = inputs["u"] + inputs["v"] if isinstance(inputs, dict) else inputs
        return self.last(ops.relu(self.norm(self.first(x), training=training)))


@case()
def subclassed() -> keras.Model:
    model = Subclassed()
    model(np.zeros((2, 5), np.float32))
    return model


@case()
def subclassed_with_named_inputs() -> keras.Model:
    model = Subclassed()
    model({"u": np.zeros((2, 5), np.float32), "v": np.zeros((2, 5), np.float32)})
    return model


@case(refusal=r"missing 1 required positional argument: 'second'")
def subclassed_with_two_arguments() -> keras.Model:
    class Two(keras.Model):
        def __init__(self) -> None:
            super().__init__()
            self.dense = layers.Dense(4)

        def call(self, first: Any, second: Any) -> Any:
            return self.dense(first) + second

    model = Two()
    model(np.zeros((2, 5), np.float32), np.zeros((2, 4), np.float32))
    return model


@case(refusal=r"is not built\. Call it once, or add an Input layer")
def never_built() -> keras.Model:
    return keras.Sequential([layers.Dense(3)])


@case()
def scaled_before_a_layer_with_constants() -> keras.Model:
    x = Input((6,), name="x")
    scaled = layers.ReLU()(x) * 0.5 - 1.0
    return keras.Model(x, layers.Dense(3, use_bias=False, activation="sparse_plus")(scaled))


@case()
def dilated_in_a_custom_layer() -> keras.Model:
    class Atrous(layers.Layer):
        def __init__(self) -> None:
            super().__init__()
            self.conv = layers.Conv2D(4, 3, padding="same", dilation_rate=2)

        def call(self, inputs: Any) -> Any:
            return ops.relu(self.conv(inputs))

    image = Input((7, 6, 3), name="image")
    return keras.Model(image, head(layers.GlobalMaxPooling2D()(Atrous()(image))))


@case(refusal=r"draws random numbers .*\(layer 'sampling'\).*draw the numbers in the app")
def sampling() -> keras.Model:
    class Sampling(layers.Layer):
        def __init__(self, **options: Any) -> None:
            super().__init__(**options)
            self.seed = keras.random.SeedGenerator(1)

        def call(self, mean: Any) -> Any:
            return mean + keras.random.normal(ops.shape(mean), seed=self.seed)

    x = Input((4,), name="x")
    return keras.Model(x, Sampling(name="sampling")(layers.Dense(2)(x)))


@case()
def constants_in_a_row() -> keras.Model:
    x = Input((4,), name="x")
    return keras.Model(x, ops.elu(layers.Dense(3)(x)) + 1 + 1e-6)


@case()
def patches() -> keras.Model:
    image = Input((8, 8, 3), name="image")
    x = ops.reshape(ops.image.extract_patches(image, size=4), (-1, 4, 48))
    return keras.Model(image, head(layers.Dense(6)(x)))


@case()
def overlapping_patches() -> keras.Model:
    image = Input((6, 6, 2), name="image")
    x = ops.image.extract_patches(image, size=3, strides=1, padding="same")
    return keras.Model(image, head(layers.GlobalMaxPooling2D()(x)))


@case()
def python_function() -> keras.Model:
    x = Input((4,), name="x")
    return keras.Model(x, head(layers.Lambda(lambda t: t * 2 + 1)(x)))


@case(refusal=r"layer 'counter' has state that is not a Keras weight.*self\.add_weight")
def state_of_its_own() -> keras.Model:
    import tensorflow as tf

    class Counter(layers.Layer):
        def build(self, shape: Any) -> None:
            self.count = tf.Variable(0.0)

        def call(self, inputs: Any) -> Any:
            return inputs + self.count.assign_add(1.0)

    x = Input((4,), name="x")
    return keras.Model(x, head(Counter(name="counter")(x)))
