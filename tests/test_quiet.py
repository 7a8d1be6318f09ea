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
