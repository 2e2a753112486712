"""Renders a report as an HTML page, and writes reports in all formats."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from instil.errors import OutputError
from instil.methods import METHODS
from instil.report.analysis import Analysis, Comparison, SetFacts, analyse
from instil.report.browser import MOST_LABELS, browse, matrices
from instil.report.export import to_csv, to_latex, to_markdown
from instil.report.figures import sketches
from instil.report.groups import NEAR, SOLVED, mean_of
from instil.report.numerals import (
    NBSP,
    count,
    duration,
    fixed,
    number,
    p_text,
    percent,
    points,
    whole_percent,
)
from instil.report.proof import proof
from instil.report.read import Study, flat, read_study
from instil.report.savings import savings
from instil.report.set_verdict import COMPLETIONS, KEPT, share_closed
from instil.report.tables import answers, checkpoints, pairs, phases, reuses, shipping, summary
from instil.report.verdict import NOTICEABLE_DRIFT, caveats, judge
from instil.report.versus import Change, Versus
from instil.results.schema import REPORT, Results, SentPrompt
from instil.results.training import Training
from instil.system.files import written_whole

Format = Literal["html", "md", "tex", "csv", "svg", "pdf"]
MOST_CHANGES = 500
"""Changed rows in the page of two runs."""
PAGE_SIZE = 25
"""Evaluation rows per page of the table."""


@dataclass(frozen=True)
class Reading:
    """A measurement before and after training, with its meaning and an example of a good value."""

    name: str
    before: str
    after: str
    unit: str
    remark: str
    meaning: str


def render(study: Study) -> str:
    """Renders a report as one HTML file that does not use the network.

    The same study gives the same bytes. Text from data is escaped.
    """
    return _render(analyse(study))


def _render(analysis: Analysis) -> str:
    study, found = analysis.study, analysis.comparison
    verdict, sets = judge(analysis)
    common, several = _settings(analysis)
    opening = {verdict.headline, *verdict.evidence}
    template = _templates().get_template("page.html.j2")
    return template.render(
        study=study,
        verdict=verdict,
        caveats=caveats(analysis),
        facts=_facts(study),
        sets=[
            (
                judged,
                [sentence for sentence in judged.sentences if sentence not in opening],
                summary(analysis, judged.set),
                pairs(analysis, judged.set),
            )
            for judged in sets
        ],
        answers=[]
        if study.single
        else [table for facts in analysis.sets if (table := answers(analysis, facts)).rows],
        written=any(facts.written for facts in analysis.sets),
        labelled=any(not facts.written for facts in analysis.sets) or not analysis.sets,
        graded=all(facts.graded for facts in analysis.sets),
        completions=[COMPLETIONS[f.completions] for f in analysis.sets if f.completions][:1],
        near_zero=(percent(SOLVED, 0), percent(SOLVED + NEAR, 0)),
        baselines=any(len(results.methods) > 1 for results in study.finished),
        readings=_readings(analysis, found) if found else None,
        figures=[sketch.inline() for sketch in sketches(analysis)],
        checkpoints=checkpoints(analysis),
        controls=any(test.controls for test in analysis.tests),
        proof=proof(analysis),
        savings=savings(study.finished[0]) if study.single and study.finished else None,
        cost_sentences=_cost_sentences(found) if found else [],
        shipping=shipping(analysis),
        phases=phases(analysis),
        reuses=reuses(analysis),
        confusions=[(f.name, matrices(analysis, f)) for f in analysis.sets if not f.written],
        most_labels=MOST_LABELS,
        prompt=_prompt(study.finished),
        browser=browse(analysis),
        page_size=PAGE_SIZE,
        common=common,
        several=several,
        environment=[(key, _text(value)) for key, value in flat(study.environment)],
        version=_several(results.instil_version for results in study.finished),
        percent=percent,
    )


_TEXTS: dict[Format, tuple[str, Callable[[Analysis], str]]] = {
    "html": (REPORT, _render),
    "md": ("tables.md", to_markdown),
    "tex": ("tables.tex", to_latex),
    "csv": ("cells.csv", to_csv),
}


def write_study(study: Study, folder: Path, formats: Sequence[Format]) -> list[Path]:
    """Writes a report.

    Args:
        study: The study.
        folder: Folder of the files; it is created if necessary, and existing files are replaced.
        formats: `html` writes `report.html`, `md` `tables.md`, `tex` `tables.tex` (booktabs), `csv`
            `cells.csv`, `svg` and `pdf` `figures/NAME.svg` and `figures/NAME.pdf`.

    Returns:
        The files that were written.

    Raises:
        OutputError: the folder cannot be written.
    """
    analysis = analyse(study)
    written: list[Path] = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for format in dict.fromkeys(formats):
            if format in _TEXTS:
                name, write = _TEXTS[format]
                with written_whole(folder / name) as work:
                    work.write_text(write(analysis), encoding="utf-8")
                written.append(folder / name)
                continue
            (folder / "figures").mkdir(exist_ok=True)
            for sketch in sketches(analysis):
                path = folder / "figures" / f"{sketch.name}.{format}"
                sketch.save(path)
                written.append(path)
    except OSError as error:
        raise OutputError(f"the report cannot be written to {folder}", got=str(error)) from None
    return written


def write_report(folder: Path) -> Path:
    """Writes `report.html` into a finished run or study, from the files in it.

    Args:
        folder: Folder of the run or study.

    Returns:
        Path of the page.

    Raises:
        DataFileError: the folder is not a run or study.
        DataFormatError: a file in it is not in the format of this version.
        OutputError: the folder cannot be written.
    """
    return write_study(read_study([folder]), folder, ["html"])[0]


def show_page(title: str, turns: Sequence[object], kinds: Mapping[Any, str]) -> str:
    """A page of what teacher and student read in a row; see `instil.pipeline.showing`.

    Args:
        title: Its title.
        turns: The answers, with what stands before them.
        kinds: Kind of a piece -> what is done with it.
    """
    return _templates().get_template("show.html.j2").render(title=title, turns=turns, kinds=kinds)


def compare_page(title: str, found: Versus) -> str:
    """A page of two runs beside each other.

    Args:
        title: Its title.
        found: What was found.
    """
    template = _templates().get_template("compare.html.j2")
    changes = [*map(told, found.changes)]
    return template.render(title=title, found=found, changes=changes, shown=MOST_CHANGES)


def told(change: Change) -> tuple[str, str, str, str, str]:
    """A change in words: its name, both values, what happened, and `good`, `bad` or nothing."""
    before, after = ("–" if v is None else number(v) for v in (change.before, change.after))
    if change.before is None or change.after is None or before == after:
        return change.name, before, after, "", ""
    moved = (change.after - change.before) * change.better
    clear = change.p is None or change.p < 0.05
    word = "" if not change.better else "better" if moved > 0 else "worse"
    if change.p is not None:
        word += f", {p_text(change.p)}" + ("" if clear else ": not clear")
    tone = "" if not (change.better and clear) else "good" if moved > 0 else "bad"
    return change.name, before, after, word, tone


def _templates() -> Environment:
    """The templates, which escape all text."""
    jinja = Environment(
        loader=PackageLoader("instil.report", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    # Only the output of matplotlib is used as markup; matplotlib escapes the text in it.
    jinja.filters["svg"] = lambda figure: Markup(figure.svg)
    jinja.filters["digest"] = _digest
    jinja.filters["json"] = _json
    return jinja


def _json(value: object) -> str:
    """A value as JSON, without escapes for non-ASCII characters."""
    return json.dumps(value, ensure_ascii=False, default=str)


def _text(value: object) -> str:
    return value if isinstance(value, str) else _json(value)


def _digest(script: str) -> str:
    """Hash of the page's script; the security policy allows only a script with this hash."""
    return base64.b64encode(hashlib.sha256(script.encode("utf-8")).digest()).decode("ascii")


