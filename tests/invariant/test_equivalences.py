"""Different ways to the same numbers: each shortcut must change nothing but the time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.small import (
    CONTEXT,
    ROWS,
    form_of,
    models_of,
    nothing,
    pairs_of,
    plain_logits,
    target_rows,
    train_on,
    trust,
    weights,
)

from instil.evaluation.drift import drift
from instil.evaluation.fidelity import Fidelity, likelihoods
from instil.losses import ForwardKL
from instil.methods import METHODS
from instil.models.batch import collate, pack
from instil.models.cache import SharedPrefix
from instil.models.forward import completion_logits
from instil.models.generate import Decoding, generate
from instil.models.load import LanguageModel, load
from instil.models.reader import COMPLETIONS
from instil.models.roles import Models
from instil.prompts.context import Context
from instil.prompts.rendered import RenderedRows
from instil.targets.draws import points, sparse
from instil.targets.prediction import Targets
from instil.targets.selection import Selection
from instil.targets.store import StorePlan, build
from instil.teacher.scorer import Scorer
from instil.training import collation, trainer


def scored(
    model: LanguageModel, kept: Selection, *, packed: bool, temperature: float = 1.0
) -> Iterator[tuple[list[int], list[int], torch.Tensor, Targets]]:
    """Teacher prompt, completion, plain logits and targets of each pair."""
    pairs = pairs_of(model)
    scorer = Scorer.of(
        model,
        pairs,
        vocabulary=len(model.tokenizer),
        kept=kept,
        temperature=temperature,
        batch_size=2,
        advance=nothing,
        packing=COMPLETIONS if packed else None,
    )
    made = dict(scorer.score(range(len(pairs))))
    assert sorted(made) == list(range(len(pairs)))
    for number, targets in made.items():
        prompt, completion = pairs[number].teacher_prompt, pairs[number].completion
        yield prompt, completion, plain_logits(model.network, prompt, completion).cpu(), targets


@pytest.mark.parametrize("packed", [True, False])
def test_shared_context_and_batches_equal_the_plain_full_forward(
    any_model: LanguageModel, packed: bool
) -> None:
    kept = Selection(top_k=len(any_model.tokenizer))
    for _, _, logits, got in scored(any_model, kept, packed=packed):
        expected = logits.log_softmax(-1).gather(-1, got.ids_NK)
        torch.testing.assert_close(got.logprobs_NK, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("packed", [True, False])
def test_what_is_drawn_is_what_is_drawn_from_the_plain_full_forward(
    any_model: LanguageModel, packed: bool
) -> None:
    rule, drawn = Selection(top_k=9, min_probability=0.01, mass_per_draw=0.05), 0
    for prompt, completion, logits, got in scored(any_model, rule, packed=packed, temperature=2.0):
        expected = sparse(logits, points(prompt, completion), kept=rule, temperature=2.0)
        assert torch.equal(got.kept, expected.kept)
        for ids, others in zip(got.ids_NK, expected.ids_NK, strict=True):
            assert set(ids.tolist()) == set(others.tolist())
        torch.testing.assert_close(got.excess, expected.excess, atol=1e-3, rtol=0)
        drawn += int((got.excess > 0).sum())
    assert drawn


def test_student_logits_at_completion_positions_equal_the_plain_forward(
    any_model: LanguageModel,
) -> None:
    pairs = pairs_of(any_model)
    batch = collate(
        [p.student_prompt for p in pairs], [p.completion for p in pairs], pad_id=any_model.pad_id
    )
    with torch.no_grad():
        got = completion_logits(any_model.network, batch)
    expected = torch.cat(
        [plain_logits(any_model.network, p.student_prompt, p.completion) for p in pairs]
    )
    torch.testing.assert_close(got, expected, atol=1e-4, rtol=0)


def test_packed_rows_predict_what_padded_rows_predict(any_model: LanguageModel) -> None:
    pairs = pairs_of(any_model)
    prompts, completions = [p.student_prompt for p in pairs], [p.completion for p in pairs]
    packed, padded = pack(prompts, completions), collate(prompts, completions, pad_id=0)
    assert torch.equal(packed.completion_N, padded.completion_N)
    assert packed.tokens == padded.tokens == packed.input_ids_BL.numel()
    with torch.no_grad():
        got, expected = (completion_logits(any_model.network, b) for b in (packed, padded))
    torch.testing.assert_close(got, expected, atol=1e-4, rtol=0)


def test_training_on_packed_rows_ends_where_padded_rows_end(
    llama: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    packed = models_of(llama)
    train_on(packed, target_rows(packed), steps=4, batch_size=3)
    monkeypatch.setattr(collation, "packable", lambda network: False)
    padded = models_of(load(llama.name, dtype="float32"))
    train_on(padded, target_rows(padded), steps=4, batch_size=3)
    for name, value in weights(packed).items():
        torch.testing.assert_close(weights(padded)[name], value, atol=1e-5, rtol=1e-4)


def test_shared_context_decodes_what_each_prompt_alone_decodes(any_model: LanguageModel) -> None:
    form = form_of(any_model)
    prompts = [form.prompt_ids(row.input, CONTEXT) for row in ROWS]
    decoding = Decoding(max_new_tokens=12, batch_size=3)
    together = generate(any_model, prompts, form.ending, decoding, advance=nothing)
    for prompt, got in zip(prompts, together, strict=True):
        output = any_model.network.generate(  # type: ignore[operator]
            torch.tensor([prompt], device=any_model.device),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.long, device=any_model.device),
            max_new_tokens=12,
            do_sample=False,
            pad_token_id=any_model.pad_id,
        )[0, len(prompt) :].tolist()
        assert got.ids == output[: len(got.ids)]
        assert got.finished or len(got.ids) == 12


def test_a_prefix_is_computed_once(llama: LanguageModel) -> None:
    trust(llama.network)
    prompts = [pair.teacher_prompt for pair in pairs_of(llama)]
    lengths: list[int] = []
    hook = llama.network.register_forward_pre_hook(
        lambda module, args, kwargs: lengths.append(kwargs["input_ids"].shape[1]), with_kwargs=True
    )
    prefix = SharedPrefix(llama.network, prompts)
    generate(
        llama,
        prompts,
        form_of(llama).ending,
        Decoding(max_new_tokens=1, batch_size=2),
        advance=nothing,
    )
    hook.remove()
    assert prefix.length > 20
    assert [n for n in lengths if n >= prefix.length] == [prefix.length, prefix.length]


def test_padding_side_does_not_matter(any_model: LanguageModel) -> None:
    """Scoring pads on the right, decoding on the left; the next token is the same."""
    pairs = pairs_of(any_model)
    prompts = [p.teacher_prompt for p in pairs]
    decoded = generate(
        any_model, prompts, form_of(any_model).ending, Decoding(max_new_tokens=1), advance=nothing
    )
    batch = collate(prompts, [[0]] * len(prompts), pad_id=any_model.pad_id)
    with torch.no_grad():
        expected = completion_logits(any_model.network, batch).argmax(-1)
    assert [one.ids[0] for one in decoded] == expected.tolist()


def fidelities(models: Models, context: Context) -> list[Fidelity]:
    """Of the student with its adapter off, and on."""
    rows = RenderedRows.of("row", ROWS, form_of(models.teacher), context, gold=True)
    made = likelihoods(
        models,
        rows,
        rows.need_gold(),
        [METHODS["zero_shot"], METHODS["distillation"]],
        compare=True,
        batch_size=2,
        advance=nothing,
    )
    return [one.fidelity for one in made if one.fidelity is not None]


def test_without_a_context_a_fresh_student_equals_its_teacher(any_model: LanguageModel) -> None:
    models = models_of(any_model)
    zero_shot, distilled = fidelities(models, Context())
    assert zero_shot.kl_to_teacher == pytest.approx(0, abs=1e-6)
    assert distilled.kl_to_teacher == pytest.approx(0, abs=1e-6)
    assert distilled.agreement == 1
    assert drift(models, most=200, advance=nothing).kl_to_base == pytest.approx(0, abs=1e-6)


def test_teacher_and_student_are_one_copy_of_the_weights(model_folders: dict[str, Path]) -> None:
    model = load(str(model_folders["llama"]), dtype="float32")
    before = {p.data_ptr() for p in model.network.parameters()}
    models = models_of(model)
    frozen = {p.data_ptr() for p in models.student.network.parameters() if not p.requires_grad}
    assert frozen == before
    assert models.model(METHODS["in_context"]) is models.model(METHODS["distillation"])


def test_the_adapter_off_is_the_untouched_base(any_model: LanguageModel) -> None:
    pair = pairs_of(any_model)[0]
    before = plain_logits(any_model.network, pair.student_prompt, pair.completion)
    models = models_of(any_model)
    train_on(models, target_rows(models), steps=3)
    with models.adapter(on=False):
        off = plain_logits(models.student.network, pair.student_prompt, pair.completion)
    on = plain_logits(models.student.network, pair.student_prompt, pair.completion)
    torch.testing.assert_close(off, before, atol=1e-5, rtol=0)
    assert not torch.allclose(on, before, atol=1e-3)


def test_stored_targets_teach_what_the_online_ones_teach(
    llama: LanguageModel, tmp_path: Path
) -> None:
    """All but for the rounding: an outcome is stored in steps of 1/32 nat."""
    models = models_of(llama)
    online, vocabulary = target_rows(models, top_k=len(llama.tokenizer)), len(llama.tokenizer)

    def score(numbers: Sequence[int]) -> Iterator[tuple[int, list[int], Targets]]:
        for number in numbers:
            row = online[number]
            assert row.targets is not None
            yield number, row.completion, row.targets

    lengths = [len(row.completion) for row in online]
    plan = StorePlan("f", lengths, vocabulary, Selection(top_k=vocabulary), shard_rows=2)
    store = build(tmp_path / "store", plan=plan, score=score, advance=nothing)
    stored = [replace(row, targets=store[n].targets) for n, row in enumerate(online)]
    first = train_on(models, online, steps=3)
    again = models_of(load(llama.name, dtype="float32"))
    second = train_on(again, stored, steps=3)
    assert [step for step, _ in first.loss] == [step for step, _ in second.loss]
    for (_, exact), (_, rounded) in zip(first.loss, second.loss, strict=True):
        assert rounded == pytest.approx(exact, abs=2e-3)


def test_batch_times_accumulation_is_what_counts(model_folders: dict[str, Path]) -> None:
    """Completions differ in length: a mean of means would differ from the mean over the step's tokens."""
    ends = []
    for batch_size, accumulation in ((4, 1), (2, 2), (1, 4)):
        models = models_of(load(str(model_folders["llama"]), dtype="float32"))
        rows = target_rows(models)[:4]
        train_on(models, rows, steps=3, batch_size=batch_size, grad_accumulation=accumulation)
        ends.append(weights(models))
    for name, value in ends[0].items():
        for other in ends[1:]:
            torch.testing.assert_close(other[name], value, atol=1e-5, rtol=1e-4)


