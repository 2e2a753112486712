"""The teacher's targets: its K likeliest tokens, their log-probabilities and the exact mass of all others.

Kept in one Arrow file, keyed by a fingerprint of all that they depend on.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from pathlib import Path

import pyarrow as pa
import torch
from torch import Tensor

from instil.alignment import AlignedPair
from instil.stored import whole

# Stands for the log of a probability of 0: its exp is 0, and 0 times it is 0 and not NaN.
LOG_ZERO = -1e4


@dataclass(frozen=True)
class Targets:
    """The teacher's prediction of N completion tokens.

    Attributes:
        ids_NK: The K likeliest tokens, likeliest first.
        logprobs_NK: Their log-probabilities at `temperature`, nats.
        log_tail_N: Log of the probability of all other tokens.
        logsumexp_N: Log-sum-exp of the logits over the temperature: `temperature * (logprobs + logsumexp)` are the raw logits.
        temperature: Of the softmax.
    """

    ids_NK: Tensor
    logprobs_NK: Tensor
    log_tail_N: Tensor
    logsumexp_N: Tensor
    temperature: float

    @classmethod
    def of(cls, logits_NV: Tensor, *, top_k: int, temperature: float) -> Targets:
        """Keeps the `top_k` likeliest tokens of each row; all of them if the vocabulary is smaller."""
        scaled_NV = logits_NV.float() / temperature
        logsumexp_N = scaled_NV.logsumexp(-1)
        values_NK, ids_NK = scaled_NV.topk(min(top_k, scaled_NV.shape[-1]))
        tail_N = scaled_NV.scatter(-1, ids_NK, float("-inf")).logsumexp(-1) - logsumexp_N
        return cls(
            ids_NK=ids_NK,
            logprobs_NK=(values_NK - logsumexp_N[:, None]).clamp(min=LOG_ZERO),
            log_tail_N=tail_N.clamp(min=LOG_ZERO),
            logsumexp_N=logsumexp_N,
            temperature=temperature,
        )

    def split(self, lengths: Sequence[int]) -> list[Targets]:
        """Cuts the N tokens into runs of the given lengths."""
        ends = list(accumulate(lengths))
        return [
            Targets(
                self.ids_NK[start:end],
                self.logprobs_NK[start:end],
                self.log_tail_N[start:end],
                self.logsumexp_N[start:end],
                self.temperature,
            )
            for start, end in pairwise([0, *ends])
        ]

    @classmethod
    def cat(cls, parts: Sequence[Targets]) -> Targets:
        """Joins the targets of several rows."""
        return cls(
            ids_NK=torch.cat([part.ids_NK for part in parts]),
            logprobs_NK=torch.cat([part.logprobs_NK for part in parts]),
            log_tail_N=torch.cat([part.log_tail_N for part in parts]),
            logsumexp_N=torch.cat([part.logsumexp_N for part in parts]),
            temperature=parts[0].temperature,
        )

    def to(self, device: torch.device) -> Targets:
        """The same targets on another device."""
        return Targets(
            self.ids_NK.to(device),
            self.logprobs_NK.to(device),
            self.log_tail_N.to(device),
            self.logsumexp_N.to(device),
            self.temperature,
        )


@dataclass(frozen=True)
class TargetRow:
    """What training reads of one pair: the student's prompt, the completion, the teacher's targets for it."""

    row: int
    student_prompt: list[int]
    completion: list[int]
    targets: Targets | None

    @property
    def sequences(self) -> list[tuple[list[int], list[int]]]:
        """What the student reads: one prompt with its completion."""
        return [(self.student_prompt, self.completion)]

    @property
    def terms(self) -> int:
        """Terms that the row adds to the loss: its completion's tokens."""
        return len(self.completion)


_SCHEMA = pa.schema(
    [
        ("row", pa.int64()),
        ("student_prompt", pa.list_(pa.int32())),
        ("completion", pa.list_(pa.int32())),
        ("ids", pa.list_(pa.list_(pa.int32()))),
        ("logprobs", pa.list_(pa.list_(pa.float32()))),
        ("log_tail", pa.list_(pa.float32())),
        ("logsumexp", pa.list_(pa.float32())),
    ]
)


def write(
    path: Path, rows: Iterable[tuple[AlignedPair, Targets]], *, fingerprint: str, temperature: float
) -> None:
    """Writes all targets, or nothing: the file gets its name when it is whole.

    Args:
        path: The Arrow file.
        rows: Pairs with their targets.
        fingerprint: Of all that the targets depend on.
        temperature: Of the targets.
    """
    schema = _SCHEMA.with_metadata({"fingerprint": fingerprint, "temperature": repr(temperature)})
    with (
        whole(path) as work,
        pa.OSFile(str(work), "wb") as sink,
        pa.ipc.new_file(sink, schema) as writer,
    ):
        for pair, targets in rows:
            record = {
                "row": pair.row,
                "student_prompt": pair.student_prompt,
                "completion": pair.completion,
                "ids": targets.ids_NK.int().tolist(),
                "logprobs": targets.logprobs_NK.tolist(),
                "log_tail": targets.log_tail_N.tolist(),
                "logsumexp": targets.logsumexp_N.tolist(),
            }
            writer.write_batch(pa.RecordBatch.from_pylist([record], schema=schema))


def read(path: Path, *, fingerprint: str) -> list[TargetRow] | None:
    """Reads what `write` wrote; None if there is no file or it was made from something else."""
    if not path.exists():
        return None
    with pa.memory_map(str(path)) as source:
        table = pa.ipc.open_file(source).read_all()
    metadata = table.schema.metadata
    if metadata[b"fingerprint"].decode() != fingerprint:
        return None
    temperature = float(metadata[b"temperature"])
    rows = []
    for number in range(len(table)):
        record = {name: table[name][number].values for name in table.column_names[1:]}
        rows.append(
            TargetRow(
                row=table["row"][number].as_py(),
                student_prompt=record["student_prompt"].to_pylist(),
                completion=record["completion"].to_pylist(),
                targets=Targets(
                    ids_NK=_matrix(record["ids"]).long(),
                    logprobs_NK=_matrix(record["logprobs"]),
                    log_tail_N=torch.tensor(record["log_tail"].to_numpy()),
                    logsumexp_N=torch.tensor(record["logsumexp"].to_numpy()),
                    temperature=temperature,
                ),
            )
        )
    return rows


def _matrix(lists: pa.ListArray) -> Tensor:
    """A list of equally long lists as a tensor, with no Python object an element."""
    return torch.tensor(lists.flatten().to_numpy()).reshape(len(lists), -1)
