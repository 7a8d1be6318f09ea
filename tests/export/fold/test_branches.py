"""Protects norms in graphs with branches, joins and shared layers."""

import keras
import numpy as np
import pytest
from keras import layers as kl
from renormlite import float64_twin, fold

NORM = kl.BatchNormalization


def conv(filters=4, size=3, **options):
    return kl.Conv2D(filters, size, padding="same", **options)


def test_norm_after_concatenate_is_split(folded):
    x = keras.Input((8, 8, 3))
    y = kl.Concatenate()([conv(3)(x), kl.AveragePooling2D(3, 1, padding="same")(conv(5)(x))])
    result = folded(keras.Model(x, kl.ReLU()(NORM()(y))))
    (record,) = result.report.records
    assert record.outcome == "folded"
    assert len(record.into) == 2


def test_norm_after_concatenate_on_another_axis(folded):
    x = keras.Input((8, 8, 3))
    y = kl.Concatenate(axis=1)([conv()(x), conv()(x)])
    assert folded(keras.Model(x, kl.ReLU()(NORM()(y)))).report.remaining_ops == 0


@pytest.mark.parametrize("join", [kl.Add, kl.Subtract, kl.Average])
def test_norm_after_a_sum(join, folded):
    x = keras.Input((8, 8, 3))
    y = join()([conv()(x), conv()(x)])
    assert folded(keras.Model(x, kl.ReLU()(NORM()(y)))).report.remaining_ops == 0


def test_norm_after_a_sum_written_as_an_operator(folded):
    x = keras.Input((8, 8, 3))
    y = conv()(x) + conv()(x)
    assert folded(keras.Model(x, kl.ReLU()(NORM()(y)))).report.remaining_ops == 0


def test_norm_before_a_sum_that_goes_on(folded):
    """The scale travels through the sum, the other branch takes the shift."""
    x = keras.Input((8, 8, 3))
    y = NORM()(conv(activation="relu")(x))
    z = kl.ReLU()(kl.Add()([y, conv()(x)]))
    result = folded(keras.Model(x, conv()(z)), positive=True)
    assert result.report.remaining_ops == 0


def test_product_takes_a_scale_but_no_shift(folded):
    x = keras.Input((8, 8, 4))
    y = kl.Multiply()([conv(activation="sigmoid")(x), NORM(center=False)(conv()(x))])
    assert folded(keras.Model(x, NORM()(y))).report.records[0].outcome == "folded"


def test_norm_feeding_several_layers(folded):
    x = keras.Input((8, 8, 3))
    y = NORM()(conv(activation="relu")(x))
    outputs = [kl.Conv2D(2, 1)(y), kl.Conv2D(3, 3)(y), kl.Dense(2)(kl.Flatten()(y))]
    result = folded(keras.Model(x, outputs))
    (record,) = result.report.records
    assert record.outcome == "folded"
    assert len(record.into) == 3


def test_layer_feeding_a_norm_and_something_that_can_undo_it(folded):
    x = keras.Input((8, 8, 3))
    y = conv()(x)
    model = keras.Model(x, [kl.ReLU()(NORM()(y)), kl.Conv2D(3, 1)(y)])
    randomize_mildly(model)
    result = fold(model)
    assert result.proof.passed
    assert result.report.remaining_ops == 0


def test_two_norms_of_one_tensor(folded):
    x = keras.Input((8, 8, 3))
    y = conv()(x)
    model = keras.Model(x, [conv()(kl.ReLU()(NORM()(y))), conv()(kl.ReLU()(NORM()(y)))])
    result = folded(model, positive=True)
    assert result.report.remaining_ops <= 1


def test_copy_only_under_a_budget(folded):
    x = keras.Input((8, 8, 3))
    y = conv(name="shared")(x)
    model = keras.Model(x, [kl.Softmax()(NORM()(y)), kl.Softmax()(y)])
    (record,) = folded(model).report.records
    assert record.remaining_ops == ("MUL", "ADD")
    assert not record.within_budget
    assert "112 parameters" in record.reason
    assert "budget" in record.reason

    result = folded(model, copy_budget=112)
    assert result.report.remaining_ops == 0
    assert {"shared", "shared_copy"} <= {layer.name for layer in result.model.layers}
    assert fold(model, copy_budget=111).report.remaining_ops == 2


