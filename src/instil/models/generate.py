"""Batched decoding. The tokens that the prompts of one context share are read once."""

from __future__ import annotations

import hashlib
from bisect import bisect_left
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, cast

import torch
from torch import Tensor
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    StoppingCriteria,
    StoppingCriteriaList,
)

from instil.models.cache import SharedPrefix, alike
from instil.models.forward import CACHE
from instil.models.load import LanguageModel
from instil.models.proof import (
    COMPARED,
    DIFFERENT,
    EQUAL,
    SINGLE,
    agree,
    kind,
    proven,
    refused,
)
from instil.models.repeats import StopRepeats, repeating
from instil.system.progress import Advance
from instil.system.sequences import Computed

SPARE_TOKENS = 8  # tokens before a stop string that are decoded with it
LEAST_DRAWN = 2.0**-24  # a float32 generator may return 0, and the noise would be infinite


@dataclass(frozen=True)
class Generated:
    """One completion, including the token that ends it.

    Attributes:
        ids: Token ids.
        finished: False if it was cut at the token limit, or because it repeats itself.
    """

    ids: list[int]
    finished: bool

    @property
    def repeats(self) -> bool:
        """Whether it has no end because it repeats itself."""
        return not self.finished and bool(repeating(torch.tensor([self.ids])))


@dataclass(frozen=True)
class Ending:
    """What ends an answer.

    Attributes:
        stop: Strings that end it.
        ids: Token ids that end it.
        text: Turns token ids into text, including special tokens.
    """

    stop: Sequence[str]
    ids: Sequence[int]
    text: Callable[[list[int]], str]

    def stops(self, ids: list[int]) -> bool:
        """Whether the text of these tokens holds a stop string."""
        if not self.stop:
            return False
        text = self.text(ids)
        return any(stop in text for stop in self.stop)

    @cached_property
    def tail(self) -> int:
        """How many tokens at the end of a text may hold the stop string that its last one ends.

        A token has one byte or more. The text of the first tokens may lack a space or a character.
        """
        return max((len(stop.encode()) for stop in self.stop), default=0) + SPARE_TOKENS


@dataclass(frozen=True)
class Decoding:
    """How completions are decoded.

    Attributes:
        max_new_tokens: Most tokens of a completion.
        temperature: Sampling temperature; 0 is greedy decoding.
        seed: Seed of the sampling. A row's sample depends on the seed and the row's number, not on
            the batch that it is decoded in.
        batch_size: Most rows decoded together.
        stop_repeats: Whether a completion that repeats itself is cut; see `instil.models.repeats`.
    """

    max_new_tokens: int
    temperature: float = 0.0
    seed: int = 0
    batch_size: int = 64
    stop_repeats: bool = False


def generate(
    model: LanguageModel,
    prompts: Sequence[list[int]],
    ending: Ending,
    decoding: Decoding,
    *,
    advance: Advance,
    numbers: Sequence[int] | None = None,
) -> list[Generated]:
    """Completes each prompt.

    Args:
        model: The model. The caller turns an adapter on or off.
        prompts: Full prompts in token ids.
        ending: What ends an answer.
        decoding: Greedy or sampled decoding, and its limits.
        advance: Called to report progress.
        numbers: Row number of each prompt, if these are only some of all prompts. Sampling depends
            on these numbers. None: 0, 1, 2 and so on.

    Returns:
        One completion per prompt, in the order of the prompts.
    """
    done: dict[int, Generated] = {}
    for places, made, computed in completed(model, prompts, ending, decoding, numbers=numbers):
        done.update(zip(places, made, strict=True))
        advance(len(places), computed)
    return [done[i] for i in range(len(prompts))]


@torch.inference_mode()
def prefill(model: LanguageModel, ids: list[int]) -> Any:
    """Reads the beginning of a prompt; returns its keys and values, for `stream`.

    Returns None if the model cannot decode with them.
    """
    if _refused(model.network, SINGLE, shared=False):
        return None
    tokens = torch.tensor([ids], device=model.device)
    network = cast(Any, model.network)
    return getattr(network(input_ids=tokens, use_cache=True, logits_to_keep=1), CACHE, None)


