"""vLLM beside this process: the same predictions, the same students, and how fast?

    python benchmarks/engines.py [--parts targets speed students logged] [--output FILE]

Needs vLLM (`make engines`). A part adds its results to the file when it ends:

- Targets: the demo's teacher scores its own answers, here and on vLLM. The KL between the two is over
  the 64 likeliest outcomes and the rest.
- Speed: answers of 128 tokens after a prompt of 1,650 tokens (`instil bench`, support).
- Students: trained on either kind of targets, and with another seed.
- Logged: the server answers the demo's queries as an OpenAI-compatible API, with log-probabilities.
  Students of these, of the same answers scored in this process, and of their text alone.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from contextlib import nullcontext
from importlib.resources import files
from itertools import takewhile
from pathlib import Path
from statistics import mean
from typing import Any

import torch

import instil
from instil.bench.conversations import Product
from instil.engines.engine import Wanted
from instil.engines.vllm import serving
from instil.models.generate import Decoding, Ending, generate
from instil.models.load import load, quiet_libraries
from instil.pipeline.answering import Asked, answer
from instil.prompts.context import Context, FewShot
from instil.prompts.format import ChatPrompt, PlainPrompt
from instil.prompts.pair import AlignedPair
from instil.recipe.sections import Engine, Prompt
from instil.system import environment
from instil.system.progress import Display
from instil.targets.prediction import Targets
from instil.targets.selection import Selection
from instil.tasks.conversation import Conversation, Message, Turn
from instil.tasks.rows import Row
from instil.teacher.scorer import Scorer

MODEL, OUTCOMES, COMPARED = "bundled:smollm2-135m-instruct", 256, 64
LONG = 128


def apart(one: Targets, two: Targets) -> list[float]:
    """KL between two predictions of each token, over the likeliest outcomes of the first and the rest."""
    ids_NK = one.ids_NK[:, :COMPARED]
    p_NK = one.logprobs_NK[:, :COMPARED].double().exp()
    same_NKJ = ids_NK[:, :, None] == two.ids_NK[:, None, :]
    q_NK = (same_NKJ * two.logprobs_NK.double().exp()[:, None, :]).sum(-1).clamp(min=1e-12)
    p_N1 = (1 - p_NK.sum(-1, keepdim=True)).clamp(min=1e-12)
    q_N1 = (1 - q_NK.sum(-1, keepdim=True)).clamp(min=1e-12)
    p_NK, q_NK = torch.cat([p_NK, p_N1], -1), torch.cat([q_NK, q_N1], -1)
    return (p_NK * (p_NK.clamp(min=1e-12) / q_NK).log()).sum(-1).tolist()


def targets(model: Any, engine: Any, rows: int) -> dict[str, Any]:
    """How far the predictions are apart, and the seconds of each."""
    root = Path(str(files("instil") / "demo"))
    form = PlainPrompt(
        model.tokenizer,
        pattern=Prompt().pattern,
        completion=Prompt().completion,
        separator=Prompt().separator,
        ends=model.end_ids,
    )
    context = Context.of(FewShot(instil.read_rows(root / "demonstrations.jsonl", need_output=True)))
    asked = [
        row.input
        for name in ("inputs", "eval")
        for row in instil.read_rows(root / f"{name}.jsonl", need_output=False)
    ][:rows]
    prompts = [form.prompt_ids(text, context) for text in asked]
    decoding = Decoding(16)
    made = generate(model, prompts, form.ending, decoding, advance=lambda r, t: None)
    pairs = [
        AlignedPair(n, prompt, prompt, one.ids)
        for n, (prompt, one) in enumerate(zip(prompts, made, strict=True))
    ]
    kept = Selection(top_k=OUTCOMES)
    start = time.perf_counter()
    scorer = Scorer.of(
        model,
        pairs,
        vocabulary=len(model.tokenizer),
        kept=kept,
        temperature=1.0,
        batch_size=64,
        advance=lambda r, t: None,
    )
    own = dict(scorer.score(range(len(pairs))))
    between = time.perf_counter()
    theirs = dict(
        engine.scored(
            [(pair.teacher_prompt, pair.completion) for pair in pairs],
            kept,
            vocabulary=len(model.tokenizer),
        )
    )
    return {
        "rows": len(pairs),
        "tokens": sum(len(pair.completion) for pair in pairs),
        "seconds": {"this process": between - start, "vLLM": time.perf_counter() - between},
        "kl": mean(kl for number in own for kl in apart(own[number], theirs[number])),
    }


def speed(model: Any, engine: Any, rows: int) -> dict[str, Any]:
    """Seconds for long answers after a long prompt, in this process and on the engine."""
    product = Product.read("support")
    form = ChatPrompt(model.tokenizer, template_kwargs={}, ends=model.end_ids)
    context = Context(head=product.head)
    asked = []
    for said in product.users(rows, "learn")[:rows]:
        turn = Turn(Conversation((Message("user", said[0]),)), 1)
        asked.append(Row(said[0], turn=turn))
    prompts = [*form.prompts(asked, [context] * len(asked))]
    endless, decoding = Ending((), (), form.tokens.text), Decoding(LONG, batch_size=128)
    seconds = {}
    start = time.perf_counter()
    own = generate(model, prompts, endless, decoding, advance=lambda r, t: None)
    seconds["this process"] = time.perf_counter() - start
    start = time.perf_counter()
    theirs = {}
    for places, made, _ in engine.completed(prompts, endless, decoding):
        theirs.update(zip(places, made, strict=True))
    seconds["vLLM"] = time.perf_counter() - start
    alike = [
        sum(takewhile(bool, (a == b for a, b in zip(one.ids, theirs[n].ids, strict=True))))
        for n, one in enumerate(own)
    ]
    return {
        "rows": len(prompts),
        "prompt_tokens": mean(map(len, prompts)),
        "seconds": seconds,
        "tokens_before_the_first_difference": mean(alike),
    }


def students() -> dict[str, Any]:
    """Students of the demo's task: on targets of this process, of vLLM, and with another seed."""
    root = Path(str(files("instil") / "demo"))
    variants: dict[str, tuple[int, dict[str, Any]]] = {
        "this process, seed 0": (0, {}),
        "vLLM, seed 0": (0, {"engine": {"name": "vllm"}}),
        "this process, seed 1": (1, {}),
    }
    made = {}
    for name, (seed, teacher) in variants.items():
        with tempfile.TemporaryDirectory() as folder:
            run = instil.distill(
                MODEL,
                context=instil.FewShot(
                    instil.read_rows(root / "demonstrations.jsonl", need_output=True)
                ),
                inputs=instil.read_rows(root / "inputs.jsonl", need_output=False),
                eval=instil.read_rows(root / "eval.jsonl", need_output=True),
                output=Path(folder) / "run",
                prompt={"format": "plain"},
                teacher=teacher,
                training={"max_steps": 60, "batch_size": 8},
                evaluation={"general_prompts": 7},
                seed=seed,
                quiet=True,
            )
            student = run.results.methods[0].scores[0]
            assert student.accuracy is not None
            made[name] = {"accuracy": student.accuracy.value, "kl_share": run.results.kl_share}
    return made


