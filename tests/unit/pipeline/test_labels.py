"""Whole cells of a classification study, on tiny models."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from statistics import mean
from typing import Any

import pytest
import torch
from tests.conftest import byte_tokenizer, save_tiny, tiny_llama
from tests.small import reused

from instil.errors import AlignmentError, TokenizerMismatchError, TuningError
from instil.losses.label_kl import LabelTargets
from instil.models.load import load
from instil.pipeline.cell import run_cell
from instil.pipeline.labels import LabelSteps
from instil.recipe.recipe import Recipe
from instil.results.schema import PREDICTIONS, RESULTS, Prediction, Results
from instil.system.files import read_lines
from instil.system.progress import Display
from instil.teacher import labels

Run = Callable[..., Results]
FORMS = {"good": " Yes", "bad": " No", "mixed": " Nay"}


def rows(name: str, number: int) -> list[dict[str, Any]]:
    return [
        {"text": f"{name} {n * 37 % 101}", "label": list(FORMS)[n % 3], "other": "unread"}
        for n in range(number)
    ]


@pytest.fixture
def run(
    tmp_path: Path,
    jsonl: Callable[[str, list[dict[str, Any]]], Path],
    model_folders: dict[str, Path],
) -> Run:
    """Runs a cell in a folder of its own; all cells of a test share one store."""
    task = {
        "name": "classification",
        "pattern": "{text}\nGood?",
        "verbalizer": {label: [form.strip()] for label, form in FORMS.items()},
        "train": str(jsonl("train.jsonl", rows("train", 40))),
        "in_domain": {"here": str(jsonl("here.jsonl", rows("here", 9)))},
        "out_of_domain": {"there": str(jsonl("there.jsonl", rows("there", 5)))},
    }

    def go(method: str, family: str = "opt", *, name: str = "", **changed: Any) -> Results:
        settings: dict[str, Any] = {
            "model": str(model_folders[family]),
            "task": task | changed.pop("task", {}),
            "method": method,
            "dtype": "float32",
            "demonstrations": {"k": 3} | changed.pop("demonstrations", {}),
            "training": {"rows": 12, "max_steps": 2, "batch_size": 4, "learning_rate": 1e-2}
            | changed.pop("training", {}),
        }
        folder = tmp_path / "cells" / (name or f"{len(list(tmp_path.glob('cells/*')))}")
        folder.mkdir(parents=True)
        recipe = Recipe.parse(settings | changed)
        made = run_cell(recipe, folder, store=tmp_path / "store", display=Display(quiet=True))
        return made.model_copy(update={"name": folder.name})  # as a study names it

    return go


def predictions(tmp_path: Path, cell: Results) -> list[Prediction]:
    return read_lines(Prediction, tmp_path / "cells" / cell.name / PREDICTIONS)


def probabilities(tmp_path: Path, cell: Results) -> torch.Tensor:
    return torch.tensor([[*p.probabilities.values()] for p in predictions(tmp_path, cell)])


def check_sound(tmp_path: Path, cell: Results) -> None:
    """What holds of every cell."""
    folder = tmp_path / "cells" / cell.name
    assert Results.read(folder / RESULTS) == cell.model_copy(update={"name": ""})
    said = predictions(tmp_path, cell)
    assert [(p.set, p.row) for p in said] == [
        (name, n) for name, number in (("here", 9), ("there", 5)) for n in range(number)
    ]
    for one in said:
        assert list(one.probabilities) == ["good", "bad", "mixed"]
        assert sum(one.probabilities.values()) == pytest.approx(1, abs=1e-5)
        assert one.probabilities[one.predicted] == max(one.probabilities.values())
    gold = {f"{r['text']}\nGood?": r["label"] for r in [*rows("here", 9), *rows("there", 5)]}
    for score in cell.methods[0].scores:
        mine = [p for p in said if p.set == score.name]
        assert [p.expected for p in mine] == [gold[p.input] for p in mine]
        right = sum(p.predicted == p.expected for p in mine)
        assert score.accuracy.n == len(mine)
        assert score.accuracy.value == pytest.approx(right / len(mine))
        assert sum(n for line in score.confusion.values() for n in line.values()) == len(mine)
        assert sum(score.confusion[label][label] for label in cell.labels) == right
        assert score.chance == pytest.approx(1 / 3)
        assert 0 <= score.calibration_error <= 1
    assert [(s.name, s.domain) for s in cell.methods[0].scores] == [
        ("here", "in"),
        ("there", "out"),
    ]
    assert not [p for p in folder.iterdir() if "scratch" in p.name or p.suffix == ".part"]


TRAINED = [
    "vanilla_fine_tuning",
    "pattern_fine_tuning",
    "pattern_fine_tuning_in_context",
    "distillation",
]
UNTRAINED = {"max_steps": 1, "learning_rate": 1e-12}
WEIGHTS = {"full": "model", "bitfit": "trained.safetensors", "lora": "adapter"}


@pytest.mark.parametrize("tuning", WEIGHTS)
@pytest.mark.parametrize("method", TRAINED)
def test_every_method_that_learns(run: Run, tmp_path: Path, method: str, tuning: str) -> None:
    cell = run(method, tuning={"name": tuning}, objective={"alpha": 0.5})
    check_sound(tmp_path, cell)
    assert (cell.method, cell.tuning) == (method, tuning)
    assert cell.training is not None
    assert (cell.training.rows, cell.training.steps) == (12, 2)
    assert cell.shipped_bytes == 4 * cell.training.trainable_parameters > 0
    assert (cell.training.trainable_share == 1) == (tuning == "full")
    # transformers has no class for a whole language model with our head
    headed = (method, tuning) == ("vanilla_fine_tuning", "full")
    saved = WEIGHTS["bitfit" if headed else tuning]
    assert (tmp_path / "cells" / cell.name / saved).exists()
    assert cell.k == (3 if method in ("distillation", "pattern_fine_tuning_in_context") else 0)
    assert (cell.phases.keys() >= {"load", "train", "evaluate"}) is True
    assert ("teach" in cell.phases) == (method == "distillation")
    for score in cell.methods[0].scores:
        assert (score.verbalizer_mass is None) == (method == "vanilla_fine_tuning")
        assert (score.fidelity is not None) == (method == "distillation")
    assert len(cell.teacher) == (2 if method == "distillation" else 0)


@pytest.mark.parametrize("family", ["llama", "opt", "gpt2"])
@pytest.mark.parametrize("method", ["zero_shot", "in_context"])
def test_every_method_that_only_answers(run: Run, tmp_path: Path, method: str, family: str) -> None:
    cell = run(method, family)
    check_sound(tmp_path, cell)
    assert (cell.training, cell.tuning, cell.shipped_bytes) == (None, None, 0)
    assert cell.k == (3 if method == "in_context" else 0)


def test_bitfit_without_biases_is_refused(run: Run) -> None:
    with pytest.raises(TuningError, match="has none"):
        run("pattern_fine_tuning", "llama", tuning={"name": "bitfit"})


def naive(folder: Path, prompts: list[str]) -> torch.Tensor:
    """The labels' probabilities from the text of the prompts, in the textbook way."""
    model = load(str(folder), dtype="float32")
    made = []
    for prompt in prompts:
        logprobs = []
        for form in FORMS.values():
            start, ids = len(prompt), model.tokenizer(prompt + form)["input_ids"]
            with torch.no_grad():
                logits = model.network(input_ids=torch.tensor([ids], device=model.device)).logits[
                    0, start - 1 : -1
                ]
            logprobs.append(logits.log_softmax(-1)[range(len(form)), ids[start:]].sum())
        made.append(torch.stack(logprobs).softmax(-1))
    return torch.stack(made).cpu()


