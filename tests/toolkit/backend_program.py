"""Run by test_backends.py, one process for each backend: the same training and edge-case batches.

KERAS_BACKEND=... python backend_program.py OUT.npz
"""

import os
import sys

import numpy as np

STEPS = 100


def random_array(shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


def trajectory():
    """Return the losses of 100 compiled training steps and the weights after them."""
    import keras
    import renormlite as rl

    r_max, d_max = rl.paper_schedule(total_steps=200)
    model = keras.Sequential(
        [
            keras.layers.Input((8, 8, 3)),
            keras.layers.Conv2D(6, 3, strides=2),
            rl.BatchRenormalization(r_max=r_max, d_max=d_max, momentum=0.9),
            keras.layers.ReLU(),
            keras.layers.Flatten(),
            keras.layers.Dense(8),
            rl.BatchRenormalization(momentum=0.9, scale=False),
            keras.layers.Dense(1),
        ]
    )
    rng = np.random.default_rng(1)
    for layer in model.layers:
        for weight in layer.trainable_weights:
            weight.assign(np.array(rng.normal(size=weight.shape) * 0.3))
    model.compile(keras.optimizers.SGD(0.02, momentum=0.5), "mse")
    losses = []
    for step in range(STEPS):
        x = random_array((6, 8, 8, 3), step) * 2 + 1
        y = x.mean((1, 2))[:, :1]
        losses.append(float(model.train_on_batch(x, y)))
    results = {"losses": np.array(losses)}
    for index, weight in enumerate(model.weights):
        results[f"weight {index} {weight.path}"] = keras.ops.convert_to_numpy(weight)
    return results


def edge_case_batches():
    """Return outputs and state for batches on which other layers crash or return NaN."""
    import renormlite as rl
    from keras import ops

    bounds = {"r_max": 1.5, "d_max": 0.4}
    mask = random_array((6, 5), 7) > 0
    cases = {
        "mask, one channel": (rl.BatchRenormalization(**bounds), random_array((6, 5, 1)), mask),
        "mask, axis 1": (rl.BatchRenormalization(axis=1, **bounds), random_array((6, 5, 4)), mask),
        "all masked": (rl.BatchRenormalization(**bounds), random_array((6, 5, 2)), mask & False),
        "empty": (rl.BatchRenormalization(**bounds), random_array((0, 5, 2)), None),
        "single": (rl.BatchRenormalization(**bounds), random_array((1, 3)), None),
        "constant": (rl.BatchRenormalization(**bounds), np.full((8, 3), 1e4), None),
        "mean far above spread": (
            rl.BatchRenormalization(**bounds),
            random_array((64, 3)) + 100,
            None,
        ),
        "ghosts": (
            rl.BatchRenormalization(virtual_batch_size=4),
            random_array((7, 5, 3)),
            None,
        ),
        "two momenta": (
            rl.BatchRenormalization(renorm_momentum=0.5),
            random_array((7, 3)),
            None,
        ),
        "learned": (rl.LearnedRenormalization(axis=1), random_array((6, 4, 5)), None),
    }
    results = {}
    for name, (layer, x, mask) in cases.items():
        x = ops.convert_to_tensor(x, "float32")
        mask = None if mask is None else ops.convert_to_tensor(mask)
        for _ in range(2):
            y = layer(x, training=True, mask=mask)
        results[f"{name}: y"] = ops.convert_to_numpy(y)
        results[f"{name}: inference"] = ops.convert_to_numpy(layer(x, training=False))
        for weight in layer.weights:
            results[f"{name}: {weight.name}"] = ops.convert_to_numpy(weight)
    y, state = rl.batch_renorm(ops.convert_to_tensor(random_array((6, 3)), "float32"))
    results["function: y"] = ops.convert_to_numpy(y)
    results["function: variance"] = ops.convert_to_numpy(state.variance)
    return results


if __name__ == "__main__":
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    np.savez(sys.argv[1], **trajectory(), **edge_case_batches())