def _facts(study: Study) -> list[tuple[str, str]]:
    cells, finished = study.cells, study.finished
    taught = (cell for cell in cells if METHODS[cell.method].teacher)
    teachers = (cell.teacher_model or "the student’s own weights" for cell in taught)
    contexts = [results.context for results in finished if results.context]
    tokens = dict.fromkeys(
        fixed(context.tokens, 0) for context in contexts if context.tokens is not None
    )
    logs = [results.logs for results in finished if results.logs]
    facts = [
        ("task", _several(cell.task for cell in cells)),
        ("model", _several(cell.model for cell in cells)),
        ("teacher", _several(teachers)),
        ("context", _several(context.description for context in contexts)),
        ("context tokens", _several(tokens)),
        ("conversations", _several(found.sentence() for found in logs)),
        ("other contexts", _several(found.others() for found in logs)),
        ("left out", _several(found.left_out() for found in logs)),
        ("prompts", _several(results.prompt.format for results in finished)),
        ("dtype", _several(cell.dtype for cell in cells)),
        ("seeds", _several(map(str, sorted({cell.seed for cell in cells})))),
    ]
    if not study.single:
        facts += [("cells", count(len(finished))), ("varied", _several(study.varied))]
    return [(name, value) for name, value in facts if value]


def _several(values: Iterable[str]) -> str:
    different = list(dict.fromkeys(filter(None, values)))
    return ", ".join([*different[:8], *(["…"] if len(different) > 8 else [])])


