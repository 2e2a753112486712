from __future__ import annotations

import copy
import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.conftest import FAMILIES
from transformers import AutoModelForCausalLM, DynamicCache, PreTrainedModel, set_seed

from instil.errors import ConfigError
from instil.models.forward import CACHE
from instil.models.load import LanguageModel
from instil.models.reshape import keep_layers, put_head

VOCABULARY, DEPTH = 61, 5
IDS = torch.arange(24).reshape(2, 12) * 7 % VOCABULARY


@pytest.fixture(params=list(FAMILIES))
def deep(request: pytest.FixtureRequest) -> PreTrainedModel:
    """A tiny model of five layers."""
    set_seed(0)
    config = FAMILIES[request.param](VOCABULARY).config
    config.num_hidden_layers = DEPTH
    if getattr(config, "layer_types", None):
        config.layer_types = config.layer_types[:1] * DEPTH
    network: PreTrainedModel = AutoModelForCausalLM.from_config(config)
    return network.eval()


@torch.no_grad()
def logits(network: Any, ids: torch.Tensor = IDS) -> torch.Tensor:
    made: torch.Tensor = network(input_ids=ids.to(network.device)).logits
    return made


def layers_of(network: PreTrainedModel) -> torch.nn.ModuleList:
    depth = network.config.num_hidden_layers
    return next(
        m for m in network.modules() if isinstance(m, torch.nn.ModuleList) and len(m) == depth
    )


@pytest.mark.parametrize("kept", [DEPTH, tuple(range(DEPTH))])
def test_all_layers_kept_change_nothing(deep: PreTrainedModel, kept: int | tuple[int, ...]) -> None:
    before = logits(deep)
    keep_layers(deep, kept)
    assert torch.equal(logits(deep), before)


@pytest.mark.parametrize(
    ("kept", "chosen"),
    [(1, [0]), (2, [0, 4]), (3, [0, 2, 4]), (4, [0, 1, 3, 4]), ((1, 4), [1, 4]), ((2,), [2])],
)
def test_a_student_of_some_layers_is_a_model_made_of_them(
    deep: PreTrainedModel, kept: int | tuple[int, ...], chosen: list[int]
) -> None:
    config = copy.deepcopy(deep.config)
    config.num_hidden_layers = len(chosen)
    if getattr(config, "layer_types", None):
        config.layer_types = config.layer_types[: len(chosen)]
    shallow = AutoModelForCausalLM.from_config(config).eval()
    weights = {n: w for n, w in deep.state_dict().items() if n in shallow.state_dict()}
    shallow.load_state_dict(weights)
    for place, number in enumerate(chosen):
        layers_of(shallow)[place].load_state_dict(layers_of(deep)[number].state_dict())
    keep_layers(deep, kept)
    assert deep.config.num_hidden_layers == len(layers_of(deep)) == len(chosen)
    assert torch.equal(logits(deep), logits(shallow))


def test_kept_layers_are_spread_from_the_first_to_the_last() -> None:
    """Of every depth, any number: rising, and no gap two wider than another."""
    for depth, kept in ((d, k) for d in range(2, 14) for k in range(2, d + 1)):
        network = torch.nn.Module()
        network.config = _Depth(depth)  # type: ignore[assignment]
        network.layers = torch.nn.ModuleList(torch.nn.Linear(1, 1) for _ in range(depth))
        before = list(network.layers)
        keep_layers(network, kept)  # type: ignore[arg-type]
        chosen = [before.index(layer) for layer in network.layers]
        gaps = [b - a for a, b in itertools.pairwise(chosen)]
        assert (len(chosen), chosen[0], chosen[-1]) == (kept, 0, depth - 1)
        assert min(gaps) >= 1
        assert max(gaps) - min(gaps) <= 1


class _Depth:
    def __init__(self, depth: int) -> None:
        self.num_hidden_layers = depth

    def get_text_config(self) -> _Depth:
        return self


def test_a_cache_gives_what_the_full_forward_gives(deep: PreTrainedModel) -> None:
    keep_layers(deep, (1, 3, 4))
    cache = DynamicCache(config=deep.config)
    with torch.no_grad():
        deep(input_ids=IDS[:, :5], **{CACHE: cache}, use_cache=True)
        rest = deep(input_ids=IDS[:, 5:], **{CACHE: cache}, use_cache=True).logits
    assert len(cache.layers) == 3
    torch.testing.assert_close(rest, logits(deep)[:, 5:], atol=1e-4, rtol=0)


def test_it_decodes_with_a_cache_what_it_decodes_without(deep: PreTrainedModel) -> None:
    keep_layers(deep, 2)
    asked = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    mask = torch.ones_like(IDS)
    one, other = (
        deep.generate(IDS, attention_mask=mask, use_cache=use, **asked)  # type: ignore[operator]
        for use in (True, False)
    )
    assert torch.equal(one, other)


def test_a_student_of_some_layers_is_saved_and_loaded(
    deep: PreTrainedModel, tmp_path: Path
) -> None:
    keep_layers(deep, (0, 3))
    deep.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert again.config.num_hidden_layers == 2
    assert torch.equal(logits(again), logits(deep))


@pytest.mark.parametrize("kept", [0, -1, DEPTH + 1, (), (0, DEPTH), (-1, 2), (2, 1), (1, 1, 2)])
def test_layers_that_are_not_there_are_refused(
    deep: PreTrainedModel, kept: int | tuple[int, ...]
) -> None:
    before = logits(deep)
    with pytest.raises(ConfigError, match=r"student\.keep_layers.*1 to 5 layers.*0 to 4"):
        keep_layers(deep, kept)
    assert torch.equal(logits(deep), before)


def test_a_head_reads_what_predicts_the_next_token(any_model: LanguageModel) -> None:
    network: Any = any_model.network
    ids = IDS.to(any_model.device)
    with torch.no_grad():
        hidden_BLH = network.base_model(input_ids=ids).last_hidden_state
        inputs = network.get_input_embeddings().weight.clone()
    torch.testing.assert_close(
        hidden_BLH @ network.get_output_embeddings().weight.T, logits(network, ids)
    )
    name = put_head(network, 3, seed=0)
    head = network.get_submodule(name)
    assert (head.weight.shape, head.bias) == ((3, 32), None)
    got = logits(network, ids)
    assert got.shape == (2, 12, 3)
    torch.testing.assert_close(got, hidden_BLH @ head.weight.T)
    # Tied before or not, the input embedding is as it was, and not the head's.
    network.tie_weights()
    assert torch.equal(network.get_input_embeddings().weight, inputs)
    torch.testing.assert_close(logits(network, ids), got)


def test_a_head_goes_by_seed(any_model: LanguageModel) -> None:
    heads = []
    for seed in (0, 0, 1):
        network = copy.deepcopy(any_model.network)
        heads.append(network.get_submodule(put_head(network, 4, seed=seed)).weight)
    assert torch.equal(heads[0], heads[1])
    assert not torch.equal(heads[0], heads[2])
    assert heads[0].std().item() == pytest.approx(0.02, rel=0.3)


@pytest.mark.parametrize("cast", [False, True], ids=["bfloat16", "autocast"])
def test_a_head_is_float32_whatever_it_reads(any_model: LanguageModel, cast: bool) -> None:
    network = any_model.network
    if not cast:
        network.to(torch.bfloat16)  # type: ignore[arg-type]
    name = put_head(network, 3, seed=0)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=cast):
        got = logits(network)
    assert got.dtype == network.get_submodule(name).weight.dtype == torch.float32
    # Not rounded: bfloat16 keeps 8 bits of a number.
    assert not torch.equal(got, got.bfloat16().float())