@torch.inference_mode()
def stream(
    model: LanguageModel,
    prompt: list[int],
    ending: Ending,
    max_new_tokens: int,
    *,
    cache: Any = None,
) -> Iterator[list[int]]:
    """Completes one prompt greedily; yields the token ids so far after each token.

    Args:
        model: The model. The caller turns an adapter on or off.
        prompt: Token ids.
        ending: What ends the answer.
        max_new_tokens: Most tokens of the answer.
        cache: Keys and values of what stands before the prompt, from `prefill`. They are changed.
    """
    network, made = cast(Any, model.network), list[int]()
    cached = not _refused(model.network, SINGLE, shared=False)
    given = prompt
    while len(made) < max_new_tokens:
        ids = torch.tensor([given], device=model.device)
        output = network(input_ids=ids, **{CACHE: cache}, use_cache=cached, logits_to_keep=1)
        cache = getattr(output, CACHE, None) if cached else None
        token = int(output.logits[0, -1].argmax())
        made.append(token)
        given = [token] if cache is not None else prompt + made
        yield made
        if token in ending.ids or ending.stops(made):
            return


@torch.inference_mode()
def completed(
    model: LanguageModel,
    prompts: Sequence[list[int]],
    ending: Ending,
    decoding: Decoding,
    *,
    numbers: Sequence[int] | None = None,
    known: Collection[int] = (),
) -> Iterator[tuple[list[int], list[Generated], int]]:
    """Completes prompts batch by batch.

    Args:
        model: See `generate`, also for the next four arguments.
        prompts: Full prompts in token ids.
        ending: What ends an answer.
        decoding: Greedy or sampled decoding, and its limits.
        numbers: Row number of each prompt.
        known: Indices of prompts that are left out. The others are in the same batches as without
            it, so that work that is resumed gives the same numbers.

    Yields:
        Indices of the prompts of a batch, their completions, and the token positions computed.
        Where a context is read for several batches, an empty batch tells its tokens.
    """
    rows = range(len(prompts)) if numbers is None else numbers
    for group in alike(prompts):
        if not known or not all(i in known for i in group):
            yield from _of_group(model, prompts, group, rows, ending, decoding, known)


@torch.inference_mode()
def batches(
    model: LanguageModel, prompts: Sequence[list[int]], decoding: Decoding
) -> Iterator[list[int]]:
    """The rows that `completed` decodes together, if the model does nothing wrong.

    It reads the contexts that rows share, and decodes nothing.

    Args:
        model: See `generate`, also for the next two arguments.
        prompts: Full prompts in token ids.
        decoding: Greedy or sampled decoding, and its limits.
    """
    for group in alike(prompts):
        prefix = _prefix(model.network, prompts, group)
        padded = _pads(model.network, prefix)
        yield from _batches(prompts, group, prefix, decoding, padded=padded)


def _prefix(
    network: torch.nn.Module, prompts: Sequence[list[int]], group: Sequence[int]
) -> SharedPrefix:
    """The prefix that a group's rows share, which is read now; empty if the model cannot share it."""
    shares = not _refused(network, SINGLE, EQUAL, shared=True)
    prefix = SharedPrefix(network, Computed.picked(prompts, group) if shares else [])
    prefix.read_in_place([prompts[i] for i in group[:1]])
    return prefix


def _pads(network: torch.nn.Module, prefix: SharedPrefix) -> bool:
    """Whether rows of different length are decoded together.

    In a sliding window, padding after the prefix would count as text.
    """
    shared = prefix.length > 0
    cached = shared or not _refused(network, SINGLE, EQUAL, shared=False)
    slides = shared and prefix.slides
    return cached and not slides and not _refused(network, DIFFERENT, shared=shared)


def _way(rows: str, *, shared: bool) -> str:
    """The name of a way to decode: the words after "the model cannot"."""
    return f"decode {rows}" + (" after a shared prefix" if shared else "")


def _refused(network: torch.nn.Module, *kinds: str, shared: bool) -> bool:
    return refused(network, *(_way(rows, shared=shared) for rows in kinds))


def _instead(rows: str, *, shared: bool) -> str:
    """What is done if it cannot."""
    if rows == DIFFERENT:
        return "only rows of equal length are decoded together, which takes longer"
    if shared:
        return "the context is read again for each row, which takes longer"
    return "every token reads the whole text again, which takes much longer"


