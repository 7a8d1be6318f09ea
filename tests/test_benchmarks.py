"""Protects the measurements in the documents: they equal the numbers in benchmarks.json."""

import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import renormlite

ROOT = Path(renormlite.__file__).parent
DOCS, SCRIPTS = ROOT / "docs", ROOT / "benchmarks"
RESULTS = json.loads((DOCS / "benchmarks.json").read_text())


def page_module():
    spec = importlib.util.spec_from_file_location("page", SCRIPTS / "page.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


PAGE = page_module()


def test_the_page_equals_the_one_written_from_the_numbers():
    assert (DOCS / "benchmarks.md").read_text() == PAGE.page(RESULTS)
    for name in RESULTS:
        assert (DOCS / f"benchmarks_{name}.png").exists() == bool(PAGE.PARTS[name].plotted)


def test_a_changed_number_changes_the_page():
    altered = json.loads(json.dumps(RESULTS))
    next(iter(altered.values()))["rows"][0]["value"] += 0.1
    assert PAGE.page(altered) != PAGE.page(RESULTS)


def test_parts_are_scripts_in_the_folder():
    for part in PAGE.PARTS.values():
        assert all((SCRIPTS / script).is_file() for script, *_ in part.commands)
    assert set(RESULTS) <= set(PAGE.PARTS)


def known_numbers():
    rows = [row for part in RESULTS.values() for row in part["rows"]]
    return {number for row in rows for number in re.findall(r"\d+\.\d+", PAGE.cell(row))}


def quoting(text):
    """Return the paragraphs that refer to the benchmarks."""
    return [part for part in text.split("\n\n") if "benchmarks.md" in part]


QUOTING = [ROOT / "README.md", *sorted(set(DOCS.glob("*.md")) - {DOCS / "benchmarks.md"})]


@pytest.mark.parametrize("path", QUOTING, ids=lambda p: p.name)
def test_numbers_quoted_from_the_benchmarks_are_in_them(path):
    known = known_numbers()
    for paragraph in quoting(path.read_text()):
        quoted = re.findall(r"\d+\.\d+", paragraph)
        assert set(quoted) <= known, (path.name, set(quoted) - known)


def test_readme_quotes_the_benchmarks():
    assert any(re.search(r"\d\.\d", part) for part in quoting((ROOT / "README.md").read_text()))


def test_an_unknown_part_is_refused_with_the_names_of_all():
    command = [sys.executable, str(SCRIPTS / "run.py"), "nothing"]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 2
    assert "there is no part 'nothing'" in run.stderr
    assert "purpose" in run.stderr
