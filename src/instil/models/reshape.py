"""A student whose shape differs from its model's: fewer layers, or a classification head."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from instil.errors import ConfigError
from instil.models.forward import output_embeddings

HEAD_STD = 0.02  # standard deviation of a new head's weights, as in transformers


class _Head(nn.Linear):
    """A linear layer in float32, whatever the dtype of its input."""

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        with torch.autocast(hidden.device.type, enabled=False):
            return super().forward(hidden.float())


def keep_layers(network: PreTrainedModel, kept: int | Sequence[int]) -> None:
    """Removes layers from a model, in place.

    Args:
        network: A decoder whose layers are one list of modules.
        kept: How many layers remain, spread evenly from the first to the last; or the numbers of
            the remaining layers, counted from 0.

    Raises:
        ConfigError: the model does not have these layers, or their numbers do not rise.
    """
    text_config: Any = network.config.get_text_config()
    depth = text_config.num_hidden_layers
    if isinstance(kept, int):
        chosen = [round(i * (depth - 1) / max(kept - 1, 1)) for i in range(kept)]
    else:
        chosen = list(kept)
    if not chosen or sorted({*chosen} & {*range(depth)}) != chosen:
        raise ConfigError(
            "student.keep_layers does not list layers of the model in rising order",
            got=str(kept),
            allowed=f"1 to {depth} layers, or a rising list of numbers from 0 to {depth - 1}",
            mend="list each layer once",
        )
    owner, name = next(
        (parent, name)
        for parent in network.modules()
        for name, child in parent.named_children()
        if isinstance(child, nn.ModuleList) and len(child) == depth
    )
    layers = [getattr(owner, name)[i] for i in chosen]
    for place, layer in enumerate(layers):
        for module in layer.modules():  # the cache uses a layer's number
            if hasattr(module, "layer_idx"):
                module.layer_idx = place
    setattr(owner, name, nn.ModuleList(layers))
    text_config.num_hidden_layers = len(layers)
    types = getattr(text_config, "layer_types", None)
    if types is not None:
        text_config.layer_types = [types[i] for i in chosen]


def put_head(network: PreTrainedModel, labels: int, *, seed: int) -> str:
    """Replaces the output embedding by a linear classification head.

    The head reads what a language model predicts the next token from: the last hidden state of the
    last token.

    Args:
        network: A causal language model; changed in place.
        labels: Number of outputs.
        seed: Seed of the head's weights.

    Returns:
        The name of the head's module in the model.
    """
    before = output_embeddings(network)
    name: str = next(name for name, module in network.named_modules() if module is before)
    torch.manual_seed(seed)
    head = _Head(before.in_features, labels, bias=False)  # type: ignore[arg-type]
    nn.init.normal_(head.weight, std=HEAD_STD)
    network.set_output_embeddings(head.to(network.device))  # type: ignore[no-untyped-call]
    network.config.tie_word_embeddings = False
    return name
