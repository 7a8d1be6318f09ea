"""Protects the search: it finds a fault that no golden sample shows, without false alarms."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
from renormlite import UserError, check_parity
from renormlite.artifacts.directory import read_export
from renormlite.artifacts.golden_set import read_golden
from renormlite.artifacts.network import network_arrays
from renormlite.files import sha256
from renormlite.reference.gradients import evaluated
from renormlite.reference.network import evaluate_network
from renormlite.runtime_checks.search.explorer import explore
from renormlite.runtime_checks.search.probe import Objective

RUNS = 40


def noise_of(report):
    (finding,) = [f for f in report.results[0].findings if f.check == "noise"]
    return finding


@pytest.fixture
def parts(healthy_export):
    export = read_export(healthy_export)
    golden = read_golden(export.golden, ["scores"])
    # Without the samples of a thousand times the usual size: they drive every unit anywhere.
    golden = golden.select(np.flatnonzero(golden.kind != "extreme"))
    return export.read_network(export.artifacts[0]), golden


def dormant(network, golden, channel):
    """Return the network with a bias that keeps a unit of `stem` inactive on all golden samples."""
    values = evaluated(network, golden.inputs)
    (stem,) = [n for n in network.nodes if n.op == "conv" and n.layer == "stem"]
    bias = stem.weights["bias"].copy()
    bias[channel] -= values[stem.name][..., channel].max() + 0.01
    asleep = dataclasses.replace(stem, weights={**stem.weights, "bias": bias})
    return with_node(network, stem, asleep)


def with_node(network, old, new):
    return dataclasses.replace(
        network, nodes=tuple(new if node is old else node for node in network.nodes)
    )


def with_fault(network, channel):
    """Return the network with altered weights that only this unit of `stem` reads."""
    (down,) = [n for n in network.nodes if n.op == "conv" and n.layer == "down"]
    kernel = down.weights["kernel"].copy()
    kernel[:, :, channel] *= 1.5
    return with_node(
        network, down, dataclasses.replace(down, weights={**down.weights, "kernel": kernel})
    )


@pytest.mark.parametrize("channel", range(6))
def test_a_weight_of_a_unit_that_no_sample_activates(parts, channel):
    network, golden = parts
    network = dormant(network, golden, channel)
    faulty = with_fault(network, channel)
    objective = Objective(network, lambda x: evaluate_network(faulty, x, dtype=np.float32), {})
    assert objective(golden.inputs).ratio.max() < 5
    found = explore(objective, golden, runs=RUNS, keep=2, seed=0)
    assert found.runs <= RUNS
    assert found.worst.ratio[0] > 5
    assert found.worst.ratio[0] >= found.worst.ratio[1]


def test_what_is_found_lies_within_the_range_of_the_data(parts):
    network, golden = parts
    objective = Objective(network, lambda x: evaluate_network(network, x, dtype=np.float32), {})
    usual = golden.inputs["image"][golden.kind == "random"]
    found = explore(objective, golden, runs=RUNS, keep=RUNS, seed=1).worst.inputs["image"]
    assert found.min() >= usual.min()
    assert found.max() <= usual.max()
    assert found.dtype == usual.dtype


def test_the_same_seed_finds_the_same(parts):
    network, golden = parts
    objective = Objective(network, lambda x: evaluate_network(network, x, dtype=np.float32), {})
    first, second = (explore(objective, golden, runs=16, keep=2, seed=3) for _ in range(2))
    np.testing.assert_array_equal(first.worst.inputs["image"], second.worst.inputs["image"])


def test_climbing_improves_on_its_start(parts):
    """Rounding errors, too, grow along the gradient of the outputs that they sit on."""
    network, golden = parts
    coarse = dataclasses.replace(network, nodes=tuple(map(rounded, network.nodes)))
    objective = Objective(network, lambda x: evaluate_network(coarse, x), {"scores": 1e-3})
    found = explore(objective, golden, runs=80, keep=1, seed=0, reaching=0.0)
    assert found.worst.ratio[0] > found.start


def rounded(node):
    """Return a node with weights of eight bits."""
    weights = {
        role: (step := np.abs(array).max() / 127) * np.rint(array / step)
        for role, array in node.weights.items()
    }
    return dataclasses.replace(node, weights=weights)


def test_nan_is_the_worst_of_all(parts):
    network, golden = parts
    objective = Objective(network, lambda x: {"scores": np.full((len(x["image"]), 10), np.nan)}, {})
    assert np.isinf(objective(golden.inputs).ratio).all()


def hide_a_fault(export):
    """Plant an altered weight after a unit that is inactive on all golden samples.

    The network and the golden set have the inactive unit; only the file has the altered weight.
    """
    opened = read_export(export)
    golden = read_golden(opened.golden, ["scores"])
    golden = golden.select(np.flatnonzero(golden.kind != "extreme"))
    network = opened.read_network(opened.artifacts[0])
    sleeping = dormant(network, golden, 2)
    faulty = with_fault(sleeping, 2)
    path = export / "tiny.float32.tflite"
    data = path.read_bytes()
    for before, after in zip(network.nodes, faulty.nodes, strict=True):
        for role, array in before.weights.items():
            old, new = (file_bytes(w) for w in (array, after.weights[role]))
            assert old == new or data.count(old) == 1
            data = data.replace(old, new)
    path.write_bytes(data)
    truth = evaluate_network(sleeping, golden.inputs)["scores"]
    np.savez(
        export / "golden.npz",
        **{
            "kind": golden.kind,
            "input:image": golden.inputs["image"],
            "truth:scores": truth,
            "folded64:scores": truth,
            "reference:scores": evaluate_network(sleeping, golden.inputs, dtype=np.float32)[
                "scores"
            ],
        },
    )
    np.savez(export / "network.npz", **network_arrays(sleeping))
    manifest = json.loads((export / "manifest.json").read_text())
    manifest["artifacts"] = manifest["artifacts"][:1]
    for entry in (manifest["golden"], manifest["network"], *manifest["artifacts"]):
        entry["sha256"] = sha256(export / entry["file"])
    (export / "manifest.json").write_text(json.dumps(manifest))


def file_bytes(array):
    """Return a weight as TFLite stores it: kernels with the output channel first."""
    moved = np.moveaxis(array, -1, 0) if array.ndim == 4 else array
    return np.ascontiguousarray(moved, np.float32).tobytes()


def test_a_fault_that_the_golden_set_misses(export):
    hide_a_fault(export)
    hidden = check_parity(export, ("litert",))
    assert noise_of(hidden).passed
    assert hidden.searched == ()
    report = check_parity(export, ("litert",), search=RUNS)
    assert not noise_of(report).passed
    assert "(search)" in noise_of(report).message
    assert list(report.golden.kind[-2:]) == ["search"] * 2
    (searched,) = report.searched
    assert searched.before < 5 < searched.after
    assert searched.runs == RUNS
    assert searched.sentence in json.loads(report.to_json())["searched"][0]["sentence"]
    assert "search (2)" in report.to_html()


def test_a_healthy_file_passes_and_keeps_its_samples(healthy_export):
    report = check_parity(healthy_export, ("litert", "onnxruntime"), search=RUNS)
    assert report.passed
    assert list(report.golden.kind[16:]) == ["search"] * 4
    assert [s.target for s in report.searched] == ["litert", "onnxruntime"]
    assert report.results[0].tasks[0].kind == "random"


def test_a_network_that_only_keras_evaluates(export):
    with np.load(export / "network.npz") as archive:
        arrays = dict(archive)
    graph = json.loads(str(arrays["graph"]))
    graph["nodes"][0]["op"] = "opaque"
    arrays["graph"] = np.array(json.dumps(graph))
    np.savez(export / "network.npz", **arrays)
    manifest = json.loads((export / "manifest.json").read_text())
    manifest["network"]["sha256"] = sha256(export / "network.npz")
    (export / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match="Check without --search"):
        check_parity(export, ("litert",), search=RUNS)
