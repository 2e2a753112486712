"""What do kept texts cost, and what do they keep? Variants of `keep`, and other ways to drift less.

    python benchmarks/keep.py --data FOLDER [--variants NAME ...] [--tasks TASK ...]
        [--seeds 0 1 2] [--output FILE]

FOLDER holds the data of `small_tasks.py`. The number of steps is fixed, so that all variants learn
equally long. 28 general prompts are asked.
"""

from __future__ import annotations

from small_tasks import Variant, main

FIXED = ("--max-steps", "60", "--set", "evaluation.general_prompts=28")


def _variant(*options: str) -> Variant:
    return Variant([*FIXED, *options])


def _set(*changes: str) -> Variant:
    return _variant(*(part for change in changes for part in ("--set", change)))


VARIANTS = {
    "nothing": _variant("--keep", "none"),
    "default": _variant(),
    "no chats": _set("keep.chats=0"),
    "only chats": _set("keep.chats=1"),
    "weight 1": _set("keep.weight=1"),
    "weight 2": _set("keep.weight=2"),
    "weight 8": _set("keep.weight=8"),
    "2 texts": _set("keep.share=0.11"),
    "8 texts": _set("keep.share=0.33"),
    "16 tokens": _set("keep.tokens=16"),
    "192 texts": _set("keep.rows=192"),
    "192 texts of 48 tokens": _set("keep.rows=192", "keep.tokens=48"),
    "the task's inputs as texts": _set("keep.source=INPUTS"),
    "rank 4": _variant("--keep", "none", "--lora-r", "4"),
    "rank 2": _variant("--keep", "none", "--lora-r", "2"),
    "half the learning rate": _variant("--keep", "none", "--learning-rate", "5e-4"),
    "a quarter of the learning rate": _variant("--keep", "none", "--learning-rate", "2.5e-4"),
    "weight decay 0.1": _variant("--keep", "none", "--set", "training.weight_decay=0.1"),
    "four samples": _variant(*("--keep", "none", "--samples", "4", "--sampling-temperature", "1")),
    "the upper half of the layers": _variant(
        *("--keep", "none", "--set", f"tuning.layers={[*range(15, 30)]}")
    ),
    "attention only": _variant("--keep", "none", "--set", "tuning.modules=[q_proj,v_proj]"),
}

if __name__ == "__main__":
    main(__doc__, VARIANTS, ["nothing", "default"])
