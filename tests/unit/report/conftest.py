"""Studies that many tests read and none changes."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from tests.unit.report.pages import HOSTILE
from tests.unit.report.studies import build_study
from tests.unit.report.written_studies import build_written_study

from instil.report import Study
from instil.report.analysis import Analysis, analyse
from instil.report.drawing import Figure, Sketch
from instil.results.schema import Failure

HOSTILE_ANSWER = f"{HOSTILE}\nSo it is $3 & more. #### 7"


draw_anew = Sketch.inline


@pytest.fixture(scope="session", autouse=True)
def draw_each_figure_once() -> Iterator[None]:
    """Drawing is nine tenths of a render; like figures of all tests share one drawing."""
    drawn: dict[tuple[str, str, str], Figure] = {}

    def remembered(sketch: Sketch) -> Figure:
        key = (sketch.name, sketch.title, sketch.description)
        if key not in drawn:
            drawn[key] = draw_anew(sketch)
        return drawn[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Sketch, "inline", remembered)
        yield


@pytest.fixture(scope="session")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    """Labels, two k, two tunings, a failed cell and a missing one; markup in every seventh text."""
    failure = Failure(
        name="distillation-k32",
        varied={"demonstrations.k": 32},
        error="killed",
        message=f"out of memory {HOSTILE}",
        seconds=61,
    )
    return build_study(
        tmp_path_factory.mktemp("study") / "s",
        ks=(2, 8),
        tunings=("lora", "bitfit"),
        rows=120,
        texts=dict.fromkeys(range(0, 120, 7), HOSTILE),
        description=f"A question. {HOSTILE}",
        failures=[failure],
        missing=["not-yet"],
    )


@pytest.fixture(scope="session")
def analysis(tmp_path_factory: pytest.TempPathFactory) -> Analysis:
    """Labels, two k, two tunings, all cells finished."""
    folder = tmp_path_factory.mktemp("analysis") / "s"
    return analyse(build_study(folder, tunings=("lora", "bitfit"), ks=(2, 16)))


@pytest.fixture(scope="session")
def written(tmp_path_factory: pytest.TempPathFactory) -> Analysis:
    """Text, with controls and checkpoints; markup in every fifth answer."""
    folder = tmp_path_factory.mktemp("written") / "s"
    texts = dict.fromkeys(range(0, 150, 5), HOSTILE_ANSWER)
    return analyse(build_written_study(folder, texts=texts))