def test_one_layer_called_twice_with_two_norms_is_unshared(folded):
    x, z = keras.Input((8, 8, 3)), keras.Input((8, 8, 3))
    shared = conv(name="shared")
    model = keras.Model([x, z], [kl.ReLU()(NORM()(shared(x))), kl.ReLU()(NORM()(shared(z)))])
    result = folded(model)
    assert result.report.remaining_ops == 0
    assert {"shared", "shared_copy"} <= {layer.name for layer in result.model.layers}


def test_one_layer_called_twice_with_one_norm_stays_shared(folded):
    x, z = keras.Input((8, 8, 3)), keras.Input((8, 8, 3))
    shared, norm = conv(activation="relu"), NORM()
    after = kl.Conv2D(3, 1)
    model = keras.Model([x, z], [after(norm(shared(x))), after(norm(shared(z)))])
    result = folded(model)
    assert result.report.remaining_ops == 0
    assert len(result.model.layers) == 4
    assert result.model.count_params() == shared.count_params() + after.count_params()


def test_nested_model_called_twice_stays_shared(folded):
    inner_input = keras.Input((8, 8, 3))
    inner = keras.Model(
        inner_input, kl.ReLU()(NORM()(conv(name="c")(inner_input))), name="backbone"
    )
    x, z = keras.Input((8, 8, 3)), keras.Input((8, 8, 3))
    model = keras.Model([x, z], kl.Add()([inner(x), inner(z)]))
    result = folded(model)
    assert result.report.remaining_ops == 0
    assert result.model.count_params() == 112


@pytest.mark.parametrize("blocks", [2, 3])
def test_pre_activation_network_keeps_at_most_the_stem(blocks, folded):
    """Norm -> relu -> conv in residual blocks: the shifts meet in the branches' biases."""
    x = keras.Input((8, 8, 3))
    y = conv(8)(x)
    for _ in range(blocks):
        z = conv(8)(kl.ReLU()(NORM()(y)))
        z = conv(8)(kl.ReLU()(NORM()(z)))
        y = kl.Add()([y, z])
    y = kl.Dense(3)(kl.GlobalAveragePooling2D()(kl.ReLU()(NORM()(y))))
    model = keras.Model(x, y)
    result = folded(model, positive=True)
    assert result.report.remaining_ops == 0


def test_dense_block_keeps_one_add_per_norm(folded):
    x = keras.Input((8, 8, 3))
    y = kl.MaxPooling2D(2)(kl.ReLU()(conv(6)(x)))
    for _ in range(3):
        z = conv(4, use_bias=False)(kl.ReLU()(NORM()(y)))
        y = kl.Concatenate()([y, z])
    model = keras.Model(x, conv(2)(kl.ReLU()(NORM()(y))))
    result = folded(model, positive=True)
    assert all(record.remaining_ops in ((), ("ADD",)) for record in result.report.records)


def test_negative_scale_is_stopped_by_a_relu(folded):
    x = keras.Input((8, 8, 3))
    y = kl.Concatenate()([x, kl.MaxPooling2D(2, 1, padding="same")(x)])
    model = keras.Model(x, [conv()(kl.ReLU()(NORM()(y))), kl.Softmax()(y)])
    (record,) = folded(model, seed=1).report.records
    assert record.remaining_ops == ("MUL", "ADD")
    assert "negative" in record.reason or "also feeds" in record.reason


@pytest.mark.parametrize("gamma", [0.0, 1e-30, -1.0])
def test_odd_gammas_through_a_relu(gamma, randomized):
    x = keras.Input((8, 8, 6))
    y = kl.MaxPooling2D(2)(x)
    model = randomized(keras.Model(x, kl.Conv2D(3, 2)(kl.ReLU()(NORM(name="n")(y)))), positive=True)
    norm = model.get_layer("n")
    norm.gamma.assign(np.where(np.arange(6) == 2, gamma, norm.gamma.numpy()))
    result = fold(model)
    assert result.proof.passed
    assert np.isfinite(result.model(np.ones((1, 8, 8, 6), "f4")).numpy()).all()
    # Where the gamma is tiny the shift in front, t/s, would leave the range of float32.
    assert result.report.remaining_ops == (1 if gamma == 0 else 2)


