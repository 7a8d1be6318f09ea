"""A layer that attaches a mask to its result keeps it, and a wrongly read network is refused."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import renormlite as rl
from keras import layers as kl
from renormlite.export.fold import keras_graph

TOKENS = np.array([[3, 1, 4, 1, 0, 0], [2, 7, 1, 0, 0, 0]], np.int32)


@keras.saving.register_keras_serializable("test_masks")
class TokenAndPosition(keras.Layer):
    """Two embeddings, of which the first defines the mask of the sum."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.token, self.position = kl.Embedding(9, 4, mask_zero=True), kl.Embedding(6, 4)

    def call(self, x):
        return self.token(x) + self.position(keras.ops.arange(6))

    def compute_mask(self, x, mask=None):
        return self.token.compute_mask(x)


def transformer():
    keras.utils.set_random_seed(0)
    x = keras.Input((6,), dtype="int32")
    h = TokenAndPosition()(x)
    h = kl.MultiHeadAttention(2, 2)(h, h)
    return keras.Model(x, kl.Dense(2)(keras.ops.max(h, axis=1)))


def test_a_composite_layer_with_its_own_mask_keeps_it():
    model = transformer()
    folded = rl.fold(model).model
    np.testing.assert_allclose(folded(TOKENS), model(TOKENS), rtol=1e-5, atol=1e-6)


def test_a_network_that_computes_something_else_than_the_model_is_refused(monkeypatch):
    monkeypatch.setattr(keras_graph, "_makes_masks", lambda model: False)
    model = transformer()
    for weight in model.weights:
        weight.assign(8 * weight)
    with pytest.raises(rl.UserError, match=r"differs from what the model itself returns"):
        rl.fold(model)
