r"""Targets in few bits.

The outcomes of a token are stored as logits over the temperature, z = log p + logsumexp, in steps
of 1/32 nat. The tail is stored as one more outcome:

$$ \log p_v = z_v - \mathrm{lse}, \qquad \mathrm{lse} = \log\Big(\sum_{v\,\mathrm{kept}} e^{z_v} + e^{z_{\mathrm{tail}}}\Big) $$

So the decoded probabilities sum to one by construction, and the log-sum-exp needs no bits of its
own. Rounding changes a raw logit over the temperature and the log-sum-exp by at most 1/64 nat, and
a log-probability by at most 1/32. An outcome that was drawn is stored like the others, with its
share of the tail instead of its own probability.

The numbers of one completion are small and not negative. They are written column by column: the
number of outcomes of each token, the ids that occur (as gaps), the id of each outcome (as an
index), the likeliest logits, the drops from each outcome to the next, the tails, and the excess of
the KL through draws, in steps of 1/1024 nat. A column is split into byte planes. Each plane is
compressed by Zstandard (RFC 8878).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import DTypeLike, NDArray
from torch import Tensor

from instil.errors import NotFiniteLossError
from instil.targets.prediction import LOG_ZERO, Targets

STEP = 1 / 32
"""Nats between two stored logits."""
EXCESS_STEP = 1 / 1024
"""Nats between two stored excesses."""

_CODEC = pa.Codec("zstd", compression_level=19)
_SIZE = 4  # bytes for the length of a plane
_WORD = 8  # bytes of a number before it is split into planes

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Encoded:
    """The targets of one completion: N tokens with M outcomes in all. `pack` writes each column.

    Attributes:
        counts: Number of outcomes of each token, N.
        known: The different ids in ascending order, each as its gap to the previous id.
        ids: Index in `known` of each outcome, likeliest first, token after token, M.
        top: The likeliest logit of each token in steps, N, signed.
        drops: Steps from each outcome to the next outcome of its token, M - N.
        tail: Steps from the likeliest logit down to the log-sum-exp of the tail's logits, N,
            signed.
        excess: Amount by which draws make the KL too large, in steps, N; empty without draws.
    """

    counts: bytes
    known: bytes
    ids: bytes
    top: bytes
    drops: bytes
    tail: bytes
    excess: bytes


def encode(targets: Targets) -> Encoded:
    """Writes the targets of one completion as bytes.

    Args:
        targets: Likeliest outcome first; any padding comes last.

    Raises:
        NotFiniteLossError: the teacher's numbers are NaN or infinite; the error names the token.
        ValueError: an outcome is likelier than the one before it.
    """
    kept_NK = _array(targets.kept, bool)
    logsumexp_N = _array(targets.logsumexp_N, np.float64)
    logits_NK = _array(targets.logprobs_NK, np.float64) + logsumexp_N[:, None]
    tail_N = _array(targets.log_tail_N, np.float64) + logsumexp_N
    finite_N = np.isfinite(logits_NK).all(-1) & np.isfinite(tail_N)
    if not finite_N.all():
        raise NotFiniteLossError(
            "the teacher's log-probabilities are NaN or infinite",
            got=f"token {int(finite_N.argmin()) + 1} of {len(finite_N)} in a completion",
            mend="use --dtype float32 or bfloat16",
        )
    steps_NK = np.rint(logits_NK / STEP).astype(np.int64)
    top_N = steps_NK[:, 0]
    known, places = np.unique(_array(targets.ids_NK, np.int64)[kept_NK], return_inverse=True)
    return Encoded(
        counts=pack(kept_NK.sum(-1)),
        known=pack(np.diff(known, prepend=0)),
        ids=pack(places),
        top=pack(_unsigned(top_N)),
        drops=pack((steps_NK[:, :-1] - steps_NK[:, 1:])[kept_NK[:, 1:]]),
        tail=pack(_unsigned(top_N - np.rint(tail_N / STEP).astype(np.int64))),
        excess=_excess(targets.excess_N),
    )


def decode(encoded: Encoded, *, tokens: int, temperature: float) -> Targets:
    """Reads what `encode` wrote. The kept outcomes and the tail of a token sum to one.

    Args:
        encoded: The targets of one completion.
        tokens: Number of tokens of the completion, N.
        temperature: Temperature of the targets.
    """
    counts_N = unpack(encoded.counts, tokens)
    kept_NK = np.arange(counts_N.max(initial=0))[None] < counts_N[:, None]
    outcomes = int(counts_N.sum())
    places = unpack(encoded.ids, outcomes)
    known = unpack(encoded.known, int(places.max(initial=-1)) + 1).cumsum()
    ids_NK = np.zeros(kept_NK.shape, np.int64)
    ids_NK[kept_NK] = known[places]
    drops_NK = np.zeros(kept_NK.shape, np.int64)
    drops_NK[:, 1:][kept_NK[:, 1:]] = unpack(encoded.drops, outcomes - tokens)
    top_N = _signed(unpack(encoded.top, tokens))
    kept = torch.from_numpy(kept_NK)
    logits_NK = torch.from_numpy((top_N[:, None] - drops_NK.cumsum(-1)) * STEP)
    tail_N = torch.from_numpy((top_N - _signed(unpack(encoded.tail, tokens))) * STEP)
    outcomes_NK = logits_NK.masked_fill(~kept, float("-inf"))
    logsumexp_N = torch.cat([outcomes_NK, tail_N[:, None]], dim=-1).logsumexp(-1)
    logprobs_NK = (outcomes_NK - logsumexp_N[:, None]).float()
    impossible_NK = logprobs_NK < LOG_ZERO + STEP  # LOG_ZERO may have been rounded up
    return Targets(
        ids_NK=torch.from_numpy(ids_NK),
        logprobs_NK=logprobs_NK.masked_fill(impossible_NK, LOG_ZERO),
        log_tail_N=(tail_N - logsumexp_N).float().clamp(min=LOG_ZERO),
        logsumexp_N=logsumexp_N.float(),
        temperature=temperature,
        kept_NK=None if kept_NK.all() else kept,
        excess_N=_known_excess(encoded.excess, tokens),
    )


def pack(values: Ints) -> bytes:
    """Writes numbers as byte planes, lowest byte first; each is compressed if it becomes smaller.

    There are as many planes as the largest number has bytes.

    Raises:
        ValueError: a number is negative.
    """
    if values.min(initial=0) < 0:
        raise ValueError(
            f"only numbers from 0 up can be packed (got {values.min()}): sort the outcomes of "
            "each token, likeliest first"
        )
    width = (int(values.max(initial=0)).bit_length() + 7) // 8
    planes = values.astype("<i8").view(np.uint8).reshape(-1, _WORD)[:, :width].T
    parts = [bytes([width])]
    for plane in planes:
        raw = plane.tobytes()
        # If both have the same length, the raw plane is written. So the length alone shows whether
        # a plane is compressed.
        written = min(raw, _CODEC.compress(raw, asbytes=True), key=len)
        parts += [len(written).to_bytes(_SIZE, "little"), written]
    return b"".join(parts)


def unpack(packed: bytes, count: int) -> Ints:
    """Reads the `count` numbers that `pack` wrote."""
    planes = np.zeros((count, _WORD), np.uint8)
    start = 1
    for place in range(packed[0]):
        end = start + _SIZE + int.from_bytes(packed[start : start + _SIZE], "little")
        plane = packed[start + _SIZE : end]
        if len(plane) != count:  # otherwise the plane is raw
            plane = _CODEC.decompress(plane, count, asbytes=True)
        planes[:, place] = np.frombuffer(plane, np.uint8)
        start = end
    return planes.view("<i8")[:, 0].astype(np.int64)


def _excess(excess_N: Tensor | None) -> bytes:
    if excess_N is None:
        return b""
    return pack(np.rint(_array(excess_N, np.float64) / EXCESS_STEP).astype(np.int64))


def _known_excess(packed: bytes, tokens: int) -> Tensor | None:
    if not packed:
        return None
    return torch.from_numpy(unpack(packed, tokens) * EXCESS_STEP).float()


def _unsigned(values: Ints) -> Ints:
    """Maps the signed numbers 0, -1, 1, -2, 2 to 0, 1, 2, 3, 4."""
    return np.where(values < 0, -2 * values - 1, 2 * values)


def _signed(values: Ints) -> Ints:
    return (values >> 1) ^ -(values & 1)


def _array(tensor: Tensor, dtype: DTypeLike) -> NDArray[Any]:
    return tensor.numpy(force=True).astype(dtype)
