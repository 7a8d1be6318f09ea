"""Accuracy on real data of networks trained with small and skewed batches, for each norm.

    python benchmarks/purpose.py [--seeds 5] [--only TEXT] [--norms NAME/NAME…] [--weights DIR]
        [--json FILE]

Each case is a network, its data, a batch size and a way to draw batches (`purpose_networks`). For
each seed, every norm trains with its defaults for the same number of steps on the same batches with
Adam at 1e-3. Accuracy is that of inference on held-out samples, with the stored statistics and with
statistics estimated anew on the whole training set. Together they show whether the weights were
trained badly or only the stored statistics are unsuitable. `skewed` batches hold two classes.

A whole run is one compiled program (JAX), so that small steps cost little. ``--weights`` keeps the
trained weights, as `purpose_int8.py` reads them.
"""

from __future__ import annotations

import os
from pathlib import Path

os.environ["KERAS_BACKEND"] = "jax"
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
# Such small tensors are slower on several threads.
os.environ.setdefault(
    "XLA_FLAGS", "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
)

import jax
import keras
import numpy as np
from keras import ops
from purpose_networks import DATA, NORMS, Case, Data, batches_of, cases_parser, network
from rows import Row, mean_row, write


def accuracies(
    case: Case, data: Data, norm: str, seeds: int, keep: Path | None = None
) -> dict[str, list[float]]:
    """Return held-out accuracies by kind of statistics, one per seed."""
    model = network(case, data, norm)
    again = network(case, data, norm, anew=True) if NORMS[norm].anew else None
    optimizer = keras.optimizers.Adam(1e-3)
    optimizer.build(model.trainable_variables)
    x, y = ops.convert_to_tensor(data.x), ops.convert_to_tensor(data.y)

    def loss(weights, state, batch):
        logits, state = model.stateless_call(weights, state, x[batch], training=True)
        each = keras.losses.sparse_categorical_crossentropy(y[batch], logits, from_logits=True)
        return ops.mean(each), state

    def step(carried, batch):
        weights, state, moments = carried
        (value, state), gradients = jax.value_and_grad(loss, has_aux=True)(weights, state, batch)
        weights, moments = optimizer.stateless_apply(moments, gradients, weights)
        return (weights, state, moments), value

    def accuracy(evaluated: keras.Model, weights, state) -> float:
        logits, _ = evaluated.stateless_call(weights, state, data.held_out, training=False)
        return float(np.mean(np.argmax(logits, -1) == data.truth))

    train = jax.jit(lambda start, batches: jax.lax.scan(step, start, batches)[0])
    found: dict[str, list[float]] = {"stored": [], "estimated anew": []}
    for seed in range(seeds):
        keras.utils.set_random_seed(seed)
        fresh = network(case, data, norm)
        start = (
            [v.value for v in fresh.trainable_variables],
            [v.value for v in fresh.non_trainable_variables],
            [v.value for v in optimizer.variables],
        )
        weights, state, _ = train(start, batches_of(data.y, case, seed))
        found["stored"].append(accuracy(model, weights, state))
        if keep is not None:
            for variables, values in (
                (fresh.trainable_variables, weights),
                (fresh.non_trainable_variables, state),
            ):
                for variable, value in zip(variables, values, strict=True):
                    variable.assign(value)
            np.savez(keep / f"{case}, {norm}, {seed}.npz", *fresh.get_weights())
        if again is not None:
            state = [v.value for v in again.non_trainable_variables]
            _, state = again.stateless_call(weights, state, x, training=True)
            found["estimated anew"].append(accuracy(again, weights, state))
    return found


def measured(case: Case, norms: list[str], seeds: int, keep: Path | None) -> list[Row]:
    """Return the rows of one case."""
    rows = []
    data = DATA[case.data]()
    for norm in norms:
        for kind, values in accuracies(case, data, norm, seeds, keep).items():
            if values:
                label = str(case) if kind == "stored" else f"{case}, statistics {kind}"
                rows.append(mean_row(label, norm, "accuracy", values))
                print(rows[-1], flush=True)
    return rows


def main() -> None:
    parser = cases_parser(__doc__.splitlines()[0])
    parser.add_argument("--norms", default="/".join(NORMS), help="separated by slashes")
    parser.add_argument("--weights", type=Path, help="folder for the trained weights")
    options = parser.parse_args()
    norms = options.norms.split("/")
    found = (measured(case, norms, options.seeds, options.weights) for case in options.only)
    write([row for rows in found for row in rows], options.json)


if __name__ == "__main__":
    main()
