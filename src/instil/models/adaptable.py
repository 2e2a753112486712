"""Which layers of a model a low-rank adapter is put on.

By default these are all linear layers of the text decoder, except
- the output layer,
- routers, which choose the experts of a token: a small change may send a token to another expert,
  and some return more than one tensor,
- layers of a state-space mixer whose weights fused kernels read directly, without the adapter,
- layers that share their weight with another one: merging would add each adapter to both.

Experts that are stored as one tensor are no linear layers. peft adapts them for some architectures.
It then leaves out the dense layers of the same names, such as those of shared experts.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

from peft import LoraConfig
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from instil.errors import TuningError
from instil.models.forward import output_embeddings

LINEAR = (nn.Linear, Conv1D)
ROUTER = re.compile(r"Router|TopK|MoE\w*Gat")  # in the name of a module's class
ROUTER_WEIGHT = "gate.weight"  # peft's name for the weight of a router
BLOCK = re.compile(r"\.(\d+)\.")  # the number of a decoder's block in the name of a layer
READ_BY_KERNELS = ("out_proj", "x_proj", "dt_proj")  # layers of a state-space mixer


def targets(
    network: PreTrainedModel,
    modules: Sequence[str] | None,
    blocks: Sequence[int] | None = None,
    **ranks: Any,
) -> dict[str, Any]:
    """What to pass to peft's `LoraConfig`, so that the right layers get an adapter.

    Args:
        network: The model.
        modules: Last parts of layers' names, such as `q_proj`; None: the default.
        blocks: Numbers of the decoder's blocks whose layers get an adapter; None: all.
        ranks: Rank and alpha, by peft's names.

    Raises:
        TuningError: the model has no such layer that can have an adapter.
    """
    reasons = _reasons(network)
    if blocks is not None:
        reasons = _in_blocks(network, reasons, blocks)
    if modules is not None:
        return {"target_modules": _named(network, reasons, modules), **ranks}
    head = output_embeddings(network)
    layers = [n for n, why in reasons.items() if not why and network.get_submodule(n) is not head]
    if not layers:
        raise TuningError(
            f"{type(network).__name__} has no layer that can have an adapter",
            allowed="a model with linear layers",
            mend="use tuning: {name: full}",
        )
    experts = _experts(network, ranks)
    if experts is None or blocks is not None:
        return {"target_modules": layers, **ranks}
    return {
        "target_modules": [n for n in layers if _last(n) in experts.target_modules],
        "target_parameters": sorted(set(experts.target_parameters) - {ROUTER_WEIGHT}),
        "rank_pattern": experts.rank_pattern,
        "alpha_pattern": experts.alpha_pattern,
        **ranks,
    }


def _in_blocks(
    network: PreTrainedModel, reasons: dict[str, str], blocks: Sequence[int]
) -> dict[str, str]:
    """The reasons, where layers outside of these blocks can have no adapter either."""
    number = {name: BLOCK.search(name) for name in reasons}
    known = {int(found[1]) for found in number.values() if found}
    if unknown := sorted(set(blocks) - known):
        raise TuningError(
            f"tuning.layers: {type(network).__name__} has no block {unknown[0]}",
            got=str(list(blocks)),
            allowed=f"numbers from 0 to {max(known)}"
            if known
            else "null: its blocks have no numbers",
            mend="name blocks of this model, or leave layers out",
        )
    outside = "it is in a block that tuning.layers does not name"
    return {
        name: why or ("" if (at := number[name]) and int(at[1]) in blocks else outside)
        for name, why in reasons.items()
    }


def _experts(network: PreTrainedModel, ranks: dict[str, Any]) -> Any:
    """Settings of peft for a model whose experts it adapts; None for another model."""
    try:
        from peft.utils import transformers_weight_conversion as conversion
    except ImportError:  # an older peft
        return None
    config = LoraConfig(target_modules="all-linear", **ranks)
    conversion.convert_peft_config_for_transformers(config, network, None)
    return None if isinstance(config.target_modules, str) else config


def _named(network: PreTrainedModel, reasons: dict[str, str], modules: Sequence[str]) -> list[str]:
    """The layers with these last parts of their names: only these parts if they are enough."""
    known = {_last(name) for name, why in reasons.items() if not why}
    unknown = sorted(set(modules) - known)
    if unknown:
        why = next((why for name, why in reasons.items() if _last(name) == unknown[0]), "")
        raise TuningError(
            f"tuning.modules: {type(network).__name__} has no linear layer {unknown[0]!r}"
            + (" that can have an adapter" if why else ""),
            got=why,
            allowed=", ".join(sorted(known)),
            mend="name layers of this model, or leave modules out",
        )
    names = [name for name, why in reasons.items() if _last(name) in modules and not why]
    same = [name for name, _ in network.named_modules() if _last(name) in modules]
    return sorted(modules) if len(same) == len(names) else names


def _reasons(network: PreTrainedModel) -> dict[str, str]:
    """Linear layer -> why it can have no adapter; empty if it can."""
    modules = dict(network.named_modules())
    decoder: Any = network.get_decoder()  # type: ignore[no-untyped-call]
    head = output_embeddings(network)
    inside = next(
        (f"{name}." for name, module in modules.items() if name and module is decoder), ""
    )
    uses = Counter(
        id(weight) for module in modules.values() for weight in module.parameters(recurse=False)
    )

    def reason(name: str, layer: nn.Module) -> str:
        owner = modules[name.rpartition(".")[0]]
        if not name.startswith(inside) and layer is not head:
            return "it is not part of the text decoder"
        if any(ROUTER.search(type(modules[path]).__name__) for path in _paths(name)):
            return "it belongs to a router, which chooses a token's experts"
        if _last(name) in READ_BY_KERNELS and hasattr(owner, "A_log") and hasattr(owner, "D"):
            return "kernels of a state-space mixer read its weight directly, without an adapter"
        if uses[id(layer.weight)] > 1:
            return "another layer has the same weight, and merging would change both"
        return ""

    return {name: reason(name, m) for name, m in modules.items() if isinstance(m, LINEAR)}


def _paths(name: str) -> list[str]:
    """The names of a module and of all modules around it."""
    parts = name.split(".")
    return [".".join(parts[:end]) for end in range(1, len(parts) + 1)]


def _last(name: str) -> str:
    return name.rpartition(".")[2]
