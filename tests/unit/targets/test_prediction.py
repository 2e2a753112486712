from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from instil.targets.prediction import Targets


def made(
    n: int, v: int = 30, *, top_k: int = 5, temperature: float = 1.0, seed: int = 0
) -> Targets:
    generator = torch.Generator().manual_seed(seed)
    return Targets.of(
        torch.randn(n, v, generator=generator) * 3, top_k=top_k, temperature=temperature
    )


@given(
    v=st.integers(2, 40),
    top_k=st.integers(1, 50),
    temperature=st.floats(0.25, 4),
    seed=st.integers(0, 99),
)
def test_kept_tokens_and_tail_make_one_whole(
    v: int, top_k: int, temperature: float, seed: int
) -> None:
    logits = torch.randn(3, v, generator=torch.Generator().manual_seed(seed)) * 5
    kept = Targets.of(logits, top_k=top_k, temperature=temperature)
    whole = kept.logprobs_NK.exp().sum(-1) + kept.log_tail_N.exp()
    torch.testing.assert_close(whole, torch.ones(3), atol=1e-5, rtol=0)
    raw = temperature * (kept.logprobs_NK + kept.logsumexp_N[:, None])
    torch.testing.assert_close(raw, logits.gather(-1, kept.ids_NK), atol=1e-3, rtol=1e-4)


def test_split_and_cat_undo_each_other() -> None:
    whole = made(7)
    again = Targets.cat(whole.split([2, 1, 4]))
    assert torch.equal(again.ids_NK, whole.ids_NK)
    assert torch.equal(again.log_tail_N, whole.log_tail_N)
