"""Protects the fold without its proof on random networks of all public layers, against Keras."""

import os

import pytest
from fold_oracle import examine

# Networks a run; `benchmarks/fold_random.py` examines thousands. Every tenth is proved as well.
NETWORKS = int(os.environ.get("RENORMLITE_RANDOM_NETWORKS", "300"))
_GROUP = 30

# Networks of other ranges that once were wrong or raised something.
FORMER_FAULTS = (300722, 300871, 300917, 301335, 301349, 100952, 701398, 103030, 103599)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("seed", FORMER_FAULTS)
def test_networks_that_once_failed(seed):
    assert not examine(seed, prove=True).problem


@pytest.mark.filterwarnings("ignore")  # Keras warns about some of what is generated
@pytest.mark.parametrize("first", range(0, NETWORKS, _GROUP))
def test_random_networks_fold_correctly(first):
    for seed in range(first, first + _GROUP):
        verdict = examine(seed, prove=seed % 10 == 0)
        assert not verdict.problem, f"seed {seed}: {verdict.problem}"
