"""Protects the documentation pages: commands, options, names, paths and links exist."""

import ast
import inspect
import itertools
import os
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
import renormlite
from renormlite.cli.main import COMMANDS, cli
from renormlite.cli.project_defaults import project_defaults
from renormlite.runtimes import Target

ROOT = Path(renormlite.__file__).parent
PAGES = [
    *(ROOT / f"{name}.md" for name in ("README", "CONTRIBUTING", "SECURITY", "CHANGELOG")),
    *sorted((ROOT / "docs").rglob("*.md")),
]
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
MAKEFILE = (ROOT / "Makefile").read_text()
BUNDLE = (ROOT / "runtime_checks/bundle/replay.py").read_text()
FOLDERS = {entry.name for entry in ROOT.iterdir() if entry.is_dir()} - {"build", ".venv"}
FILES = [file for folder in sorted(FOLDERS) for file in (ROOT / folder).rglob("*.*")]
NAMES = {file.name for file in [*FILES, *ROOT.iterdir()]}

each_page = pytest.mark.parametrize(
    "page", PAGES, ids=lambda page: page.relative_to(ROOT).with_suffix("").as_posix()
)


def fenced(page: Path) -> Iterator[tuple[str, str]]:
    """Yield language and text of every code block."""
    yield from re.findall(r"^```([\w-]*)\n(.*?)^```", page.read_text(), re.M | re.S)


def spans(page: Path) -> list[str]:
    """Return the text between backticks."""
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.M | re.S)
    return [" ".join(span.split()) for span in re.findall(r"(?<!`)`([^`]+)`(?!`)", text)]


def command_lines(page: Path) -> Iterator[list[str]]:
    """Yield the words of each line of the code blocks, except Python."""
    for language, block in fenced(page):
        if language in ("", "sh", "console", "yaml"):
            for line in block.replace("\\\n", " ").splitlines():
                line = re.sub(r"^\s*(\$|script:|-? ?run:)\s*", "", line.strip())
                if re.match(r"(renormlite|make|python3?|eval|_RENORMLITE\w+) ?", line):
                    yield shlex.split(line, comments=True)


def leaf(words: list[str]) -> tuple[click.Command, list[str]]:
    """Return the command that the words call, and its arguments."""
    assert words[0] in COMMANDS, f"no command {words[0]}"
    command = cli.get_command(click.Context(cli), words[0])
    assert command is not None
    rest = words[1:]
    if isinstance(command, click.Group):
        command = command.commands[rest[0]]
        rest = rest[1:]
    return command, rest


def flags(command: click.Command) -> set[str]:
    return {flag for parameter in command.params for flag in parameter.opts} | {"--help"}


def every_flag() -> set[str]:
    found: set[str] = {"--version"}
    for name in COMMANDS:
        command = cli.get_command(click.Context(cli), name)
        assert command is not None
        parts = command.commands.values() if isinstance(command, click.Group) else [command]
        found |= set().union(*(flags(part) for part in parts))
    return found


def parse(words: list[str]) -> None:
    """Parse a command line as the program does; its files need not exist."""
    command, arguments = leaf(words)
    context = click.Context(command, info_name=words[0])
    values, left, order = command.make_parser(context).parse_args(list(arguments))
    assert not left, f"unexpected arguments: {left}"
    for parameter in order:
        value = values.get(str(parameter.name))
        if isinstance(value, str | tuple) and not isinstance(parameter.type, click.Path):
            parameter.type_cast_value(context, value)
    for target in str(values.get("targets") or "").split(","):
        if target and not target.isupper():
            Target.parse(target)
    for parameter in command.params:
        if isinstance(parameter, click.Argument) and parameter.required:
            assert values.get(str(parameter.name)), f"{parameter.name} is missing"