def _prompt(finished: Sequence[Results]) -> SentPrompt | None:
    """The prompt to send to the students; None if there are none, or if their prompts differ."""
    students = [results for results in finished if results.training]
    distilled = [results for results in students if results.method == "distillation"]
    prompts = {
        results.prompt.model_dump_json(): results.prompt for results in distilled or students
    }
    return next(iter(prompts.values())) if len(prompts) == 1 else None


def _readings(analysis: Analysis, found: Comparison) -> tuple[str, list[Reading]] | None:
    """How the only student's fidelity was measured, and its values; None if it was not measured."""
    readings: list[Reading] = []
    measured = ""
    for facts in analysis.sets:
        score = found.student.scores.get(facts.name)
        if score is not None and score.kl is not None and score.agreement is not None:
            zero = found.zero_shot.scores.get(facts.name) if found.zero_shot else None
            before = None
            if zero is not None and zero.kl is not None and zero.agreement is not None:
                before = zero.kl, zero.agreement
            readings = _fidelity(facts, (score.kl, score.agreement), before)
            measured = f"Measured on {count(score.rows, 'row')} of {facts.name}."
            if facts.written:
                source = "gold answers" if facts.completions == "gold" else "teacher’s completions"
                measured = (
                    f"Measured on {count(score.tokens, 'token')} of the {source} for held-out rows."
                )
            break
    if found.student.drift is not None:
        readings.append(_drift(found))
    return (measured, readings) if readings else None


def _fidelity(
    facts: SetFacts, after: tuple[float, float], before: tuple[float, float] | None
) -> list[Reading]:
    part, unit = ("next-token", "token") if facts.written else ("label", "row")
    remarks = "", ""
    if before:
        closed, risen = share_closed(before[0], after[0]), after[1] - before[1]
        remarks = (
            "The context hardly changes the predictions."
            if closed is None
            else f"Training removed {whole_percent(closed)} of it."
            if closed > 0
            else "Training did not reduce it.",
            f"{points(abs(risen))} {'above' if risen >= 0 else 'below'} zero-shot.",
        )
    over = "the vocabulary" if facts.written else "the labels"
    unit_of = "token" if facts.written else "label"
    return [
        Reading(
            name="KL to the teacher",
            before=number(before[0]) if before else "",
            after=number(after[0]),
            unit=f"nats per {unit}",
            remark=remarks[0],
            meaning=f"Difference between the student’s and the teacher’s {part} probabilities, over {over}. "
            "0 means no difference. As a rule, a good student has less than "
            f"{whole_percent(1 - KEPT)} of the zero-shot value.",
        ),
        Reading(
            name="Top-1 agreement",
            before=percent(before[1]) if before else "",
            after=percent(after[1]),
            unit=f"of {unit}s",
            remark=remarks[1],
            meaning=f"How often student and teacher have the same most likely {unit_of}. "
            f"A good student is above {whole_percent(KEPT)}, and far above zero-shot.",
        ),
    ]


def _drift(found: Comparison) -> Reading:
    measured = [cell.result.drift for cell in found.student.cells if cell.result.drift]
    remark = f"On {count(max(one.tokens for one in measured), 'token')} of unrelated text."
    same = mean_of(one.same_top for one in measured)
    if same is not None:
        kinds = ", ".join(
            f"{kind} {whole_percent(fmean(one.kinds[kind].same_top for one in measured))}"
            for kind in measured[0].kinds
        )
        remark += (
            f" The likeliest next token is still the same at {whole_percent(same)} of the "
            f"positions ({kinds})."
        )
    return Reading(
        name="Drift",
        before="",
        after=number(found.student.drift or 0),
        unit="nats per token",
        remark=remark,
        meaning="How much training changed the model’s predictions on text that is not about "
        f"the task. 0 means no change. A good value is below {NOTICEABLE_DRIFT}, which is about 10 % "
        "more perplexity on text from the base model.",
    )