def test_predictions_are_those_of_the_prompts_as_text(
    run: Run, tmp_path: Path, model_folders: dict[str, Path]
) -> None:
    """One demonstration whose label is known from the pool: nothing else of the path is used."""
    zero, one = run("zero_shot"), run("in_context", demonstrations={"k": 1})
    queries = [p.input for p in predictions(tmp_path, zero)]
    expected = naive(model_folders["opt"], queries)
    torch.testing.assert_close(probabilities(tmp_path, zero), expected, atol=1e-5, rtol=0)
    assert zero.methods[0].prompt_tokens_mean == pytest.approx(
        (sum(map(len, queries[:9])) / 9 + sum(map(len, queries[9:])) / 5) / 2
    )
    got, close = probabilities(tmp_path, one), []
    for row in rows("train", 40):
        shot = f"{row['text']}\nGood?{FORMS[row['label']]}\n\n"
        close.append((naive(model_folders["opt"], [shot + queries[0]]) - got[:1]).abs().max())
    best = int(torch.stack(close).argmin())
    row = rows("train", 40)[best]
    shot = f"{row['text']}\nGood?{FORMS[row['label']]}\n\n"
    expected = naive(model_folders["opt"], [shot + query for query in queries])
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=0)


def test_the_prefix_stands_before_everything_on_both_sides(
    run: Run, tmp_path: Path, model_folders: dict[str, Path]
) -> None:
    zero, none = (
        run(method, task={"prefix": "Judge."}, demonstrations={"k": 0})
        for method in ("zero_shot", "in_context")
    )
    queries = [f"Judge.\n\n{p.input}" for p in predictions(tmp_path, zero)]
    expected = naive(model_folders["opt"], queries)
    for cell in (zero, none):
        torch.testing.assert_close(probabilities(tmp_path, cell), expected, atol=1e-5, rtol=0)


