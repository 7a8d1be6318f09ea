"""Protects quiet imports: banners held back, errors not."""

import subprocess
import sys
from pathlib import Path

NOISY = "import os; os.write(2, b'banner from native code\\n')\n"


def run(program: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(folder)!r})\n{program}"],
        capture_output=True,
        text=True,
    )


def test_what_native_code_prints_while_loading_is_held_back(tmp_path: Path) -> None:
    (tmp_path / "noisy.py").write_text(NOISY + "value = 3\n")
    result = run(
        "from renormlite.quiet import quiet_import; print(quiet_import('noisy').value); "
        "print('later', file=sys.stderr)",
        tmp_path,
    )
    assert (result.stdout, result.stderr) == ("3\n", "later\n")


def test_a_failing_import_shows_what_was_printed(tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text(NOISY + "raise ImportError('no library')\n")
    result = run("from renormlite.quiet import quiet_import; quiet_import('broken')", tmp_path)
    assert "banner from native code" in result.stderr
    assert "ImportError: no library" in result.stderr


LINES = "import os; os.write(2, b'chatter: 0\\nreal warning\\nchatter: 1\\n')\n"


def test_only_the_lines_named_are_kept_off(tmp_path: Path) -> None:
    program = "from renormlite.quiet import stderr_without\nwith stderr_without('chatter:'):\n    "
    result = run(program + LINES, tmp_path)
    assert result.stderr == "real warning\n"


def test_an_exception_alone_speaks_for_a_block_that_fails(tmp_path: Path) -> None:
    program = "from renormlite.quiet import stderr_without\nwith stderr_without('chatter:'):\n    "
    result = run(program + LINES + "    raise ValueError('what went wrong')", tmp_path)
    assert "ValueError: what went wrong" in result.stderr
    assert "real warning" not in result.stderr


# A stand-in for TensorFlow, with the lines that its native code writes.
TENSORFLOW = """
import os
os.write(2, b"I0000 00:00:17.1  12 port.cc:153] oneDNN custom operations are on.\\n")
os.write(2, b"WARNING: All log messages before absl::InitializeLog() is called are written\\n")
os.write(2, b"a line of somebody else\\n")
class config:
    def list_physical_devices(kind):
        os.write(2, b"E0000 00:00:17.2  12 cuda_platform.cc:52] failed call to cuInit\\n")
"""


def test_tensorflow_starts_quietly_once_renormlite_is_imported(tmp_path: Path) -> None:
    (tmp_path / "tensorflow.py").write_text(TENSORFLOW)
    result = run("import renormlite, tensorflow, logging; logging.warning('mine')", tmp_path)
    assert result.stderr == "a line of somebody else\nWARNING:root:mine\n"


def test_where_tensorflow_is_loaded_already_its_search_for_a_gpu_is_quiet(tmp_path: Path) -> None:
    (tmp_path / "tensorflow.py").write_text(TENSORFLOW)
    program = "import tensorflow, sys; print('loaded', file=sys.stderr, flush=True); "
    result = run(program + "import renormlite", tmp_path)
    assert result.stderr.partition("loaded\n")[2] == ""
    assert "oneDNN" in result.stderr  # which nothing can take back


def test_an_import_of_tensorflow_that_fails_raises(tmp_path: Path) -> None:
    (tmp_path / "tensorflow.py").write_text("raise ImportError('no library')\n")
    result = run("import renormlite, tensorflow", tmp_path)
    assert "ImportError: no library" in result.stderr
