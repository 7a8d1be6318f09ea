"""Protects the shape of the package: what a wheel holds, what an import loads, who imports whom."""

import ast
import os
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
import renormlite

ROOT = Path(renormlite.__file__).parent
PACKAGES = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
FOLDERS = {name: ROOT.joinpath(*name.split(".")[1:]) for name in PACKAGES}
# What both sides know has one definition, which travels with the checks: the formats of the files,
# and what should come out of the network. Export fills these files, and asks how noisy the
# arithmetic of a file may be, for which its weights are read.
SHARED = ("formats", "truth")
OF_INSIDE = ("file_noise", "graphs", "rounded", "weights")
HEAVY = ("tensorflow", "keras", "onnx", "tf2onnx", "onnxruntime", "ai_edge_litert", "sklearn")


def modules_after(statement: str, *, forbid: tuple[str, ...]) -> list[str]:
    """Run one statement in a fresh Python and return which forbidden modules it loaded."""
    program = (
        f"import sys\n{statement}\n"
        f"print(*[m for m in {forbid!r} if m in sys.modules or "
        f"any(n.startswith(m + '.') for n in sys.modules)])"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return run.stdout.split()


def product_files() -> list[Path]:
    return sorted(file for folder in FOLDERS.values() for file in folder.glob("*.py"))


@pytest.mark.parametrize(
    "statement",
    ["import renormlite", "import renormlite.runtime_checks.parity", "import renormlite.cli.main"],
)
def test_import_loads_no_framework(statement: str) -> None:
    assert modules_after(statement, forbid=HEAVY) == []


@pytest.mark.parametrize(
    ("importer", "forbidden"),
    [
        ("toolkit", ("export", "runtime_checks", "models", "cli")),
        ("export", ("models", "cli")),
        ("runtime_checks", ("toolkit", "export", "models", "cli")),
        ("models", ("export", "runtime_checks", "cli")),
    ],
)
def test_arrows_run_one_way(importer: str, forbidden: tuple[str, ...]) -> None:
    """Import every module of a package in a fresh Python and look at what came with it."""
    names = [
        ".".join(("renormlite", *file.relative_to(ROOT).with_suffix("").parts))
        for file in product_files()
        if file.relative_to(ROOT).parts[0] == importer and file.name != "__init__.py"
    ]
    assert names
    travels = tuple(f"renormlite.{name}" for name in forbidden)
    imports = "import importlib\n" + "\n".join(f"importlib.import_module({n!r})" for n in names)
    assert modules_after(imports, forbid=travels) == []


def test_export_takes_only_the_folded_network_from_the_checks() -> None:
    """What judges must not be what is judged."""
    program = (
        "import sys, renormlite.export.exporter\n"
        "print(*[m for m in sys.modules if m.startswith('renormlite.runtime_checks.')])"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    rooms = [name.split(".")[2:4] for name in run.stdout.split()]
    assert {room[0] for room in rooms} <= {*SHARED, "inside"}
    assert {room[1] for room in rooms if room[0] == "inside" and room[1:]} <= set(OF_INSIDE)


def test_every_import_inside_the_package_is_relative() -> None:
    for file in product_files():
        for node in ast.walk(ast.parse(file.read_text())):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.level == 0:
                names = [node.module or ""]
            assert not [n for n in names if n.split(".")[0] == "renormlite"], file


def test_every_folder_with_modules_is_a_listed_package() -> None:
    found = {
        file.parent
        for file in ROOT.rglob("__init__.py")
        if not {"build", ".venv", "tests"} & set(file.relative_to(ROOT).parts)
    }
    assert found == set(FOLDERS.values())


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """Build the wheel from a copy, so that nothing left in build/ can slip into it."""
    source = tmp_path_factory.mktemp("source")
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    ).stdout.split("\n")  # fmt: skip
    for name in filter(None, listed):
        if (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    out = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", out, source],
        check=True, capture_output=True, env=os.environ | {"SOURCE_DATE_EPOCH": "1700000000"},
    )  # fmt: skip
    (path,) = out.glob("*.whl")
    return zipfile.ZipFile(path)


def test_wheel_holds_every_module_and_no_other_top_level(wheel: zipfile.ZipFile) -> None:
    names = set(wheel.namelist())
    assert {name.split("/")[0] for name in names} == {
        "renormlite",
        f"renormlite-{renormlite.__version__}.dist-info",
    }
    expected = {f"renormlite/{file.relative_to(ROOT)}" for file in product_files()}
    assert expected == {name for name in names if name.endswith(".py")}


def test_wheel_holds_every_data_file(wheel: zipfile.ZipFile) -> None:
    expected = {
        f"renormlite/{file.relative_to(ROOT)}"
        for folder in FOLDERS.values()
        for file in folder.iterdir()
        if folder != ROOT and file.is_file() and file.suffix not in {".py", ".pyc"}
    }
    assert expected <= set(wheel.namelist())


def test_every_public_name_resolves() -> None:
    for name in renormlite.__all__:
        assert getattr(renormlite, name) is not None


def test_version_stands_in_one_value() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["version"] == renormlite.__version__


def test_unknown_public_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'no_such_name'"):
        _ = renormlite.no_such_name
