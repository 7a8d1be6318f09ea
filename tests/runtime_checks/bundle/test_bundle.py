"""Protects the bundle: one file that needs Python 3.9, NumPy and a runtime, and trusts no byte."""

from __future__ import annotations

import ast
import hashlib
import json
import shlex
import subprocess
import sys
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from renormlite import UserError
from renormlite.artifacts.golden_set import read_golden
from renormlite.runtime_checks.bundle.verify import verify_bundle
from renormlite.runtime_checks.bundle.write import CODE, write_bundle
from renormlite.runtimes import RUNTIMES
from renormlite.runtimes.application import travelling_code


@pytest.fixture(scope="module")
def bundle(healthy_export, tmp_path_factory) -> Path:
    return write_bundle(healthy_export, tmp_path_factory.mktemp("bundle") / "tiny.parity.pyz")


def replay(bundle: Path, *options: str, hide: tuple[str, ...] = ()) -> subprocess.CompletedProcess:
    """Run a bundle as a device does; packages in ``hide`` are not installed there."""
    program = f"""
import importlib.machinery, runpy, sys

class Hidden(importlib.machinery.PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        if name.partition(".")[0] in {hide!r}:
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Hidden)
sys.argv = {[str(bundle), *options]!r}
runpy.run_path({str(bundle)!r}, run_name="__main__")
"""
    return subprocess.run(
        [sys.executable, "-I", "-c", program], capture_output=True, text=True, cwd=bundle.parent
    )


