"""Writes the pages and schemas that are made from code and results; a test fails if they are stale.

python docs/generate.py
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

import typer.main
from pydantic import BaseModel

from instil import cli
from instil.methods import METHODS, MethodName
from instil.recipe.grid import RecipeFile
from instil.report import read_study
from instil.report.analysis import analyse
from instil.report.groups import SetSummary
from instil.results.schema import INDEX, RESULTS, Results, StudyIndex
from instil.results.scores import Proportion, SetScore

ROOT = Path(__file__).parent.parent
COMMITTED = ROOT / "benchmarks/results"
HEADLINE = ("sentiment-smollm2", "topic-smollm2")
STUDIES = (*HEADLINE, "nli-smollm2")
TEXT = "gsm8k-smollm2"
RUN: dict[MethodName, str] = {
    "zero_shot": METHODS["zero_shot"].label,
    "in_context": METHODS["in_context"].label,
    "distillation": "distilled",
}
"""The methods of a run of `instil distill`, as a table names who answers."""


def pages() -> dict[Path, str]:
    """Path -> content of everything that is generated."""
    return {
        ROOT / "README.md": readme(),
        ROOT / "docs/results.md": results_page(),
        ROOT / "docs/reference/cli.md": cli_page(),
        ROOT / "docs/reference/recipe.md": recipe_page(),
        ROOT / "src/instil/schemas/results.schema.json": Results.json_schema(
            "instil results.json, version 1"
        ),
        ROOT / "src/instil/schemas/recipe.schema.json": recipe_schema(),
    }


def readme() -> str:
    """The README with its tables filled in from committed results."""
    return _filled(
        ROOT / "README.md",
        {
            "demo": _demo_table(),
            "bench": _bench_table(),
            "headline": _headline_table(),
        },
    )


def results_page() -> str:
    """The page of study results with its tables filled in."""
    tables = {name: _study_table(name) for name in STUDIES}
    tables |= {"bars": _bars_table(), "mass": _mass_table(), TEXT: _text_table(TEXT)}
    return _filled(ROOT / "docs/results.md", tables)


def _filled(path: Path, tables: dict[str, str]) -> str:
    """A page whose marked places hold these tables."""
    text = path.read_text(encoding="utf-8")
    for name, table in tables.items():
        before, rest = text.split(f"<!-- {name}:begin -->\n")
        after = rest.split(f"<!-- {name}:end -->")[1]
        text = f"{before}<!-- {name}:begin -->\n{table}<!-- {name}:end -->{after}"
    return text


def _study_table(name: str) -> str:
    """Accuracy of each group of a study on each set: mean and standard deviation over seeds."""
    found = analyse(read_study([COMMITTED / name]))
    lines = [
        "| | " + " | ".join(one.name for one in found.sets) + " |",
        "| --- |" + " --- |" * len(found.sets),
    ]
    for group in found.groups:
        scores = [group.scores.get(one.name) for one in found.sets]
        shown = (_score(score) if score else "–" for score in scores)
        lines.append(f"| {group.label()} | " + " | ".join(shown) + " |")
    if not all(one.written for one in found.sets):
        floors = (
            "–" if one.written else f"{one.chance:.2f}, {one.majority:.2f}" for one in found.sets
        )
        lines.append("| *chance, majority label* | " + " | ".join(floors) + " |")
    rows = (str(found.scored(one.name)[0][1].rows) for one in found.sets)
    lines.append("| *rows per seed* | " + " | ".join(rows) + " |")
    return "\n".join(lines) + "\n"


def _mass_table() -> str:
    """Accuracy and label mass of the sentiment students, with and without the mass in the loss."""
    lines: list[str] = []
    for name in ("sentiment-smollm2", "sentiment-smollm2-labels"):
        found = analyse(read_study([COMMITTED / name]))
        (group,) = (group for group in found.groups if group.method == "distillation")
        (over,) = {cell.recipe["objective"]["over"] for cell in group.cells}
        if not lines:
            lines.append("| `over` | " + " | ".join(one.name for one in found.sets) + " | mass |")
            lines.append("| --- |" + " --- |" * (len(found.sets) + 1))
        scores = [group.scores[one.name] for one in found.sets]
        shown = " | ".join(_score(score) for score in scores)
        masses = [score.verbalizer_mass for score in scores if score.verbalizer_mass is not None]
        lines.append(f"| {over} | {shown} | {min(masses):.3f} to {max(masses):.3f} |")
    return "\n".join(lines) + "\n"


def _text_table(name: str) -> str:
    """Accuracy, cross-entropy and KL to its teacher of each group of a free-text study, by set."""
    found = analyse(read_study([COMMITTED / name]))
    read = ("accuracy", "cross-entropy", "KL to its teacher")
    lines = [
        "| | " + " | ".join(f"{one.name}: {what}" for one in found.sets for what in read) + " |",
        "| --- |" + " --- |" * len(found.sets) * len(read),
    ]
    for group in found.groups:
        scores = [group.scores[one.name] for one in found.sets]
        values = (v for s in scores for v in (s.mean, s.cross_entropy, s.kl))
        shown = ("–" if value is None else f"{value:.3f}" for value in values)
        lines.append(f"| {group.label()} | " + " | ".join(shown) + " |")
    return "\n".join(lines) + "\n"


def _score(score: SetSummary) -> str:
    spread = "" if score.deviation is None else f" ± {score.deviation:.3f}"
    return f"{score.mean:.3f}{spread}"


class Averaged(NamedTuple):
    """A student of several averaged contexts, beside what it replaces: accuracy on one set."""

    seed: int
    zero_shot: float
    singles: list[float]
    teacher: float
    student: float


def _cells(name: str) -> list[Results]:
    """The cells of a study."""
    index = StudyIndex.read(COMMITTED / name / INDEX)
    return [Results.read(COMMITTED / name / "cells" / cell / RESULTS) for cell in index.cells]


def _accuracy(score: SetScore) -> Proportion:
    """The accuracy of a set that has gold outputs."""
    assert score.accuracy is not None
    return score.accuracy


def _averaged(name: str, place: int = 0) -> list[Averaged]:
    """One per seed, on the set at this place; the first set is in the training rows' domain."""
    cells = _cells(name)
    untrained = {
        cell.seed: _accuracy(cell.methods[0].scores[place]).value
        for cell in cells
        if cell.method == "zero_shot"
    }
    return [
        Averaged(
            seed=cell.seed,
            zero_shot=untrained[cell.seed],
            singles=[one.accuracy for one in cell.teacher[place].single_contexts],
            teacher=_accuracy(cell.teacher[place]).value,
            student=_accuracy(cell.methods[0].scores[place]).value,
        )
        for cell in cells
        if cell.method == "distillation"
        and cell.teacher[place].single_contexts
        and cell.recipe["student"]["keep_layers"] is None
        and cell.recipe["objective"]["over"] != "labels"
    ]


