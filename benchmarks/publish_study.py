"""Copies what may be published of a study to `results/`: numbers and figures, no text of rows.

python benchmarks/publish_study.py runs/sentiment-smollm2
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
WHOLE = ("study.json", "tables.md", "tables.tex", "cells.csv")  # no text of rows in them


def publish(study: Path) -> Path:
    """Copies a study's numbers.

    Args:
        study: Its folder.

    Returns:
        Where they are now.
    """
    target = RESULTS / study.name
    shutil.rmtree(target, ignore_errors=True)
    (target / "cells").mkdir(parents=True)
    for name in WHOLE:
        shutil.copyfile(study / name, target / name)
    shutil.copytree(study / "figures", target / "figures", ignore=shutil.ignore_patterns("*.pdf"))
    index = json.loads((study / "study.json").read_text(encoding="utf-8"))
    for name in index["cells"]:
        path = study / "cells" / name / "results.json"
        results = _without_place(json.loads(path.read_text(encoding="utf-8")))
        text = json.dumps(results, indent=1) + "\n"
        (target / "cells" / name).mkdir()
        (target / "cells" / name / "results.json").write_text(text, encoding="utf-8")
    environments = [
        json.loads((study / "cells" / name / "environment.json").read_text(encoding="utf-8"))
        for name in index["cells"]
    ]
    commits = sorted({one["commit"] for one in environments if one["commit"]})
    kept = json.dumps({**environments[-1], "commit": ", ".join(commits)}, indent=1) + "\n"
    (target / "environment.json").write_text(kept, encoding="utf-8")
    return target


def _without_place(results: dict[str, Any]) -> dict[str, Any]:
    """Without the folder of the data, which means nothing on another machine."""
    results["recipe"]["task"]["folder"] = None
    return results


if __name__ == "__main__":
    for argument in sys.argv[1:]:
        print(publish(Path(argument)))
