"""What a model says of a set of rows, and what that scores."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from instil.evaluation.labels import Judgement, label_logprobs, right_rows
from instil.models.load import LanguageModel
from instil.models.reshape import put_head
from instil.prompts.labels import LabelTokens
from instil.results.scores import SingleContext
from instil.tasks.rows import Row
from instil.tasks.split import EvaluationSet

LABELS = ("a", "b", "c")
PROBS = torch.tensor([[0.72, 0.2, 0.08], [0.1, 0.84, 0.06], [0.2, 0.15, 0.65], [0.55, 0.25, 0.2]])
SET = EvaluationSet("far", "out", [Row(f"row {n}", gold) for n, gold in enumerate("abba")])
# Forms of one, two and three bytes; two of them part ways after their first byte.
TOKENS = LabelTokens(LABELS, (((70,),), ((71, 80), (72,)), ((71, 81, 82),)))
PROMPTS = [list(text) for text in (b"red fish", b"blue", b"one more fish", b"two", b"red")]


def judged(
    probs_RL: torch.Tensor = PROBS,
    mass: float | None = 0.5,
    singles: tuple[SingleContext, ...] = (),
) -> Judgement:
    return Judgement(probs_RL, mass, list(singles), prompt_tokens=7.0)


def nothing(rows: int, tokens: int) -> None:
    pass


def test_a_judgement_is_scored_by_its_likeliest_labels() -> None:
    singles = (SingleContext(accuracy=0.5, calibrated=None),)
    score = judged(singles=singles).score(LABELS, SET, teacher=None)
    assert (score.name, score.domain, score.rows) == ("far", "out", 4)
    assert score.accuracy is not None
    assert (score.accuracy.value, score.accuracy.n) == (0.75, 4)
    assert score.accuracy.low < 0.75 < score.accuracy.high
    assert score.chance == pytest.approx(1 / 3)
    assert score.majority == 0.5
    assert score.verbalizer_mass == 0.5
    assert score.confusion == {
        "a": {"a": 2, "b": 0, "c": 0},
        "b": {"a": 0, "b": 1, "c": 1},
        "c": {"a": 0, "b": 0, "c": 0},
    }
    # Each prediction is alone in its bin: 0.72 right, 0.84 right, 0.65 wrong, 0.55 right.
    assert score.calibration_error == pytest.approx((0.28 + 0.16 + 0.65 + 0.45) / 4)
    assert score.fidelity is None
    assert score.single_contexts == list(singles)
    assert (score.cross_entropy, score.tokens, score.completions) == (None, None, None)
    assert judged(mass=None).score(LABELS, SET, teacher=None).verbalizer_mass is None


def test_right_rows_are_those_whose_likeliest_label_is_gold() -> None:
    assert right_rows(LABELS, SET, PROBS) == [True, True, False, True]
    assert right_rows(LABELS[::-1], SET, PROBS) == [False, True, False, False]


def test_predictions_are_a_line_for_each_row() -> None:
    lines = list(judged().predictions(LABELS, SET, "distillation"))
    assert [(line.set, line.row, line.input, line.method) for line in lines] == [
        ("far", n, f"row {n}", "distillation") for n in range(4)
    ]
    assert [(line.expected, line.predicted, line.correct) for line in lines] == [
        ("a", "a", True),
        ("b", "b", True),
        ("b", "c", False),
        ("a", "a", True),
    ]
    assert lines[2].probabilities == {"a": 0.2, "b": 0.15, "c": 0.65}
    assert lines[0].text is None
    thirds = judged(torch.full((4, 3), 1 / 3)).predictions(LABELS, SET, "zero_shot")
    assert {*next(thirds).probabilities.values()} == {0.333333}


def test_fidelity_is_the_mean_kl_from_the_teacher_and_the_share_of_equal_labels() -> None:
    other = torch.tensor([[0.6, 0.3, 0.1], [0.2, 0.7, 0.1], [0.6, 0.2, 0.2], [0.4, 0.4, 0.2]])
    score = judged(other).score(LABELS, SET, teacher=judged())
    assert score.fidelity is not None
    expected = sum(
        p * math.log(p / q)
        for teacher, student in zip(PROBS.tolist(), other.tolist(), strict=True)
        for p, q in zip(teacher, student, strict=True)
    )
    assert score.fidelity.kl_to_teacher == pytest.approx(expected / 4, rel=1e-5)
    assert score.fidelity.agreement == 0.75
    assert score == judged(other).score(LABELS, SET, teacher=judged(mass=0.1))
    back = judged().score(LABELS, SET, teacher=judged(other)).fidelity
    assert back is not None
    assert back.kl_to_teacher != pytest.approx(score.fidelity.kl_to_teacher, rel=1e-3)


def test_a_model_is_as_near_to_itself_as_can_be() -> None:
    fidelity = judged().score(LABELS, SET, teacher=judged()).fidelity
    assert fidelity is not None
    assert (fidelity.kl_to_teacher, fidelity.agreement) == (0, 1)


def test_labels_that_are_ruled_out_leave_fidelity_finite() -> None:
    sure = torch.eye(3)[[0, 1, 2, 0]]
    to_sure = judged(sure).score(LABELS, SET, teacher=judged()).fidelity
    of_sure = judged().score(LABELS, SET, teacher=judged(sure)).fidelity
    assert to_sure is not None
    assert of_sure is not None
    assert 5 < to_sure.kl_to_teacher < 30  # as far as a probability of 1e-12
    expected = -sum(math.log(p) for p in (0.72, 0.84, 0.65, 0.55)) / 4
    assert of_sure.kl_to_teacher == pytest.approx(expected, rel=1e-5)


@given(
    st.lists(
        st.tuples(*[st.floats(0, 1)] * 3, *[st.floats(0, 1)] * 3, st.sampled_from(LABELS)),
        min_size=1,
        max_size=6,
    )
)
def test_scores_keep_within_their_bounds(rows: list[tuple[float | str, ...]]) -> None:
    numbers = torch.tensor([[float(x) for x in row[:6]] for row in rows]) + 1e-6
    own, teacher = numbers[:, :3], numbers[:, 3:]
    probs, said = own / own.sum(-1, keepdim=True), teacher / teacher.sum(-1, keepdim=True)
    one = EvaluationSet("x", "in", [Row("?", str(row[6])) for row in rows])
    score = judged(probs).score(LABELS, one, teacher=judged(said))
    assert score.accuracy is not None
    assert score.fidelity is not None
    assert score.calibration_error is not None
    assert 0 <= score.accuracy.low <= score.accuracy.value <= score.accuracy.high <= 1
    assert 0 <= score.calibration_error <= 1
    assert score.fidelity.kl_to_teacher >= 0
    assert 0 <= score.fidelity.agreement <= 1
    assert 1 / 3 - 1e-9 <= score.majority <= 1
    assert sum(n for line in score.confusion.values() for n in line.values()) == len(rows)


@torch.no_grad()
def textbook(model: LanguageModel, prompt: list[int]) -> torch.Tensor:
    """Log-probability of each label, form by form: one row, no padding, no cache."""
    labels = []
    for forms in TOKENS.forms:
        found = []
        for form in forms:
            ids = torch.tensor([[*prompt, *form]], device=model.device)
            logprobs = model.network(input_ids=ids).logits[0].log_softmax(-1).cpu()
            places = range(len(prompt) - 1, len(prompt) + len(form) - 1)
            found.append(sum(logprobs[place, i] for place, i in zip(places, form, strict=True)))
        labels.append(torch.logsumexp(torch.stack([torch.as_tensor(one) for one in found]), 0))
    return torch.stack(labels)


@pytest.mark.parametrize("batch_size", [1, 2, 8])
def test_labels_are_as_likely_as_the_plain_forward_says(
    any_model: LanguageModel, batch_size: int
) -> None:
    told: list[int] = []
    got = label_logprobs(
        any_model,
        PROMPTS,
        TOKENS,
        batch_size=batch_size,
        advance=lambda rows, tokens: told.append(rows),
    )
    expected = torch.stack([textbook(any_model, prompt) for prompt in PROMPTS])
    torch.testing.assert_close(got, expected, atol=1e-4, rtol=0)
    assert (got.exp().sum(-1) < 1).all()
    assert sum(told) == len(PROMPTS)


def test_a_head_s_labels_share_all_probability(any_model: LanguageModel) -> None:
    put_head(any_model.network, 3, seed=0)
    got = label_logprobs(any_model, PROMPTS, None, batch_size=2, advance=nothing)
    with torch.no_grad():
        rows = [torch.tensor([prompt], device=any_model.device) for prompt in PROMPTS]
        ends = [any_model.network(input_ids=row).logits[0, -1] for row in rows]
    expected = torch.stack(ends).log_softmax(-1).cpu()
    torch.testing.assert_close(got, expected, atol=1e-4, rtol=0)
    torch.testing.assert_close(got.exp().sum(-1), torch.ones(len(PROMPTS)))