def test_runs_without_keras_and_tensorflow(bundle, tmp_path):
    out = tmp_path / "verdict.json"
    done = replay(
        bundle,
        "--runtime",
        "litert",
        "--json",
        str(out),
        hide=("keras", "tensorflow", "jinja2", "rich", "click", "onnx"),
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("PASS  tiny.float32.tflite on litert")
    record = json.loads(out.read_text())
    assert record["verdict"] == "pass"
    assert record["runtime"] == "litert"
    assert record["artifact"] == "tiny.float32.tflite"
    assert "ai-edge-litert" in record["versions"]
    assert record["cpu"]["machine"]
    assert record["latency_ms"]["median"] > 0
    assert record["latency_ms"]["p90"] >= record["latency_ms"]["median"]
    assert record["load_ms"] > 0
    assert record["peak_memory_bytes"] > 1e6
    assert record["metrics"]["scores"]["elements"] == 160


def test_outputs_are_those_that_the_hash_names(bundle, healthy_export, tmp_path):
    out, arrays = tmp_path / "v.json", tmp_path / "o.npz"
    options = ["--runtime", "onnxruntime", "--artifact", "tiny.float32.onnx"]
    done = replay(bundle, *options, "--json", str(out), "--outputs", str(arrays))
    assert done.returncode == 0, done.stderr
    with np.load(arrays) as archive:
        scores = archive["scores"]
    golden = read_golden(healthy_export / "golden.npz", ["scores"])
    np.testing.assert_allclose(scores, golden.truth["scores"], atol=1e-5)
    expected = hashlib.sha256(np.ascontiguousarray(scores).tobytes()).hexdigest()
    assert json.loads(out.read_text())["outputs_sha256"] == {"scores": expected}


def test_wrong_numbers_exit_1(export, tmp_path):
    """A weight of the file is wrong and the manifest names the wrong file: the numbers tell."""
    path = export / "tiny.float32.tflite"
    with np.load(export / "network.npz") as archive:
        weight = next(archive[k] for k in archive.files if k.endswith("kernel")).flat[0]
    data = path.read_bytes().replace(np.float32(weight).tobytes(), np.float32(2).tobytes())
    path.write_bytes(data)
    record = json.loads((export / "manifest.json").read_text())
    record["artifacts"][0]["sha256"] = hashlib.sha256(data).hexdigest()
    (export / "manifest.json").write_text(json.dumps(record))
    done = replay(write_bundle(export, tmp_path / "b.pyz"), "--runtime", "litert")
    assert done.returncode == 1
    assert "FAIL  tiny.float32.tflite on litert" in done.stdout
    assert "mismatched samples" in done.stdout


def test_damaged_bundle_exits_2(bundle, tmp_path):
    damaged = tmp_path / "damaged.pyz"
    with zipfile.ZipFile(bundle) as old, zipfile.ZipFile(damaged, "w") as new:
        for name in old.namelist():
            data = old.read(name)
            new.writestr(name, data + b"\0" if name.endswith("golden.npz") else data)
    done = replay(damaged)
    assert done.returncode == 2
    assert "golden.npz has another size" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1

    cut = tmp_path / "cut.pyz"
    cut.write_bytes(bundle.read_bytes()[: bundle.stat().st_size // 2])
    assert replay(cut).returncode != 0


def rewritten(bundle: Path, path: Path, **changes: bytes) -> Path:
    """Copy a bundle with some entries changed or added."""
    with zipfile.ZipFile(bundle) as old, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as new:
        for name in {*old.namelist(), *changes}:
            new.writestr(name, changes.get(name) or old.read(name))
    return path


@pytest.mark.parametrize(
    ("entry", "data", "sentence"),
    [
        ("renormlite/errors.py", b"raise SystemExit(0)", "errors.py has another size"),
        ("export/extra.bin", bytes(1 << 24), "holds the unknown entry 'export/extra.bin'"),
        ("carried.json", b"[]", "damaged"),
        ("carried.json", b"\xff", "damaged"),
    ],
)
def test_what_was_not_packed_is_refused_before_any_code_runs(
    bundle, tmp_path, entry, data, sentence
):
    changed = rewritten(bundle, tmp_path / "changed.pyz", **{entry: data})
    done = replay(changed)
    assert (done.returncode, done.stdout) == (2, "")
    assert sentence in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    with pytest.raises(UserError, match="is damaged"):
        verify_bundle(changed)


def _content(path, name):
    """Return an entry's bytes; None where zip itself refuses them."""
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.read(name)
    except (zipfile.BadZipFile, zlib.error, EOFError):
        return None


def test_every_flipped_bit_of_an_entry_is_found(bundle, tmp_path):
    data = bytearray(bundle.read_bytes())
    generator = np.random.default_rng(0)
    with zipfile.ZipFile(bundle) as archive:
        entries = [e for e in archive.infolist() if e.filename != "__main__.py"]
        for entry in generator.choice(entries, 40):
            place = entry.header_offset + 30 + len(entry.filename)
            place += int(generator.integers(entry.compress_size))
            damaged = bytearray(data)
            damaged[place] ^= 1 << int(generator.integers(8))
            (tmp_path / "flipped.pyz").write_bytes(damaged)
            if _content(tmp_path / "flipped.pyz", entry.filename) == archive.read(entry):
                continue  # the bits after the end of compressed data mean nothing
            with pytest.raises(UserError, match="is damaged"):
                verify_bundle(tmp_path / "flipped.pyz")


def test_the_hash_of_the_whole_file_is_compared(bundle, tmp_path):
    digest = hashlib.sha256(bundle.read_bytes()).hexdigest()
    assert verify_bundle(bundle, digest.upper()) == digest
    with pytest.raises(UserError, match="not the bundle expected"):
        verify_bundle(bundle, "0" * 64)
    with pytest.raises(UserError, match="There is no bundle"):
        verify_bundle(tmp_path / "none.pyz")


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--runtime", "tensorrt"], "runtime among"),
        (["--runtime", "litert@qemu-aarch64"], "runs on the machine that starts it"),
        (["--runtime", "litert", "--artifact", "other.tflite"], "must be one of the carried"),
        (["--runtime", "litert", "--threads", "0"], "threads must be a number from 1 to 1024"),
    ],
)
def test_wrong_usage_exits_2(bundle, options, sentence):
    done = replay(bundle, *options)
    assert done.returncode == 2
    assert sentence in done.stderr


def test_says_what_to_install_when_there_is_no_runtime(bundle):
    hidden = tuple(entry.package for entry in RUNTIMES.values())
    # A module that is None in sys.modules makes find_spec raise, so the files are hidden instead.
    program = (
        "import importlib.util, runpy, sys; real = importlib.util.find_spec; "
        f"hidden = {hidden!r}; "
        "importlib.util.find_spec = lambda n, p=None: None if n in hidden else real(n, p); "
        f"sys.argv = [{str(bundle)!r}]; runpy.run_path({str(bundle)!r}, run_name='__main__')"
    )
    done = subprocess.run([sys.executable, "-I", "-c", program], capture_output=True, text=True)
    assert done.returncode == 2
    advice = done.stderr.partition("Install one: ")[2].strip().split("; or ")
    assert advice[0] == "pip install ai-edge-litert"
    for line in advice:  # each can be pasted
        assert shlex.split(line)[:2] == ["pip", "install"]
        assert not set("|;&") & set(line)


def test_files_that_the_runtime_does_not_load_are_named(bundle):
    done = replay(bundle, "--runtime", "litert")
    assert done.returncode == 0, done.stderr
    expected = "litert does not load .onnx (--runtime onnxruntime runs it)"
    assert f"NOT RUN  tiny.float32.onnx: {expected}" in done.stdout.splitlines()


def test_same_export_same_bytes(bundle, healthy_export, tmp_path):
    again = write_bundle(healthy_export, tmp_path / "again.pyz")
    assert again.read_bytes() == bundle.read_bytes()


def test_carries_only_what_was_asked_for(healthy_export, tmp_path):
    path = write_bundle(healthy_export, tmp_path / "b.pyz", artifacts=["tiny.float32.onnx"])
    names = zipfile.ZipFile(path).namelist()
    assert "export/tiny.float32.onnx" in names
    assert "export/tiny.float32.tflite" not in names
    with pytest.raises(UserError, match="carries files of the export"):
        write_bundle(healthy_export, tmp_path / "b.pyz", artifacts=["none.onnx"])


@pytest.mark.parametrize("name", [name for name in travelling_code(CODE) if name.endswith(".py")])
def test_carried_code_is_python_3_9_without_heavy_imports(name):
    """Parsed as 3.9, and no module-level import beyond the standard library, NumPy and itself."""
    tree = ast.parse(travelling_code(CODE)[name], feature_version=(3, 9))
    for node in tree.body:
        evaluated = node.value if isinstance(node, ast.Assign) else None
        unions = [n for n in ast.walk(evaluated or ast.Pass()) if isinstance(n, ast.BitOr)]
        assert not unions, f"{name} evaluates a `X | Y` that Python 3.9 has no meaning for"
        if isinstance(node, ast.Import):
            roots = {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            roots = {node.module.partition(".")[0]}
        else:
            continue
        assert roots <= {"numpy", *sys.stdlib_module_names}, f"{name} imports {roots}"
