"""Token sequences that may follow a prompt, read as the branches of a tree.

Many sequences after one prompt share the prompt, and often their first tokens. One after another,
each sequence would need the prompt again. In a tree the prompt is read once, and each shared
beginning once. A mask makes a token read only the prompt and its own branch, and each token has the
position that it would have in its own sequence. With the names of 77 classes after a prompt of 20
tokens, that is 250 tokens in place of 1,800.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from instil.models.batch import Batch, shared_prefix
from instil.models.forward import Logits
from instil.models.proof import KINDS, agree, refused

PATHS = "the prompt is read again for each label, which takes longer"
"""What is done if a model cannot read branches."""


@dataclass(frozen=True)
class Branches:
    """Sequences that may follow a prompt. A node is a beginning of some of them.

    The root is the empty beginning. What it predicts is what the prompt's last token predicts.

    Attributes:
        paths: The sequences in token ids, sorted. None is the beginning of another one.
    """

    paths: tuple[tuple[int, ...], ...]

    @classmethod
    def of(cls, sequences: set[tuple[int, ...]]) -> Branches:
        """The fewest paths such that each sequence is the beginning of a path."""
        ordered = sorted(sequences)
        # What begins with a sequence comes right after it.
        following = [*ordered[1:], None]
        return cls(
            tuple(
                one
                for one, next_one in zip(ordered, following, strict=True)
                if next_one is None or next_one[: len(one)] != one
            )
        )

    @cached_property
    def nodes(self) -> tuple[tuple[int, ...], ...]:
        """The P nodes, each after its parent, one branch after another."""
        return tuple(sorted({path[:end] for path in self.paths for end in range(len(path) + 1)}))

    @cached_property
    def number(self) -> dict[tuple[int, ...], int]:
        """Number of each node."""
        return {node: number for number, node in enumerate(self.nodes)}

    @cached_property
    def visits(self) -> Tensor:
        """Number of paths that go through each node."""
        through = [path[:end] for path in self.paths for end in range(len(path) + 1)]
        return torch.tensor([self.number[node] for node in through]).bincount()

    @property
    def longest(self) -> int:
        """Number of tokens of the longest path."""
        return max(map(len, self.paths))

    @cached_property
    def pieces(self) -> tuple[tuple[list[int], list[int]], ...]:
        """Each path in two parts: the tokens that only have to be read, and a completion.

        A completion's tokens are predicted at the nodes that no earlier path has, in the order of
        `nodes`. Its last token is predicted, but not read.
        """
        pieces = []
        for number, path in enumerate(map(list, self.paths)):
            known = 1 + shared_prefix([list(self.paths[number - 1]), path]) if number else 0
            pieces.append((path[:known], [*path[known:], 0]))
        return tuple(pieces)

    @cached_property
    def first(self) -> Tensor:
        """For each node of each path, one path after another: whether no earlier path has it."""
        known = [len(read) for read, _ in self.pieces]
        return torch.cat(
            [
                torch.arange(len(path) + 1) >= start
                for path, start in zip(self.paths, known, strict=True)
            ]
        )

    @cached_property
    def readable(self) -> Tensor:
        """Whether a node's token reads another one's, for the T nodes below the root, bool."""
        readable_PP = torch.eye(len(self.nodes), dtype=torch.bool)
        for number, node in enumerate(self.nodes[1:], 1):
            readable_PP[number] |= readable_PP[self.number[node[:-1]]]
        return readable_PP[1:, 1:]


def branch(
    prompts: Sequence[list[int]], branches: Branches, *, pad_id: int, prefix: int = 0
) -> Batch:
    """Joins each prompt with all branches after it, in one row per prompt.

    A row holds the prompt, padding up to the longest prompt, and the token of every node but the
    root. At all nodes of all rows a completion token is predicted.

    Args:
        prompts: Full prompts, in token ids.
        branches: What may follow each of them.
        pad_id: Any valid id. Padding is read by nothing but padding.
        prefix: Number of leading tokens that all prompts share and whose keys and values the model
            already has.
    """
    rows = [prompt[prefix:] for prompt in prompts]
    nodes = branches.nodes[1:]
    width = max(map(len, rows))
    tokens_T = torch.tensor([node[-1] for node in nodes], dtype=torch.long)
    depth_T = torch.tensor([len(node) for node in nodes], dtype=torch.long)
    shape = (len(rows), width + len(nodes))
    ids_BL = torch.full(shape, pad_id)
    ids_BL[:, width:] = tokens_T
    positions_BL = torch.arange(shape[1]).repeat(len(rows), 1)
    predicts_BL = torch.zeros(shape, dtype=torch.bool)
    predicts_BL[:, width:] = True
    readable_BLL = torch.zeros((*shape, shape[1]), dtype=torch.bool)
    readable_BLL[:, :width, :width] = torch.ones(width, width, dtype=torch.bool).tril()
    readable_BLL[:, width:, width:] = branches.readable
    for i, row in enumerate(rows):
        ids_BL[i, : len(row)] = torch.tensor(row)
        positions_BL[i, width:] = len(row) - 1 + depth_T
        predicts_BL[i, len(row) - 1] = True
        readable_BLL[i, width:, : len(row)] = True
    mask_BLL = torch.zeros(readable_BLL.shape).masked_fill(~readable_BLL, -torch.inf)
    return Batch(
        input_ids_BL=ids_BL,
        attention_mask=torch.nn.functional.pad(mask_BLL, (prefix, 0))[:, None],
        position_ids_BL=prefix + positions_BL,
        predicts_BL=predicts_BL,
        completion_N=torch.zeros(len(rows) * len(branches.nodes), dtype=torch.long),
        tokens=sum(map(len, rows)) + len(rows) * len(nodes),
    )


def reach(network: Any) -> float:
    """Most tokens from the first to the last one that a token of this model can read.

    A mask of branches does not know of windows. 0 if a layer carries a state along the row, which
    no mask can branch.
    """
    layers = DynamicCache(config=network.config).layers
    if not all(type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) for layer in layers):
        return 0
    windows = [getattr(layer, "sliding_window", None) for layer in layers]
    return min((window for window in windows if window), default=float("inf"))


def way(rows: str, *, prefix: bool) -> str:
    """What a model has to do, in words that follow "the model cannot".

    Args:
        rows: What kind of rows the prompts are; see `instil.models.proof.kind`.
        prefix: Whether the keys and values of a shared prefix are known.
    """
    return f"read {rows} with branches{' after a shared prefix' if prefix else ''}"


def branches_refused(network: torch.nn.Module, *, prefix: bool) -> bool:
    """Whether a model was found to read branches wrong, of some kind of rows."""
    return refused(network, *(way(rows, prefix=prefix) for rows in KINDS))


def follows(network: Any, prompts: Sequence[list[int]], branches: Branches, logits: Logits) -> bool:
    """Whether the logits of branches are those of plain forward passes.

    The last path of the shortest prompt and the longest path of the longest prompt are compared.

    Args:
        network: The model, in evaluation mode.
        prompts: Full prompts, in token ids.
        branches: What follows each of them.
        logits: At all nodes of all prompts.
    """
    order = sorted(range(len(prompts)), key=lambda row: len(prompts[row]))
    asked = [(order[0], branches.paths[-1]), (order[-1], max(branches.paths, key=len))]
    positions = [
        row * len(branches.nodes) + branches.number[path[:end]]
        for row, path in asked
        for end in range(len(path) + 1)
    ]
    return agree(
        network,
        [(prompts[row], [*path, 0]) for row, path in asked],
        lambda start, end: torch.cat([logits.part(at, at + 1) for at in positions[start:end]]),
    )