def test_a_teacher_without_demonstrations_has_nothing_to_teach_itself(
    run: Run, tmp_path: Path
) -> None:
    for over in ("labels", "labels_and_mass", "vocabulary"):
        cell = run(
            "distillation",
            "llama",  # the one without dropout
            demonstrations={"k": 0},
            objective={"over": over},
            training=UNTRAINED,
            teacher={"top_k": 1000},
            keep={"source": "none"},
        )
        check_sound(tmp_path, cell)
        assert cell.training is not None
        assert cell.training.loss[0][1] == pytest.approx(0, abs=1e-6)
        for score in cell.methods[0].scores:
            assert score.fidelity is not None
            assert score.fidelity.kl_to_teacher == pytest.approx(0, abs=1e-6)
            assert score.fidelity.agreement == 1


@pytest.mark.parametrize(
    ("settings", "closer"),
    [
        ({"tuning": {"name": "lora"}}, 0.4),
        ({"tuning": {"name": "full"}}, 0.4),
        ({"objective": {"over": "vocabulary"}}, 0.6),
        ({"objective": {"over": "labels_and_mass"}}, 0.6),
        ({"prompt": {"format": "chat"}}, 0.3),
        ({"demonstrations": {"draw": "per_query"}}, 0.6),
        ({"teacher": {"contexts": 2, "calibration": "batch"}}, 0.3),
        ({"student": {"keep_layers": 1}}, 0.3),
    ],
    ids=str,
)
def test_a_student_imitates_its_teacher(
    run: Run, tmp_path: Path, settings: dict[str, Any], closer: float
) -> None:
    kl = []
    for training in (UNTRAINED, {"max_steps": 60}):
        cell = run("distillation", training={"rows": 24, **training}, **settings)
        check_sound(tmp_path, cell)
        kl.append(
            [score.fidelity.kl_to_teacher for score in cell.methods[0].scores if score.fidelity]
        )
    assert cell.training is not None
    losses = [
        loss for _, loss in cell.training.loss
    ]  # a step's own wobbles with the model's dropout
    assert mean(losses[-10:]) < 0.7 * mean(losses[:10])  # kept texts cannot get nearer
    assert len(kl[0]) == len(kl[1]) == 2
    assert sum(kl[1]) < closer * sum(kl[0])