def _of_group(
    model: LanguageModel,
    prompts: Sequence[list[int]],
    group: Sequence[int],
    rows: Sequence[int],
    ending: Ending,
    decoding: Decoding,
    known: Collection[int],
) -> Iterator[tuple[list[int], list[Generated], int]]:
    """Completes the prompts of one context; yields places, completions and computed tokens."""
    network, left = model.network, list(group)
    prefix = _prefix(network, prompts, group)
    yield [], [], prefix.length
    while left:
        if prefix.length and _refused(network, SINGLE, EQUAL, shared=True):
            prefix = SharedPrefix(network, [])
        shared = prefix.length > 0
        cached = shared or not _refused(network, SINGLE, EQUAL, shared=False)
        padded = _pads(network, prefix)
        done: set[int] = set()
        for batch in _batches(prompts, left, prefix, decoding, padded=padded):
            done.update(i for i in batch if i in known)
            places = [i for i in batch if i not in known]
            if not places:
                continue
            made = _Batch(
                model,
                [prompts[i] for i in places],
                prefix,
                ending,
                decoding,
                numbers=[rows[i] for i in places],
                cached=cached,
            ).proven()
            if made is None:  # the way was wrong; the rest goes another way
                break
            done.update(places)
            computed = sum(len(prompts[i]) - prefix.length for i in places)
            yield places, made, computed + sum(len(completion.ids) for completion in made)
        left = [i for i in left if i not in done]


def _batches(
    prompts: Sequence[list[int]],
    places: Sequence[int],
    prefix: SharedPrefix,
    decoding: Decoding,
    *,
    padded: bool,
) -> Iterator[list[int]]:
    """The rows that are decoded together: of similar length, or of equal length."""
    lengths = [len(prompts[i]) + decoding.max_new_tokens for i in places]
    groups: dict[int, list[int]] = {}
    for number, length in enumerate(lengths):
        groups.setdefault(0 if padded else length, []).append(number)
    for group in groups.values():
        of_group = [lengths[number] for number in group]
        for batch in prefix.batches(of_group, batch_size=decoding.batch_size):
            yield [places[group[i]] for i in batch]


@dataclass(frozen=True)
class _Batch:
    """Prompts that are completed together, and how."""

    model: LanguageModel
    prompts: Sequence[list[int]]
    prefix: SharedPrefix
    ending: Ending
    decoding: Decoding
    numbers: Sequence[int]
    cached: bool

    def proven(self) -> list[Generated] | None:
        """The completions; None if the way is wrong for this model."""
        seen = _Seen(sorted({0, len(self.prompts) - 1}))  # the shortest and the longest

        def holds(made: list[Generated]) -> bool:
            compared, steps_TV = list[tuple[list[int], list[int]]](), list[Tensor]()
            for place, i in enumerate(seen.rows):
                ids = made[i].ids
                for end in sorted({min(COMPARED, len(ids)), len(ids)}):
                    start = max(0, end - COMPARED)
                    if seen.steps.keys() >= set(range(start, end)):
                        compared.append((self.prompts[i] + ids[:start], ids[start:end]))
                        steps_TV += [seen.steps[step][place] for step in range(start, end)]
            logits_NV = torch.stack(steps_TV)
            return agree(self.model.network, compared, lambda start, end: logits_NV[start:end])

        if not self.cached:  # the plain forward pass itself
            return self._complete(seen)
        lengths, shared = [len(prompt) for prompt in self.prompts], self.prefix.length > 0
        return proven(
            self.model.network,
            _way(kind(lengths), shared=shared),
            max(lengths) + self.decoding.max_new_tokens,
            partial(self._complete, seen),
            holds,
            instead=_instead(kind(lengths), shared=shared),
        )

    def _complete(self, seen: _Seen) -> list[Generated]:
        model, decoding = self.model, self.decoding
        ids_BL, mask_BL = _pad_left(self.prompts, self.prefix.length, model.pad_id)
        width = ids_BL.shape[1]
        noise = [_Noise(decoding, self.numbers, model.device)] if decoding.temperature > 0 else []
        repeats = StopRepeats(width)
        stops = [_StopStrings(self.ending, width), *([repeats] if decoding.stop_repeats else [])]
        output_BT = cast(Any, model.network).generate(
            ids_BL.to(model.device),
            attention_mask=mask_BL.to(model.device),
            **{CACHE: self.prefix.cache(len(self.prompts))},
            generation_config=_settings(model, self.ending, decoding, cached=self.cached),
            logits_processor=LogitsProcessorList([seen, *noise]),
            stopping_criteria=StoppingCriteriaList(stops),
        )[:, width:]
        return [
            trimmed(row[: repeats.lengths.get(number)], self.ending)
            for number, row in enumerate(output_BT.tolist())
        ]