def test_the_reported_loss_is_the_mean_over_tokens(llama: LanguageModel) -> None:
    models = models_of(llama)
    rows = target_rows(models)
    batch = collate([r.student_prompt for r in rows], [r.completion for r in rows], pad_id=0)
    with torch.no_grad():
        logits = completion_logits(models.student.network, batch)
    expected = ForwardKL()(
        logits, batch.completion_N, Targets.cat([r.targets for r in rows if r.targets])
    )
    report = train_on(models, rows, steps=1)
    assert report.loss[0][1] == pytest.approx(expected.mean().item(), rel=1e-4)


def test_training_pulls_the_student_to_the_teacher(llama: LanguageModel) -> None:
    models = models_of(llama)
    train_on(models, target_rows(models, top_k=300), steps=60)
    zero_shot, distilled = fidelities(models, CONTEXT)
    assert distilled.kl_to_teacher < 0.1 * zero_shot.kl_to_teacher


def test_an_interrupted_training_ends_with_the_same_weights(
    model_folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = models_of(load(str(model_folders["llama"]), dtype="float32"))
    report = train_on(whole, target_rows(whole), steps=8, batch_size=2)

    broken = models_of(load(str(model_folders["llama"]), dtype="float32"))
    rows = target_rows(broken)
    real, calls = trainer.DistillationTrainer.training_step, []

    def press_ctrl_c(self: Any, *args: Any, **kwargs: Any) -> Any:
        import os
        import signal

        calls.append(1)
        if len(calls) == 3:
            os.kill(os.getpid(), signal.SIGINT)
        return real(self, *args, **kwargs)

    monkeypatch.setattr(trainer.DistillationTrainer, "training_step", press_ctrl_c)
    with pytest.raises(KeyboardInterrupt):
        train_on(broken, rows, steps=8, batch_size=2, folder=tmp_path / "checkpoints")
    assert len(calls) == 3
    monkeypatch.undo()

    resumed = models_of(load(str(model_folders["llama"]), dtype="float32"))
    again = train_on(resumed, rows, steps=8, batch_size=2, folder=tmp_path / "checkpoints")
    assert again.steps == report.steps == 8
    for name, value in weights(whole).items():
        torch.testing.assert_close(weights(resumed)[name], value, atol=1e-6, rtol=1e-5)
