r"""Which outcomes of a teacher's prediction are kept: the likely outcomes, and some of the others.

All other outcomes are the tail. If the tail is one outcome, a student learns its probability, but
not which tokens share it. More training tokens do not help. So n outcomes are drawn from the tail
by their probabilities p, and share the tail's mass m:

$$ n = \mathrm{round}(m / s), \qquad \hat p_v = c_v \, m / n, \qquad E[\hat p_v] = p_v $$

s is `mass_per_draw`, and c_v is how often v was drawn. The gradient of some losses, such as the
forward KL, is linear in the teacher's distribution. With the drawn outcomes, the expected gradient
of such a loss is the gradient with all outcomes (Anshumann et al. 2025, arXiv:2503.16870, who draw
from the full distribution; here the likely outcomes are exact, and only the rest varies). A tail of
less than s / 2 stays one outcome. A token has at most `top_k` draws. The draws make the KL too
large. The excess is one number per token, the second KL here, and is subtracted:

$$ E\big[\mathrm{KL}(\hat p \,\|\, q) - \mathrm{KL}(\hat p \,\|\, p)\big] = \mathrm{KL}(p \,\|\, q) $$

For a student with the teacher's predictions, the difference is 0, whatever is drawn (before a store
rounds). The draws are systematic: each token has one uniform point and n - 1 more points at equal
distances, along the tail in the order of the ids. So an outcome is drawn about as often as
expected. With n independent draws, it would vary more.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from instil.targets.prediction import LOG_ZERO, Targets
from instil.targets.selection import Selection


def sparse(logits_NV: Tensor, points_N: Tensor, *, kept: Selection, temperature: float) -> Targets:
    """Makes sparse targets from a teacher's logits, on the CPU.

    Args:
        logits_NV: Logits for N completion tokens.
        points_N: Position of the first draw in the tail, uniform in [0, 1); see `points`.
        kept: Which outcomes are kept, and how many are drawn.
        temperature: Temperature of the softmax.
    """
    # Tensors of the vocabulary's size stay on the model's device, in float32. Smaller tensors in
    # float64 move to the CPU, because not all devices support float64.
    likeliest = Targets.of(logits_NV, top_k=kept.top_k, temperature=temperature)
    trimmed = trim(likeliest.to(torch.device("cpu")), kept)
    return draw(trimmed, logits_NV, points_N, kept) if kept.mass_per_draw else trimmed


def points(prompt: Sequence[int], completion: Sequence[int]) -> Tensor:
    """A uniform number in [0, 1) for each token of a completion, shape (N,).

    The same prompt and completion always give the same numbers.
    """
    digest = hashlib.sha256(np.array([len(prompt), *prompt, *completion], np.int64).tobytes())
    generator = np.random.default_rng(int.from_bytes(digest.digest()[:8], "little"))
    return torch.from_numpy(generator.random(len(completion)))


def trim(targets: Targets, rule: Selection) -> Targets:
    """Moves outcomes that the rule does not keep into the tail.

    Args:
        targets: Likeliest outcome first; at most `rule.top_k` per token.
        rule: Which outcomes are kept.
    """
    if rule.all_alike:
        return targets
    logprobs_NK = targets.logprobs_NK.double()
    probs_NK = logprobs_NK.exp()
    if targets.temperature != 1:  # at temperature 1, the tail's probability is not known
        probs_NK = (targets.temperature * logprobs_NK).softmax(-1)
    kept_NK = probs_NK >= rule.min_probability
    if rule.mass < 1:  # an outcome is needed if those before it do not cover the mass
        kept_NK &= probs_NK.cumsum(-1) - probs_NK < rule.mass
    kept_NK[:, : rule.at_least] = True
    if targets.kept_NK is not None:
        kept_NK &= targets.kept_NK
    dropped_NK = logprobs_NK.masked_fill(kept_NK, LOG_ZERO)
    tail_N = torch.cat([dropped_NK, targets.log_tail_N.double()[:, None]], dim=-1).logsumexp(-1)
    widest = int(kept_NK.sum(-1).max()) if len(kept_NK) else 0
    kept_NK = kept_NK[:, :widest]
    return replace(
        targets,
        ids_NK=targets.ids_NK[:, :widest].masked_fill(~kept_NK, 0),
        logprobs_NK=targets.logprobs_NK[:, :widest].masked_fill(~kept_NK, LOG_ZERO),
        log_tail_N=tail_N.float().clamp(min=LOG_ZERO),
        kept_NK=kept_NK,
    )


def draw(targets: Targets, logits_NV: Tensor, points_N: Tensor, rule: Selection) -> Targets:
    """Draws outcomes from the tail. They then share the tail's mass.

    Args:
        targets: Trimmed targets, on the CPU.
        logits_NV: The logits that the targets were made from.
        points_N: As in `sparse`.
        rule: How many outcomes are drawn; at most `rule.top_k` per token.
    """
    mass_N = targets.log_tail_N.double().exp()
    counts_N = (mass_N / rule.mass_per_draw).round().clamp(max=rule.top_k)
    counts_N = counts_N.nan_to_num(0)  # `encode` raises an error for NaN
    (some_R,) = counts_N.nonzero(as_tuple=True)
    if not len(some_R):
        return targets
    weights_RV = _tail(targets, logits_NV, some_R)
    ids_RM, times_RM = _systematic(weights_RV, counts_N[some_R], points_N[some_R])
    times_RM = times_RM.masked_fill(_kept_already(targets, ids_RM, some_R), 0.0)
    drawn_R1 = times_RM.sum(-1, keepdim=True)
    share_RM = times_RM * mass_N[some_R, None] / drawn_R1.clamp(min=1)
    device = logits_NV.device
    scaled_RM = logits_NV[some_R.to(device)[:, None], ids_RM.to(device)].cpu() / targets.temperature
    logprobs_RM = scaled_RM.double() - targets.logsumexp_N[some_R, None]
    excess_R = (share_RM.xlogy(share_RM) - share_RM * logprobs_RM.clamp(min=LOG_ZERO)).sum(-1)
    tail_R = targets.log_tail_N[some_R].masked_fill(drawn_R1[:, 0] > 0, LOG_ZERO)

    def among_all(of_some: Tensor, elsewhere: float) -> Tensor:
        every = of_some.new_full((len(mass_N), *of_some.shape[1:]), elsewhere)
        return every.index_copy(0, some_R, of_some)

    kept_NJ = torch.cat([targets.kept, among_all(times_RM > 0, False)], -1)
    drawn_RM = share_RM.log().float().clamp(min=LOG_ZERO)
    logprobs_NJ = torch.cat([targets.logprobs_NK, among_all(drawn_RM, LOG_ZERO)], -1)
    known_NJ = logprobs_NJ.masked_fill(~kept_NJ, float("-inf"))
    order_NJ = known_NJ.argsort(dim=-1, descending=True, stable=True)
    order_NJ = order_NJ[:, : int(kept_NJ.sum(-1).max())]
    return replace(
        targets,
        ids_NK=torch.cat([targets.ids_NK, among_all(ids_RM, 0)], -1).gather(-1, order_NJ),
        logprobs_NK=logprobs_NJ.gather(-1, order_NJ),
        log_tail_N=targets.log_tail_N.index_copy(0, some_R, tail_R),
        kept_NK=kept_NJ.gather(-1, order_NJ),
        excess_N=among_all(excess_R.float().clamp(min=0), 0.0),
    )


def _tail(targets: Targets, logits_NV: Tensor, some_R: Tensor) -> Tensor:
    """Probabilities of the tail's outcomes for some tokens; 0 for kept outcomes.

    Shape (R, V), on the device of the logits.
    """
    device = logits_NV.device
    probs_RV = logits_NV[some_R.to(device)].float()  # the only copy, changed in place below
    logsumexp_R1 = targets.logsumexp_N[some_R, None].to(device)
    probs_RV.div_(targets.temperature).sub_(logsumexp_R1).exp_()
    rows, places = targets.kept[some_R].nonzero(as_tuple=True)
    ids = targets.ids_NK[some_R][rows, places]
    probs_RV[rows.to(device), ids.to(device)] = 0.0
    return probs_RV


def _systematic(weights_RV: Tensor, counts_R: Tensor, points_R: Tensor) -> tuple[Tensor, Tensor]:
    """Draws `counts_R` outcomes of each row in proportion to their weights; overwrites the weights.

    Returns:
        The different outcomes in the order of their ids, and how often each was drawn (0 for
        padding); shapes (R, M), on the CPU.
    """
    reached_RV = weights_RV.cumsum_(-1)
    total_R1 = reached_RV[:, -1:].cpu()
    numbers_M = torch.arange(int(counts_R.max()))
    at_RM = ((numbers_M + points_R[:, None]) / counts_R[:, None] * total_R1).float()
    # Rounding must not move a point to the total itself, because no outcome is there.
    at_RM = at_RM.minimum(total_R1.nextafter(torch.zeros_like(total_R1)))
    drawn_RM = torch.searchsorted(reached_RV, at_RM.to(reached_RV.device), right=True).cpu()
    drawn_RM = drawn_RM.clamp(max=reached_RV.shape[1] - 1).sort(-1).values
    new_RM = drawn_RM.diff(dim=-1, prepend=drawn_RM.new_full((len(drawn_RM), 1), -1)) > 0
    place_RM = new_RM.cumsum(-1) - 1
    ids_RM = torch.zeros_like(drawn_RM).scatter(-1, place_RM, drawn_RM)
    each_RM = (numbers_M < counts_R[:, None]).double()
    return ids_RM, torch.zeros_like(each_RM).scatter_add(-1, place_RM, each_RM)


def _kept_already(targets: Targets, ids_RM: Tensor, some_R: Tensor) -> Tensor:
    """Which of the ids are kept outcomes, not part of the tail.

    An accelerator's cumulative sums do not always increase, so one draw in a million is such an id.
    """
    ids_RK = targets.ids_NK[some_R].masked_fill(~targets.kept[some_R], -1).sort(-1).values
    places_RM = torch.searchsorted(ids_RK, ids_RM).clamp(max=ids_RK.shape[1] - 1)
    return ids_RK.gather(-1, places_RM) == ids_RM
