from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from tests.small import trust

from instil.models.generate import Decoding, generate
from instil.models.load import LanguageModel
from instil.prompts.format import PlainPrompt


def form_of(model: LanguageModel, completion: str = " {output}\n") -> PlainPrompt:
    return PlainPrompt(
        model.tokenizer, pattern="Q: {input}\nA:", completion=completion, separator="\n"
    )


def nothing(rows: int, tokens: int) -> None:
    pass


def script(model: LanguageModel, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes the model write `text`, whatever it reads."""
    trust(model.network)
    ids = model.tokenizer(text)["input_ids"]
    steps = iter(ids)

    def forward(logits: torch.Tensor) -> torch.Tensor:
        forced = torch.full_like(logits, -100.0)
        forced[..., next(steps, 0)] = 100.0
        return forced

    layer = model.network.get_output_embeddings()
    monkeypatch.setattr(layer, "forward", lambda hidden, real=layer.forward: forward(real(hidden)))


def test_an_answer_ends_at_the_stop_string(
    llama: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    form = form_of(llama, " {output} END")
    script(llama, " a b END and more", monkeypatch)
    prompt = form.prompt_ids("x")
    (got,) = generate(llama, [prompt], form.ending, Decoding(max_new_tokens=40), advance=nothing)
    assert llama.tokenizer.decode(got.ids) == " a b END"
    assert got.finished
    assert form.decode(got.ids) == "a b"


def test_an_answer_ends_at_the_end_token_and_keeps_it(
    llama: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    script(llama, " a<|end|>", monkeypatch)
    form = form_of(llama)
    (got,) = generate(
        llama, [form.prompt_ids("x")], form.ending, Decoding(max_new_tokens=40), advance=nothing
    )
    assert got.ids[-1] == llama.tokenizer.eos_token_id
    assert got.finished


def test_an_answer_cut_at_the_limit_says_so(
    llama: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    script(llama, " never ends at all", monkeypatch)
    form = form_of(llama)
    (got,) = generate(
        llama, [form.prompt_ids("x")], form.ending, Decoding(max_new_tokens=5), advance=nothing
    )
    assert (len(got.ids), got.finished) == (5, False)


def test_sampling_follows_its_seed_and_differs_from_another(llama: LanguageModel) -> None:
    form = form_of(llama)
    prompts = [form.prompt_ids(query) for query in ("a", "bb", "ccc")]

    def sample(seed: int) -> list[list[int]]:
        decoding = Decoding(max_new_tokens=10, temperature=1.0, seed=seed)
        return [one.ids for one in generate(llama, prompts, form.ending, decoding, advance=nothing)]

    assert sample(0) == sample(0)
    assert sample(0) != sample(1)


@pytest.mark.parametrize("batch_size", [1, 2, 64])
def test_a_row_samples_the_same_in_whatever_batch_and_process(
    any_model: LanguageModel, batch_size: int
) -> None:
    form = form_of(any_model)
    prompts = [form.prompt_ids(query) for query in ("a", "bb", "ccc", "dddd", "a")]
    together = Decoding(max_new_tokens=10, temperature=1.0)
    whole = generate(any_model, prompts, form.ending, together, advance=nothing)
    apart = Decoding(max_new_tokens=10, temperature=1.0, batch_size=batch_size)
    for first in (0, 1):
        numbers = range(first, len(prompts), 2)
        chosen = [prompts[n] for n in numbers]
        made = generate(any_model, chosen, form.ending, apart, advance=nothing, numbers=numbers)
        assert made == [whole[n] for n in numbers]
    assert whole[0] != whole[4]


def test_sampling_is_from_the_models_own_distribution(llama: LanguageModel) -> None:
    """No top-k, no nucleus: the share of a first token is its probability."""
    form = form_of(llama)
    prompt = form.prompt_ids("a")
    with torch.no_grad():
        expected = llama.network(torch.tensor([prompt], device=llama.device)).logits[0, -1]
    expected = expected.softmax(-1).cpu()
    decoding = Decoding(max_new_tokens=1, temperature=1.0, batch_size=1000)
    made = generate(llama, [prompt] * 1000, form.ending, decoding, advance=nothing)
    got = torch.bincount(torch.tensor([one.ids[0] for one in made]), minlength=len(expected)) / 1000
    assert (got - expected).abs().max() < 0.06
    assert (got > 0).sum() > 50


def test_progress_adds_up(llama: LanguageModel) -> None:
    form = form_of(llama)
    prompts = [form.prompt_ids(query) for query in ("a", "bb", "ccc")]
    told: list[tuple[int, int]] = []
    decoding = Decoding(max_new_tokens=2, batch_size=2)
    made = generate(
        llama,
        prompts,
        form.ending,
        decoding,
        advance=lambda rows, tokens: told.append((rows, tokens)),
    )
    shared = told[0][1]
    assert sum(rows for rows, _ in told) == 3
    assert sum(tokens for _, tokens in told) == shared + sum(
        len(p) - shared + len(m.ids) for p, m in zip(prompts, made, strict=True)
    )


def test_the_cost_of_stop_strings_does_not_grow_with_the_answer(
    llama: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    form = form_of(llama, " {output} END")
    script(llama, " " + "word " * 40 + "END and more", monkeypatch)
    decoded: list[int] = []
    ending = form.ending

    def text(ids: list[int]) -> str:
        decoded.append(len(ids))
        return ending.text(ids)

    watched = replace(ending, text=text)
    (got,) = generate(
        llama, [form.prompt_ids("x")], watched, Decoding(max_new_tokens=230), advance=nothing
    )
    assert llama.tokenizer.decode(got.ids).endswith("word END")
    assert got.finished
    assert len(got.ids) > 200
    assert len([count for count in decoded if count > ending.tail]) < 20
