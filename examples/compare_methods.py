"""Compares zero-shot, in-context learning and distillation on labelled rows of your own.

python examples/compare_methods.py
"""

import json
import sys
from pathlib import Path

import instil

MODEL = sys.argv[1] if len(sys.argv) > 1 else "bundled:smollm2-135m-instruct"

billing = """I was charged twice; My invoice is wrong; Please send the receipt again; The refund is late;
    You took too much money; My card was declined; The price went up; I paid, but the bill says no"""
fault = """The app crashes; My screen stays black; Nothing happens when I press start; It is very slow;
    The page does not load; My photos are gone; Sound stopped working; The update failed"""
rows = [
    {"text": text.strip(), "kind": kind}
    for kind, texts in (("billing", billing), ("fault", fault))
    for text in texts.split(";")
]
Path("tickets").mkdir(exist_ok=True)
for name, part in (("train", rows[::2]), ("eval", rows[1::2])):
    lines = "".join(json.dumps(row) + "\n" for row in part)
    Path(f"tickets/{name}.jsonl").write_text(lines, encoding="utf-8")

study = instil.run(
    {
        "title": "Tickets",
        "model": MODEL,
        "task": {
            "name": "classification",
            "train": "tickets/train.jsonl",
            "in_domain": {"tickets": "tickets/eval.jsonl"},
            "label": "kind",
            "pattern": "Message: {text}\nKind:",
            "verbalizer": {"billing": "Bill", "fault": "Fault"},
        },
        "demonstrations": {"k": 4},
        "prompt": {"format": "plain"},
        "training": {"max_steps": 10},
        "dtype": "float32",
        "grid": {"method": ["zero_shot", "in_context", "distillation"], "seed": [0]},
    },
    output="runs/compare_methods",
    quiet=True,
)

for row in study.table():
    print(f"{row['method']:<14}{row['accuracy']:5.2f}{row['prompt_tokens']:6.0f} prompt tokens")
print("The lamp blinks ->", study.best("distillation").student.answer(["The lamp blinks"])[0])
print(study.report())
