"""Protects the structure of the package: contents of the wheel, import time, import direction."""

import ast
import itertools
import os
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
import renormlite
from renormlite.runtime_checks.bundle.write import CODE
from renormlite.runtimes.application import travelling_code

ROOT = Path(renormlite.__file__).parent
PACKAGES = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
FOLDERS = {name: ROOT.joinpath(*name.split(".")[1:]) for name in PACKAGES}
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


def module_name(file: Path) -> str:
    """Return the dotted name of a module in the package; empty for the package itself."""
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports() -> dict[str, set[str]]:
    """Return the modules of the package that each module imports, anywhere in its code."""
    modules = {module_name(file): file for file in product_files()}
    found: dict[str, set[str]] = {name: set() for name in modules}
    for name, file in modules.items():
        package = file.relative_to(ROOT).parts[:-1]
        for node in ast.walk(ast.parse(file.read_text())):
            if not isinstance(node, ast.ImportFrom) or not node.level:
                continue
            above = package[: len(package) - node.level + 1]
            base = ".".join((*above, *filter(None, [node.module])))
            for alias in node.names:
                dotted = f"{base}.{alias.name}".lstrip(".")
                found[name].add(dotted if dotted in modules else base)
    return found


def test_there_is_no_circle_of_imports() -> None:
    edges = {name: set(to) for name, to in imports().items() if name}
    while edges:
        leaves = {name for name, to in edges.items() if not to & set(edges) - {name}}
        assert leaves, f"circle of imports among {sorted(edges)}"
        edges = {name: to for name, to in edges.items() if name not in leaves}


def drawn_arrows() -> set[tuple[str, str]]:
    """Return the arrows between folders in the drawing of CONTRIBUTING.md."""
    arrows = set()
    for line in (ROOT / "CONTRIBUTING.md").read_text().splitlines():
        folders = [name.strip() for name in line.split("──▶")]
        arrows |= set(itertools.pairwise(folders))
    return arrows


def test_imports_between_folders_equal_the_drawing_in_contributing() -> None:
    found = {
        (importer.split(".")[0], imported.split(".")[0])
        for importer, targets in imports().items()
        for imported in targets
    }
    folders = {folder.name for folder in FOLDERS.values() if folder.parent == ROOT}
    found = {(a, b) for a, b in found if a != b and {a, b} <= folders}
    drawn = drawn_arrows()
    assert drawn <= found, "the drawing has an arrow without an import"
    reachable = set(drawn)
    while len(
        longer := reachable | {(a, d) for a, b in reachable for c, d in drawn if b == c}
    ) > len(reachable):
        reachable = longer
    assert found <= reachable, "an import has no path in the drawing"


def test_no_folder_holds_more_than_a_third_of_the_product() -> None:
    lines: dict[str, int] = {}
    for file in product_files():
        folder = file.relative_to(ROOT).parts[0]
        lines[folder] = lines.get(folder, 0) + len(file.read_text().splitlines())
    assert max(lines.values()) < 0.35 * sum(lines.values()), lines


def test_every_import_inside_the_package_is_relative() -> None:
    for file in product_files():
        for node in ast.walk(ast.parse(file.read_text())):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.level == 0:
                names = [node.module or ""]
            assert not [n for n in names if n.split(".")[0] == "renormlite"], file


# Installed by `pip install renormlite` and by its extras for files and devices.
LIGHT = {"PIL", "ai_edge_litert", "click", "flatbuffers", "google", "jinja2", "numpy", "onnx"}
LIGHT |= {"onnxruntime", "openvino", "playwright", "rich", "tflite_micro", "tflite_runtime"}


def test_checks_import_only_packages_of_a_light_install() -> None:
    known = LIGHT | set(sys.stdlib_module_names)
    for folder in ("artifacts", "cli", "devices", "reference", "runtime_checks", "runtimes"):
        for file in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(file.read_text())):
                names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
                if isinstance(node, ast.ImportFrom) and node.level == 0:
                    names = [node.module or ""]
                missing = {name.split(".")[0] for name in names} - known
                allowed = {"tensorflow"} if folder == "runtimes" else set()
                allowed |= {"keras"} if folder == "cli" else set()  # for type annotations
                allowed |= {"sample_shards.py": {"pyarrow"}, "on_ray.py": {"ray"}}.get(
                    file.name, set()
                )
                assert missing <= allowed, file


@pytest.mark.parametrize(
    ("program", "further"),
    [
        ("runtime_checks/bundle/replay.py", CODE),
        ("devices/on_device/run.py", ("devices/on_device/run.py",)),
        ("runtimes/worker.py", ()),
    ],
)
def test_code_that_travels_has_the_modules_that_it_imports(program: str, further) -> None:
    carried = {name.removeprefix("renormlite/") for name in travelling_code(further)}
    modules = {module_name(file): str(file.relative_to(ROOT)) for file in product_files()}
    waiting, seen = [program], {program}
    while waiting:
        name = waiting.pop()
        assert name in carried, f"{name} is imported and does not travel"
        package = Path(name).parts[:-1]
        # Imports in functions, and those for types, do not run on every device.
        for node in ast.parse((ROOT / name).read_text()).body:
            if not isinstance(node, ast.ImportFrom) or not node.level:
                continue
            above = package[: len(package) - node.level + 1]
            base = ".".join((*above, *filter(None, [node.module])))
            for alias in node.names:
                found = modules.get(f"{base}.{alias.name}".lstrip("."), modules[base])
                waiting.extend({found} - seen)
                seen.add(found)


def test_every_folder_with_modules_is_a_listed_package() -> None:
    found = {
        file.parent
        for file in ROOT.rglob("__init__.py")
        if not {"build", ".venv", "tests"} & set(file.relative_to(ROOT).parts)
    }
    assert found == set(FOLDERS.values())


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """Build the wheel from a copy, so that it cannot contain files of build/."""
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


def test_the_wheel_contains_every_module_and_no_other_top_level(wheel: zipfile.ZipFile) -> None:
    names = set(wheel.namelist())
    assert {name.split("/")[0] for name in names} == {
        "renormlite",
        f"renormlite-{renormlite.__version__}.dist-info",
    }
    expected = {f"renormlite/{file.relative_to(ROOT)}" for file in product_files()}
    assert expected == {name for name in names if name.endswith(".py")}


def test_the_wheel_contains_every_data_file(wheel: zipfile.ZipFile) -> None:
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


def test_the_version_is_defined_once() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["version"] == renormlite.__version__


def test_unknown_public_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'no_such_name'"):
        _ = renormlite.no_such_name
