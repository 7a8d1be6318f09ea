"""Protects the documentation: the site builds without warnings, and its examples run."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import renormlite
from renormlite.cli.main import COMMANDS

ROOT = Path(renormlite.__file__).parent
JOURNEYS = sorted((ROOT / "docs/journeys").glob("*.md"))


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", folder],
        cwd=ROOT,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_every_public_name_is_in_the_reference(site: Path) -> None:
    page = (site / "reference/python/index.html").read_text()
    for name in renormlite.__all__:
        if name != "__version__":
            assert f'id="renormlite.{name}"' in page, name


def test_every_command_is_in_the_reference(site: Path) -> None:
    page = (site / "reference/commands/index.html").read_text()
    for name in COMMANDS:
        assert f'id="renormlite-{name}"' in page, name
    assert "--max-accuracy-drop" in page


def test_every_page_is_in_the_navigation(site: Path) -> None:
    home = (site / "index.html").read_text()
    for page in (ROOT / "docs").rglob("*.md"):
        name = page.relative_to(ROOT / "docs").with_suffix("").as_posix()
        assert name == "index" or f'href="{name}/"' in home, name


def test_error_messages_of_the_faq_are_messages_of_the_package() -> None:
    folders = ("cli", "runtimes", "runtime_checks", "artifacts", "export")
    files = [ROOT / "extras.py", *(f for name in folders for f in (ROOT / name).rglob("*.py"))]
    source = " ".join(re.sub(r'"\s*f?"', "", file.read_text()) for file in files)
    quoted = re.findall(r"^### `(?:\.\.\. )?(.+)`$", (ROOT / "docs/faq.md").read_text(), re.M)
    assert len(quoted) >= 8
    for message in quoted:
        fixed = message.replace("needs tensorflow", "needs {module}")
        fixed = fixed.replace("as a TFLite file", "as {what}")
        assert fixed in source, message


def blocks(page: Path, language: str) -> str:
    return "\n".join(re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), re.M | re.S))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a trained network; the test of the README covers the training."""
    folder = tmp_path_factory.mktemp("trained")
    output = folder / "build/digits/digits.keras"
    command = [sys.executable, "-m", "renormlite", "train", "digits", "--epochs", "2"]
    subprocess.run([*command, "-o", output], check=True, capture_output=True)
    return folder


@pytest.mark.parametrize("page", JOURNEYS, ids=lambda page: page.stem)
def test_the_commands_of_a_journey_run(page: Path, trained: Path, tmp_path: Path) -> None:
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
    script = re.sub(r"^renormlite train .*$", "", blocks(page, "sh"), flags=re.M).strip()
    program = blocks(page, "python")
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    for command in ["bash", "-euc", script], [sys.executable, "-c", program]:
        if command[-1]:
            done = subprocess.run(
                command,
                cwd=tmp_path,
                env=os.environ | {"PATH": path},
                capture_output=True,
                text=True,
            )
            assert done.returncode == 0, done.stdout + done.stderr