def _mean_over_seeds(students: list[Averaged]) -> tuple[float, float, float, float]:
    """Zero-shot, single contexts, averaged teacher, student."""
    return (
        fmean(one.zero_shot for one in students),
        fmean(fmean(one.singles) for one in students),
        fmean(one.teacher for one in students),
        fmean(one.student for one in students),
    )


def _headline_table() -> str:
    """For the README: the means over seeds, on each set."""
    lines = [
        "| | zero-shot | one context (mean) | averaged, calibrated teacher | its student, zero-shot |",
        "| --- | --- | --- | --- | --- |",
    ]
    for name in HEADLINE:
        for place, one in enumerate(_cells(name)[0].methods[0].scores):
            shown = (f"{value:.2f}" for value in _mean_over_seeds(_averaged(name, place)))
            where = f"{one.name}, out of domain" if one.domain == "out" else f"{name}: {one.name}"
            lines.append(f"| {where} | " + " | ".join(shown) + " |")
    return "\n".join(lines) + "\n"


def _bars_table() -> str:
    """Of each study of averaged contexts, seed by seed: student, teacher and single contexts."""
    lines = [
        "| | seed | zero-shot | single contexts, mean (lowest to highest) | averaged teacher | "
        "student, zero-shot | gain over single contexts | below its teacher |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name in HEADLINE:
        students = _averaged(name)
        for one in students:
            single = fmean(one.singles)
            lines.append(
                f"| {name} | {one.seed} | {one.zero_shot:.3f} | {single:.3f} "
                f"({min(one.singles):.2f} to {max(one.singles):.2f}) | "
                f"{one.teacher:.3f} | {one.student:.3f} | "
                f"{one.student - single:+.3f} | {one.teacher - one.student:+.3f} |"
            )
        zero, single, teacher, student = _mean_over_seeds(students)
        lines.append(
            f"| **{name}** | mean | {zero:.3f} | {single:.3f} | {teacher:.3f} | **{student:.3f}** | "
            f"**{student - single:+.3f}** | {teacher - student:+.3f} |"
        )
    return "\n".join(lines) + "\n"


def _demo_table() -> str:
    record = json.loads((COMMITTED / "demo.json").read_text(encoding="utf-8"))
    run = Results.model_validate(record["results"])
    lines = [
        "| | accuracy (95 % interval) | prompt tokens per query | seconds per query |",
        "| --- | --- | --- | --- |",
    ]
    for method, label in RUN.items():
        result = run.result(method)
        assert result is not None
        share = _accuracy(result.scores[0])
        lines.append(
            f"| {label} | {share.value:.2f} ({share.low:.2f} to {share.high:.2f}) | "
            f"{result.prompt_tokens_mean:.0f} | {result.seconds_per_query:.2f} |"
        )
    assert run.training is not None
    before, after = (_kl(run, method) for method in ("zero_shot", "distillation"))
    lines.append(
        f"\n{record['wall_seconds']:.0f} seconds with nothing cached, {run.training.steps} steps; "
        f"KL to the prompted teacher {before:.2f} → {after:.2f} nats per token.\n"
    )
    return "\n".join(lines)


def _kl(run: Results, method: MethodName) -> float:
    """KL of a method's predictions to the teacher's."""
    result = run.result(method)
    assert result is not None
    fidelity = result.scores[0].fidelity
    assert fidelity is not None
    return fidelity.kl_to_teacher


def _bench_table() -> str:
    record = json.loads((COMMITTED / "function_vectors.json").read_text(encoding="utf-8"))
    lines = [
        "| task | zero-shot | in-context (8) | distilled | KL to the teacher (% of zero-shot) | "
        "wall | peak memory |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for task in dict.fromkeys(run["task"] for run in record["runs"]):
        runs = [run for run in record["runs"] if run["task"] == task]

        def mean(name: str, runs: list[dict[str, Any]] = runs) -> float:
            return float(sum(run[name] for run in runs)) / len(runs)

        lines.append(
            f"| {task} ({runs[0]['inputs']} inputs) | {mean('zero_shot'):.2f} | "
            f"{mean('in_context'):.2f} | {mean('distillation'):.2f} | {mean('kl_share'):.1%} | "
            f"{mean('wall_seconds'):.0f} s | "
            f"{max(run['peak_rss_mb'] for run in runs) / 1024:.1f} GiB |"
        )
    total = record["summary"]
    lines.append(
        f"| **mean** | {total['zero_shot']:.2f} | {total['in_context']:.2f} | "
        f"**{total['distillation']:.2f}** | {total['kl_share_mean']:.1%} | "
        f"{total['wall_seconds_mean']:.0f} s | |"
    )
    return "\n".join(lines) + "\n"


def cli_page() -> str:
    """Every command with its arguments and options, as Markdown."""
    group: Any = typer.main.get_command(cli.app)
    parts = ["# The command line\n\nGenerated by `python docs/generate.py`.\n"]
    parts += [part for command in _commands(group, "instil") for part in command]
    return "\n".join(parts)


def _commands(group: Any, before: str) -> Iterator[list[str]]:
    for name, command in group.commands.items():
        whole = f"{before} {name}"
        if hasattr(command, "commands"):
            yield from _commands(command, whole)
            continue
        lines = [
            f"## `{whole}`\n\n{command.help}\n",
            "| argument or option | default | meaning |",
            "| --- | --- | --- |",
        ]
        for option in command.params:
            shown = option.opts[0] if option.opts[0].startswith("-") else option.opts[0].upper()
            none = None if option.default in ([], ()) else option.default
            default = "required" if option.required else _shown(none)
            lines.append(f"| `{shown}` | {default} | {_cell(option.help or '')} |")
        yield [*lines, ""]


def recipe_page() -> str:
    """Every setting, section by section, as Markdown."""
    parts = [
        "# The recipe\n\nGenerated by `python docs/generate.py`. `config.yaml` of a finished folder holds "
        "its recipe with\nevery default written out. In Python, sections are keyword arguments of "
        "`instil.distill` and\n`instil.run`. The JSON Schema is "
        "`src/instil/schemas/recipe.schema.json`.\n"
    ]
    definitions = RecipeFile.model_json_schema()["$defs"]
    parts += _section("The recipe itself", RecipeFile, definitions)
    for name, schema in definitions.items():
        text = str(schema.get("description", "")).partition("\n")[0]
        parts += [
            f"## {name}\n\n{text}\n",
            "| key | default | allowed | meaning |",
            "| --- | --- | --- | --- |",
        ]
        parts += [_row(key, field) for key, field in schema["properties"].items()]
        parts.append("")
    return "\n".join(parts)


def recipe_schema() -> str:
    """The JSON Schema with which an editor completes a recipe."""
    schema = RecipeFile.model_json_schema()
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    return json.dumps(schema, indent=1) + "\n"


def _section(title: str, model: type[BaseModel], definitions: dict[str, Any]) -> list[str]:
    fields = model.model_json_schema()["properties"]
    rows = [_row(key, field) for key, field in fields.items()]
    return [
        f"## {title}\n",
        "| key | default | allowed | meaning |",
        "| --- | --- | --- | --- |",
        *rows,
        "",
    ]


def _row(key: str, field: dict[str, Any]) -> str:
    default = _shown(field["default"]) if "default" in field else "required"
    return f"| `{key}` | {default} | {_cell(_allowed(field))} | {_cell(field.get('description', ''))} |"


def _allowed(field: dict[str, Any]) -> str:
    if "$ref" in field:
        return f"[{field['$ref'].rpartition('/')[2]}](#{field['$ref'].rpartition('/')[2].lower()})"
    if "oneOf" in field or "anyOf" in field:
        return " or ".join(_allowed(part) for part in field.get("oneOf", field.get("anyOf", [])))
    if "enum" in field:
        return ", ".join(map(str, field["enum"]))
    if "const" in field:
        return str(field["const"])
    if field.get("type") == "array" and "enum" in field.get("items", {}):
        return f"list of {_allowed(field['items'])}"
    signs = (
        ("minimum", "≥"),
        ("exclusiveMinimum", ">"),
        ("maximum", "≤"),
        ("exclusiveMaximum", "<"),
    )
    limits = [f"{sign} {field[key]}" for key, sign in signs if key in field]
    return " ".join([str(field.get("format", field.get("type", "any"))), *limits])


def _shown(value: object) -> str:
    if isinstance(value, dict):
        return "see its section" if value else "{}"
    return _cell(
        "–" if value is None else f"`{value!r}`" if isinstance(value, str) else f"`{value}`"
    )


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


if __name__ == "__main__":
    for path, text in pages().items():
        path.write_text(text, encoding="utf-8")
        print(path.relative_to(ROOT))
