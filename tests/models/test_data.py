"""Protects the order of training data: different in each epoch, and set by the seed."""

import numpy as np
from renormlite.models.data import ShuffledBatches, Split


def epochs_of(seed, count=3):
    x = np.arange(10, dtype=np.float32)[:, None]
    batches = ShuffledBatches(Split(x, np.arange(10)), batch_size=4, seed=seed)
    seen = []
    for _ in range(count):
        parts = [batches[index] for index in range(len(batches))]
        assert [len(labels) for _, labels in parts] == [4, 4, 2]
        for values, labels in parts:
            np.testing.assert_array_equal(values[:, 0], labels)
        seen.append(tuple(np.concatenate([labels for _, labels in parts])))
        batches.on_epoch_end()
    return seen


def test_each_epoch_has_every_sample_in_another_order():
    seen = epochs_of(seed=0)
    assert all(sorted(order) == list(range(10)) for order in seen)
    assert len(set(seen)) == 3


def test_the_seed_sets_the_order():
    assert epochs_of(seed=0) == epochs_of(seed=0) != epochs_of(seed=1)
