"""The view-model of a study's report, its rendering, and the files it is written to."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

from instil.errors import OutputError
from instil.methods import METHODS
from instil.report.analysis import Analysis, analyse
from instil.report.checkpoints import checkpoints
from instil.report.groups import NEAR, SOLVED, TITLES
from instil.report.numerals import count, percent
from instil.report.study import Study, flat
from instil.report.study_browser import MOST_LABELS, ROWS_PER_SET, browse, matrices
from instil.report.study_figures import sketches
from instil.report.study_tables import pairs, phases, reuses, shipping, summary
from instil.report.study_verdict import judge_study, study_caveats
from instil.report.tables import to_csv, to_latex, to_markdown
from instil.report.templates import as_json, templates
from instil.system.files import written_whole

Format = Literal["html", "md", "tex", "csv", "svg", "pdf"]
PAGE_SIZE = 25
"""Rows on which methods disagree that are shown at once."""

_TEXTS: dict[Format, tuple[str, Callable[[Analysis], str]]] = {
    "html": ("report.html", lambda analysis: _render(analysis)),
    "md": ("tables.md", to_markdown),
    "tex": ("tables.tex", to_latex),
    "csv": ("cells.csv", to_csv),
}


def render_study(study: Study) -> str:
    """Renders a study's report as one HTML file that asks nothing of the network.

    The same study gives the same bytes. Whatever comes from data stands in it as text.
    """
    return _render(analyse(study))


def write_study(study: Study, folder: Path, formats: Sequence[Format]) -> list[Path]:
    """Writes a study's report.

    Args:
        study: What to report on.
        folder: Where to; it is made if need be, and files of these names are replaced.
        formats: `html` is `report.html`, `md` `tables.md`, `tex` `tables.tex` (booktabs), `csv`
            `cells.csv`; `svg` and `pdf` are `figures/NAME.svg` and `.pdf`.

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
        raise OutputError(f"{folder} cannot be written", got=str(error)) from None
    return written


def _render(analysis: Analysis) -> str:
    study = analysis.study
    verdict, sets = judge_study(analysis)
    common, several = _settings(analysis)
    browser = browse(analysis)
    return (
        templates()
        .get_template("study.html.j2")
        .render(
            study=study,
            verdict=verdict,
            sets=[
                (judged, summary(analysis, judged.set), pairs(analysis, judged.set))
                for judged in sets
            ],
            caveats=study_caveats(analysis),
            facts=_facts(analysis),
            figures=[sketch.inline() for sketch in sketches(analysis)],
            shipping=shipping(analysis),
            phases=phases(analysis),
            reuses=reuses(analysis),
            confusions=[(f.name, matrices(analysis, f)) for f in analysis.sets if not f.written],
            written=any(facts.written for facts in analysis.sets),
            labelled=any(not facts.written for facts in analysis.sets) or not analysis.sets,
            controls=any(test.controls for test in analysis.tests),
            checkpoints=checkpoints(analysis),
            near_zero=(percent(SOLVED, 0), percent(SOLVED + NEAR, 0)),
            most_labels=MOST_LABELS,
            browser=browser,
            titles=TITLES,
            rows_per_set=ROWS_PER_SET,
            page_size=PAGE_SIZE,
            total=sum(shown for _, _, shown, _ in browser.filters),
            common=common,
            several=several,
            version=study.cells[0].instil_version if study.cells else "",
            percent=percent,
        )
    )


def _facts(analysis: Analysis) -> list[tuple[str, str]]:
    cells = analysis.study.cells
    taught = (cell for cell in cells if METHODS[cell.method].teacher)
    teachers = (cell.teacher_model or "the student’s own weights" for cell in taught)
    seeds = sorted({cell.seed for cell in cells})
    return [
        ("task", _several(cell.task for cell in cells)),
        ("model", _several(cell.model for cell in cells)),
        ("teacher", _several(teachers)),
        ("dtype", _several(cell.dtype for cell in cells)),
        ("seeds", _several(map(str, seeds))),
        ("cells", count(len(cells))),
        ("varied", _several(key for key in analysis.study.varied)),
    ]


def _several(values: Iterable[str]) -> str:
    return ", ".join(dict.fromkeys(values)) or "none"


def _settings(analysis: Analysis) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """Settings that all cells share, and those that differ with each of their values."""
    found: dict[str, list[Any]] = {}
    for cell in analysis.study.cells:
        for key, value in flat(cell.recipe):
            found.setdefault(key, []).append(value)
    common, several = [], []
    for key, values in found.items():
        texts = list(dict.fromkeys(v if isinstance(v, str) else as_json(v) for v in values))
        if len(texts) == 1:
            common.append((key, texts[0]))
        else:
            more = f" and {len(texts) - 12} more" if len(texts) > 12 else ""
            several.append((key, ", ".join(texts[:12]) + more))
    return common, several
