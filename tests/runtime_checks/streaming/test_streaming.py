"""Protects checks on more samples than memory holds: all are judged, in any number of processes."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from renormlite import UserError, check_parity
from renormlite.cli.main import cli
from renormlite.runtime_checks.end_to_end.quality import Slices
from renormlite.runtime_checks.parity import ParityReport
from renormlite.runtime_checks.streaming import check, on_ray, part, workers
from renormlite.runtime_checks.streaming.check import Streamed
from tar_shard import write_tar_shard

COUNT = 70
SIZE = 16


@pytest.fixture
def few(monkeypatch) -> None:
    """Hold few samples, so that few are enough to be streamed."""
    monkeypatch.setattr(check, "HELD_SAMPLES", 20)
    monkeypatch.setattr(check, "part_size", lambda shapes: SIZE)


@pytest.fixture(scope="module")
def own() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(5)
    return {
        "image": rng.normal(size=(COUNT, 8, 8, 1)).astype(np.float32),
        "label": rng.integers(0, 10, COUNT),
    }


@pytest.fixture
def data(own, tmp_path: Path) -> Path:
    np.savez(tmp_path / "own.npz", **own)
    return tmp_path / "own.npz"


def streamed(report: ParityReport) -> Streamed:
    assert report.streamed is not None
    return report.streamed


def spoil(monkeypatch, place, number: float) -> None:
    """Set a place of every output of every part to a number."""
    run = part.run_target

    def spoiled(*arguments, **options):
        found = run(*arguments, **options)
        for array in found.outputs.values():
            array[place] = number
        return found

    monkeypatch.setattr(part, "run_target", spoiled)


def lasting(report: ParityReport) -> str:
    """Return the report as JSON without what took how long."""
    record = json.loads(report.to_json())
    del record["seconds"]
    for result in record["results"]:
        del result["load_ms"], result["latency_ms"]
    return json.dumps(record)


@pytest.mark.usefixtures("few")
def test_the_totals_equal_those_of_all_samples_at_once(healthy_export, data, monkeypatch):
    parts = streamed(check_parity(healthy_export, ("litert",), data)).files[0].outputs[0]
    monkeypatch.setattr(check, "HELD_SAMPLES", 1000)
    report = check_parity(healthy_export, ("litert",), data)
    assert report.streamed is None
    result = report.results[0]
    own = report.golden.kind.shape[0] - COUNT
    verdict, task = result.outputs[0], result.tasks[0]
    assert parts.samples == parts.real == COUNT
    squares = np.square(verdict.metrics.rms_error[own:]).sum()
    assert parts.error == pytest.approx(squares, rel=1e-12)
    assert parts.task is not None
    assert (parts.task.labelled, parts.task.right_before) == (task.labelled, task.right_before)
    agreement = parts.task.agreement("scores")
    assert (agreement.same, agreement.samples) == (COUNT, COUNT)
    assert agreement.beyond_guessing == task.beyond_guessing
    assert agreement.odds <= task.odds < agreement.odds * 2 ** (1 / 4)


@pytest.mark.usefixtures("few")
def test_several_processes_give_the_same_report_also_when_one_is_killed(
    healthy_export, data, monkeypatch
):
    alone = check_parity(healthy_export, ("litert", "onnxruntime"), data)
    calls: list[int] = []
    call = workers.Child.call

    def killing(self, function, *arguments):
        calls.append(1)
        if len(calls) == 2:
            call(self, signal.raise_signal, signal.SIGKILL)
        return call(self, function, *arguments)

    monkeypatch.setattr(workers.Child, "call", killing)
    several = check_parity(healthy_export, ("litert", "onnxruntime"), data, workers=2)
    assert len(calls) > -(-COUNT // SIZE), "the part of the killed process was run again"
    assert lasting(several) == lasting(alone)
    assert streamed(alone).samples == COUNT


@pytest.mark.usefixtures("few")
def test_a_process_that_always_dies_is_reported(healthy_export, data, monkeypatch):
    def dying(self, function, *arguments):
        raise workers.DiedError(-9, "")

    monkeypatch.setattr(workers.Child, "call", dying)
    with pytest.raises(UserError, match="ended 3 times"):
        check_parity(healthy_export, ("litert",), data, workers=2)


@pytest.mark.usefixtures("few")
def test_one_wrong_sample_among_the_streamed_fails(healthy_export, data, monkeypatch):
    run = part.run_target
    seen = []

    def spoiled(path, artifact, inputs, target, threads):
        found = run(path, artifact, inputs, target, threads=threads)
        seen.append(1)
        if len(seen) == 3:
            for array in found.outputs.values():
                array[5] += 1e-3
        return found

    monkeypatch.setattr(part, "run_target", spoiled)
    report = check_parity(healthy_export, ("litert",), data)
    assert not report.passed
    assert f"worst sample {2 * SIZE + 5} " in report.results[0].reason
    assert "1 sample exceeds the limit" in report.results[0].reason


@pytest.mark.usefixtures("few")
def test_a_slice_that_is_constant_in_all_parts_fails(healthy_export, data, monkeypatch):
    healthy = check_parity(healthy_export, ("litert",), data)
    assert healthy.passed
    slices = streamed(healthy).files[0].outputs[0].slices
    assert slices is not None
    slice_ = int(np.argmax(slices.spans))
    spoil(monkeypatch, (slice(None), slice_), 0.0)
    report = check_parity(healthy_export, ("litert",), data)
    (message,) = [
        f.message for f in report.results[0].findings if f.check == "slices" and not f.passed
    ]
    assert message.startswith(f"of {COUNT} streamed samples: slices {slice_} of the last axis")
    (output,) = json.loads(report.to_json())["streamed"]["files"][0]["outputs"].values()
    assert output["dead"] == [slice_]
    assert output["slice_db"][slice_] == pytest.approx(0, abs=1e-9)


def test_slices_of_parts_are_those_of_all_samples():
    """Values at random: those of a part resemble those of all. Slice 0 is dead, slice 1 is not."""
    truth = np.random.default_rng(0).normal(3, 1, (60, 4))
    found = truth + 0.1 * np.arange(4)
    found[:, 0], found[:20, 1] = 2.0, 2.0
    whole = Slices.of(truth, found)
    first, *rest = [Slices.of(truth[i : i + 20], found[i : i + 20]) for i in (0, 20, 40)]
    for part_ in rest:
        first = first.plus(part_)
    assert first.dead == whole.dead == (0,)
    assert first.spans == whole.spans
    np.testing.assert_allclose(first.decibels[:3], whole.decibels[:3], rtol=1e-12)
    assert first.samples == whole.samples == 60


def test_a_feature_that_few_samples_have_is_not_dead():
    truth, found = np.zeros((60, 2)), np.zeros((60, 2))
    truth[::30], truth[:, 1] = 50.0, np.arange(60)
    first, second = [Slices.of(truth[i : i + 30], found[i : i + 30]) for i in (0, 30)]
    assert first.dead == first.plus(second).dead == (1,)
    assert Slices.of(truth, np.where(truth == 50, np.nan, found)).dead == ()


@pytest.mark.usefixtures("few")
def test_nan_that_only_the_file_gives_fails(healthy_export, data, monkeypatch):
    spoil(monkeypatch, (3, 0), np.nan)
    reason = check_parity(healthy_export, ("litert",), data).results[0].reason
    assert "nan" in reason
    assert "in 5 parts, the first of which starts at sample 0" in reason


@pytest.mark.usefixtures("few")
def test_devices_are_refused(healthy_export, data):
    with pytest.raises(UserError, match="--samples 20"):
        check_parity(healthy_export, ("litert@ssh:nobody@nowhere",), data)


def as_parquet(folder: Path, own) -> Path:
    import pyarrow as pa
    from pyarrow import parquet

    folder.mkdir()
    for name, rows in (("0", slice(0, 33)), ("1", slice(33, None))):
        columns = {"image": own["image"][rows].tolist(), "label": own["label"][rows]}
        parquet.write_table(pa.table(columns), folder / f"{name}.parquet", row_group_size=10)
    return folder


@pytest.mark.usefixtures("few")
def test_every_source_gives_the_same_totals(healthy_export, own, data, tmp_path):
    wanted = streamed(check_parity(healthy_export, ("litert",), data)).files
    np.savez_compressed(tmp_path / "small.npz", **own)
    sources = [
        tmp_path / "small.npz",
        write_tar_shard(tmp_path / "own.tar", own["image"], own["label"]),
        as_parquet(tmp_path / "shards", own),
        str(tmp_path / "shards" / "*.parquet"),
        own,
        ({name: own[name][i : i + 9] for name in own} for i in range(0, COUNT, 9)),
    ]
    for source in sources:
        assert streamed(check_parity(healthy_export, ("litert",), source)).files == wanted


@pytest.mark.usefixtures("few")
def test_the_command(healthy_export, data, tmp_path):
    run = CliRunner().invoke(
        cli,
        ["check", str(healthy_export), "--inputs", str(data), "--json", str(tmp_path / "r.json")],
    )
    assert run.exit_code == 0, run.output
    assert f"{COUNT} samples of own.npz, streamed in parts of {SIZE}" in run.output
    record = json.loads((tmp_path / "r.json").read_text())
    assert record["streamed"]["samples"] == COUNT


@pytest.mark.devices
@pytest.mark.usefixtures("few")
def test_ray_gives_the_same_report_also_when_a_worker_is_killed(
    healthy_export, data, tmp_path, monkeypatch
):
    alone = check_parity(healthy_export, ("litert",), data)
    mark = tmp_path / "killed"
    judge = on_ray._judge

    def killed_once(files, job, samples):
        if not mark.exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return judge(files, job, samples)

    monkeypatch.setattr(on_ray, "_judge", killed_once)
    several = check_parity(healthy_export, ("litert",), data, ray="local")
    assert mark.exists()
    assert lasting(several) == lasting(alone)


@pytest.mark.usefixtures("few")
@pytest.mark.parametrize("address", ["127.0.0.1:1", "ray://127.0.0.1:1", "127.0.0.1:99999"])
def test_an_address_without_a_cluster_is_refused_at_once(
    healthy_export: Path, data: Path, address: str
) -> None:
    with pytest.raises(UserError, match="There is no Ray cluster at"):
        check_parity(healthy_export, ("litert",), data, ray=address)
