"""Prints the lowest version of each dependency that pyproject.toml allows, as pip's constraints.

The tools of the tests are those of constraints.txt: only what users install is lowered.
"""

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parent.parent
NAME = re.compile(r"[\w.-]+")


def main() -> None:
    """Prints one constraint per line."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    tools = {_name(tool) for tool in extras["test"]}
    for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines():
        if "==" in line and _name(line) in tools:
            print(line)
    for dependency in [*project["dependencies"], *extras["tensorboard"]]:
        print(dependency.replace(">=", "=="))


def _name(requirement: str) -> str:
    """The name of a package, as the index spells it."""
    found = NAME.match(requirement)
    assert found is not None, requirement
    return re.sub(r"[-_.]+", "-", found.group()).lower()


if __name__ == "__main__":
    main()
