"""A faster way is used only where it gives what the plain forward pass gives."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.small import form_of, models_of, nothing, plain_logits, target_rows, train_on

from instil.models import proof
from instil.models.attention import BOUNDS
from instil.models.forward import CACHE
from instil.models.generate import Decoding, Ending, generate
from instil.models.load import LanguageModel, load, load_for_training
from instil.models.proof import COMPARED, EXACT, agree, proven, same
from instil.models.reader import COMPLETIONS, Packing, Reader
from instil.prompts.context import Context, FewShot
from instil.training import collation
from instil.training.collation import Together, proven_collator

CONTEXT = Context.of(FewShot([{"input": "zebra", "output": "1"}] * 4))
QUERIES = ["a long query about one zebra", "two", "three of them", "4", "5 lynxes", "6"]
ANSWERS = [[[40 + n, 50, 60][: 1 + n % 3]] for n in range(6)]

Change = Callable[[Any, tuple[Any, ...], dict[str, Any]], tuple[tuple[Any, ...], dict[str, Any]]]


def prompts_of(model: LanguageModel) -> list[list[int]]:
    return [form_of(model).prompt_ids(query, CONTEXT) for query in QUERIES]


def read(model: LanguageModel, packing: Packing | None) -> tuple[int, int]:
    """Reads all rows, checks every number, and returns rows per pass and the prefix's length."""
    prompts = prompts_of(model)
    expected = [plain_logits(model.network, p, a[0]) for p, a in zip(prompts, ANSWERS, strict=True)]
    reader = Reader(model, prompts, ANSWERS, packing=packing, batch_size=4)
    passes = list(reader.read())
    assert sorted(row for one in passes for row in one.rows) == list(range(len(prompts)))
    for one in passes:
        with torch.inference_mode():
            got_NV = torch.cat(list(one.logits.chunks()))
        wanted_NV = torch.cat([expected[row] for row in one.rows])
        torch.testing.assert_close(got_NV, wanted_NV, atol=1e-4, rtol=0)
    assert reader._prefix is not None
    return max(len(one.batch.input_ids_BL) for one in passes), reader._prefix.length


def change(model: LanguageModel, how: Change) -> None:
    """Changes what the model is called with."""
    model.network.register_forward_pre_hook(how, with_kwargs=True)