def check_make(words: list[str]) -> None:
    for word in words:
        name, _, value = word.partition("=")
        if "=" in word:
            assert re.search(rf"^{name}\s*[:?]=", MAKEFILE, re.M), word
            if name == "PARTS":
                page = (ROOT / "benchmarks/page.py").read_text()
                assert all(
                    re.search(rf'^    "{part}": Part\(', page, re.M) for part in value.split()
                )
        else:
            assert re.search(rf"^{word}:.*## ", MAKEFILE, re.M), f"no target {word}"


def check_script(words: list[str]) -> None:
    """Check a Python program of the repository, and its options."""
    if words[0].endswith(".pyz"):
        source = BUNDLE
    else:
        assert (ROOT / words[0]).is_file(), words[0]
        source = (ROOT / words[0]).read_text()
    for word in words[1:]:
        for flag in re.findall(r"--[a-z0-9-]+", word):
            assert f'"{flag}"' in source, (words[0], flag)


@each_page
def test_commands_parse(page: Path) -> None:
    for words in command_lines(page):
        try:
            match words:
                case ["renormlite", *rest]:
                    parse(rest)
                case ["make", *rest]:
                    check_make(rest)
                case ["python" | "python3", script, *_] if not script.startswith("-"):
                    check_script(words[1:])
        except (click.UsageError, renormlite.UserError, AssertionError) as error:
            pytest.fail(f"{shlex.join(words)}: {error}")


@each_page
def test_commands_in_the_text_exist(page: Path) -> None:
    known = every_flag()
    for span in spans(page):
        words = span.replace("…", "").split()
        if words[0] == "make":
            check_make([word for word in shlex.split(span)[1:] if word not in ("MODEL=", "...")])
        elif words[0] == "renormlite" and len(words) > 1 and words[1] in COMMANDS:
            command, rest = leaf(words[1:])
            used = {
                flag for word in rest for flag in re.findall(r"(?<!\w)--?[a-z][a-z0-9-]*", word)
            }
            assert used <= flags(command), span
        elif words[0] == "renormlite" and len(words) > 1:
            assert words[1] == "COMMAND" or words[1].startswith("--"), span
        elif words[0] in COMMANDS and len(words) > 1 and words[1].startswith("--"):
            command, rest = leaf(words)
            assert {word for word in rest if word.startswith("--")} <= flags(command), span
        elif words[0] == "python" and len(words) > 1:
            check_script(words[1:])
        elif words[0].startswith("--"):
            assert words[0].split("=")[0] in known or f'"{words[0]}"' in BUNDLE, span


def resolved(dotted: str) -> object:
    value: object = renormlite
    for name in dotted.split("."):
        value = getattr(value, name)
    return value


def public(dotted: str) -> bool:
    """Return whether a dotted name of the package exists, as a public name or in a module."""
    parts = dotted.split(".")
    if parts[0] in renormlite.__all__:
        try:
            resolved(dotted)
        except AttributeError:
            fields = getattr(resolved(parts[0]), "__annotations__", {})
            return len(parts) == 2 and parts[1] in fields
        return True
    path = ROOT.joinpath(*parts)
    holder = path.parent.with_suffix(".py")
    in_module = holder.is_file() and re.search(
        rf"^(class|def) {parts[-1]}\b|^{parts[-1]}\b.*=", holder.read_text(), re.M
    )
    return bool(path.is_dir() or path.with_suffix(".py").is_file() or in_module)


@each_page
def test_python_names_exist(page: Path) -> None:
    text = page.read_text()
    text = re.sub(r"https?://\S+", "", text)
    for name in re.findall(
        r"\b(?:rl|(?<![/.\w-])renormlite)\.([A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*)", text
    ):
        assert public(name), f"renormlite.{name}"


def calls(page: Path) -> Iterator[ast.Call]:
    """Yield the calls in Python blocks and in inline expressions."""
    programs = [block for language, block in fenced(page) if language == "python"]
    for program in programs:
        yield from (n for n in ast.walk(ast.parse(program)) if isinstance(n, ast.Call))
    for span in spans(page):
        try:
            tree = ast.parse(span)
        except SyntaxError:
            continue
        yield from (n for n in ast.walk(tree) if isinstance(n, ast.Call))


