"""Branches of a prompt, against the plain forward of each path alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.small import plain_logits
from transformers import MistralConfig, MistralForCausalLM

from instil.models.branches import Branches, branch, follows, reach
from instil.models.cache import SharedPrefix
from instil.models.forward import Logits, completion_logits
from instil.models.load import LanguageModel

SEQUENCES = st.sets(st.lists(st.integers(0, 3), max_size=4).map(tuple), min_size=1, max_size=8)
TREE = Branches.of({(70, 71, 72), (70, 71), (70, 73), (80,), (), (90, 91, 92, 93)})
PROMPTS = [list(b"a prompt that is long"), list(b"a prompt"), list(b"a p"), list(b"a prompt, too")]


def leaves(sequences: set[tuple[int, ...]]) -> int:
    """How many branches end in the tree of all sequences: no fewer paths can reach all of them."""
    tree: dict[int, Any] = {}
    for sequence in sequences:
        node = tree
        for token in sequence:
            node = node.setdefault(token, {})

    def count(node: Mapping[int, Any]) -> int:
        return sum(map(count, node.values())) if node else 1

    return count(tree)


@given(SEQUENCES)
def test_there_are_as_few_paths_as_can_be(sequences: set[tuple[int, ...]]) -> None:
    paths = Branches.of(sequences).paths
    assert all(any(path[: len(one)] == one for path in paths) for one in sequences)
    assert len(paths) == leaves(sequences)
    assert set(paths) <= sequences


@given(SEQUENCES)
def test_a_node_is_read_by_what_comes_after_it_on_its_branch(
    sequences: set[tuple[int, ...]],
) -> None:
    tree = Branches.of(sequences)
    below = tree.nodes[1:]
    expected = [[later[: len(node)] == node for node in below] for later in below]
    assert tree.readable.tolist() == expected


@given(SEQUENCES)
def test_pieces_predict_at_every_node_once_and_in_order(sequences: set[tuple[int, ...]]) -> None:
    tree = Branches.of(sequences)
    predicted = []
    for read, completion in tree.pieces:
        predicted += [(*read, *completion[:end]) for end in range(len(completion))]
    assert predicted == list(tree.nodes)
    on_paths = [path[:end] for path in tree.paths for end in range(len(path) + 1)]
    first = [node for node, new in zip(on_paths, tree.first.tolist(), strict=True) if new]
    assert first == list(tree.nodes)
    assert tree.visits.tolist() == [on_paths.count(node) for node in tree.nodes]


def expected(model: LanguageModel, tree: Branches = TREE) -> torch.Tensor:
    """The logits at all nodes of all prompts: a forward pass for each of them."""
    return torch.cat(
        [
            plain_logits(model.network, [*prompt, *node], [0])
            for prompt in PROMPTS
            for node in tree.nodes
        ]
    )


@pytest.mark.parametrize("shared", [False, True])
def test_branches_equal_plain_forwards(any_model: LanguageModel, shared: bool) -> None:
    prefix = SharedPrefix(any_model.network, PROMPTS if shared else [])
    assert prefix.length == (2 if shared else 0)
    batch = branch(PROMPTS, TREE, pad_id=any_model.pad_id, prefix=prefix.length)
    with torch.inference_mode():
        got = completion_logits(any_model.network, batch, cache=prefix.cache(len(PROMPTS)))
    torch.testing.assert_close(got, expected(any_model), atol=1e-4, rtol=0)
    own = sum(len(prompt) - prefix.length for prompt in PROMPTS)
    assert batch.tokens == own + len(PROMPTS) * (len(TREE.nodes) - 1)
    assert len(batch.completion_N) == len(PROMPTS) * len(TREE.nodes)


def test_a_branch_that_reads_another_one_is_found(any_model: LanguageModel) -> None:
    network = any_model.network
    batch = branch(PROMPTS, TREE, pad_id=any_model.pad_id)
    with torch.inference_mode():
        assert follows(network, PROMPTS, TREE, Logits(network, batch))
        assert batch.attention_mask is not None
        # The last node reads the first branch, too.
        batch.attention_mask[:, :, -1] = batch.attention_mask[:, :, -1].clone()
        batch.attention_mask[:, 0, -1, -len(TREE.nodes) + 1] = 0
        assert not follows(network, PROMPTS, TREE, Logits(network, batch))


def test_positions_that_are_wrong_are_found(any_model: LanguageModel) -> None:
    network = any_model.network
    batch = branch(PROMPTS, TREE, pad_id=any_model.pad_id)
    assert batch.position_ids_BL is not None
    batch.position_ids_BL[:, -1] += 1
    with torch.inference_mode():
        assert not follows(network, PROMPTS, TREE, Logits(network, batch))


def test_a_window_limits_how_far_branches_reach(llama: LanguageModel) -> None:
    small = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "vocab_size": 64}
    sliding = MistralConfig(**small, num_attention_heads=4, sliding_window=24)
    assert reach(MistralForCausalLM(sliding)) == 24
    assert reach(llama.network) == float("inf")
