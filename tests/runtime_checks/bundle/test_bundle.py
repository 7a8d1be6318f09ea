"""Protects the bundle: one file that needs Python 3.9, NumPy and a runtime, and trusts no byte."""

from __future__ import annotations

import ast
import hashlib
import io
import json
import os
import shlex
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pytest
from renormlite import UserError
from renormlite.artifacts.golden_set import read_golden
from renormlite.locks import locked
from renormlite.runtime_checks.bundle.verify import verify_bundle
from renormlite.runtime_checks.bundle.write import CODE, write_bundle
from renormlite.runtimes import RUNTIMES, verification
from renormlite.runtimes.application import _START, sealed, travelling_code
from renormlite.runtimes.verification import verified_contents


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


def test_the_hash_is_that_of_the_outputs(bundle, healthy_export, tmp_path):
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


def contents(bundle: Path) -> io.BytesIO:
    """Return the archive in a bundle."""
    archive = io.BytesIO()
    verified_contents(str(bundle), archive)
    return archive


# Starts each file that standard input names as `python3 FILE` does, and prints the exit code with
# the number of lines of standard output and standard error, or the error that Python ends with.
STARTS = """
import contextlib, io, os, sys
for path in sys.stdin.read().splitlines():
    sys.argv = [path]
    with contextlib.redirect_stdout(io.StringIO()) as out:
        with contextlib.redirect_stderr(io.StringIO()) as err:
            try:
                with open(path, "rb") as file:
                    exec(compile(file.read(), path, "exec"), {"__name__": "__main__"})
                end = 0
            except SystemExit as exit:
                end = exit.code
            except BaseException as error:
                end = type(error).__name__
    lines = [len(text.getvalue().splitlines()) for text in (out, err)]
    print(end, *lines, file=sys.__stdout__)
"""


def ends(folder: Path, copies: Iterable[bytes]) -> list[str]:
    """Start damaged copies in one process and return how each ended."""
    paths = []
    for number, copy in enumerate(copies):
        paths.append(folder / f"{number}.pyz")
        paths[-1].write_bytes(copy)
    done = subprocess.run(
        [sys.executable, "-I", "-W", "ignore", "-c", STARTS],
        input="\n".join(map(str, paths)),
        capture_output=True,
        text=True,
        check=True,
    )
    for path in paths:
        path.unlink()
    return done.stdout.splitlines()


