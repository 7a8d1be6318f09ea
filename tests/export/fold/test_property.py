"""Protects the fold with random networks and unusual statistics."""

import keras
import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from keras import layers as kl
from renormlite import BatchRenormalization, fold

CHANNELS = 4
SIZE = 6


class Network:
    """Grows a random network; every tensor that stays 6 x 6 x 4 can be an input again."""

    def __init__(self, draw):
        self.draw = draw
        self.inputs = [keras.Input((SIZE, SIZE, CHANNELS))]
        self.pool = list(self.inputs)
        self.shared = []

    def choose(self, options):
        return self.draw(st.sampled_from(options))

    def tensor(self):
        return self.choose(self.pool[-4:])

    def linear(self):
        padding = self.choose(["same", "same", "same", "valid"])
        kernel = 1 if padding == "valid" else self.choose([1, 2, 3])
        activation = self.choose([None, None, "relu", "tanh", "leaky_relu"])
        bias = self.draw(st.booleans())
        common = {"padding": padding, "activation": activation, "use_bias": bias}
        dilation = self.choose([1, 2])
        return self.choose(
            [
                lambda: kl.Conv2D(CHANNELS, kernel, dilation_rate=dilation, **common),
                lambda: kl.Conv2D(CHANNELS, kernel, groups=2, **common),
                lambda: kl.DepthwiseConv2D(kernel, **common),
                lambda: kl.SeparableConv2D(CHANNELS, kernel, **common),
                lambda: kl.Conv2DTranspose(CHANNELS, kernel, **{**common, "padding": "same"}),
                lambda: kl.Dense(CHANNELS, activation=activation, use_bias=bias),
                lambda: kl.EinsumDense(
                    "abcd,de->abce", (SIZE, SIZE, CHANNELS), bias_axes="e" if bias else None
                ),
            ]
        )()

    def step(self):
        often = ["linear", "norm"] * 3 + ["activation"] * 2
        kind = self.choose([*often, "join", "plain", "again"])
        x = self.tensor()
        if kind == "linear":
            layer = self.linear()
            self.shared.append(layer)
            y = layer(x)
        elif kind == "again" and self.shared:
            y = self.choose(self.shared)(x)
        elif kind == "norm":
            axis = self.choose([-1, -1, -1, 1])
            norm = self.choose([kl.BatchNormalization, BatchRenormalization])
            layer = norm(axis=axis)
            self.shared.append(layer)
            y = layer(x)
        elif kind == "activation":
            y = self.choose(
                [
                    lambda: kl.ReLU(),
                    lambda: kl.LeakyReLU(),
                    lambda: kl.PReLU(shared_axes=[1, 2]),
                    lambda: kl.Activation("sigmoid"),
                    lambda: kl.ReLU(max_value=6.0),
                ]
            )()(x)
        elif kind == "join":
            other = self.tensor()
            join = self.choose([kl.Add, kl.Subtract, kl.Average, kl.Maximum, kl.Multiply, None])
            if join is None:
                y = kl.Conv2D(CHANNELS, 1)(kl.Concatenate()([x, other]))
            else:
                y = join()([x, other])
        else:
            y = self.choose(
                [
                    lambda x: kl.Dropout(0.5)(x),
                    lambda x: kl.AveragePooling2D(3, 1, padding="same")(x),
                    lambda x: kl.MaxPooling2D(2, 1, padding="same")(x),
                    lambda x: kl.Cropping2D(1)(kl.ZeroPadding2D(1)(x)),
                    lambda x: kl.Conv2D(CHANNELS, 3)(kl.ZeroPadding2D(1)(x)),
                    lambda x: kl.MaxPooling2D(2)(kl.UpSampling2D(2)(x)),
                    lambda x: kl.Reshape((SIZE, SIZE, CHANNELS))(kl.Flatten()(x)),
                    lambda x: kl.Permute((2, 1, 3))(x),
                ]
            )(x)
        self.pool.append(y)

    def model(self):
        for _ in range(self.draw(st.integers(2, 14))):
            self.step()
        outputs = [self.pool[-1]]
        if self.draw(st.booleans()):
            outputs.append(self.tensor())
        if self.draw(st.booleans()):
            outputs[0] = kl.Dense(3)(kl.Flatten()(outputs[0]))
        return keras.Model(self.inputs, outputs)


def odd_statistics(model, seed):
    """Gammas that are zero, negative, tiny; a variance of zero."""
    rng = np.random.default_rng(seed)
    for layer in model.layers:
        for weight in layer.weights:
            if "seed" in weight.name or "step" in weight.name or "int" in str(weight.dtype):
                continue
            weight.assign(rng.normal(0, 0.6, weight.shape))
        if isinstance(layer, (kl.BatchNormalization, BatchRenormalization)):
            channels = layer.gamma.shape[0]
            kinds = rng.choice(
                ["plain", "zero", "tiny", "negative"], channels, p=[0.7, 0.1, 0.1, 0.1]
            )
            if rng.random() < 0.4:
                kinds[:] = "plain"
            gamma = rng.uniform(0.4, 2, channels)
            gamma[kinds == "zero"] = 0
            gamma[kinds == "tiny"] = 1e-30
            gamma[kinds == "negative"] *= -1
            layer.gamma.assign(gamma)
            layer.moving_variance.assign(
                np.where(rng.random(channels) < 0.1, 0, rng.uniform(0.2, 2, channels))
            )


@settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
)
@given(st.data(), st.integers(0, 1000), st.sampled_from([0, 0, 500]))
def test_random_networks_fold_exactly(data, seed, copy_budget):
    keras.backend.clear_session()
    model = Network(data.draw).model()
    odd_statistics(model, seed)
    weights = [w.numpy().tobytes() for w in model.weights]
    nodes = [len(layer._inbound_nodes) for layer in model.layers]

    result = fold(model, copy_budget=copy_budget)
    assert result.proof.passed
    assert not result.proof.rolled_back

    again = fold(result.model, verify=False, copy_budget=0)
    assert [type(x) for x in again.model.layers] == [type(x) for x in result.model.layers]
    for one, two in zip(result.model.weights, again.model.weights, strict=True):
        np.testing.assert_array_equal(one.numpy(), two.numpy())

    assert weights == [w.numpy().tobytes() for w in model.weights]
    assert nodes == [len(layer._inbound_nodes) for layer in model.layers]