@each_page
def test_arguments_in_python_exist(page: Path) -> None:
    for call in calls(page):
        match call.func:
            case ast.Attribute(value=ast.Name(id="rl" | "renormlite"), attr=name):
                pass
            case ast.Name(id=name):
                pass
            case _:
                continue
        if name not in renormlite.__all__:
            continue
        parameters = inspect.signature(getattr(renormlite, name)).parameters
        if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
            continue
        given = {keyword.arg for keyword in call.keywords if keyword.arg}
        assert given <= parameters.keys(), ast.unparse(call)


@each_page
def test_files_exist(page: Path) -> None:
    for span in spans(page):
        if re.fullmatch(r"[\w.-]+(/[\w.-]+)+/?", span) and span.split("/")[0] in FOLDERS:
            places = [ROOT / span, (ROOT / span).with_suffix(".py")]
            assert any(place.exists() for place in places), span
        elif re.fullmatch(r"[\w-]+\.(py|md|sh)", span):
            assert span in NAMES, span


@each_page
def test_linked_files_exist(page: Path) -> None:
    """Building the site checks anchors and links between its pages."""
    for link in re.findall(r"\]\(([^)\s#]+)(?:#[\w-]+)?\)", page.read_text()):
        if not link.startswith("http"):
            assert (page.parent / link).exists(), link


@each_page
def test_extras_and_variables_exist(page: Path) -> None:
    text = page.read_text()
    named = re.findall(r"renormlite\[([a-z0-9,]+)\]", text)
    assert set(itertools.chain(*(names.split(",") for names in named))) <= EXTRAS.keys()
    sources = "".join(file.read_text() for file in FILES if file.suffix in (".py", ".sh"))
    for variable in set(re.findall(r"\bRENORMLITE_[A-Z]+_?", text)):
        assert variable in sources + MAKEFILE, variable


def test_targets_in_the_text_parse() -> None:
    for page in PAGES:
        for span in spans(page):
            if re.fullmatch(r"(litert|onnx|tf|openvino)[a-z-]*[+@][^\s\[\],]+", span):
                Target.parse(span)


def test_the_page_about_checks_describes_every_check() -> None:
    folders = ("runtime_checks", "against_model")
    files = [file for folder in folders for file in (ROOT / folder).rglob("*.py")]
    source = "".join(file.read_text() for file in files)
    names = set(re.findall(r'\bFinding\(\s*"([a-z]+)"', source))
    names |= set(re.findall(r'^CHECK = "([a-z]+)"', source, re.M))
    assert len(names) > 15
    rows = re.findall(r"^\| ([a-z, ]+) \|", (ROOT / "docs/checks.md").read_text(), re.M)
    assert names <= {name for row in rows for name in row.split(", ")}


def command_line_page(language: str) -> str:
    (block,) = [b for name, b in fenced(ROOT / "docs/command-line.md") if name == language]
    return block


def test_the_example_of_project_defaults_is_valid(tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text(command_line_page("toml"))
    found = project_defaults(cli, "check", tmp_path)["check"]
    assert found["targets"] == "litert,onnxruntime"
    assert found["min_snr"] == "30"
    assert found["junit"] == str(tmp_path / "build/junit.xml")


def test_the_example_of_completion_works() -> None:
    for line in command_line_page("sh").splitlines():
        variable, value = re.search(r"(_RENORMLITE_COMPLETE)=(\w+)", line).groups()
        program = Path(sys.executable).parent / "renormlite"
        done = subprocess.run(
            [program], env=os.environ | {variable: value}, capture_output=True, text=True
        )
        assert done.returncode == 0
        assert "renormlite" in done.stdout