def flipped(data: bytes, bits: Iterable[int]) -> Iterator[bytes]:
    """Yield a copy for each bit in which that one is flipped."""
    for bit in bits:
        copy = bytearray(data)
        copy[bit // 8] ^= 1 << bit % 8
        yield bytes(copy)


REFUSED = "2 0 1"  # exit code 2, nothing printed, one line of explanation


def test_every_truncated_copy_is_refused(bundle, tmp_path):
    data, start = bundle.read_bytes(), len(_START)
    lengths = {*range(start, len(data), len(data) // 60), *range(len(data) - 70, len(data))}
    # Within the first comment: all lengths that leave the statements whole.
    lengths |= set(range(start, start + 20))
    assert set(ends(tmp_path, (data[:length] for length in lengths))) == {REFUSED}


def test_every_flipped_bit_after_the_first_statements_is_refused(bundle, tmp_path):
    data = bundle.read_bytes()
    generator = np.random.default_rng(0)
    bits = generator.integers(8 * len(_START), 8 * len(data), 300)
    assert set(ends(tmp_path, flipped(data, bits))) == {REFUSED}
    for copy in flipped(data, bits[:40]):
        (tmp_path / "flipped.pyz").write_bytes(copy)
        with pytest.raises(UserError, match="is damaged"):
            verify_bundle(tmp_path / "flipped.pyz")


def test_no_byte_of_the_contents_is_one_bit_from_the_end_of_a_comment(bundle):
    """Every bit, not a share: such a byte would make code of the rest of its line."""
    lines = bundle.read_bytes()[len(_START) :].split(b"\n#")
    assert not {bit ^ 1 << n for bit in set(b"".join(lines)) for n in range(8)} & set(b"\n\r\0")


def test_a_flipped_bit_of_the_first_statements_never_passes(bundle, tmp_path):
    """Python refuses the file itself where its grammar is broken; else the bundle does."""
    assert len(_START) == 364  # docs/checks.md and docs/security.md name the number
    bits = np.random.default_rng(1).choice(8 * len(_START), 200, replace=False)
    found = {end.split()[0] for end in ends(tmp_path, flipped(bundle.read_bytes(), bits))}
    assert "2" in found
    assert found <= {"2", "SyntaxError", "IndentationError", "NameError", "ValueError"}


@pytest.mark.parametrize("kept", [0.02, 0.5, 0.999])
def test_a_damaged_bundle_that_python_starts(bundle, tmp_path, kept):
    cut = tmp_path / "cut.pyz"
    cut.write_bytes(bundle.read_bytes()[: int(bundle.stat().st_size * kept)])
    done = subprocess.run([sys.executable, str(cut)], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert "damaged" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_modules_beside_the_bundle_are_not_imported(bundle, tmp_path):
    for name in ("numpy.py", "renormlite.py"):
        (tmp_path / name).write_text("raise SystemExit(7)")
    copy = tmp_path / "copy.pyz"
    copy.write_bytes(bundle.read_bytes())
    done = subprocess.run([sys.executable, str(copy), "--list"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def sealed_with(bundle: Path, path: Path, name: str) -> Path:
    """Write a bundle that holds one more entry, with a SHA-256 that fits."""
    archive = contents(bundle)
    with zipfile.ZipFile(archive, "a") as entries:
        entries.writestr(name, b"raise SystemExit(0)")
    path.write_bytes(sealed("runtime_checks.bundle.replay", archive.getvalue()))
    return path


@pytest.mark.parametrize("name", ["numpy.py", "other/extra.bin", "export/../numpy.py"])
def test_an_unknown_entry_is_refused_before_any_code_runs(bundle, tmp_path, name):
    changed = sealed_with(bundle, tmp_path / "changed.pyz", name)
    done = replay(changed)
    assert (done.returncode, done.stdout) == (2, "")
    assert f"holds the unknown entry '{name}'" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    with pytest.raises(UserError, match="is damaged"):
        verify_bundle(changed)


def test_sizes_are_bounded_before_anything_is_unpacked(bundle, healthy_export, monkeypatch):
    monkeypatch.setattr(verification, "LARGEST", 1 << 10)
    with pytest.raises(UserError, match="its contents are larger than"):
        verify_bundle(bundle)
    with pytest.raises(UserError, match="GiB at most"):
        write_bundle(healthy_export, bundle.with_name("large.pyz"))


def test_other_files_are_refused_as_bundles(tmp_path):
    for data in (b"", b"\0" * 100, b"x" * 63, b"#:" + b"!" * 5_000_000):
        (tmp_path / "none.pyz").write_bytes(data)
        with pytest.raises(UserError, match="is damaged"):
            verify_bundle(tmp_path / "none.pyz")


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


def test_files_of_killed_bundles_are_removed_and_those_of_running_ones_kept(bundle, tmp_path):
    old, used, young = (tmp_path / f"renormlite-bundle-{name}" for name in "abc")
    for folder in (old, used, young):
        folder.mkdir()
        (folder / "archive").touch()
    for folder in (old, used):
        os.utime(folder, (time.time() - 100,) * 2)
    with locked(used):
        environment = os.environ | {"TMPDIR": str(tmp_path)}
        subprocess.run([sys.executable, bundle, "--list"], env=environment, capture_output=True)
        assert sorted(tmp_path.iterdir()) == [used, young]


def test_the_same_export_gives_the_same_bytes(bundle, healthy_export, tmp_path):
    again = write_bundle(healthy_export, tmp_path / "again.pyz")
    assert again.read_bytes() == bundle.read_bytes()


def test_contains_only_the_requested_files(healthy_export, tmp_path):
    path = write_bundle(healthy_export, tmp_path / "b.pyz", artifacts=["tiny.float32.onnx"])
    names = zipfile.ZipFile(contents(path)).namelist()
    assert "export/tiny.float32.onnx" in names
    assert "export/tiny.float32.tflite" not in names
    with pytest.raises(UserError, match="carries files of the export"):
        write_bundle(healthy_export, tmp_path / "b.pyz", artifacts=["none.onnx"])


@pytest.mark.parametrize("name", [name for name in travelling_code(CODE) if name.endswith(".py")])
def test_code_in_bundles_runs_on_python_3_9_without_heavy_imports(name):
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


def test_code_that_travels_to_devices_uses_nothing_newer_than_python_3_9(tmp_path):
    for name, code in travelling_code((*CODE, "devices/on_device")).items():
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(code)
    vermin = Path(sys.executable).with_name("vermin")
    found = subprocess.run(
        [vermin, "-t=3.9-", "--no-tips", "--violations", tmp_path], capture_output=True, text=True
    )
    assert found.returncode == 0, found.stdout