def test_the_mass_that_is_taught_is_the_mean_over_contexts_and_not_calibrated(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: dict[str, Any] = {}
    taught: list[LabelTargets] = []
    score, train = labels.LabelTeacher.score, LabelSteps.train

    def scored(self: Any, what: str, *rest: Any, **settings: Any) -> Any:
        found = score(self, what, *rest, **settings)
        said[what] = found[0].logprobs_RL
        return found

    def trained(self: Any, given: Any, folder: Path) -> Any:
        taught[:] = given.targets
        return train(self, given, folder)

    monkeypatch.setattr(labels.LabelTeacher, "score", scored)
    monkeypatch.setattr(LabelSteps, "train", trained)
    teacher = {"contexts": 2, "calibration": "batch"}
    run("distillation", teacher=teacher, objective={"over": "labels_and_mass"})
    read = [logprobs for what, logprobs in said.items() if "training rows" in what]
    assert len(read) == 2
    expected = sum(one.exp().sum(-1) for one in read) / 2
    torch.testing.assert_close(LabelTargets.cat(taught).mass_R, expected)
    run("distillation", teacher=teacher, objective={"over": "labels"})
    assert LabelTargets.cat(taught).mass_R is None


@pytest.mark.parametrize("method", ["vanilla_fine_tuning", "pattern_fine_tuning"])
def test_fine_tuning_learns_the_gold_labels(run: Run, method: str) -> None:
    first, last = (
        cell.training.loss[-1][1]
        for cell in (run(method, training=training) for training in (UNTRAINED, {"max_steps": 60}))
        if cell.training
    )
    assert last < 0.3 * first


@pytest.mark.parametrize("method", ["in_context", "vanilla_fine_tuning", "distillation"])
def test_the_same_recipe_says_the_same(run: Run, tmp_path: Path, method: str) -> None:
    settings: dict[str, Any] = {"demonstrations": {"draw": "per_query"}, "training": {"rows": 8}}
    one, again, other = (run(method, seed=seed, **settings) for seed in (3, 3, 4))
    assert torch.equal(probabilities(tmp_path, one), probabilities(tmp_path, again))
    assert one.training == again.training
    assert not torch.equal(probabilities(tmp_path, one), probabilities(tmp_path, other))


def test_all_methods_are_judged_on_the_same_rows(run: Run, tmp_path: Path) -> None:
    asked = [
        [
            (p.set, p.row, p.input)
            for p in predictions(tmp_path, run(method, evaluation={"rows": 4}))
        ]
        for method in ("zero_shot", "in_context", "vanilla_fine_tuning", "distillation")
    ]
    assert len(asked[0]) == 8
    assert all(one == asked[0] for one in asked)


def test_cells_share_what_the_teacher_said(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = run("distillation")
    assert reused(first) == []
    real = labels.load

    def fail(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("the teacher was loaded")

    monkeypatch.setattr(labels, "load", fail)
    second = run("distillation", tuning={"name": "bitfit"})
    assert reused(second) == ["teach"]
    assert second.phases["teach"] == first.phases["teach"]
    assert second.teacher == first.teacher
    third = run("in_context")
    assert reused(third) == ["evaluate"]
    without = [score.model_copy(update={"fidelity": None}) for score in third.methods[0].scores]
    assert without == first.teacher
    with pytest.raises(AssertionError, match="the teacher was loaded"):
        run("in_context", seed=1)
    monkeypatch.setattr(labels, "load", real)
    assert reused(run("in_context", seed=1)) == []


def test_what_is_computed_once_is_paid_once(run: Run) -> None:
    plain = run("distillation", demonstrations={"k": 2})
    calibrated = run("distillation", teacher={"calibration": "batch"}, demonstrations={"k": 4})
    assert reused(calibrated) == reused(plain) == []
    assert calibrated.phases["teach"].steps == plain.phases["teach"].steps


def test_a_larger_model_teaches(run: Run, tmp_path: Path, model_folders: dict[str, Path]) -> None:
    other = str(save_tiny(tmp_path / "other", "gpt2", seed=7))
    asked = run("in_context", teacher={"model": other})
    own = run("in_context")
    cell = run("distillation", teacher={"model": other}, student={"keep_layers": 1})
    check_sound(tmp_path, cell)
    assert (asked.teacher_model, own.teacher_model, cell.teacher_model) == (other, None, other)
    assert asked.methods[0].scores == cell.teacher != own.methods[0].scores
    assert cell.model == str(model_folders["opt"])
    assert run("zero_shot", teacher={"model": other}).teacher_model is None


def test_a_teacher_of_other_tokens_is_refused(run: Run, tmp_path: Path) -> None:
    tokenizer = byte_tokenizer()
    tokenizer.add_tokens(["one more"])
    tiny_llama(len(tokenizer)).save_pretrained(tmp_path / "other")
    tokenizer.save_pretrained(tmp_path / "other")
    with pytest.raises(TokenizerMismatchError):
        run("distillation", teacher={"model": str(tmp_path / "other")})


@pytest.mark.parametrize("calibration", ["none", "batch", "contextual"])
def test_several_contexts_are_averaged(run: Run, tmp_path: Path, calibration: str) -> None:
    cell = run("in_context", teacher={"contexts": 3, "calibration": calibration})
    check_sound(tmp_path, cell)
    one = run("in_context", teacher={"contexts": 1, "calibration": calibration})
    assert not torch.equal(probabilities(tmp_path, cell), probabilities(tmp_path, one))
    for score, alone in zip(cell.methods[0].scores, one.methods[0].scores, strict=True):
        assert len(score.single_contexts) == 3
        assert alone.single_contexts == []
        first = score.single_contexts[0]
        assert (first.calibrated is None) == (calibration == "none")
        said = first.accuracy if first.calibrated is None else first.calibrated
        assert said == pytest.approx(alone.accuracy.value)


@pytest.mark.parametrize("calibration", ["batch", "contextual"])
def test_calibration_reads_no_gold_label(run: Run, tmp_path: Path, calibration: str) -> None:
    """The evaluation rows' labels, all wrong, change the scores and no prediction."""
    asked = {"teacher": {"calibration": calibration}}
    wrong = tmp_path / "wrong.jsonl"
    lines = [row | {"label": "bad"} for row in rows("here", 9)]
    wrong.write_text("".join(json.dumps(line) + "\n" for line in lines))
    for method in ("in_context", "distillation"):
        true = run(method, **asked)
        false = run(method, task={"in_domain": {"here": str(wrong)}}, **asked)
        assert torch.equal(probabilities(tmp_path, true), probabilities(tmp_path, false))
        assert true.methods[0].scores != false.methods[0].scores


def test_pure_distillation_reads_no_gold_label(run: Run, tmp_path: Path) -> None:
    other = str(save_tiny(tmp_path / "other", "opt", seed=7))
    wrong = tmp_path / "wrong.jsonl"
    lines = [row | {"label": "bad"} for row in rows("train", 40)]
    wrong.write_text("".join(json.dumps(line) + "\n" for line in lines))
    for alpha in (1.0, 0.5):
        settings = {
            "teacher": {"model": other, "contexts": 2, "calibration": "batch"},
            "demonstrations": {"k": 0},
            "objective": {"alpha": alpha},
            "training": {"max_steps": 4},
        }
        true, false = (
            probabilities(tmp_path, run("distillation", **settings, task=task))
            for task in ({}, {"train": str(wrong)})
        )
        assert torch.equal(true, false) == (alpha == 1)


def test_a_training_row_beyond_the_window_is_refused(
    run: Run, tmp_path: Path, jsonl: Callable[[str, list[dict[str, Any]]], Path]
) -> None:
    long = [row | {"text": "long " * 20 + str(n)} for n, row in enumerate(rows("train", 40))]
    task = {"train": str(jsonl("long.jsonl", long))}
    model = str(save_tiny(tmp_path / "short", "llama", window=64))
    with pytest.raises(AlignmentError, match="training rows, sampled row 1"):
        run("pattern_fine_tuning", model=model, task=task)


def test_every_row_is_checked_before_any_training(
    run: Run,
    tmp_path: Path,
    jsonl: Callable[[str, list[dict[str, Any]]], Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    long = [*rows("there", 3), {"text": "long " * 20, "label": "bad"}]
    task = {"out_of_domain": {"there": str(jsonl("long.jsonl", long))}}
    model = str(save_tiny(tmp_path / "short", "llama", window=64))
    monkeypatch.setattr(LabelSteps, "_load_student", lambda self: pytest.fail("it was loaded"))
    with pytest.raises(AlignmentError, match="there, sampled row"):
        run("pattern_fine_tuning", model=model, task=task)


def test_a_query_is_sent_under_each_context(run: Run) -> None:
    one = run("in_context")
    both = run("in_context", teacher={"contexts": 2})
    assert 1.8 < both.methods[0].prompt_tokens_mean / one.methods[0].prompt_tokens_mean < 2.2


def test_rows_without_labels_are_distilled_on(
    run: Run,
    monkeypatch: pytest.MonkeyPatch,
    jsonl: Callable[[str, list[dict[str, Any]]], Path],
) -> None:
    inputs = jsonl("inputs.jsonl", [{"text": f"raw {n}"} for n in range(14)])
    taught: list[Any] = []
    train = LabelSteps.train

    def trained(self: Any, given: Any, folder: Path) -> Any:
        prompts = self._prompts("training rows", self.rows.drawn.training, context=False)
        taught[:] = [prompts, LabelTargets.cat(given.targets)]
        return train(self, given, folder)

    monkeypatch.setattr(LabelSteps, "train", trained)
    teacher = {"contexts": 2, "calibration": "batch"}
    cell = run("distillation", task={"unlabelled": str(inputs)}, teacher=teacher)
    assert cell.training is not None
    assert cell.training.rows == 12
    prompts, targets = taught
    assert all("raw" in byte_tokenizer().decode(prompt) for prompt in prompts)
    assert targets.gold_R.tolist() == [-1] * 12
    before = Recipe.model_validate(cell.recipe).task
    known = before.digest()
    jsonl("inputs.jsonl", [{"text": f"other {n}"} for n in range(14)])
    assert before.digest() != known
    whole = run("distillation", task={"unlabelled": str(inputs)}, objective={"over": "vocabulary"})
    assert whole.training is not None
    assert whole.training.rows == 12