def test_variance_of_zero(randomized):
    model = randomized(keras.Sequential([kl.Input((8, 8, 3)), conv(), NORM(), kl.ReLU()]))
    model.layers[1].moving_variance.assign([0.0, 1.0, 2.0, 0.0])
    result = fold(model)
    assert result.proof.passed
    assert result.report.folded == 1


def test_consecutive_norms_are_joined(folded):
    layers = [kl.Input((8, 8, 3)), conv(activation="sigmoid"), NORM(), NORM(), kl.Softmax()]
    result = folded(keras.Sequential(layers))
    first, second = result.report.records
    assert first.outcome == "folded"
    assert first.into == (second.name,)
    assert second.remaining_ops == ("MUL", "ADD")
    assert len(result.model.layers) == 4


def randomize_mildly(model):
    rng = np.random.default_rng(0)
    for layer in model.layers:
        if isinstance(layer, NORM):
            layer.gamma.assign(rng.uniform(0.5, 1.5, layer.gamma.shape))
            layer.beta.assign(rng.normal(size=layer.beta.shape))


def test_shared_norm_whose_calls_fold_differently(folded):
    """The norm in front merges with one call of a shared norm; the other call must not follow."""
    x = keras.Input((6, 6, 4))
    shared = NORM()
    y = kl.Dense(4, activation="leaky_relu")(shared(NORM()(x)))
    z = kl.Conv2DTranspose(4, 1, activation="leaky_relu")(NORM()(y))
    folded(keras.Model(x, [z, shared(y)]))


def test_shared_layer_whose_result_is_also_an_output(folded):
    x = keras.Input((6, 6, 4))
    shared = conv(activation="relu")
    y = NORM()(shared(x))
    folded(keras.Model(x, [shared(kl.Softmax()(y)), kl.Conv2D(2, 1)(y)]))