def logged(wanted: Wanted) -> dict[str, Any]:
    """Students of answers of an API: of its log-probabilities, of this process's, of the text."""
    root = Path(str(files("instil") / "demo"))
    shots = instil.read_rows(root / "demonstrations.jsonl", need_output=True)
    variants: dict[str, dict[str, Any]] = {
        "log-probabilities of the API": {"teacher": {"targets": "logged"}},
        "predictions of this process": {},
        "text": {"objective": {"name": "cross_entropy"}},
    }
    made: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as place:
        answered: dict[str, list[dict[str, Any]]] = {}
        with serving(wanted) as engine:  # ended before the training, because it never rests
            asked = Asked(f"{engine.url}/v1", engine.model, "NO_KEY", 0.0, 16, 8, 20)
            for name, count in (("inputs", 120), ("eval", 60)):
                path = Path(place) / f"{name}.jsonl"
                known = instil.read_rows(root / f"{name}.jsonl", need_output=False)[:count]
                rows, context = [Row(row.input) for row in known], Context.of(FewShot(shots))
                spent = answer(rows, context, asked, path, advance=lambda rows: None)
                answered[name] = [json.loads(line) for line in path.read_text().splitlines()]
                made[f"{name}: rows, tokens"] = [spent.rows, spent.written]
        for name, settings in variants.items():
            run = instil.distill(
                MODEL,
                context=instil.FewShot(shots),
                inputs=answered["inputs"],
                eval=answered["eval"],
                output=Path(place) / name,
                teacher={"completions": "gold", **settings.get("teacher", {})},
                training={"max_steps": 30, "batch_size": 8},
                evaluation={"general_prompts": 7, "drift_tokens": 20},
                quiet=True,
                **{key: value for key, value in settings.items() if key != "teacher"},
            )
            score, training = run.results.methods[0].scores[0], run.results.training
            assert score.accuracy is not None
            assert score.fidelity is not None
            assert training is not None
            made[name] = {
                "answers_of_the_api": score.accuracy.value,
                "kl": score.fidelity.kl_to_teacher,
                "kl_share": run.results.kl_share,
                "learnt_tokens": training.tokens,
                "with_log_probabilities": training.logged_targets
                and training.logged_targets.tokens,
            }
    return made


def main() -> None:
    """Runs all parts and prints them."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=200)
    parser.add_argument("--long-rows", type=int, default=64)
    parser.add_argument("--parts", nargs="*", default=["targets", "speed", "students", "logged"])
    parser.add_argument("--output", type=Path, help="JSON file for the results")
    arguments = parser.parse_args()
    quiet_libraries()
    model = load(MODEL)
    form = ChatPrompt(model.tokenizer, template_kwargs={}, ends=model.end_ids)
    wanted = Wanted(Engine(), model, OUTCOMES, None, [form.prompt_ids("Hello!")], Display())
    parts: dict[str, Callable[[Any], dict[str, Any]]] = {
        "targets": lambda engine: targets(model, engine, arguments.rows),
        "speed": lambda engine: speed(model, engine, arguments.long_rows),
        "students": lambda engine: students(),
        "logged": lambda engine: logged(wanted),
    }
    found: dict[str, Any] = {}
    if arguments.output and arguments.output.exists():
        found = json.loads(arguments.output.read_text(encoding="utf-8"))
    for name in arguments.parts:
        with serving(wanted) if name in ("targets", "speed") else nullcontext() as engine:
            found[name] = {**parts[name](engine), "environment": environment.describe()}
        print(name, json.dumps({k: v for k, v in found[name].items() if k != "environment"}))
        if arguments.output:
            arguments.output.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
