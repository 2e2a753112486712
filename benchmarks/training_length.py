"""When is a task learnt? Fixed numbers of steps beside `training.until`.

    python benchmarks/training_length.py --data FOLDER [--variants NAME ...] [--tasks TASK ...]
        [--seeds 0 1 2] [--output FILE]

FOLDER holds the data of `small_tasks.py`.
"""

from __future__ import annotations

from small_tasks import Variant, main

VARIANTS = {
    "60 steps": Variant(["--max-steps", "60"]),
    "120 steps": Variant(["--max-steps", "120"]),
    "240 steps": Variant(["--max-steps", "240"]),
    "plateau": Variant(),
    "5 % of the KL": Variant(["--set", "training.until={kl_share: 0.05}"]),
}

if __name__ == "__main__":
    main(__doc__, VARIANTS, ["60 steps", "plateau"])
