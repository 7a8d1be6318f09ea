"""Protects the fold without its proof on random networks of all public layers, against Keras."""

import os

import pytest
from fold_oracle import examine

# Networks a run; `benchmarks/fold_random.py` examines thousands. Every tenth is proved as well.
NETWORKS = int(os.environ.get("RENORMLITE_RANDOM_NETWORKS", "150"))
_GROUP = 30


@pytest.mark.filterwarnings("ignore")  # Keras warns about some of what is generated
@pytest.mark.parametrize("first", range(0, NETWORKS, _GROUP))
def test_random_networks_fold_right(first):
    for seed in range(first, first + _GROUP):
        verdict = examine(seed, prove=seed % 10 == 0)
        assert not verdict.problem, f"seed {seed}: {verdict.problem}"
