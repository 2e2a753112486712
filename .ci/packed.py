"""Checks that the wheel and the source archive of a folder hold every file of the package.

python .ci/packed.py dist
"""

import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).parent.parent


def main() -> None:
    """Ends with the files that are missing, or that are in the wheel and not in the repository."""
    (wheel,) = Path(sys.argv[1]).glob("*.whl")
    (source,) = Path(sys.argv[1]).glob("*.tar.gz")
    listed = subprocess.run(
        ["git", "ls-files", "src/instil"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    wanted = {name.removeprefix("src/") for name in listed.stdout.splitlines()}
    with zipfile.ZipFile(wheel) as archive:
        in_wheel = {name for name in archive.namelist() if ".dist-info/" not in name}
    with tarfile.open(source) as archive:
        in_source = {name.partition("/src/")[2] for name in archive.getnames()}
    problems = [
        f"{kind}: {', '.join(sorted(names))}"
        for kind, names in (
            ("not in the wheel", wanted - in_wheel),
            ("in the wheel only", in_wheel - wanted),
            ("not in the source archive", wanted - in_source),
        )
        if names
    ]
    if "instil/py.typed" not in in_wheel:
        problems.append("the wheel has no py.typed")
    sys.exit("\n".join(problems) or None)


if __name__ == "__main__":
    main()
