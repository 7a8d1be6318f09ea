"""Protects the files for CI that users copy: they parse, and their commands exist."""

import re
import shlex
import tomllib
from pathlib import Path
from typing import Any

import click
import pytest
import renormlite
import yaml
from renormlite.cli.main import cli

ROOT = Path(renormlite.__file__).parent
CI = ROOT / "examples/ci"
FILES = sorted(file for file in CI.rglob("*") if file.is_file())
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]


def loaded(name: str) -> Any:
    return yaml.safe_load((CI / name).read_text())


def test_every_file_is_in_the_page_about_ci() -> None:
    page = (ROOT / "docs/journeys/ci.md").read_text()
    for file in FILES:
        assert f"`{file.relative_to(CI)}`" in page


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_commands_and_extras_exist(file: Path) -> None:
    text = file.read_text()
    commands = re.findall(r"renormlite (check [^\n]*)", text)
    for line in commands:
        words = shlex.split(re.sub(r"\$\{TARGETS:\+(.*?)\} ", r"\1 ", line))
        command = cli.get_command(click.Context(cli), words[0])
        assert command is not None
        known = {flag for parameter in command.params for flag in parameter.opts}
        assert {word for word in words if word.startswith("--")} <= known
    for extras in re.findall(r"renormlite\[([a-z0-9,]+)\]", text):
        assert set(extras.split(",")) <= EXTRAS.keys()


def test_the_workflow_and_the_action_have_their_parts() -> None:
    (job,) = loaded("github/workflow.yml")["jobs"].values()
    assert all("uses" in step or "run" in step for step in job["steps"])
    action = loaded("github/action.yml")
    assert action["runs"]["using"] == "composite"
    for step in action["runs"]["steps"]:
        assert "uses" in step or step["shell"] == "bash"
        for value in step.get("env", {}).values():
            assert re.search(r"inputs\.(\w+)", value)[1] in action["inputs"]
        # Text from outside must never be inserted into a script.
        assert "${{" not in step.get("run", "")


def test_gitlab_and_pre_commit_have_their_parts() -> None:
    assert loaded("gitlab-ci.yml")["parity"]["artifacts"]["reports"]["junit"] == "junit.xml"
    (repository,) = loaded("pre-commit-config.yaml")["repos"]
    (hook,) = repository["hooks"]
    assert {"id", "name", "entry", "language"} <= hook.keys()


def test_the_dockerfile_uses_known_instructions() -> None:
    lines = [line for line in (CI / "Dockerfile").read_text().splitlines() if line[:1] != "#"]
    assert {line.split()[0] for line in lines} == {
        "FROM", "RUN", "WORKDIR", "USER", "ENTRYPOINT", "CMD",
    }  # fmt: skip


def test_the_workflow_of_this_repository_runs_existing_targets() -> None:
    workflow = yaml.safe_load((ROOT / ".github/workflows/tests.yml").read_text())
    makefile = (ROOT / "Makefile").read_text()
    runs = [s["run"] for job in workflow["jobs"].values() for s in job["steps"] if "run" in s]
    for target in " ".join(runs).replace("make", "").split():
        assert re.search(rf"^{target}:", makefile, re.M), target
