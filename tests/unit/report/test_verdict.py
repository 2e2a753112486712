"""The headline: which of its sentences a run gets, and that it never says more than the rows do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from instil.report.verdict import Verdict, caveats, judge
from instil.results.schema import Results

MakeResults = Callable[..., Results]


def _plain(text: str) -> str:
    return text.replace("\N{NO-BREAK SPACE}", " ").replace("\N{RIGHT SINGLE QUOTATION MARK}", "'")


def _evidence(verdict: Verdict) -> str:
    return _plain(" ".join(verdict.evidence))


@pytest.mark.parametrize(
    ("right", "n", "tone", "headline"),
    [
        ((1, 82, 80), 100, "good", "The student keeps 98 % of what the prompt gains."),
        ((1, 82, 85), 100, "good", "The student keeps all (104 %) of what the prompt gains."),
        ((10, 810, 809), 1000, "good", "The student keeps 99 % of what the prompt gains."),
        (
            (1, 82, 50),
            100,
            "short",
            "The student falls short: it keeps 60 % of what the prompt gains.",
        ),
        (
            (10, 82, 9),
            100,
            "short",
            "The student falls short: it keeps none of what the prompt gains.",
        ),
        (
            (300, 800, 200),
            1000,
            "short",
            "The student is worse than the model was without training.",
        ),
        (
            (33, 32, 34),
            100,
            "open",
            "The prompt gains nothing on these rows, so there is nothing to recover.",
        ),
        (
            (33, 33, 60),
            100,
            "open",
            "The prompt gains nothing on these rows, so there is nothing to recover.",
        ),
        (
            (600, 300, 600),
            1000,
            "open",
            "The prompt lowers accuracy on these rows, so there is nothing to recover.",
        ),
        (
            (20, 26, 26),
            40,
            "open",
            "Undecided on 40 rows: the prompt's own gain of 15.0 points is not clear of chance.",
        ),
        (
            (300, 362, 357),
            1000,
            "open",
            "The student keeps 92 % of what the prompt gains, but the intervals on 1,000 rows do "
            "not separate it from zero-shot.",
        ),
    ],
)
def test_headline(
    make_results: MakeResults, right: tuple[int, int, int], n: int, tone: str, headline: str
) -> None:
    verdict = judge(make_results(right, n))
    assert _plain(verdict.headline) == headline
    assert verdict.tone == tone


def test_a_gain_that_was_not_counted_as_one_is_not_recovered(make_results: MakeResults) -> None:
    verdict = judge(make_results((30, 31, 31), recovery=None))
    assert "gains nothing measurable" in verdict.headline
    assert _plain(verdict.figure) == "+1.0 point"


def test_the_number_and_its_evidence_stand_behind_the_headline(make_results: MakeResults) -> None:
    verdict = judge(make_results())
    assert _plain(verdict.figure) == "98 %"
    assert "On 100 held-out rows: zero-shot 1.0 % (0.2\u20135.4 %)" in _evidence(verdict)


@pytest.mark.parametrize(
    ("right", "n", "said"),
    [
        ((1, 82, 80), 100, "distilled and in-context overlap, so 100 rows cannot clearly separate"),
        ((10, 820, 740), 1000, "The interval of distilled lies wholly below that of in-context."),
        ((10, 740, 820), 1000, "The interval of distilled lies wholly above that of in-context."),
        ((20, 26, 26), 40, "a share of so uncertain a gain says little"),
    ],
)
def test_overlap_is_mentioned(
    make_results: MakeResults, right: tuple[int, int, int], n: int, said: str
) -> None:
    assert said in _evidence(judge(make_results(right, n)))


@pytest.mark.parametrize(
    ("before", "after", "tone", "said", "figure"),
    [
        (3.214, 0.187, "good", "removes 94 % of the divergence", "94 %"),
        (2.0, 1.0, "short", "falls short: training removes 50 % of its divergence", "50 %"),
        (1.0, 1.2, "short", "moved it away from the teacher", "\u221220 %"),
        (0.0, 0.0, "open", "nothing to recover", "0"),
    ],
)
def test_without_gold_outputs_the_verdict_is_about_fidelity(
    make_results: MakeResults, before: float, after: float, tone: str, said: str, figure: str
) -> None:
    fidelity: dict[str, Any] = {
        "kl_to_teacher": {"zero_shot": before, "distilled": after},
        "top1_agreement": {"zero_shot": 0.3, "distilled": 0.9},
        "n_tokens": 412,
        "completions": "teacher",
    }
    verdict = judge(make_results(None, fidelity=fidelity))
    assert said in _plain(verdict.headline)
    assert verdict.tone == tone
    assert _plain(verdict.figure) == figure
    assert "no gold outputs" in _evidence(verdict)
    assert "fidelity" in _evidence(verdict)


def test_a_sound_run_has_no_caveats(make_results: MakeResults) -> None:
    assert caveats(make_results()) == []


def test_every_doubt_is_told(make_results: MakeResults) -> None:
    full = make_results((1, 16, 15), 20)
    results = make_results(
        (1, 16, 15),
        20,
        drift={"kl_to_base": 0.31, "n_tokens": 2048},
        cost={"prompt_tokens_saved_per_query": 71.2, "break_even_queries": None},
        training=full.training.model_copy(update={"truncated_completions": 12}),
        fidelity=full.fidelity.model_copy(
            update={"kl_to_teacher": {"zero_shot": 1.0, "distilled": 1.5}}
        ).model_dump(warnings=False),
    )
    said = [_plain(caveat) for caveat in caveats(results)]
    assert len(said) == 5
    for words, caveat in zip(
        (
            "only 20 rows",
            "raised the KL to the teacher from 1.00 to 1.50",
            "drifted 0.310 nats",
            "12 completions cut at max_new_tokens (6 % of the training rows)",
            "never paid back",
        ),
        said,
        strict=True,
    ):
        assert words in caveat
