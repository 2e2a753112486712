"""Predictions that stand in the rows, in place of a teacher's."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.small import CONTEXT, form_of, plain_logits
from typer.testing import CliRunner

import instil
from instil.cli import app
from instil.errors import ConfigError, FieldError
from instil.models.load import LanguageModel
from instil.recipe.recipe import Recipe
from instil.targets.selection import Selection
from instil.tasks.conversation import Conversation, Message, ToolCall, Turn
from instil.tasks.rows import Row
from instil.teacher.logged import Logged

ALL = Selection(top_k=1000)
Step = list[tuple[Any, float]]


def row(*steps: Step) -> Row:
    return Row("q", "a", logprobs=json.dumps(steps))


def logged_of(model: LanguageModel, *rows: Row) -> Logged:
    return Logged(rows, form_of(model).tokens, len(model.tokenizer))


def test_targets_follow_the_server_as_long_as_the_tokens_are_the_same(llama: LanguageModel) -> None:
    completion, other = [5, 6, 7], 9
    steps: list[Step] = [[(5, -0.5), (6, -1.5)], [(6, -0.25)], [(other, -0.1), (7, -3.0)]]
    logged = logged_of(llama, row(*steps))
    assert logged.known(0, completion) == [[(5, -0.5), (6, -1.5)], [(6, -0.25)]]
    made = logged.targets(0, completion, ALL)
    assert made.ids_NK.tolist() == [[5, 6], [6, 0], [7, 0]]
    torch.testing.assert_close(made.logprobs_NK[0], torch.tensor([-0.5, -1.5]))
    tails = [1 - torch.tensor([-0.5, -1.5]).exp().sum(), 1 - torch.tensor(-0.25).exp(), 0.0]
    torch.testing.assert_close(made.log_tail_N.exp(), torch.tensor(tails))
    assert made.logprobs_NK[2, 0] == 0  # the text alone is known


def test_a_token_is_found_by_its_text(llama: LanguageModel) -> None:
    form = form_of(llama)
    ids = form.completion_ids(Row("seven", "7"))
    texts = [form.tokens.text([token]) for token in ids]
    alone = [token for token, text in enumerate(texts) if "\ufffd" not in text]
    assert alone == [*range(len(ids))]
    steps: list[Step] = [[(text, -0.5), ("no token has this text", -0.6)] for text in texts]
    logged = logged_of(llama, row(*steps))
    # What the student cannot write is among the other outcomes.
    assert logged.known(0, ids) == [[(token, -0.5)] for token in ids]


def test_rows_without_any_are_refused(llama: LanguageModel) -> None:
    with pytest.raises(FieldError, match=r"no row has log-probabilities.*answer --logprobs"):
        logged_of(llama, Row("q", "a")).check([(0, [5, 6])])


def test_another_tokenizer_is_refused(llama: LanguageModel) -> None:
    same, other = row([(5, -0.1)], [(6, -0.1)]), row([(56, -0.1)])
    logged = logged_of(llama, *[same] * 8, *[other] * 2)
    with pytest.raises(FieldError, match=r"of other tokens.*8 of 10 answers"):
        logged.check([(number, [5, 6]) for number in range(10)])
    logged = logged_of(llama, *[same] * 9, other, Row("q", "a"))
    completions = [(number, [5, 6, 7]) for number in range(11)]
    logged.check(completions)
    found = logged.counted(completions)
    assert (found.rows, found.tokens) == (9, 18)


def test_calls_of_tools_and_half_characters_do_not_tell_tokenizers_apart(
    llama: LanguageModel,
) -> None:
    half = row([(5, -0.1)], [("\ufffd", -0.1)], [("\ufffd", -0.1)])
    asked = Message("user", "q")
    called = Message("assistant", "", tool_calls=(ToolCall("f", "{}"),))
    turn = Turn(Conversation((asked, called)), 1)
    tool = replace(row([(56, -0.1)]), turn=turn)
    logged = logged_of(llama, half, tool)
    logged.check([(number, [5, 6, 7]) for number in range(2)])
    assert logged.counted([(number, [5, 6, 7]) for number in range(2)]).tokens == 1


def test_what_the_rows_tell_teaches_what_the_model_would(
    tmp_path: Path, llama: LanguageModel, model_folders: dict[str, Path]
) -> None:
    """All outcomes of a model, told in the rows, make the same targets, losses and KL."""
    network: Any = llama.network
    texts = {"two": "2", "six": "6", "nine": "9", "ten": "10"}
    answered = []
    form = form_of(llama)
    for word, number in texts.items():
        of = Row(word, number)
        completion = form.completion_ids(of)
        logprobs_NV = plain_logits(network, form.prompt_ids(word, CONTEXT), completion).log_softmax(
            -1
        )
        steps = []
        for token, step in zip(completion, logprobs_NV.tolist(), strict=True):
            others = [(other, p) for other, p in enumerate(step) if other != token]
            steps.append([(token, step[token]), *others])
        answered.append({"input": word, "output": number, "logprobs": steps})

    def run(targets: str) -> instil.Run:
        return instil.distill(
            str(model_folders["llama"]),
            inputs=answered[:2],
            eval=answered[2:],
            context=instil.FewShot([{"input": "one", "output": "1"}, {"input": "seven", "output": "7"}]),
            output=tmp_path / targets,
            prompt={"format": "plain", "pattern": "Q: {input}\nA:", "separator": "\n"},
            teacher={"completions": "gold", "targets": targets, "top_k": 1000, "min_probability": 0,
                     "mass_per_draw": 0},
            training={"max_steps": 2},
            evaluation={"drift_tokens": 20, "general_prompts": 7},
            keep={"source": "none"},
            dtype="float32",
            quiet=True,
        )  # fmt: skip

    computed, logged = run("computed").results, run("logged").results
    one, two = (of.training for of in (computed, logged))
    assert one is not None
    assert two is not None
    assert one.logged_targets is None
    assert two.logged_targets is not None
    assert two.logged_targets.rows == 2
    assert [loss for _, loss in two.loss] == pytest.approx([loss for _, loss in one.loss], rel=0.02)
    # A target store rounds; what is compared with at the end is not stored.
    for method, near in (("zero_shot", 1e-4), ("distillation", 0.02)):
        found = [of.result(method).scores[0] for of in (computed, logged)]  # type: ignore[arg-type, union-attr]
        assert found[1].fidelity.kl_to_teacher == pytest.approx(
            found[0].fidelity.kl_to_teacher, rel=near
        )
        assert found[1].fidelity.agreement == found[0].fidelity.agreement
    assert logged.result("in_context").scores[0].fidelity is None  # type: ignore[union-attr]
    # Other rows have no log-probabilities, and are judged all the same.
    other = tmp_path / "other.jsonl"
    other.write_text(json.dumps({"input": "three", "output": "3"}))
    command = ["check", str(tmp_path / "logged"), "--eval", str(other), "--quiet"]
    found_again = CliRunner().invoke(app, command)
    assert found_again.exit_code in (0, 3), found_again.output


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"teacher": {"completions": "teacher"}}, "use teacher.completions: gold"),
        ({"objective": {"name": "cross_entropy"}}, "cross_entropy learns no predictions"),
        ({"objective": {"name": "logit_mse"}}, "teacher.targets: a server tells log-probabilities"),
        ({"objective": {"name": "reverse_kl"}}, "reverse_kl needs predictions of all tokens"),
        (
            {"objective": [{"name": "forward_kl"}, {"name": "reverse_kl"}]},
            "reverse_kl needs predictions of all tokens",
        ),
        ({"training": {"until": {"kl_share": 0.1}}}, "kl_share cannot be reached"),
        ({"objective": {"name": "forward_kl", "temperature": 2.0}}, "teacher.targets: a server"),
    ],
)
def test_settings_that_make_no_sense_are_refused(change: dict[str, Any], words: str) -> None:
    plain: dict[str, Any] = {"model": "m", "teacher": {"targets": "logged", "completions": "gold"}}
    Recipe.parse(plain)
    teacher = plain["teacher"] | change.get("teacher", {})
    with pytest.raises(ConfigError, match=words):
        Recipe.parse(plain | change | {"teacher": teacher})


def test_the_targets_have_a_store_of_their_own(llama: LanguageModel) -> None:
    logged = logged_of(llama, row([(5, -0.1)]))
    assert logged.digest != replace(logged, rows=[row([(5, -0.2)])]).digest
