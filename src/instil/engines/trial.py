"""Compares an engine with the model in this process, before its work counts.

The same weights can answer otherwise on a server: another dtype, other kernels, an adapter that is not
on. So a few prompts of the run are answered here, and both predict the tokens of these answers.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch

from instil.engines.engine import Engine, Wanted
from instil.errors import EngineError
from instil.models.generate import Decoding, Ending, generate
from instil.targets.selection import Selection

PROMPTS, TOKENS, READ = 8, 12, 4096
"""Most prompts, most tokens of an answer, and about the most tokens that are read in all."""
TOLERANCE = 0.2
"""Largest mean difference, in nats. In bfloat16, two right ways differ by 0.02 to 0.08."""


def compare(engine: Engine, wanted: Wanted) -> None:
    """Refuses an engine whose predictions are not those of the model.

    Args:
        engine: The engine.
        wanted: Its model, which is in this process, too, its adapter, and some prompts.

    Raises:
        EngineError: the predictions are too far apart.
    """
    model, network = wanted.model, wanted.model.network
    most = max(1, min(PROMPTS, READ // max(map(len, wanted.prompts))))
    prompts = [*wanted.prompts[:most]]
    peft: Any = network
    off = wanted.adapter is None and hasattr(network, "disable_adapter")
    with peft.disable_adapter() if off else nullcontext():
        answers = [
            one.ids
            for one in generate(
                model,
                prompts,
                Ending((), (), lambda ids: ""),
                Decoding(TOKENS),
                advance=lambda rows, tokens: None,
            )
        ]
        own = [_logprobs(network, *pair) for pair in zip(prompts, answers, strict=True)]
    theirs = dict(
        engine.scored(
            [*zip(prompts, answers, strict=True)], Selection(top_k=1), vocabulary=own[0].shape[-1]
        )
    )
    apart, lost, count = 0.0, 0.0, 0
    for number, own_NV in enumerate(own):
        targets = theirs[number]
        known_N = own_NV.gather(-1, targets.ids_NK[:, :1])[:, 0]
        apart += float((known_N - targets.logprobs_NK[:, 0]).abs().sum())
        lost += float((own_NV.amax(-1) - known_N).sum())
        count += len(own_NV)
    said = (
        f"the log-probability of its likeliest token differs by {apart / count:.3f} nats in the mean, "
        f"over {count} tokens of {len(prompts)} answers"
    )
    if max(apart, lost) / count > TOLERANCE:
        raise EngineError(
            f"{engine.name} does not compute what {model.name} computes in this process",
            got=said,
            allowed=f"a mean difference of at most {TOLERANCE}",
            mend="serve the same model in the same dtype"
            + ("" if wanted.adapter is None else ", with the adapter of this run on"),
        )
    wanted.display.note(f"{engine.name} computes what this process computes: {said}")


@torch.inference_mode()
def _logprobs(network: Any, prompt: list[int], completion: list[int]) -> torch.Tensor:
    """Log-probabilities for each token of a completion, shape (N, V), on the CPU."""
    ids = torch.tensor([prompt + completion], device=network.device)
    logits: torch.Tensor = network(input_ids=ids).logits[0, len(prompt) - 1 : -1]
    return logits.float().log_softmax(-1).cpu()
