"""Which number format is the fastest, and that this is decided once."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
import torch

from instil.models import number_format
from instil.models.number_format import fastest_dtype, resolve_dtype

CPU = torch.device("cpu")


@pytest.fixture
def seconds(monkeypatch: pytest.MonkeyPatch) -> dict[torch.dtype, float]:
    """What a product takes in each format; this processor may be slow at either."""
    taken = {torch.float32: 0.001, torch.bfloat16: 0.001}

    def product(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        time.sleep(taken[a.dtype])
        return a

    monkeypatch.setattr(torch.Tensor, "__matmul__", product)
    return taken


def reports(monkeypatch: pytest.MonkeyPatch, **capabilities: bool) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)


@pytest.mark.parametrize("name", ["amx_bf16", "avx512_bf16", "bf16", "sve_bf16"])
def test_a_processor_that_says_it_is_fast_is_believed(
    monkeypatch: pytest.MonkeyPatch, seconds: dict[torch.dtype, float], name: str
) -> None:
    """Other work may make the times equal."""
    reports(monkeypatch, **{name: True})
    seconds[torch.float32] = 0.0011
    assert fastest_dtype(CPU) is torch.bfloat16


def test_a_processor_that_is_slower_than_it_says_computes_in_float32(
    monkeypatch: pytest.MonkeyPatch, seconds: dict[torch.dtype, float]
) -> None:
    reports(monkeypatch, avx512_bf16=True)
    seconds[torch.bfloat16] = 0.01
    assert fastest_dtype(CPU) is torch.float32


def test_a_processor_that_says_it_cannot_is_believed(
    monkeypatch: pytest.MonkeyPatch, seconds: dict[torch.dtype, float]
) -> None:
    reports(monkeypatch, avx2=True, avx512_bf16=False)
    seconds[torch.float32] = 0.02
    assert fastest_dtype(CPU) is torch.float32


def test_a_processor_that_says_nothing_is_measured(
    monkeypatch: pytest.MonkeyPatch, seconds: dict[torch.dtype, float]
) -> None:
    reports(monkeypatch)
    assert fastest_dtype(CPU) is torch.float32
    seconds[torch.float32] = 0.02
    assert fastest_dtype(CPU) is torch.bfloat16


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file that remembers the format; nothing is remembered in this process."""
    monkeypatch.setenv("INSTIL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(number_format, "resolve_dtype", resolve_dtype.__wrapped__)
    return tmp_path / "cache" / number_format.REMEMBERED


def decided(monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype) -> str:
    """What `auto` is if the machine is found to be fastest with `dtype`."""
    monkeypatch.setattr(number_format, "fastest_dtype", lambda device: dtype)
    return str(number_format.resolve_dtype("auto"))


def test_the_format_is_decided_once(kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert decided(monkeypatch, torch.bfloat16) == "bfloat16"
    assert decided(monkeypatch, torch.float32) == "bfloat16"
    (key,) = json.loads(kept.read_text())
    assert torch.__version__ in key


def test_it_is_decided_again_for_another_processor_or_torch(
    kept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decided(monkeypatch, torch.bfloat16)
    monkeypatch.setattr(number_format, "processor", lambda: "another one")
    assert decided(monkeypatch, torch.float32) == "float32"
    monkeypatch.setattr(torch, "__version__", "9.9")
    assert decided(monkeypatch, torch.bfloat16) == "bfloat16"
    assert len(json.loads(kept.read_text())) == 3


@pytest.mark.parametrize("content", ["", "{", "[]", '{"x": 1}', "\xff"])
def test_a_damaged_file_is_replaced(
    kept: Path, monkeypatch: pytest.MonkeyPatch, content: str
) -> None:
    kept.parent.mkdir()
    kept.write_bytes(content.encode("latin-1"))
    assert decided(monkeypatch, torch.float32) == "float32"
    assert decided(monkeypatch, torch.bfloat16) == "float32"


def test_a_cache_that_cannot_be_written_is_no_error(
    kept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept.parent.write_text("a file in the place of the folder")
    assert decided(monkeypatch, torch.bfloat16) == "bfloat16"


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_a_format_that_is_named_is_taken(dtype: str) -> None:
    assert resolve_dtype(dtype) == dtype
