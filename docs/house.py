"""Counts the house: shelves, layers, circles, lines, and the way of a query through the modules.

    python docs/house.py              this checkout
    python docs/house.py FOLDER       another checkout, for example a worktree of an older commit

The way is that of one evaluation row in a small distillation on a tiny model. Each call that hands
its text, or rows and prompts that hold it, from one module to another is a step, and so is the
return to the module that makes the next such call. Calls between the same two functions count once.
A module's floor is the length of its longest chain of imports. A step to a higher floor is a climb.
"""

from __future__ import annotations

import ast
import io
import json
import os
import subprocess
import sys
import tokenize
import tomllib
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

SKIPPED = {
    tokenize.COMMENT,
    tokenize.NL,
    tokenize.NEWLINE,
    tokenize.INDENT,
    tokenize.DEDENT,
    tokenize.ENDMARKER,
}
WALK = """
import json, sys, tempfile
from pathlib import Path
from types import FrameType

sys.path.insert(0, sys.argv[1])
from tests.conftest import save_tiny
import instil, pydantic
from instil import FewShot, distill

QUERY = "1234567"

def holds(value, depth=3):
    # The query, or rows and prompts that hold it.
    if isinstance(value, str):
        return QUERY in value
    if not depth:
        return False
    if isinstance(value, dict):
        return any(holds(part, depth - 1) for part in value.values())
    if isinstance(value, list | tuple):
        return any(holds(part, depth - 1) for part in value)
    if type(value).__module__.startswith("instil.") and not isinstance(value, type):
        return any(holds(part, depth - 1) for part in getattr(value, "__dict__", {}).values())
    return False

steps = {}

def watch(frame: FrameType, event: str, arg: object) -> None:
    if event != "call" or frame.f_back is None:
        return
    here, there = frame.f_globals.get("__name__", ""), frame.f_back.f_globals.get("__name__", "")
    if not (here.startswith("instil.") and there.startswith("instil.")) or here == there:
        return
    code = frame.f_code
    names = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
    if any(holds(frame.f_locals.get(name)) for name in names):
        steps.setdefault((there, frame.f_back.f_code.co_name, here, code.co_name), len(steps))

with tempfile.TemporaryDirectory() as name:
    folder = Path(name)
    model = save_tiny(folder / "model", "llama")
    rows = [{"input": str(n), "output": str(n + 1)} for n in range(12)]
    sys.setprofile(watch)
    distill(
        str(model), context=FewShot(rows[:2]), inputs=rows[2:8], eval=[*rows[8:], {"input": QUERY, "output": "8"}], output=folder / "run",
        prompt={"format": "plain"}, training={"max_steps": 1}, dtype="float32", quiet=True,
    )
    sys.setprofile(None)
print(json.dumps([[there, here] for there, _, here, _ in steps]))
"""


def modules(package: Path) -> dict[str, Path]:
    """Dotted name -> file, of all modules."""
    found = {}
    for path in sorted(package.rglob("*.py")):
        parts = path.relative_to(package.parent).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports(name: str, path: Path, known: dict[str, Path]) -> Iterator[str]:
    """The modules that a file imports, also within functions and for type checking."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and not node.level:
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                target = whole if whole in known else node.module
                if target in known and target != name:
                    yield target


def circles(arrows: dict[str, set[str]]) -> list[list[str]]:
    """Groups of modules that import each other (Tarjan 1972)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found = []

    def visit(name: str) -> None:
        index[name] = low[name] = len(index)
        stack.append(name)
        for other in arrows[name]:
            if other not in index:
                visit(other)
                low[name] = min(low[name], low[other])
            elif other in stack:
                low[name] = min(low[name], index[other])
        if low[name] == index[name]:
            group = stack[stack.index(name) :]
            del stack[stack.index(name) :]
            if len(group) > 1:
                found.append(sorted(group))

    for name in arrows:
        if name not in index:
            visit(name)
    return found


def floors(arrows: dict[str, set[str]], tied: list[list[str]]) -> dict[str, int]:
    """The longest chain of imports below each module; a circle is one floor."""
    group = {name: tuple(circle) for circle in tied for name in circle}
    known: dict[str, int] = {}

    def floor(name: str) -> int:
        if name not in known:
            members = group.get(name, (name,))
            below = {other for member in members for other in arrows[member]} - set(members)
            known[name] = 1 + max((floor(other) for other in below), default=0)
        return known[name]

    return {name: floor(name) for name in arrows}


def code_lines(folder: Path) -> int:
    """Lines of Python that hold code: no blank lines, comments or docstrings."""
    total = 0
    for path in folder.rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        held = {
            line
            for token in tokenize.generate_tokens(io.StringIO(text).readline)
            if token.type not in SKIPPED
            for line in range(token.start[0], token.end[0] + 1)
        }
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
                held -= set(range(node.lineno, (node.end_lineno or node.lineno) + 1))
        total += len(held)
    return total


def lines(folder: Path, *endings: str) -> int:
    """Lines of all files with these endings."""
    files = [path for path in folder.rglob("*") if path.suffix in endings]
    return sum(len(path.read_text(encoding="utf-8").splitlines()) for path in files)


def main() -> None:
    """Prints one count per line."""
    here = Path(__file__).resolve().parent.parent
    root = Path(sys.argv[1]).resolve() if len(sys.argv) > 1 else here
    package = root / "src" / "instil"
    known = modules(package)
    arrows = {name: set(imports(name, path, known)) for name, path in known.items()}
    tied = circles(arrows)
    heights = floors(arrows, tied)
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))
    contract = project["tool"]["importlinter"]["contracts"][0]
    walked = subprocess.run(
        [sys.executable, "-c", WALK, str(root)],
        env=os.environ | {"PYTHONPATH": str(root / "src")},
        cwd=root,
        capture_output=True,
        text=True,
        check=True,
    )
    steps = json.loads(walked.stdout.splitlines()[-1])
    way = [name for step in steps for name in step if name in heights]
    stops = [one for one, after in zip(way, [*way[1:], ""], strict=True) if one != after]
    moves = [heights[to] - heights[of] for of, to in pairwise(stops)]
    counts = {
        "modules": len(known),
        "modules on the top shelf": sum(path.parent == package for path in known.values()),
        "layers": sum(name not in ("__main__",) for name in contract["layers"]),
        # Only type checkers run the imports of the package's own file.
        "circles": len([circle for circle in tied if "instil" not in circle]),
        "lines of src": lines(package, ".py", ".j2"),
        "lines of code in src": code_lines(package),
        "lines of tests": lines(root / "tests", ".py"),
        "modules on a query's way": len({name for step in steps for name in step}),
        "steps of a query's way": len(moves),
        "floors of a query's way": sum(map(abs, moves)),
        "climbs of a query's way": sum(move > 0 for move in moves),
    }
    for name, count in counts.items():
        print(f"{name:<32}{count:>8,}")


if __name__ == "__main__":
    main()
