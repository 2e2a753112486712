"""Can the teacher replace missing inputs? 20 given inputs, alone and with inputs that are made.

    python benchmarks/made_inputs.py --data FOLDER [--variants NAME ...] [--tasks TASK ...]
        [--seeds 0 1 2] [--output FILE]

FOLDER holds the data of `small_tasks.py`. The training ends when nothing is learnt any more, as
`instil distill` does it.
"""

from __future__ import annotations

from small_tasks import Variant, main

VARIANTS = {
    "200 given": Variant(),
    "20 given": Variant(given=20),
    "20 given, 60 made": Variant(["--make-inputs", "60"], given=20),
    "20 given, 180 made": Variant(["--make-inputs", "180"], given=20),
}

if __name__ == "__main__":
    main(__doc__, VARIANTS, ["200 given", "20 given", "20 given, 180 made"])
