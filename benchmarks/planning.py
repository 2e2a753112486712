"""How near does a plan come to what a run then needs?

    python benchmarks/planning.py [--steps 60] [--output FILE]

The demo's task, with the bundled model and with a random one of 45 million weights. Each is
planned, and then run, in a process of its own. Run it alone.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config

from instil.cli.demo import DEMO_MODEL as MODEL
from instil.cli.demo import demo_recipe
from instil.methods import Phase
from instil.models.load import quiet_libraries
from instil.models.source import resolve
from instil.pipeline.planning import foretell
from instil.recipe.recipe import Recipe
from instil.recipe.usual import usual
from instil.results.schema import RESULTS, Results
from instil.system import environment
from instil.system.progress import Display

PHASES: tuple[Phase, ...] = ("generate", "teach", "train", "evaluate")


def random_model(folder: Path) -> str:
    """Saves a random model of another family, with the vocabulary of the bundled one."""
    tokenizer = AutoTokenizer.from_pretrained(resolve(MODEL).path)
    config = GPT2Config(vocab_size=len(tokenizer), n_embd=512, n_layer=6, n_head=8)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def settings(model: str, steps: int) -> dict[str, Any]:
    """The demo's recipe with a model and a number of steps, without `usual` settings."""
    changes = {
        "model": model,
        "teacher": {"max_new_tokens": 14},
        "training": {"max_steps": steps},
    }
    return demo_recipe() | changes


def apart(code: str, *arguments: str) -> None:
    """Runs a part of this script in a process of its own."""
    subprocess.run([sys.executable, __file__, code, *arguments], check=True)


def plan(path: Path, output: Path) -> None:
    """Plans the recipe in a file."""
    recipe = Recipe.parse(usual(json.loads(path.read_text(encoding="utf-8"))))
    found = foretell(recipe, display=Display(quiet=True))
    phases = {name: vars(phase) for name, phase in found.phases.items()}
    made = {"phases": phases, "probe_seconds": found.probe_seconds}
    output.write_text(json.dumps(made), encoding="utf-8")


def run(path: Path, output: Path) -> None:
    """Runs the recipe in a file."""
    from instil.pipeline import cell

    recipe = Recipe.parse(usual(json.loads(path.read_text(encoding="utf-8"))))
    cell.run(recipe, output, display=Display(quiet=True))


def compared(model: str, steps: int, folder: Path) -> dict[str, Any]:
    """What was foretold for a model, and what was needed."""
    path = folder / "recipe.json"
    path.write_text(json.dumps(settings(model, steps)), encoding="utf-8")
    apart("plan", str(path), str(folder / "plan.json"))
    apart("run", str(path), str(folder / "run"))
    foretold = json.loads((folder / "plan.json").read_text(encoding="utf-8"))
    needed = Results.read(folder / "run" / RESULTS).phases
    rows = {}
    for name in PHASES:
        one, two = foretold["phases"][name], needed[name]
        rows[name] = {
            "seconds": [one["seconds"], two.wall_seconds],
            "tokens": [one["tokens"], two.tokens],
            "memory_mb": [one["memory_mb"], two.peak_allocated_mb or two.peak_rss_mb],
        }
    total = [sum(row["seconds"][at] for row in rows.values()) for at in (0, 1)]
    return {"phases": rows, "seconds": total, "probe_seconds": foretold["probe_seconds"]}


def main() -> None:
    """Plans and runs both models, and prints a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--output", type=Path, help="JSON file for the results")
    arguments = parser.parse_args()
    found: dict[str, Any] = {"environment": environment.describe(), "steps": arguments.steps}
    print("| model | phase | seconds, foretold and needed | tokens | memory, MiB |")
    print("| --- | --- | --- | --- | --- |")
    with tempfile.TemporaryDirectory() as name:
        models = {"bundled": MODEL, "random GPT-2": random_model(Path(name) / "model")}
        for called, model in models.items():
            folder = Path(name) / called.replace(" ", "-")
            folder.mkdir()
            found[called] = compared(model, arguments.steps, folder)
            for phase, row in found[called]["phases"].items():
                cells = (
                    f"{row[what][0]:,.0f}, {row[what][1]:,.0f} "
                    f"({row[what][0] / max(1e-9, row[what][1]) - 1:+.0%})"
                    for what in ("seconds", "tokens", "memory_mb")
                )
                print(f"| {called} | {phase} | {' | '.join(cells)} |", flush=True)
            one, two = found[called]["seconds"]
            probe = found[called]["probe_seconds"]
            print(f"| {called} | all | {one:,.0f}, {two:,.0f} ({one / two - 1:+.0%}) | | |")
            print(f"\nthe part took {probe:.0f} s\n", flush=True)
    if arguments.output:
        arguments.output.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    if sys.argv[1:2] in (["plan"], ["run"]):
        quiet_libraries()
        {"plan": plan, "run": run}[sys.argv[1]](Path(sys.argv[2]), Path(sys.argv[3]))
    else:
        main()
