"""Cells of a task whose answers are free text, on a tiny model and tiny data."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import load_peft_weights
from tests.conftest import save_tiny
from tests.small import QUIET, SHOTS, reused, write_gsm8k
from torch import Tensor

from instil.errors import ConfigError
from instil.evaluation.answers import Answered
from instil.pipeline import checkpoints
from instil.pipeline.cell import run_cell
from instil.pipeline.judging import Judging
from instil.pipeline.rows import problems_of_rows
from instil.pipeline.text import VALIDATION, TextSteps
from instil.prompts.rendered import RenderedRows
from instil.recipe.canonical import effective
from instil.recipe.grid import override
from instil.recipe.recipe import Recipe
from instil.results.schema import PREDICTIONS, RESULTS, Prediction, Results
from instil.results.training import Checkpoint
from instil.system.files import read_lines
from instil.tasks.rows import Row
from instil.teacher import completions
from instil.teacher.lessons import Lessons

SAMPLED = ("teacher.completions=teacher", "teacher.samples=2", "teacher.sampling_temperature=1")
LEARNING = ("pattern_fine_tuning", "pattern_fine_tuning_in_context", "distillation")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A tiny model with room for demonstrations."""
    return str(save_tiny(tmp_path_factory.mktemp("wide"), "llama", window=4096))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A local copy of the task's sets."""
    return write_gsm8k(tmp_path_factory.mktemp("data"))


Settings = Callable[..., Recipe]


@pytest.fixture
def recipe(model: str, data: Path) -> Settings:
    """A small recipe with changes as `--set` writes them; what its method does not read is left out, as in a study."""

    def make(*changes: str) -> Recipe:
        plain = {
            "model": model,
            "task": {"name": "gsm8k", "folder": str(data)},
            "dtype": "float32",
            "demonstrations": {"k": 2},
            "teacher": {"completions": "gold", "max_new_tokens": 6},
            "training": {"rows": 6, "max_steps": 4, "batch_size": 3, "learning_rate": 1e-2},
            "evaluation": {"rows": 5, "rows_out_of_domain": 3, "validation_rows": 4},
        }
        return effective(Recipe.parse(override(plain, changes)))

    return make


def run(recipe: Recipe, folder: Path, *, store: Path | None = None) -> Results:
    return run_cell(recipe, folder, store=store or folder / "store", display=QUIET)


def prepared(recipe: Recipe, tmp_path: Path) -> TextSteps:
    return TextSteps.prepare(recipe, store=tmp_path, display=QUIET)


def learnt(cell: TextSteps) -> Lessons:
    taught = cell.teach()
    assert taught is not None
    return taught.lessons


def texts(cell: TextSteps, prompts: list[list[int]]) -> list[str]:
    return [cell.models.student.tokenizer.decode(ids) for ids in prompts]


@pytest.mark.parametrize("method", ["zero_shot", "in_context", *LEARNING])
def test_a_cell_tells_what_there_is_to_tell(recipe: Settings, tmp_path: Path, method: str) -> None:
    cell = run(recipe(f"method={method}", "evaluation.at_steps=3"), tmp_path)
    assert Results.read(tmp_path / RESULTS) == cell
    assert (cell.task, cell.labels, cell.method, cell.teacher) == ("gsm8k", [], method, [])
    assert [(s.name, s.domain, s.accuracy.n) for s in cell.methods[0].scores] == [
        ("gsm8k", "in", 5),
        ("svamp", "out", 3),
    ]
    for score in cell.methods[0].scores:
        assert score.cross_entropy is not None
        assert 0 < score.cross_entropy < 20
        assert (score.confusion, score.calibration_error, score.verbalizer_mass) == ({}, None, None)
        assert (score.fidelity is not None) == (method == "distillation")
    reads = method in ("in_context", "pattern_fine_tuning_in_context")
    assert (cell.methods[0].prompt_tokens_mean > 100) == reads
    assert cell.k == (2 if reads or method == "distillation" else 0)
    learns = method in LEARNING
    assert (cell.training is not None) == learns == (cell.shipped_bytes > 0)
    assert cell.tuning == ("lora" if learns else None)
    if cell.training is not None:
        assert (cell.training.rows, cell.training.steps) == (6, 4)
        assert [one.step for one in cell.training.checkpoints] == [0, 3, 4]
        assert sum(one.kept for one in cell.training.checkpoints[1:]) == 1
        for one in cell.training.checkpoints:
            assert one.accuracy.n == 4
            assert (one.fidelity is not None) == (method == "distillation")
    phases = {"load", "evaluate"} | ({"train"} if learns else set())
    assert set(cell.phases) == phases | ({"teach", "keep"} if method == "distillation" else set())
    assert all(cost.wall_seconds > 0 for cost in cell.phases.values())
    lines = read_lines(Prediction, tmp_path / PREDICTIONS)
    assert [line.row for line in lines] == [*range(5), *range(3)]


