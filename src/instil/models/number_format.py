"""The number format of the weights: float32, bfloat16 or float16."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import torch

from instil.system import processes
from instil.system.disk import cache_folder
from instil.system.environment import processor
from instil.system.files import written_whole

# A smaller speed-up of bfloat16 does not justify its rounding errors.
WORTHWHILE_SPEEDUP = 1.3
REMEMBERED = "number_format.json"  # file in the user's cache folder


def default_device() -> torch.device:
    """The accelerator if there is one, else the CPU."""
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    return accelerator or torch.device("cpu")


@cache
def resolve_dtype(name: str) -> str:
    """Turns `auto` into the fastest dtype of this machine; the main process decides."""
    if name != "auto":
        return name
    return processes.main_does(lambda: _remembered(default_device()))


def fastest_dtype(device: torch.device) -> torch.dtype:
    """bfloat16 where it is faster, float32 elsewhere.

    An accelerator and a processor report whether they multiply bfloat16. Some processors do it five
    times faster than float32, and others more slowly. A small product is timed in both formats only
    to confirm what a processor reports, since other work on the machine disturbs the times. If a
    processor reports nothing, the times decide.
    """
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32
    reported = _multiplies_bfloat16() if device.type == "cpu" else None
    if reported is False:
        return torch.float32
    faster = _speedup(device)
    return torch.bfloat16 if faster >= (1 if reported else WORTHWHILE_SPEEDUP) else torch.float32


def _multiplies_bfloat16() -> bool | None:
    """Whether the processor says that it has instructions for products in bfloat16.

    None if this version of torch cannot ask it.
    """
    capabilities: Mapping[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    if not capabilities:
        return None
    return any(capabilities.get(name) for name in ("amx_bf16", "avx512_bf16", "bf16", "sve_bf16"))


def _speedup(device: torch.device) -> float:
    """How many times faster a product is in bfloat16 than in float32, by the best of 8 times.

    The formats take turns, so that other work on the machine disturbs both.
    """
    best = {torch.float32: float("inf"), torch.bfloat16: float("inf")}
    factors = {
        dtype: [
            torch.ones(shape, dtype=dtype, device=device) for shape in ((256, 1024), (1024,) * 2)
        ]
        for dtype in best
    }
    for _ in range(8):
        for dtype, (a, b) in factors.items():
            start = time.perf_counter()
            (a @ b).sum().item()  # .item() waits for an accelerator
            best[dtype] = min(best[dtype], time.perf_counter() - start)
    return best[torch.float32] / best[torch.bfloat16]


def _remembered(device: torch.device) -> str:
    """The fastest dtype, decided once for each device, processor and version of torch."""
    file = cache_folder() / REMEMBERED
    key = f"{device.type}, {processor()}, torch {torch.__version__}"
    known = _read(file)
    if known.get(key) in ("float32", "bfloat16"):
        return known[key]
    fastest = str(fastest_dtype(device)).removeprefix("torch.")
    with suppress(OSError):  # a cache that cannot be written is no error
        file.parent.mkdir(parents=True, exist_ok=True)
        with written_whole(file) as work:
            work.write_text(json.dumps(known | {key: fastest}, indent=1) + "\n", encoding="utf-8")
    return fastest


def _read(file: Path) -> dict[str, str]:
    try:
        known = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return known if isinstance(known, dict) else {}
