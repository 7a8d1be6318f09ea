"""Protects the copy of a model: every way to hold a layer, its weights and its name."""

import keras
import numpy as np
import pytest
import renormlite as rl
from keras import layers

registered = keras.saving.register_keras_serializable(package="tests.rebuild")


def values(shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


def names(model):
    """Return the names of all layers at any depth, with the number of times each occurs."""
    found = [layer.name for layer in model._flatten_layers()]
    return sorted(found)


def assert_swapped(model, x, count):
    """Swap all ``count`` norms in both directions; return the model with the swapped norms."""
    model(x)
    model(x, training=True)  # statistics that are not the initial ones
    renorm = rl.to_renorm(model, bounds=(2.0, 1.0))
    kinds = [type(layer) for layer in renorm._flatten_layers()]
    assert layers.BatchNormalization not in kinds
    assert kinds.count(rl.BatchRenormalization) == count
    assert names(renorm) == names(model)
    assert_same(model, renorm, x)
    assert_same(model, rl.to_batch_norm(renorm), x)
    assert_same(model, rl.to_renorm(renorm), x)
    renorm(x, training=True)
    assert all(
        int(layer.step) > 0
        for layer in renorm._flatten_layers()
        if isinstance(layer, rl.BatchRenormalization)
    )
    return renorm


def assert_same(model, twin, x):
    theirs, ours = model(x), twin(x)
    keras.tree.assert_same_structure(theirs, ours)
    for a, b in zip(keras.tree.flatten(theirs), keras.tree.flatten(ours), strict=True):
        np.testing.assert_array_equal(a, b)


def test_nested_shared_and_with_dicts_of_inputs_and_outputs():
    inner = keras.Sequential(
        [layers.Input((6, 6, 4)), layers.Conv2D(4, 3, padding="same"), layers.BatchNormalization()]
    )
    block_in = keras.Input((6, 6, 4))
    block = keras.Model(block_in, layers.ReLU()(layers.BatchNormalization(scale=False)(block_in)))
    shared = layers.BatchNormalization(axis=1, name="shared")
    image, other = keras.Input((6, 6, 4), name="image"), keras.Input((6, 6, 4), name="other")
    x, y = shared(inner(image)) * 2.0, shared(block(other))
    y = block(keras.ops.relu(y) + x)
    outputs = {"flat": layers.Flatten()(y), "both": [x, layers.Add()([x, y])]}
    model = keras.Model({"image": image, "other": other}, outputs, name="nested")
    data = {"image": values((3, 6, 6, 4)), "other": values((3, 6, 6, 4), 1)}
    renorm = assert_swapped(model, data, 3)
    assert renorm.name == "nested"
    assert [x.name for x in renorm.inputs] == [x.name for x in model.inputs]
    assert len(renorm.get_layer("shared")._inbound_nodes) == 2


def test_wrappers_around_a_norm_and_around_a_model_with_one():
    model = keras.Sequential(
        [
            layers.Input((5, 6, 3)),
            layers.TimeDistributed(layers.BatchNormalization(), name="one"),
            layers.TimeDistributed(
                keras.Sequential([layers.Conv1D(4, 3), layers.BatchNormalization()], name="two")
            ),
        ]
    )
    renorm = assert_swapped(model, values((2, 5, 6, 3)), 2)
    assert isinstance(renorm.get_layer("one").layer, rl.BatchRenormalization)


def test_a_sequential_model_without_an_input_layer():
    model = keras.Sequential([layers.Dense(4), layers.BatchNormalization(), layers.Dropout(0.5)])
    model(values((3, 6)))
    assert_swapped(model, values((3, 6)), 1)


@registered
class Block(layers.Layer):
    def __init__(self, filters, **kwargs):
        super().__init__(**kwargs)
        self.filters = filters
        self.conv = layers.Conv2D(filters, 3, padding="same")
        self.norm = layers.BatchNormalization()

    def call(self, x, training=None):
        return self.norm(self.conv(x), training=training)

    def get_config(self):
        return {**super().get_config(), "filters": self.filters}


@registered
class NormsInBuild(layers.Layer):
    def build(self, shape):
        self.norms = [layers.BatchNormalization() for _ in range(2)]
        for norm in self.norms:
            norm.build(shape)
        self.scale = self.add_weight(shape=(shape[-1],), name="scale", initializer="normal")

    def call(self, x):
        for norm in self.norms:
            x = norm(x)
        return x * self.scale


@registered
class Net(keras.Model):
    """Layers as attributes, in a dict, a list and a tuple; one twice; a nested model."""

    def __init__(self, width=4, **kwargs):
        super().__init__(**kwargs)
        self.width = width
        self.body = keras.Sequential(
            [layers.Conv2D(width, 3), layers.BatchNormalization(), layers.ReLU()]
        )
        self.blocks = {"first": Block(width), "more": [Block(width), (NormsInBuild(), "not one")]}
        self.again = self.blocks["first"]
        self.pool, self.drop = layers.GlobalAveragePooling2D(), layers.Dropout(0.5)
        self.head = layers.Dense(3)

    def call(self, x, training=None):
        x = self.blocks["first"](self.body(x, training=training), training=training)
        x = self.blocks["more"][1][0](self.blocks["more"][0](x))
        return self.head(self.drop(self.pool(self.again(x)), training=training))

    def get_config(self):
        return {**super().get_config(), "width": self.width}


def test_composite_layers_in_a_functional_model():
    inputs = keras.Input((8, 8, 3))
    model = keras.Model(inputs, NormsInBuild()(Block(5, name="block")(inputs)))
    renorm = assert_swapped(model, values((2, 8, 8, 3)), 3)
    assert type(renorm.get_layer("block")) is Block


def test_a_subclassed_model_keeps_its_class():
    model = Net(5, name="net")
    x = values((2, 8, 8, 3)) * 3 + 1
    model(x)
    renorm = assert_swapped(model, x, 5)
    assert type(renorm) is Net
    assert renorm.again is renorm.blocks["first"]
    assert [layer.name for layer in renorm.layers] == [layer.name for layer in model.layers]
    renorm.compile("sgd", "mse")
    before = renorm.blocks["first"].norm.gamma.numpy()
    renorm.fit(x, values((2, 3)), verbose=0)
    assert np.any(before != renorm.blocks["first"].norm.gamma.numpy())


def test_a_subclassed_model_inside_a_functional_one():
    inputs = keras.Input((8, 8, 3))
    model = keras.Model(inputs, layers.Dense(2)(Net(name="inside")(inputs)))
    assert type(assert_swapped(model, values((2, 8, 8, 3)), 5).get_layer("inside")) is Net


def test_weights_of_a_subclassed_copy_load_into_another_copy(tmp_path):
    """The constructor of its class creates the original norms: convert, then load the weights."""
    model, x = Net(), values((2, 8, 8, 3))
    model(x)
    renorm = rl.to_renorm(model)
    renorm(x, training=True)
    renorm.save_weights(tmp_path / "net.weights.h5")
    fresh = Net()
    fresh(x)
    again = rl.to_renorm(fresh)
    again.load_weights(tmp_path / "net.weights.h5")
    assert_same(renorm, again, x)


@registered
class Trainer(keras.Model):
    """A functional model with its own training step."""

    def train_step(self, *args):
        return {**super().train_step(*args), "mine": 1.0}


@registered
class Fixed(keras.Model):
    """A functional model whose constructor creates the graph."""

    def __init__(self, units, **kwargs):
        inputs = keras.Input((4,))
        super().__init__(inputs, layers.BatchNormalization()(layers.Dense(units)(inputs)), **kwargs)


@registered
class FixedTrainer(Fixed):
    def train_step(self, *args):
        return {**super().train_step(*args), "mine": 1.0}


class Stack(keras.Sequential):
    """A Sequential model whose constructor adds the layers."""

    def __init__(self, units):
        super().__init__([layers.Dense(units), layers.BatchNormalization()])


def test_subclasses_of_functional_and_sequential_models():
    inputs = keras.Input((4,))
    model = Trainer(inputs, layers.BatchNormalization()(inputs))
    assert type(assert_swapped(model, values((3, 4)), 1)) is Trainer
    # The class adds nothing, so the copy is a plain model.
    assert_swapped(Fixed(3), values((3, 4)), 1)
    stack = Stack(3)
    stack(values((3, 4)))
    assert_swapped(stack, values((3, 4)), 1)
    with pytest.raises(rl.UserError, match=r"\(FixedTrainer\) has a constructor and a train_step"):
        rl.to_renorm(FixedTrainer(3))


def test_layers_with_state_that_is_not_a_weight():
    """The globals of a Lambda, adapted statistics, a vocabulary."""
    adapted = layers.Normalization()
    adapted.adapt(values((50, 4)) * 3 + 2)
    words = layers.StringLookup(output_mode="one_hot")
    words.adapt(np.array(["conv", "norm", "relu"]))
    numbers, text = keras.Input((4,)), keras.Input((), dtype="string")
    x = layers.Concatenate()([adapted(numbers), words(text)])
    x = layers.Lambda(lambda v: keras.ops.tanh(v) * len(names.__name__))(x)
    model = keras.Model([numbers, text], layers.BatchNormalization()(layers.Dense(3)(x)))
    import tensorflow as tf

    data = [tf.constant(values((3, 4))), tf.constant(["norm", "other", "conv"])]
    assert_swapped(model, data, 1)


def test_optional_inputs_stay_optional():
    image, extra = keras.Input((4,), name="image"), keras.Input((4,), name="extra", optional=True)

    class AddIfGiven(layers.Layer):
        def call(self, x, y):
            return x if y is None else x + y

        def compute_output_shape(self, x_shape, y_shape=None):
            return x_shape

    x = layers.BatchNormalization()(AddIfGiven()(image, extra))
    model = keras.Model({"image": image, "extra": extra}, x)
    assert_swapped(model, {"image": values((3, 4)), "extra": None}, 1)


def test_a_layer_shared_by_two_composites_and_the_graph_stays_shared():
    shared = layers.BatchNormalization(name="shared")

    class Holder(layers.Layer):
        def __init__(self, inner=None, **kwargs):
            super().__init__(**kwargs)
            self.inner = layers.BatchNormalization() if inner is None else inner

        def call(self, x):
            return self.inner(x)

        def get_config(self):
            return super().get_config()

    inputs = keras.Input((4,))
    model = keras.Model(inputs, Holder(shared, name="b")(Holder(shared, name="a")(shared(inputs))))
    renorm = assert_swapped(model, values((3, 4)), 1)
    assert renorm.get_layer("a").inner is renorm.get_layer("b").inner is renorm.get_layer("shared")


class Unreachable(layers.Layer):
    """Keeps a norm that no attribute refers to."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.norm = norm = layers.BatchNormalization()
        self.run = lambda x: norm(x)
        del self.norm

    def call(self, x):
        return self.run(x)


class NeedsMore(layers.Layer):
    """Cannot be recreated: its config lacks an argument."""

    def __init__(self, units, **kwargs):
        super().__init__(**kwargs)
        self.units = units

    def get_config(self):
        return {"name": self.name}

    def call(self, x):
        return x


class Grown(layers.Layer):
    """Gets another layer after it was constructed."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.first = layers.BatchNormalization()
        self.others = []

    def call(self, x):
        for layer in self.others:
            x = layer(x)
        return self.first(x)


def test_layers_that_cannot_be_replaced_or_recreated_are_refused_by_name():
    def sequential(layer):
        return keras.Sequential([layers.Input((4,)), layer])

    with pytest.raises(rl.UserError, match=r"bad \(Unreachable\) keeps .* cannot be replaced"):
        rl.to_renorm(sequential(Unreachable(name="bad")))
    with pytest.raises(rl.UserError, match=r"bad \(NeedsMore\) cannot be recreated"):
        rl.to_renorm(sequential(NeedsMore(3, name="bad")))
    grown = Grown(name="bad")
    grown.others.append(layers.BatchNormalization())
    with pytest.raises(rl.UserError, match=r"bad \(Grown\) holds 2 layers, and 1 when recreated"):
        rl.to_renorm(sequential(grown))


@pytest.mark.filterwarnings("ignore:The object being serialized includes a `lambda`:UserWarning")
def test_a_lambda_in_a_config_is_refused_without_the_config():
    x = keras.Input((4,))
    dense = layers.Dense(
        3, kernel_initializer=lambda s, dtype=None: keras.ops.ones(s), name="dense"
    )
    model = keras.Model(x, layers.BatchNormalization()(dense(x)))
    with pytest.raises(rl.UserError) as refusal:
        rl.to_renorm(model)
    assert str(refusal.value) == (
        "dense (Dense) cannot be recreated from its config (Could not interpret initializer "
        "identifier: a lambda). Keras cannot load it from a file either: give it named functions "
        "in place of lambdas, registered with keras.saving.register_keras_serializable."
    )


class WithoutConfig(keras.layers.Layer):
    """Keras stores arguments of constructors only if they can be written to a file."""

    def __init__(self, function):
        super().__init__(name="custom")
        self.function = function

    def call(self, x):
        return self.function(x)


def test_a_layer_without_a_config_is_refused():
    x = keras.Input((4,))
    norm = keras.layers.BatchNormalization()
    model = keras.Model(x, WithoutConfig(keras.ops.sin)(norm(x)))
    with pytest.raises(rl.UserError) as refusal:
        rl.to_renorm(model)
    assert str(refusal.value) == (
        "custom (WithoutConfig) cannot be recreated from its config (it has none). Its "
        "get_config() must return every argument of its constructor, name included."
    )