@pytest.mark.parametrize(
    ("changes", "last"),
    [
        (["training.batch_size=2"], 3),
        (["training.batch_size=4", "training.grad_accumulation=2"], 1),
        (["training.batch_size=2", *SAMPLED], 6),
    ],
)
def test_a_checkpoint_behind_the_last_epoch_is_refused_before_the_teacher_works(
    recipe: Settings, tmp_path: Path, changes: list[str], last: int
) -> None:
    ends = ["method=distillation", "training.max_steps=null", "training.epochs=1"]
    fits, beyond = (f"evaluation.at_steps=[{step}]" for step in (last, last + 1))
    prepared(recipe(*ends, *changes, fits), tmp_path)
    with pytest.raises(ConfigError, match=rf"step {last + 1}; training has {last} steps for"):
        prepared(recipe(*ends, *changes, beyond), tmp_path)
    assert problems_of_rows([recipe(*ends, *changes, fits)]) == []
    (told,) = problems_of_rows([recipe(*ends, *changes, beyond)])
    assert f"got: step {last + 1}" in told


def test_what_is_written_is_counted(recipe: Settings, tmp_path: Path) -> None:
    """The answers' tokens are most of what evaluation computes, and those of a checkpoint are no training's."""
    short = run(recipe("method=zero_shot", "teacher.max_new_tokens=2"), tmp_path / "short")
    long = run(recipe("method=zero_shot", "teacher.max_new_tokens=40"), tmp_path / "long")
    more = long.phases["evaluate"].tokens - short.phases["evaluate"].tokens
    assert 0 < more <= 8 * 38
    plain, watched = (
        run(recipe("method=pattern_fine_tuning", *changes), tmp_path / f"{len(changes)}").phases
        for changes in ([], ["evaluation.at_steps=2"])
    )
    assert watched["train"].tokens == plain["train"].tokens
    assert watched["evaluate"].tokens > plain["evaluate"].tokens


