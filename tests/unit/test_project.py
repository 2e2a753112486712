"""The files around the package agree with each other."""

from __future__ import annotations

import re
import runpy
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

import instil

ROOT = Path(__file__).parent.parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
WORKFLOWS = sorted((ROOT / ".github/workflows").glob("*.yml"))


def read_yaml(path: Path) -> Any:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def test_the_version_is_that_of_pyproject() -> None:
    assert instil.__version__ == PROJECT["version"]
    assert read_yaml(ROOT / "CITATION.cff")["version"] == PROJECT["version"]


def test_python_m_instil_says_its_version(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["instil", "--version"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_module("instil", run_name="__main__")
    assert ended.value.code == 0
    assert capsys.readouterr().out == f"{PROJECT['version']}\n"


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_workflows_run_what_a_person_runs(path: Path) -> None:
    phony = re.search(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M)
    assert phony is not None
    for job in read_yaml(path)["jobs"].values():
        commands = [step["run"] for step in job["steps"] if "run" in step]
        assert commands
        for command in commands:
            make, target, *arguments = command.split()
            assert make == "make"
            assert target in phony[1].split()
            assert arguments == ["PYTHON=python"]


def test_every_python_that_is_declared_is_tested() -> None:
    named = "Programming Language :: Python :: "
    declared = [one.removeprefix(named) for one in PROJECT["classifiers"] if named in one]
    fast = read_yaml(ROOT / ".github/workflows/tests.yml")["jobs"]["fast"]
    assert fast["strategy"]["matrix"]["python-version"] == declared
    assert PROJECT["requires-python"] == f">={declared[0]}"


def test_lowest_versions_are_those_of_pyproject(capsys: pytest.CaptureFixture[str]) -> None:
    runpy.run_path(str(ROOT / ".ci/lowest.py"), run_name="__main__")
    printed = dict(line.split("==") for line in capsys.readouterr().out.splitlines())
    for dependency in PROJECT["dependencies"]:
        name, lowest = dependency.split(">=")
        assert printed[name] == lowest
    assert {"pytest", "hypothesis"} <= set(printed)