def _settings(
    model: LanguageModel, ending: Ending, decoding: Decoding, *, cached: bool
) -> GenerationConfig:
    return GenerationConfig(  # type: ignore[no-untyped-call]
        max_new_tokens=decoding.max_new_tokens,
        eos_token_id=list(ending.ids) or None,
        pad_token_id=model.pad_id,
        do_sample=False,  # `_Noise` does the sampling
        use_cache=cached,
    )


def _pad_left(prompts: Sequence[list[int]], prefix: int, pad_id: int) -> tuple[Tensor, Tensor]:
    """Ids and mask of [prefix, padding, rest].

    Padding must not come between a prompt and its completion.
    """
    length = max(map(len, prompts))
    ids_BL = torch.full((len(prompts), length), pad_id)
    mask_BL = torch.zeros((len(prompts), length), dtype=torch.long)
    for i, prompt in enumerate(prompts):
        rest = prompt[prefix:]
        ids_BL[i, :prefix] = torch.tensor(prompt[:prefix], dtype=torch.long)
        ids_BL[i, length - len(rest) :] = torch.tensor(rest)
        mask_BL[i, :prefix] = 1
        mask_BL[i, length - len(rest) :] = 1
    return ids_BL, mask_BL


class _Seen(LogitsProcessor):
    """Keeps the first and the last logits of some rows of a batch, as the model gave them.

    Attributes:
        rows: The rows.
        steps: Number of a decoded token -> logits of the rows, shape (rows, V).
    """

    def __init__(self, rows: Sequence[int]) -> None:
        self.rows = rows
        self.steps: dict[int, Tensor] = {}
        self._next = 0

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        self.steps[self._next] = scores[self.rows].clone()
        if self._next >= 2 * COMPARED:
            del self.steps[self._next - COMPARED]
        self._next += 1
        return scores


class _Noise(LogitsProcessor):
    """Turns the largest score into a sample: the scores are logits / temperature + Gumbel noise.

    The largest of these scores is distributed as softmax(logits / temperature) (Gumbel 1954;
    Maddison et al. 2014, arXiv:1411.0030, section 2). The noise of each row has its own generator.
    So a row's sample depends on the seed and the row's number, not on the other rows of its batch.
    """

    def __init__(self, decoding: Decoding, rows: Sequence[int], device: torch.device) -> None:
        self.temperature = decoding.temperature
        # A small number is a poor seed for the generator, so the seeds are hashed.
        seeds = [
            int.from_bytes(hashlib.sha256(f"{decoding.seed} {row}".encode()).digest()[:7])
            for row in rows
        ]
        self.generators = [torch.Generator(device).manual_seed(seed) for seed in seeds]

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        scores_BV = scores / self.temperature
        for row_V, generator in zip(scores_BV, self.generators, strict=True):
            drawn_V = torch.empty_like(row_V).exponential_(generator=generator)
            row_V -= drawn_V.clamp_min_(LEAST_DRAWN).log_()
        return scores_BV


class _StopStrings(StoppingCriteria):
    """Ends a row when its new text holds a stop string."""

    def __init__(self, ending: Ending, prompt_length: int) -> None:
        self.ending = ending
        self.prompt_length = prompt_length

    def __call__(self, input_ids: Tensor, scores: Tensor, **kwargs: object) -> Tensor:
        if not self.ending.stop:
            return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)
        start = max(self.prompt_length, input_ids.shape[1] - self.ending.tail)
        tails = input_ids[:, start:].tolist()
        ends = [
            self.ending.stops(tail) and self.ending.stops(row[self.prompt_length :].tolist())
            for tail, row in zip(tails, input_ids, strict=True)
        ]
        return torch.tensor(ends, device=input_ids.device)


def trimmed(ids: list[int], ending: Ending) -> Generated:
    """Cuts a decoded row after the token that ends it. The tokens after that are padding."""
    ends = [end for end, token in enumerate(ids, 1) if token in ending.ids][:1]
    if ending.stops(ids):  # a longer text holds what a shorter one holds
        counts = range(len(ids) + 1)
        ends.append(bisect_left(counts, True, key=lambda count: ending.stops(ids[:count])))
    return Generated(ids[: min(ends)], finished=True) if ends else Generated(ids, finished=False)
