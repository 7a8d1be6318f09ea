"""Protects synchronized statistics: two replicas with unequal shards equal one device."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

PROGRAM = Path(__file__).with_name("replica_program.py")
EXACT = {"rtol": 1e-5, "atol": 1e-5}


def run(how, out, **environment):
    return subprocess.Popen(
        [sys.executable, str(PROGRAM), how, str(out)],
        env={**os.environ, "CUDA_VISIBLE_DEVICES": "-1", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(*processes):
    for process in processes:
        output, _ = process.communicate(timeout=200)
        assert process.returncode == 0, output[-4000:]


@pytest.fixture
def whole(paper_renorm):
    """Return two steps of the oracle on all eight samples: (oracle, y, dx, dgamma)."""
    sys.path.insert(0, str(PROGRAM.parent))
    try:
        from replica_program import BOUNDS, data
    finally:
        sys.path.pop(0)
    oracle = paper_renorm(4, **BOUNDS)
    oracle.gamma = np.array([1.0, -2.0, 0.0, 0.5])
    x, dy = data()
    for _ in range(2):
        y = oracle.train(x)
    dx, dgamma, _ = oracle.gradients(dy)
    return oracle, y, dx, dgamma


def assert_equal_to_whole(result, whole):
    oracle, y, dx, dgamma = whole
    np.testing.assert_allclose(result["y"], y, **EXACT)
    np.testing.assert_allclose(result["dx"], dx, **EXACT)
    np.testing.assert_allclose(result["dgamma"], dgamma, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(result["moving_mean"], oracle.mu, **EXACT)
    np.testing.assert_allclose(result["moving_variance"], oracle.var, **EXACT)
    assert result["step"] == 2


def test_mirrored_strategy(tmp_path, whole):
    finish(run("mirrored", tmp_path / "out.npz"))
    results = np.load(tmp_path / "out.npz")

    def of(key):
        return {name.split(":")[1]: results[name] for name in results if name.startswith(key)}

    assert_equal_to_whole(of("synchronized"), whole)
    apart = of("apart")
    assert np.abs(apart["y"] - whole[1]).max() > 0.05  # statistics of each shard alone differ
    assert apart["step"] == 2


def test_multi_worker_mirrored_strategy(tmp_path, whole):
    sockets = [socket.socket() for _ in range(2)]
    for s in sockets:
        s.bind(("127.0.0.1", 0))
    cluster = {"worker": [f"127.0.0.1:{s.getsockname()[1]}" for s in sockets]}
    for s in sockets:
        s.close()
    outs = [tmp_path / f"{index}.npz" for index in range(2)]
    finish(
        *(
            run(
                "worker",
                out,
                TF_CONFIG=json.dumps(
                    {"cluster": cluster, "task": {"type": "worker", "index": index}}
                ),
            )
            for index, out in enumerate(outs)
        )
    )
    parts = [np.load(out) for out in outs]
    for name in ("moving_mean", "moving_variance"):
        np.testing.assert_array_equal(parts[0][name], parts[1][name])
    joined = {name: parts[0][name] for name in ("moving_mean", "moving_variance", "step")}
    joined["y"] = np.concatenate([part["y"] for part in parts])
    joined["dx"] = np.concatenate([part["dx"] for part in parts])
    joined["dgamma"] = sum(part["dgamma"] for part in parts)
    assert_equal_to_whole(joined, whole)


def test_keras_distribution_on_jax(tmp_path, whole):
    flags = "--xla_force_host_platform_device_count=2"
    finish(run("jax", tmp_path / "out.npz", KERAS_BACKEND="jax", XLA_FLAGS=flags))
    result, oracle = np.load(tmp_path / "out.npz"), whole[0]
    for shards in ("whole", "filled"):
        np.testing.assert_allclose(result[f"{shards}:moving_mean"], oracle.mu, **EXACT)
        np.testing.assert_allclose(result[f"{shards}:moving_variance"], oracle.var, **EXACT)
        assert result[f"{shards}:step"] == 2