def residual_network(blocks=8, channels=12):
    """A dilated residual Conv1D network whose channels differ in size, its statistics measured."""
    rng = np.random.default_rng(0)
    x = keras.Input((60, 4))
    y = kl.Conv1D(channels, 1)(x)
    for block in range(blocks):
        z = y
        for _ in range(2):
            z = kl.ReLU()(NORM(momentum=0.0)(z))
            z = kl.Conv1D(channels, 5, dilation_rate=1 + block // 2, padding="same")(z)
        y = kl.Add()([y, z])
    model = keras.Model(x, kl.Conv1D(3, 1)(y))
    for layer in model.layers:
        if isinstance(layer, kl.Conv1D):
            sizes = 3 * np.exp(rng.normal(0, 0.8, layer.filters))
            layer.kernel.assign(layer.kernel * sizes)
            layer.bias.assign(rng.normal(0, 3, layer.filters))
        elif isinstance(layer, NORM):
            layer.gamma.assign(rng.uniform(0.3, 2, channels))
            layer.beta.assign(rng.normal(size=channels))
    model(rng.normal(size=(32, 60, 4)), training=True)
    return model


def test_shift_folds_for_channels_of_any_magnitude():
    """The error of undoing a shift depends on its size relative to the channel, not to 1."""
    model = residual_network()
    norms = [layer for layer in model.layers if isinstance(layer, NORM)]
    deviations = np.sqrt([norm.moving_variance.numpy().max() for norm in norms])
    assert deviations.max() > 10
    result = fold(model)
    assert result.proof.passed
    assert result.proof.worst < 1e-12
    assert result.report.folded == len(norms) == 16
    x = np.random.default_rng(1).normal(size=(8, 60, 4))
    exact = np.asarray(float64_twin(model)(x))
    before, after = (
        np.sqrt(np.mean((np.asarray(m(x.astype("f4"))) - exact) ** 2))
        for m in (model, result.model)
    )
    # Two draws of the same rounding: the folded network must not be coarser.
    assert after < 2 * before


def test_shift_that_is_large_relative_to_its_channel_is_kept():
    x = keras.Input((8, 8, 3))
    y = conv()(x)
    model = keras.Model(x, [kl.ReLU()(NORM(name="norm")(y)), kl.Conv2D(3, 1)(y)])
    for beta, left in ((10.0, 0), (1000.0, 1)):
        model.get_layer("norm").beta.assign(np.full(4, beta))
        assert fold(model).report.remaining_ops == left


@pytest.mark.parametrize("shape", [(5, 8, 3), (4, 5, 8, 3)])
@pytest.mark.parametrize("axis", [-1, 1])
def test_time_distributed_norm_is_a_norm(shape, axis, folded):
    layer = {3: kl.Conv1D, 4: kl.Conv2D}[len(shape)]
    x = keras.Input(shape)
    y = kl.TimeDistributed(NORM(axis=axis), name="norm")(kl.TimeDistributed(layer(4, 3))(x))
    result = folded(keras.Model(x, kl.ReLU()(y)))
    assert result.report.records[0].name == "norm"
    assert (result.report.folded == 1) == (axis == -1)


def test_norm_inside_an_opaque_layer_is_reported():
    inside = keras.Sequential([kl.Input((8, 3)), kl.Dense(3), NORM(name="inner")], name="net")
    x = keras.Input((5, 8, 3))
    model = keras.Model(x, kl.TimeDistributed(inside, name="frames")(x))
    (record,) = fold(model).report.records
    assert record.name == "frames/inner"
    assert "'frames' (TimeDistributed) are not read" in record.reason


@pytest.mark.parametrize("join", [kl.Add, kl.Subtract, kl.Average])
def test_channel_of_ones_passes_a_sum(join, folded):
    """The other branch adds zeros to it, so that it becomes 1, 1 or 1/2."""
    x = keras.Input((6, 6, 3))
    y = join()([conv(activation="relu")(x), conv(activation="relu")(x)])
    assert folded(keras.Model(x, conv(2)(NORM()(y)))).report.remaining_ops == 0


@pytest.mark.parametrize("join", [kl.Add, kl.Subtract, kl.Average])
@pytest.mark.parametrize("slot", [0, 1])
def test_sum_of_a_branch_with_a_channel_of_ones(join, slot, folded):
    """The channel is there for another reader; the other branch gets one of zeros."""
    x = keras.Input((6, 6, 3))
    branches = [conv(activation="relu")(x), conv(activation="relu")(x)]
    outputs = [conv(2)(NORM()(branches[slot])), conv(2)(join()(branches))]
    assert folded(keras.Model(x, outputs)).report.remaining_ops == 0


def test_sum_of_three_branches(folded):
    x = keras.Input((6, 6, 3))
    y = kl.Average()([conv(activation="relu")(x) for _ in range(3)])
    assert folded(keras.Model(x, conv(2)(NORM()(y)))).report.remaining_ops == 0


@pytest.mark.parametrize("depth", [1, 2])
def test_axis_of_a_time_distributed_norm(depth, folded):
    """The channel axis that the norm counts from the front moves back by one for each wrapper."""
    norm, steps = kl.BatchNormalization(axis=1), (3, 2)[:depth]
    for _ in range(depth):
        norm = kl.TimeDistributed(norm)
    x = keras.Input((*steps, 4, 5))
    (record,) = folded(keras.Model(x, norm(kl.Dense(5, activation="relu")(x)))).report.records
    assert record.outcome == "kept"
    assert record.remaining_ops == ("MUL", "ADD")


def one_norm_twice(layout: str, kind: type, activation: str) -> keras.Model:
    """A norm that is called on two values, on one value twice, or on its own output."""
    x, norm = keras.Input((3,)), kl.BatchNormalization()
    first = kl.Dense(3, activation=activation)(x)
    a = norm(first)
    if layout == "two values":
        b = norm(kl.Dense(3, activation=activation)(x))
    else:
        b = norm(first if layout == "one value" else kl.Activation("linear")(a))
        a = kl.Activation("tanh")(a) if layout == "one value" else a
    return keras.Model(x, kl.Dense(2)(kl.BatchNormalization()(kind()([a, b]))))


@pytest.mark.parametrize("layout", ["two values", "one value", "its own output"])
@pytest.mark.parametrize("kind", [kl.Add, kl.Subtract, kl.Average, kl.Multiply, kl.Concatenate])
@pytest.mark.parametrize("activation", ["linear", "elu"])
def test_a_norm_whose_calls_meet_is_right_without_the_proof(layout, kind, activation, randomized):
    model = randomized(one_norm_twice(layout, kind, activation))
    folded = fold(model, verify=False).model
    samples = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)
    np.testing.assert_allclose(folded(samples), model(samples), rtol=2e-4, atol=2e-4)
