"""Protects quiet imports: banners are hidden, errors are shown."""

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


def test_output_of_native_code_during_an_import_is_hidden(tmp_path: Path) -> None:
    (tmp_path / "noisy.py").write_text(NOISY + "value = 3\n")
    result = run(
        "from renormlite.quiet import quiet_import; print(quiet_import('noisy').value); "
        "print('later', file=sys.stderr)",
        tmp_path,
    )
    assert (result.stdout, result.stderr) == ("3\n", "later\n")


def test_a_failing_import_shows_the_hidden_output(tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text(NOISY + "raise ImportError('no library')\n")
    result = run("from renormlite.quiet import quiet_import; quiet_import('broken')", tmp_path)
    assert "banner from native code" in result.stderr
    assert "ImportError: no library" in result.stderr


LINES = "import os; os.write(2, b'chatter: 0\\nreal warning\\nchatter: 1\\n')\n"


def test_only_the_given_lines_are_hidden(tmp_path: Path) -> None:
    program = "from renormlite.quiet import stderr_without\nwith stderr_without('chatter:'):\n    "
    result = run(program + LINES, tmp_path)
    assert result.stderr == "real warning\n"


def test_a_failing_block_shows_only_its_exception(tmp_path: Path) -> None:
    program = "from renormlite.quiet import stderr_without\nwith stderr_without('chatter:'):\n    "
    result = run(program + LINES + "    raise ValueError('what went wrong')", tmp_path)
    assert "ValueError: what went wrong" in result.stderr
    assert "real warning" not in result.stderr


# A replacement for TensorFlow that writes the lines of its native code.
TENSORFLOW = """
import os
os.write(2, b"I0000 00:00:17.1  12 port.cc:153] oneDNN custom operations are on.\\n")
os.write(2, b"WARNING: All log messages before absl::InitializeLog() is called are written\\n")
os.write(2, b"a line of somebody else\\n")
class config:
    def list_physical_devices(kind):
        os.write(2, b"E0000 00:00:17.2  12 cuda_platform.cc:52] failed call to cuInit\\n")
"""


def test_tensorflow_is_quiet_when_imported_after_renormlite(tmp_path: Path) -> None:
    (tmp_path / "tensorflow.py").write_text(TENSORFLOW)
    result = run("import renormlite, tensorflow, logging; logging.warning('mine')", tmp_path)
    assert result.stderr == "a line of somebody else\nWARNING:root:mine\n"


def test_the_search_for_a_gpu_is_quiet_when_tensorflow_was_imported_before(tmp_path: Path) -> None:
    (tmp_path / "tensorflow.py").write_text(TENSORFLOW)
    program = "import tensorflow, sys; print('loaded', file=sys.stderr, flush=True); "
    result = run(program + "import renormlite", tmp_path)
    assert result.stderr.partition("loaded\n")[2] == ""
    assert "oneDNN" in result.stderr  # printed before the import


def test_a_failing_import_of_tensorflow_raises(tmp_path: Path) -> None:
    (tmp_path / "tensorflow.py").write_text("raise ImportError('no library')\n")
    result = run("import renormlite, tensorflow", tmp_path)
    assert "ImportError: no library" in result.stderr
