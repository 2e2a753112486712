from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from instil import targets
from instil.alignment import AlignedPair
from instil.targets import Targets


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


@given(st.lists(st.integers(1, 4), min_size=1, max_size=5), st.floats(0.5, 2))
def test_writing_and_reading_changes_nothing(
    tmp_path_factory: pytest.TempPathFactory, lengths: list[int], temperature: float
) -> None:
    path = tmp_path_factory.mktemp("targets") / "targets.arrow"
    rows = [
        (
            AlignedPair(n, [1, 2, n], [n], list(range(length))),
            made(length, temperature=temperature, seed=n),
        )
        for n, length in enumerate(lengths)
    ]
    targets.write(path, rows, fingerprint="f", temperature=temperature)
    read = targets.read(path, fingerprint="f")
    assert read is not None
    for (pair, expected), got in zip(rows, read, strict=True):
        assert (got.row, got.student_prompt, got.completion) == (
            pair.row,
            pair.student_prompt,
            pair.completion,
        )
        assert got.targets is not None
        assert got.targets.temperature == temperature
        for name in ("ids_NK", "logprobs_NK", "log_tail_N", "logsumexp_N"):
            assert torch.equal(getattr(got.targets, name), getattr(expected, name))


def test_targets_of_something_else_are_not_read(tmp_path: Path) -> None:
    path = tmp_path / "targets.arrow"
    assert targets.read(path, fingerprint="f") is None
    targets.write(path, [], fingerprint="f", temperature=1.0)
    assert targets.read(path, fingerprint="f") == []
    assert targets.read(path, fingerprint="g") is None


def test_an_error_on_the_way_leaves_no_file_that_reads_as_whole(tmp_path: Path) -> None:
    path = tmp_path / "targets.arrow"

    def rows() -> object:
        yield AlignedPair(0, [1], [1], [2]), made(1)
        raise RuntimeError("killed")

    with pytest.raises(RuntimeError):
        targets.write(path, rows(), fingerprint="f", temperature=1.0)  # type: ignore[arg-type]
    assert targets.read(path, fingerprint="f") is None


def test_split_and_cat_undo_each_other() -> None:
    whole = made(7)
    again = Targets.cat(whole.split([2, 1, 4]))
    assert torch.equal(again.ids_NK, whole.ids_NK)
    assert torch.equal(again.log_tail_N, whole.log_tail_N)
