"""Runs inside a vLLM server: makes it write a given completion, so that it tells its predictions.

vLLM takes log-probabilities before this change of the logits, so they are those of the model. A server
without it could score only whole prompts, and would read the context anew for each of them.
"""

from typing import Any

import torch
from vllm.v1.sample.logits_processor import AdapterLogitsProcessor

GIVEN = "instil_completion"
"""Key of the token ids in a request's `extra_args`."""


class Forced(AdapterLogitsProcessor):  # type: ignore[misc]
    """Writes the completion of a request that brings one."""

    def is_argmax_invariant(self) -> bool:
        """False: it decides which token is written."""
        return False

    def new_req_logits_processor(self, params: Any) -> Any:
        """What changes the logits of a request; None if it brings no completion."""
        given = (params.extra_args or {}).get(GIVEN)
        if not given:
            return None

        def force(output_ids: list[int], logits: torch.Tensor) -> torch.Tensor:
            if len(output_ids) < len(given):
                only = torch.full_like(logits, float("-inf"))
                only[given[len(output_ids)]] = 0.0
                return only
            return logits

        return force
