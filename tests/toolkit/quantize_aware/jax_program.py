"""Trains a small network in integers on JAX; `test_backends` looks at what it saved."""

import os
import sys

os.environ["KERAS_BACKEND"] = "jax"

import keras
import numpy as np
import renormlite as rl
from keras import layers as kl

keras.utils.set_random_seed(0)
image = keras.Input((6, 6, 1), name="image")
x = kl.ReLU()(rl.BatchRenormalization()(kl.Conv2D(4, 3, padding="same")(image)))
x = kl.GlobalAveragePooling2D()(kl.Add()([x, kl.BatchNormalization()(kl.Conv2D(4, 1)(x))]))
model = rl.quantize_aware(keras.Model(image, kl.Dense(3)(x)))
model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
rng = np.random.default_rng(0)
samples, labels = rng.normal(size=(64, 6, 6, 1)).astype("f4"), rng.integers(0, 3, 64)
model.fit(samples, labels, batch_size=16, verbose=0)
model.save(sys.argv[1])
np.savez(sys.argv[2], samples=samples, outputs=model.predict(samples, verbose=0))
