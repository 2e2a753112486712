"""The card of an adapter: what it says of each kind of student, and when it shows how to run it."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any

import pytest
from tests.finished import method_result, results, score

from instil.methods import METHODS, MethodName
from instil.models.source import Source
from instil.pipeline.card import render
from instil.results.schema import ContextFacts, Message, MethodResult, Results, SentPrompt
from instil.results.scores import Interval, SetScore

TURNS = [Message(role="system", content="Add."), Message(role="user", content="{input}")]
LABELS = ["good", "bad"]


@pytest.fixture
def base(tmp_path: Path) -> str:
    """What stands for a base model: its kind has to be known, its weights are not read."""
    folder = tmp_path / "base"
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "llama"}')
    return str(folder)


def prompt(**changes: Any) -> SentPrompt:
    plain: dict[str, Any] = {
        "format": "plain",
        "pattern": "Q: {input}\nA:",
        "messages": None,
        "stop": ["\n"],
        "end_ids": [0],
        "max_new_tokens": 8,
    }
    return SentPrompt(**(plain | changes))


def chat(turns: list[Message] = TURNS, **changes: Any) -> SentPrompt:
    return prompt(**({"format": "chat", "pattern": None, "messages": turns, "stop": []} | changes))


def text_card(base: str, *methods: MethodResult, keep: int | None = None, **more: Any) -> str:
    """The card of a student that answers with text."""
    recipe = {"tuning": {"name": "lora"}, "student": {"keep_layers": keep}}
    found = results(
        *(methods or (method_result("distillation", score(8, kl=0.125), drift=0.01),)),
        **({"recipe": recipe, "model": base} | more),
    )
    return render(found, example='What is "1"?')


def label_card(base: str, *methods: MethodResult, keep: int | None = None, **more: Any) -> str:
    """The card of a student that names labels."""
    sent = prompt(
        pattern="{text}\nGood?",
        stop=[],
        max_new_tokens=None,
        words={"good": [" Yes"], "bad": [" No"]},
    )
    named = [named_score(8, kl=0.25)]
    return text_card(
        base,
        *(methods or (method_result("distillation", *named),)),
        keep=keep,
        **({"labels": LABELS, "task": "sentiment", "prompt": sent} | more),
    )


def named_score(right: int, *, kl: float | None = None, mass: float | None = 0.875) -> SetScore:
    made = score(right, kl=kl)
    return made.model_copy(update={"cross_entropy": None, "verbalizer_mass": mass})


def snippet(card: str) -> str | None:
    """The code of a card, which must be Python; None where it has none."""
    found = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    assert len(found) <= 1
    for code in found:
        ast.parse(code)
    return found[0] if found else None


def check_sound(card: str) -> None:
    """What holds of every card."""
    assert card.startswith("---\nbase_model: ")
    assert card.count("```") % 2 == 0
    prose = re.sub(r"```python\n.*?```", "", card, flags=re.DOTALL)
    assert not re.search(r"\{%|%\}|\{\{|\bNone\b|Undefined", prose)
    assert "\n\n\n\n" not in card


def test_a_student_of_own_rows(base: str) -> None:
    card = text_card(
        base,
        method_result("distillation", score(8, kl=0.125), drift=0.01),
        method_result("zero_shot", score(2, kl=1.5)),
        method_result("in_context", score(9, kl=0.0), tokens=50.0),
        recovery_interval=Interval(low=0.471, high=1.25),
    )
    check_sound(card)
    assert "# A prompt, distilled\n" in card
    assert f"A LoRA adapter for `{base}`, trained by distillation on 10 rows" in card
    assert (
        "a model that reads 3 demonstrations before the query.\nYou no longer need to send these 30 tokens."
        in card
    )
    rows = [line for line in card.splitlines() if line.startswith("| ") and "words" in line]
    assert rows == [
        "| distillation | words | 0.800 (0.490 to 0.943, n = 10) | 20 | 0.25 |",
        "| zero-shot | words | 0.200 (0.057 to 0.510, n = 10) | 20 | 0.25 |",
        "| in-context | words | 0.900 (0.596 to 0.982, n = 10) | 50 | 0.25 |",
    ]
    assert "- Recovery: 0.86 (95 % interval 0.47 to 1.25).\n" in card
    assert "on words: 0.125 nats per token (1.500 without the adapter).\n" in card
    assert "- Drift on unrelated text: 0.010 nats per token.\n" in card
    assert "The answer ends at `'\\n'`:\n\n```text\nQ: {input}\nA:\n```" in card
    code = snippet(card)
    assert code is not None
    assert f'base = "{base}"' in code
    assert r'query = "What is \"1\"?"' in code
    assert '"Q: {input}\\nA:".replace("{input}", query)' in code
    assert "max_new_tokens=8, do_sample=False, stop_strings=['\\n'], tokenizer=tokenizer" in code
    assert "eos_token_id=[0])" in code
    assert "print(answer.partition('\\n')[0].strip())" in code
    assert "dtype=torch.float32" in code


def test_what_was_not_measured_is_not_said(base: str) -> None:
    far = score(None, name="far", domain="out")
    student = method_result("distillation", score(None), far)
    bare = student.model_copy(update={"seconds_per_query": None})
    card = text_card(base, bare)
    check_sound(card)
    assert "| distillation | words | not measured | 20 | – |" in card
    assert "| distillation | far, out of domain | not measured | 20 | – |" in card
    for words in ("Recovery", "KL to", "Mass of", "Drift", "need not be sent"):
        assert words not in card


def test_recovery_is_told_where_the_context_gains_nothing(base: str) -> None:
    card = text_card(
        base,
        method_result("distillation", score(8)),
        method_result("zero_shot", score(5)),
        method_result("in_context", score(5)),
    )
    assert (
        "- Recovery: undefined, because the context does not improve accuracy on these rows.\n"
        in card
    )
    assert "without the adapter" not in card


def test_recovery_without_an_interval_says_why(base: str) -> None:
    scores = zip(("distillation", "zero_shot", "in_context"), (8, 7, 8), strict=True)
    card = text_card(base, *(method_result(name, score(right)) for name, right in scores))
    assert (
        "- Recovery: 1.00 (without an interval, because the context's gain is not clear of chance "
        "on these rows).\n"
    ) in card


def test_several_sets_have_a_line_each(base: str) -> None:
    sets = [score(8, kl=0.5), score(6, name="far", domain="out", kl=0.75)]
    others = [score(2, kl=1.5), score(1, name="far", domain="out", kl=2.5)]
    card = text_card(
        base, method_result("distillation", *sets), method_result("zero_shot", *others)
    )
    check_sound(card)
    assert "on words: 0.500 nats per token (1.500 without the adapter)" in card
    assert "on far: 0.750 nats per token (2.500 without the adapter)" in card
    assert "| zero-shot | far, out of domain | 0.100 (" in card


def test_a_student_without_a_teacher_stands_for_no_context(base: str) -> None:
    student = method_result("pattern_fine_tuning", score(8))
    card = text_card(base, student, method_result("in_context", score(9), tokens=50.0))
    check_sound(card)
    assert "trained by pattern fine-tuning" in card
    assert "It is trained to answer like" not in card


@pytest.mark.parametrize("named", [{"task": "gsm8k"}, {"task": "sentiment", "labels": LABELS}])
def test_a_task_names_the_card(base: str, named: dict[str, Any]) -> None:
    assert f"# {named['task']}, by distillation\n" in text_card(base, **named)


def test_a_chat_is_sent_as_its_turns(base: str) -> None:
    asked = chat(template_kwargs={"enable_thinking": False})
    card = text_card(base, prompt=asked)
    check_sound(card)
    assert "Send the query as the last user turn, after the same turns as in training." in card
    assert "with {'enable_thinking': False}. The answer ends with the turn." in card
    code = snippet(card)
    assert code is not None
    assert (
        'messages = [{"role": "system", "content": "Add."}, {"role": "user", "content": "{input}"}]'
    ) in code
    assert 'messages[-1]["content"] = query' in code
    assert "add_generation_prompt=True, enable_thinking=False)" in code
    assert "stop_strings" not in code
    assert "print(answer.strip())" in code
    alone = text_card(base, prompt=chat(TURNS[1:], end_ids=[]))
    check_sound(alone)
    assert "Send one user turn with only the query. Use the tokenizer's chat template." in (alone)
    assert "eos_token_id" not in alone


def test_a_student_of_labels(base: str) -> None:
    card = label_card(base)
    check_sound(card)
    assert "on words: 0.250 nats per row.\n" in card
    assert "(their total probability): 0.88.\n" in card
    assert "with the query's fields in place of their names:\n\n```text\n{text}\nGood?\n```" in (
        card
    )
    code = snippet(card)
    assert code is not None
    assert 'WORDS = {"good": [" Yes"], "bad": [" No"]}' in code
    assert r'prompt = "What is \"1\"?"' in code


@pytest.mark.parametrize("method", [name for name, one in METHODS.items() if one.learns])
@pytest.mark.parametrize("keep", [None, 1])
def test_code_is_shown_where_the_base_with_the_adapter_answers_alone(
    base: str, method: MethodName, keep: int | None
) -> None:
    known = METHODS[method]
    headed = known.head == "classification"
    one = method_result(method, named_score(8, mass=None if headed else 0.5))
    cards = [label_card(base, one, keep=keep)]
    if not headed:
        cards.append(text_card(base, method_result(method, score(8)), keep=keep))
    for card in cards:
        check_sound(card)
        runs = keep is None and not known.context and not headed
        assert (snippet(card) is not None) == runs
        assert ("Use `instil.load(FOLDER).student`." in card) == (not runs)
        assert ("it would not read the context." in card) == known.context
        assert ("Mass of the labels" in card) == (card is cards[0] and not headed)


def test_labels_in_a_chat_have_no_code(base: str) -> None:
    card = label_card(base, prompt=chat(words={"good": ["Yes"], "bad": ["No"]}))
    check_sound(card)
    assert snippet(card) is None
    assert "Use `instil.load(FOLDER).student`." in card


def test_what_the_teacher_read_is_told_without_a_baseline(base: str) -> None:
    facts = ContextFacts(description="an instruction and 3 demonstrations", k=3)
    card = label_card(base, context=facts)
    assert "a model that reads an instruction and 3 demonstrations before the query.\n" in card
    assert "no longer need to send" not in card


def test_text_of_other_scripts_and_quotes_stays_as_it_is(base: str) -> None:
    recipe = {"tuning": {"name": "lora"}, "student": {"keep_layers": None}}
    found: Results = results(
        method_result("distillation", score(8)), recipe=recipe, model=base, prompt=prompt()
    )
    code = snippet(render(found, example='<b>"東京"</b>\n\\'))
    assert code is not None
    (query,) = re.findall(r"^query = (.*)$", code, re.MULTILINE)
    assert ast.literal_eval(query) == '<b>"東京"</b>\n\\'
    assert "東京" in code


def test_a_model_that_thinks_is_cut_after_its_thinking(base: str) -> None:
    asked = chat(thinking_end="</think>", end_ids=[7], date="2024-07-26")
    card = text_card(base, prompt=asked)
    check_sound(card)
    assert "The model may think first. Its answer is what follows `</think>`." in card
    assert "writes today's date. In training and evaluation it was 2024-07-26." in card
    code = snippet(card)
    assert code is not None
    assert 'answer = answer.rpartition("</think>")[2]' in code
    assert "for end in tokenizer.convert_ids_to_tokens([7]):" in code
    plain = text_card(base, prompt=chat())
    assert "may think" not in plain
    assert "today's date" not in plain


def test_the_base_is_named_with_its_commit(base: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model on the hub may have moved on when the card is read."""
    source = Source("owner/name@v1", "owner/name", "v1")
    monkeypatch.setattr("instil.pipeline.card.resolve", lambda name: source)
    monkeypatch.setattr("instil.pipeline.card.loader", lambda name: "AutoModelForImageTextToText")
    monkeypatch.setattr(Source, "commit", "c0ffee")
    made = text_card("owner/name@v1")
    assert made.startswith("---\nbase_model: owner/name\n")
    code = snippet(made)
    assert code is not None
    assert code.count('revision="c0ffee"') == 2
    assert "AutoModelForImageTextToText.from_pretrained(base, revision" in code
    assert label_card("owner/name@v1").count('revision="c0ffee"') == 2