def forget_bounds(module: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """As a model that reads a packed row as one text."""
    if kwargs.pop(BOUNDS, None) is not None:
        kwargs |= {"attention_mask": None, "position_ids": None}
    return args, kwargs


def forget_cache(module: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """As a model that takes a cache and neither reads nor fills it."""
    return args, kwargs | {CACHE: None}


def forget_prefix(module: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """As a model that fills a cache, and counts positions from the start of each pass."""
    if kwargs.get(CACHE) is not None and len(kwargs["input_ids"]) > 1:
        length = kwargs["input_ids"].shape[1]
        kwargs["position_ids"] = torch.arange(length)[None].expand(len(kwargs["input_ids"]), -1)
    return args, kwargs


def forget_padding(module: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """As a model that refuses rows of different length."""
    mask = kwargs.get("attention_mask")
    if mask is not None and mask.dim() == 2 and not mask.all():
        raise ValueError("no padding, please")
    return args, kwargs


def test_a_sound_model_is_packed_after_its_prefix(
    llama: LanguageModel, caplog: pytest.LogCaptureFixture
) -> None:
    rows, prefix = read(llama, COMPLETIONS)
    assert rows == 1
    assert prefix > 20
    assert not caplog.records


def test_a_model_that_mixes_packed_rows_gets_padded_rows(
    llama: LanguageModel, caplog: pytest.LogCaptureFixture
) -> None:
    change(llama, forget_bounds)
    rows, prefix = read(llama, COMPLETIONS)
    assert rows == 4
    assert prefix > 20
    (line,) = caplog.messages
    assert line == (
        "LlamaForCausalLM cannot read rows of different length packed into one after a shared "
        "prefix (it gives other numbers than a plain forward pass); rows are padded, which takes "
        "longer"
    )


@pytest.mark.parametrize("how", [forget_cache, forget_prefix])
def test_a_model_that_cannot_continue_from_a_prefix_reads_the_context_again(
    llama: LanguageModel, how: Change, caplog: pytest.LogCaptureFixture
) -> None:
    change(llama, how)
    _, prefix = read(llama, None)
    assert prefix == 0
    assert len(caplog.messages) == 1
    assert "the context is read again for each row" in caplog.messages[0]
    read(llama, None)
    assert len(caplog.messages) == 1  # it is said once


def test_a_model_that_cannot_read_padding_reads_row_by_row(
    llama: LanguageModel, caplog: pytest.LogCaptureFixture
) -> None:
    change(llama, forget_padding)
    read(llama, None)
    assert "ValueError: no padding, please" in caplog.text
    assert "rows are read one at a time" in caplog.text


@pytest.mark.parametrize("how", [forget_cache, forget_prefix, forget_padding])
def test_every_model_decodes_what_whole_passes_say(llama: LanguageModel, how: Change) -> None:
    prompts, form = prompts_of(llama), form_of(llama)
    decoding = Decoding(max_new_tokens=6, batch_size=4)
    plain = generate(copy.deepcopy(llama), prompts, form.ending, decoding, advance=nothing)
    change(llama, how)
    assert generate(llama, prompts, form.ending, decoding, advance=nothing) == plain
    for prompt, completion in zip(prompts, plain, strict=True):
        chosen = plain_logits(llama.network, prompt, completion.ids).argmax(-1)
        assert chosen.tolist() == completion.ids


def shift_padding(module: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """As a model that counts padding as text when it reads a prompt."""
    mask, cache = kwargs.get("attention_mask"), kwargs.get(CACHE)
    if cache is not None and mask is not None and not mask.all():
        start, length = cache.get_seq_length(), kwargs["input_ids"].shape[1]
        kwargs["position_ids"] = (start + torch.arange(length)).expand(len(mask), -1)
    return args, kwargs


def test_a_padded_row_is_compared_although_the_longest_row_ends_first(
    llama: LanguageModel, caplog: pytest.LogCaptureFixture
) -> None:
    prompts = sorted(prompts_of(llama), key=len)
    decoding = Decoding(max_new_tokens=6, batch_size=len(prompts))
    endless = Ending(stop=[], ids=[], text=lambda ids: "")
    sound = copy.deepcopy(llama)
    longest = generate(sound, prompts, endless, decoding, advance=nothing)[-1]
    ending = Ending(stop=[], ids=longest.ids[:1], text=lambda ids: "")
    expected = generate(sound, prompts, ending, decoding, advance=nothing)
    assert len(expected[-1].ids) == 1
    change(llama, shift_padding)
    assert generate(llama, prompts, ending, decoding, advance=nothing) == expected
    assert "cannot decode rows of different length after a shared prefix" in caplog.text


def test_long_answers_are_compared_at_their_end(
    llama: LanguageModel, caplog: pytest.LogCaptureFixture
) -> None:
    prompts = prompts_of(llama)
    decoding = Decoding(max_new_tokens=3 * COMPARED, batch_size=len(prompts))
    endless = Ending(stop=[], ids=[], text=lambda ids: "")
    expected = generate(copy.deepcopy(llama), prompts, endless, decoding, advance=nothing)
    calls: list[int] = []

    def forget_late(module: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        """As a model with a window: what is decoded late has lost its beginning."""
        if kwargs.get(CACHE) is not None and kwargs["input_ids"].shape[1] == 1:
            calls.append(1)
            if len(calls) > 2 * COMPARED:
                kwargs["position_ids"] = kwargs["position_ids"] + 7
        return args, kwargs

    change(llama, forget_late)
    made = generate(llama, prompts, endless, decoding, advance=nothing)
    assert "cannot decode" in caplog.text
    assert made == expected


def test_autocast_is_allowed_the_rounding_of_its_dtype(model_folders: dict[str, Path]) -> None:
    """Also where the model casts its logits to float32."""
    for dtype, right in (("bfloat16", True), ("float32", False)):
        model = load_for_training(str(model_folders["llama"]), dtype=dtype)

        def cast(module: Any, args: Any, output: Any) -> None:
            output.logits = output.logits.float()

        model.network.register_forward_hook(cast)
        sequences = [([40, 50, 60], [70, 80]), ([41, 51], [61])]
        plain_NV = torch.cat([plain_logits(model.network, *one) for one in sequences])
        rounded_NV = plain_NV + 5e-3 * torch.randn_like(plain_NV)
        found = agree(model.network, sequences, lambda a, b, made=rounded_NV: made[a:b])
        assert found == right


def test_a_student_that_cannot_read_padding_trains_on_one_row_at_a_time(
    llama: LanguageModel,
) -> None:
    models = models_of(llama)
    rows = target_rows(models)
    expected = train_on(models, rows, steps=2).loss
    again = models_of(load(llama.name, dtype="float32"))
    again.student.network.register_forward_pre_hook(forget_bounds, with_kwargs=True)
    again.student.network.register_forward_pre_hook(forget_padding, with_kwargs=True)
    got = train_on(again, rows, steps=2).loss
    assert [loss for _, loss in got] == pytest.approx([loss for _, loss in expected], rel=1e-4)


def test_packing_is_proven_on_fewer_rows_where_a_batch_does_not_fit(
    llama: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Later batches may fit."""
    models = models_of(llama)
    rows, network = target_rows(models), models.student.network
    monkeypatch.setattr(collation, "reads_bounds", lambda network: False)
    total = sum(len(p) + len(c) for row in rows for p, c in row.sequences)
    monkeypatch.setattr(collation, "LONGEST_PACK", total // 2)
    collator = proven_collator(network, rows, batch_size=5, pad_id=0, online=None)
    assert collator.together is Together.PACKED
    tried = {way for way in proof._PROVEN[network] if way.startswith("train")}
    assert tried == {Together.PACKED, Together.PADDED}


def test_a_student_that_mixes_packed_lessons_trains_on_padded_ones(
    llama: LanguageModel, caplog: pytest.LogCaptureFixture
) -> None:
    models = models_of(llama)
    rows, mixing = target_rows(models), copy.deepcopy(models.student.network)
    mixing.register_forward_pre_hook(forget_bounds, with_kwargs=True)
    for network, packed in ((models.student.network, True), (mixing, False)):
        collator = proven_collator(network, rows, batch_size=5, pad_id=0, online=None)
        assert (collator.together is Together.PACKED) == packed
    assert "cannot train on rows packed into one" in caplog.text
    assert train_on(models, rows, steps=2).steps == 2


class Tried:
    """A way that is right, or not, up to a size."""

    def __init__(self) -> None:
        self.network = torch.nn.Linear(1, 1)
        self.compared: list[int] = []

    def __call__(
        self, size: int, *, right: bool = True, error: Exception | None = None
    ) -> int | None:
        def make() -> int:
            if error is not None:
                raise error
            return size

        def holds(made: int) -> bool:
            self.compared.append(made)
            return right

        return proven(self.network, "juggle", size, make, holds, instead="it walks")


def test_a_way_is_compared_again_only_when_the_size_has_grown() -> None:
    tried, sizes = Tried(), [100, 120, 50, 128, 129, 180, 100, 182]
    assert [tried(size) for size in sizes] == sizes
    assert tried.compared == [100, 129, 182]


def test_a_way_that_failed_is_never_tried_again() -> None:
    tried = Tried()
    assert tried(5) == 5
    assert tried(9, right=False) is None
    assert tried(5) is None
    assert tried.compared == [5, 9]


def test_an_error_of_a_proven_way_is_an_error(caplog: pytest.LogCaptureFixture) -> None:
    tried = Tried()
    assert tried(5) == 5
    with pytest.raises(RuntimeError, match="broken"):
        tried(5, error=RuntimeError("broken"))
    with caplog.at_level(logging.WARNING):
        assert tried(9, error=RuntimeError("broken\nin detail")) is None
    assert caplog.messages == ["Linear cannot juggle (RuntimeError: broken); it walks"]


def test_too_little_memory_is_no_proof_against_a_way() -> None:
    tried = Tried()
    for error in (torch.OutOfMemoryError(""), RuntimeError("not enough memory: you tried …")):
        with pytest.raises(type(error)):
            tried(5, error=error)
    assert tried(5) == 5


def test_rounding_is_allowed_and_a_small_leak_is_not() -> None:
    torch.manual_seed(0)
    plain = torch.randn(8, 300) * 5
    plain[:, 290:] = -torch.inf  # outcomes that cannot be
    assert same(plain + torch.randn_like(plain) * 1e-5, plain, exact=True)
    assert not same(plain + torch.randn_like(plain) * 30 * EXACT, plain, exact=True)
    rounded = plain.to(torch.bfloat16).float()
    assert same(rounded, plain, exact=False)
    assert not same(rounded, plain, exact=True)
    assert not same(plain.roll(1, 0), plain, exact=False)
    assert not same(plain[:2].roll(1, 0), plain[:2], exact=False)


def test_the_rounding_of_a_single_token_is_no_proof_of_a_wrong_way() -> None:
    """bfloat16 made a KL of 0.0205 at the second of two tokens of SmolLM2."""
    plain = torch.log(torch.tensor([[0.5, 0.5], [0.5, 0.5]]))
    made = torch.log(torch.tensor([[0.5, 0.5], [0.6, 0.4]]))  # 0.0204 nats
    assert same(made, plain, exact=False)
    assert not same(made.repeat(4, 1)[1::2].repeat(2, 1), plain.repeat(4, 1), exact=False)
    assert not same(torch.full_like(plain, torch.nan), plain, exact=False)
