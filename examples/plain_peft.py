"""Uses an adapter with plain peft and transformers: after training, instil is not needed.

python examples/own_prompt.py && python examples/plain_peft.py
"""

import json
from pathlib import Path

import torch
from peft import PeftConfig, PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

folder = Path("runs/own_prompt")
results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
sent = results["prompt"]
adapter = str(folder / "adapter")
base = PeftConfig.from_pretrained(adapter).base_model_name_or_path

tokenizer = AutoTokenizer.from_pretrained(base)
network = AutoModelForCausalLM.from_pretrained(base, dtype=getattr(torch, results["dtype"]))
model = PeftModel.from_pretrained(network, adapter).eval()

for word in ("bottle", "story", "shelf"):
    # The query alone, as the student was trained: no demonstrations, no instruction.
    inputs = tokenizer(sent["pattern"].replace("{input}", word), return_tensors="pt")
    output = model.generate(
        **inputs,
        max_new_tokens=sent["max_new_tokens"],
        do_sample=False,
        stop_strings=sent["stop"],
        tokenizer=tokenizer,
    )
    answer = tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    print(word, "->", answer.partition(sent["stop"][0])[0].strip())