def test_what_the_teacher_writes_is_written_once(
    recipe: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cells that share a store learn the same answers, and each of them counts what they have cost."""
    first = run(recipe(*SAMPLED), tmp_path / "first", store=tmp_path / "store")
    assert reused(first) == []
    monkeypatch.setattr(completions, "completed", None)
    again = run(
        recipe(*SAMPLED, "training.max_steps=1"), tmp_path / "again", store=tmp_path / "store"
    )
    assert reused(again) == ["generate", "teach"]
    for name in ("generate", "teach"):
        assert again.phases[name].tokens == first.phases[name].tokens > 0
    with pytest.raises(TypeError):  # other samples are other answers
        run(recipe(*SAMPLED, "seed=1"), tmp_path / "other", store=tmp_path / "store")


@pytest.mark.parametrize("flexible", ["true", "false"])
def test_a_prediction_is_as_expected_where_it_is_right_and_nowhere_else(
    recipe: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flexible: str
) -> None:
    """Not even where the number is the right one, and the task wants it to be marked."""

    def wordy(row: Row, number: int) -> str:
        gold = str(row.output)
        bare = gold.rpartition(" ")[2]
        forms = [f"Well,\n{gold}.0\n", f"So it is {bare} of them", "#### 7", "I do not know.", ""]
        return forms[number % len(forms)]

    def answers(self: Any, rows: RenderedRows, name: Any, show: Any) -> list[Answered]:
        return [said(wordy(row, number)) for number, row in enumerate(rows.rows)]

    monkeypatch.setattr(Judging, "answers", answers)
    cell = run(recipe("method=zero_shot", f"task.flexible={flexible}"), tmp_path)
    lines = read_lines(Prediction, tmp_path / PREDICTIONS)
    right = [line.row % 5 == 0 or (line.row % 5 == 1 and flexible == "true") for line in lines]
    assert [line.predicted == line.expected for line in lines] == right
    assert [line.predicted for line in lines if line.row % 5 == 2] == ["7", "7"]
    assert all(line.expected.isdigit() for line in lines)
    assert lines[0].text == f"Well,\nIt is {lines[0].expected}.\n#### {lines[0].expected}.0\n"
    assert [round(score.accuracy.value * score.accuracy.n) for score in cell.methods[0].scores] == [
        sum(right[:5]),
        sum(right[5:]),
    ]


def said(text: str) -> Answered:
    """An answer with this text."""
    return Answered(text, ids=[1], finished=True, repeats=False)


def adapter(cell: TextSteps | Judging) -> dict[str, Tensor]:
    network: Any = cell.models.student.network
    return {n: p.detach().clone() for n, p in network.named_parameters() if p.requires_grad}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return all(torch.equal(other[name], value) for name, value in one.items())


@pytest.mark.parametrize("best", [1, 2, 3])
def test_the_best_checkpoint_is_kept_and_judged_and_saved(
    recipe: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, best: int
) -> None:
    asked: list[tuple[str, dict[str, Tensor]]] = []

    def answers(self: Judging, rows: RenderedRows, name: Any, show: Any) -> list[Answered]:
        asked.append((rows.name, adapter(self)))
        right = len(asked) - 1 in (0, best)
        return [said(str(row.output) if right else "none") for row in rows.rows]

    monkeypatch.setattr(Judging, "answers", answers)
    cell = run(recipe("training.max_steps=3", "evaluation.at_steps=1"), tmp_path)
    assert [name for name, _ in asked] == [VALIDATION] * 4 + ["gsm8k", "svamp"]
    assert cell.training is not None
    told = [(one.step, one.accuracy.value, one.kept) for one in cell.training.checkpoints]
    assert told == [(0, 1.0, False)] + [
        (step, float(step == best), step == best) for step in (1, 2, 3)
    ]
    states = [state for _, state in asked]
    assert [same(state, states[best]) for state in states[1:4]] == [
        step == best for step in (1, 2, 3)
    ]
    assert all(same(state, states[best]) for state in states[4:])
    saved = load_peft_weights(str(tmp_path / "adapter"), device="cpu")
    kept = {name.replace(".default", ""): value for name, value in states[best].items()}
    assert same(saved, kept)


@pytest.mark.parametrize("ends", ["in training", "in evaluation"])
def test_an_interrupted_cell_goes_on_to_the_same_student(
    recipe: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ends: str
) -> None:
    changes = ["training.max_steps=6", "training.learning_rate=0.05", "evaluation.at_steps=1"]
    asked = recipe("tuning.dropout=0.1", "teacher.completions=teacher", *changes)
    whole = run(asked, tmp_path / "whole")
    owner, name = (checkpoints.Watch, "add") if ends == "in training" else (Judging, "set")
    usual, calls = getattr(owner, name), []

    def stop(self: Any, *arguments: Any) -> Any:
        calls.append(arguments)
        if len(calls) == (5 if name == "add" else 2):
            raise KeyboardInterrupt
        return usual(self, *arguments)

    monkeypatch.setattr(owner, name, stop)
    with pytest.raises(KeyboardInterrupt):
        run(asked, tmp_path / "cut")
    monkeypatch.undo()
    again = run(asked, tmp_path / "cut")
    assert whole.training is not None
    assert again.training is not None
    assert again.training.checkpoints == whole.training.checkpoints
    assert again.methods[0].scores == whole.methods[0].scores
    assert same(
        *(load_peft_weights(str(tmp_path / n / "adapter"), device="cpu") for n in ("whole", "cut"))
    )
    assert again.phases["generate"].tokens == whole.phases["generate"].tokens
    assert sorted(p.name for p in (tmp_path / "cut").iterdir()) == sorted(
        p.name for p in (tmp_path / "whole").iterdir()
    )
    assert not (tmp_path / "cut" / "scratch").exists()


@pytest.mark.parametrize("method", ["distillation", "pattern_fine_tuning"])
def test_of_equally_accurate_checkpoints_the_nearest_is_kept(
    recipe: Settings, tmp_path: Path, method: str
) -> None:
    """A tiny model solves nothing, so all are equally accurate."""
    changes = ["training.max_steps=6", "training.learning_rate=0.1", "evaluation.at_steps=1"]
    cell = run(recipe(f"method={method}", *changes), tmp_path)
    assert cell.training is not None
    seen = cell.training.checkpoints
    assert {one.accuracy.value for one in seen} == {0}

    def apart(one: Any) -> float:
        return float(one.fidelity.kl_to_teacher if one.fidelity else one.cross_entropy)

    assert len({apart(one) for one in seen}) > 1
    assert [one for one in seen if one.kept] == [min(seen[1:], key=apart)]


def test_validation_rows_are_neither_learnt_nor_shown_nor_reported_on(
    recipe: Settings, tmp_path: Path
) -> None:
    changes = ("evaluation.at_steps=2", "demonstrations.draw=per_query", "demonstrations.k=3")
    cell = prepared(recipe(*changes), tmp_path)
    assert cell.validation is not None
    watched = [row.input for row in cell.rows.drawn.validation]
    assert len(set(watched)) == len(cell.validation.rows) == 4
    known = [
        cell.rows.drawn.training,
        cell.rows.drawn.pool,
        *(one.rows for one in cell.rows.drawn.sets),
    ]
    assert not any(row.input in watched for rows in known for row in rows)
    told = [cell.learnt, *(rows for _, rows in cell.sets)]
    shown = [text for rows in told for text in texts(cell, rows.teacher_prompts)]
    assert not any(question in text for question in watched for text in shown)
    assert prepared(recipe(), tmp_path).validation is None


def demonstrated(cell: TextSteps, rows: RenderedRows) -> list[list[tuple[str, str]]]:
    """(question, answer) of the turns before each query."""
    made = []
    for text in texts(cell, rows.teacher_prompts):
        turns = [turn.partition("\n")[2] for turn in text.split("<|start|>")[1:]]
        said = [turn.replace("<|end|>\n", "") for turn in turns]
        made.append(list(zip(said[:-2:2], said[1:-1:2], strict=True)))
    return made


def test_fixed_demonstrations_are_the_same_in_every_prompt_but_the_students(
    recipe: Settings, tmp_path: Path
) -> None:
    cell = prepared(recipe(), tmp_path)
    told = [cell.learnt, *(rows for _, rows in cell.sets)]
    shots = [shown for rows in told for shown in demonstrated(cell, rows)]
    assert all(shown == shots[0] for shown in shots)
    pool = {(row.input, row.output) for row in cell.rows.drawn.pool}
    assert len(shots[0]) == 2
    assert set(shots[0]) <= pool
    assert not any("Train" in text for text in texts(cell, cell.sets[0][1].student_prompts))


def test_demonstrations_drawn_per_query_differ_and_leave_the_query_out(
    recipe: Settings, tmp_path: Path
) -> None:
    cell = prepared(recipe("demonstrations.draw=per_query", "demonstrations.k=6"), tmp_path)
    shots = demonstrated(cell, cell.learnt)
    assert len({tuple(shown) for shown in shots}) == len(shots) == 6
    assert all(len(set(shown)) == 6 for shown in shots)
    again = prepared(recipe("demonstrations.draw=per_query", "demonstrations.k=6"), tmp_path)
    assert demonstrated(again, again.learnt) == shots


@pytest.mark.parametrize("draw", ["fixed", "per_query"])
def test_a_watched_students_teacher_reads_what_the_in_context_cell_reads(
    recipe: Settings, tmp_path: Path, draw: str
) -> None:
    changes = ("evaluation.at_steps=2", f"demonstrations.draw={draw}")
    teacher, in_context = (
        prepared(recipe(f"method={method}", *changes), tmp_path)
        for method in ("distillation", "in_context")
    )
    for (_, one), (_, other) in zip(teacher.sets, in_context.sets, strict=True):
        assert demonstrated(teacher, one) == demonstrated(in_context, other)


@pytest.mark.parametrize("draw", ["fixed", "per_query"])
def test_shuffled_answers_are_the_same_answers_at_other_questions(
    recipe: Settings, tmp_path: Path, draw: str
) -> None:
    changes = (f"demonstrations.draw={draw}", "demonstrations.k=6")
    cell = prepared(recipe(*changes), tmp_path)
    mixed = prepared(recipe(*changes, "demonstrations.answers=shuffled"), tmp_path)
    for gold, shuffled in zip(
        demonstrated(cell, cell.learnt), demonstrated(mixed, mixed.learnt), strict=True
    ):
        assert [question for question, _ in gold] == [question for question, _ in shuffled]
        assert sorted(answer for _, answer in gold) == sorted(answer for _, answer in shuffled)
        assert gold != shuffled
    assert list(mixed.learnt.gold) == list(cell.learnt.gold)


def test_the_tasks_own_demonstrations_are_its_first_k(recipe: Settings, tmp_path: Path) -> None:
    cell = prepared(recipe("task.prompt=wei", "demonstrations.k=3"), tmp_path)
    expected = [(shot["question"], shot["answer"]) for shot in SHOTS[:3]]
    assert demonstrated(cell, cell.learnt) == [expected] * 6
    assert [demonstrated(cell, rows) for _, rows in cell.sets] == [[expected] * 5, [expected] * 3]


def test_fine_tuning_in_context_learns_from_the_prompts_that_it_answers(
    recipe: Settings, tmp_path: Path
) -> None:
    cell = prepared(recipe("method=pattern_fine_tuning_in_context"), tmp_path)
    lessons = learnt(cell)
    assert [one.student_prompt for one in lessons] == list(cell.learnt.teacher_prompts)
    plain = prepared(recipe("method=pattern_fine_tuning"), tmp_path)
    lessons = learnt(plain)
    assert [one.student_prompt for one in lessons] == list(plain.learnt.student_prompts)
    assert [one.completion for one in lessons] == list(plain.learnt.gold)


def test_a_second_cell_reuses_the_teachers_part_and_tells_so(
    recipe: Settings, tmp_path: Path
) -> None:
    first = run(recipe(), tmp_path / "one", store=tmp_path / "store")
    second = run(recipe("tuning.r=2"), tmp_path / "two", store=tmp_path / "store")
    assert (reused(first), reused(second)) == ([], ["teach"])
    assert second.phases["teach"] == first.phases["teach"]
    other = run(recipe("demonstrations.k=1"), tmp_path / "three", store=tmp_path / "store")
    assert reused(other) == []


def test_a_teacher_may_write_what_is_learnt(recipe: Settings, tmp_path: Path) -> None:
    cell = prepared(recipe("teacher.completions=teacher"), tmp_path)
    lessons = learnt(cell)
    assert all(len(one.completion) <= 6 for one in lessons)
    assert [one.completion for one in lessons] != list(cell.learnt.gold)
    assert cell.recorder.costs()["generate"].tokens > 0


def test_a_student_with_hidden_states_to_learn_is_trained(recipe: Settings, tmp_path: Path) -> None:
    plain = run(recipe("objective={name: cross_entropy}"), tmp_path / "one")
    both = "objective=[{name: cross_entropy}, {name: hidden_state}]"
    hidden = run(recipe(both), tmp_path / "two")
    assert plain.training is not None
    assert hidden.training is not None
    assert hidden.training.loss[0][1] > plain.training.loss[0][1] + 0.01
    assert "teach" not in hidden.phases


def test_the_loss_curve_is_in_the_cells_folder(recipe: Settings, tmp_path: Path) -> None:
    run(recipe("training.report_to=tensorboard"), tmp_path)
    assert len(list((tmp_path / "tensorboard").iterdir())) == 1


def test_weights_are_not_kept_where_nobody_wants_them(recipe: Settings, tmp_path: Path) -> None:
    run(recipe("student.save=false", "evaluation.at_steps=4"), tmp_path)
    assert not (tmp_path / "adapter").exists()


def test_a_checkpoint_asks_no_hub(
    recipe: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PEFT looks for the base model's settings there where it is to decide by itself what an adapter holds."""
    from peft.utils import save_and_load

    def fail(*args: Any) -> None:
        raise AssertionError("the hub was asked")

    monkeypatch.setattr(save_and_load, "check_file_exists_on_hf_hub", fail)
    cell = prepared(recipe("method=pattern_fine_tuning", "evaluation.at_steps=2"), tmp_path)
    network: Any = cell.models.student.network
    network.peft_config["default"].base_model_name_or_path = "owner/name"
    validation = cell.validation
    assert validation is not None
    checkpoints.Watch(network, Checkpoint, tmp_path).add(cell.judging.checkpoint(validation, 2))