def _cost_sentences(found: Comparison) -> list[str]:
    """What the only student saves, when this pays back its cost, and how it was trained."""
    sentences = []
    before, student = found.in_context, found.student
    if before is not None and found.tokens_saved is not None:
        sentence = f"A query has {fixed(found.tokens_saved)} fewer prompt tokens than in-context"
        if before.prompt_tokens > 0 and found.tokens_saved > 0:
            sentence += f", which is {whole_percent(found.tokens_saved / before.prompt_tokens)} of that prompt"
        sentences.append(f"{sentence}.")
    if before is not None and found.seconds_saved is not None:
        sentences.append(
            f"It takes {number(student.seconds_per_query or 0)}{NBSP}s instead of "
            f"{number(before.seconds_per_query or 0)}{NBSP}s."
        )
        if found.break_even is None:
            sentences.append(
                "A query saves no time on this machine, so training never pays back its cost."
            )
        else:
            sentences.append(
                f"Generating, teaching and training took {duration(student.spent)}, which is paid "
                f"back after {count(found.break_even, 'query', 'queries')}."
            )
    training = student.cells[0].training
    if training is not None:
        tokens = training.tokens and f" ({count(training.tokens, 'completion token')})"
        sentences.append(
            f"Trained on {count(training.rows, 'row')}{tokens or ''} for "
            f"{count(training.steps, 'step')}; "
            f"{count(training.trainable_parameters, 'trainable parameter')}, "
            f"{100 * training.trainable_share:.2g}{NBSP}% of the model."
        )
        sentences += [*_made(training), *_logged(training), *_end_of(training)]
    return sentences


def _made(training: Training) -> list[str]:
    """How many of the inputs the teacher wrote."""
    made = training.made_inputs
    if made is None:
        return []
    return [
        f"The teacher wrote {count(made.rows, 'input')} of the {made.asked:,} that were asked for "
        f"(made_inputs.jsonl). Left out: {made.repeated:,} that were there already, {made.near:,} "
        f"much like an evaluation row, {made.unfit:,} empty or too long."
    ]


def _logged(training: Training) -> list[str]:
    """How much of what was learnt stood in the rows, so that no teacher of this run predicted it."""
    found = training.logged_targets
    if found is None:
        return []
    return [
        f"What a server told of its answers was learnt: log-probabilities of "
        f"{count(found.tokens, 'token')} in {count(found.rows, 'row')}; the other tokens are learnt as "
        "text. A KL to the teacher is measured on those tokens of the evaluation rows that have "
        "log-probabilities."
    ]


def _end_of(training: Training) -> list[str]:
    """Why the training ended, and which step was kept, if its number of steps was not fixed."""
    kept = [seen for seen in training.held_out if seen.kept]
    if training.ended is None or not kept:
        return []
    why = {
        "plateau": "no longer fell",
        "kl_share": "was as low as training.until asks for",
        "max_steps": "was still falling; more steps (training.max_steps) may help",
    }[training.ended]
    return [
        f"Training ended when the loss on {count(training.held_out_rows, 'held-out row')} {why}. It "
        f"was {number(training.held_out[0].loss)} before the training and {number(kept[0].loss)} "
        f"after step {kept[0].step:,}, which is the step whose weights are kept."
    ]


def _settings(analysis: Analysis) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """Settings that all cells share, and settings that differ, with all their values."""
    found: dict[str, list[Any]] = {}
    for results in analysis.study.finished:
        for key, value in flat(results.recipe):
            found.setdefault(key, []).append(value)
    common, several = [], []
    for key, values in found.items():
        texts = list(dict.fromkeys(map(_text, values)))
        if len(texts) == 1:
            common.append((key, texts[0]))
        else:
            more = f" and {len(texts) - 12} more" if len(texts) > 12 else ""
            several.append((key, ", ".join(texts[:12]) + more))
    return common, several
