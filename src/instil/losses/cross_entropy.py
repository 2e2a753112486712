r"""Cross-entropy on the completion's tokens.

$$ L_t = -\log q(y_t \mid x, y_{<t}) $$

With completions written by the teacher, this is sequence-level distillation (Kim and Rush 2016,
arXiv:1606.07947, eq. 6, with sampled or greedy decoding instead of beam search). With gold
completions, it is fine-tuning.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from instil.losses.base import LogitLoss

if TYPE_CHECKING:
    from torch import Tensor

    from instil.targets.prediction import Targets


class CrossEntropy(LogitLoss):
    """Negative log-likelihood of the completion. It does not need the teacher's distribution."""

    temperature: ClassVar[float] = 1.0

    name: Literal["cross_entropy"] = "cross_entropy"

    def unweighted(
        self, logits_NV: Tensor, completion_N: Tensor, targets: Targets | None
    ) -> Tensor:
        """Negative log-likelihood of each completion token, nats, shape (N,)."""
        from torch.nn.functional import cross_entropy

        return cross_entropy(logits_NV, completion_N, reduction="none")
