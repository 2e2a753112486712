"""Checks everything that instil computes on an accelerator; its time limits add up to 8 minutes.

    make accelerator-check
    python benchmarks/accelerator_check.py [--tiny] [--only PART ...] [--output FILE]

It runs on the device that instil chooses: the CUDA device if there is one, else the processor. On a
processor the setting is tiny, which shows that the check itself works. Each part runs in a process
of its own with a time limit. If a part fails, the others still run, and the exit status is 1.
Nothing is fetched: the models are the bundled one and tiny random ones.

- `attention`: packed attention (fused and in plain products) and `sdpa`, against float64;
- `decoding`: greedy completions against whole forward passes; samples in other batches;
- `store`: targets that are built on the device verify, and equal those of the processor;
- `memory`: the figures of `instil.system.costs` against `torch.cuda`'s own;
- `training`: a distillation in each dtype learns;
- `families`: each family of models against the plainest way, in float32, bfloat16 and float16;
- `speed`: `long_answers_speed.py` on made-up rows, against the plain loop and TRL;
- `tests`: the fast tests that compute with a model, on the device.

The ways that were refused on the device (`instil.models.proof`) are in the results, too.
"""

from __future__ import annotations

import argparse
import json
import logging
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))  # for the tests' tiny models
os.environ["HF_HUB_OFFLINE"] = "1"

BUNDLED = "bundled:smollm2-135m-instruct"
DTYPES = ("float32", "bfloat16", "float16")
TINY_FAMILIES = ("GPT-2", "Gemma 2", "MPT")
# The tests that compute with a model or with tensors.
TESTS = (
    *(f"tests/unit/{name}" for name in ("models", "teacher", "training", "losses", "evaluation")),
    *("tests/unit/targets", "tests/unit/system", "tests/unit/pipeline", "tests/unit/test_api.py"),
    "tests/invariant/test_equivalences.py",
)
TINY_TESTS = ("tests/unit/models/test_attention.py", "tests/unit/models/test_proof.py")
# Largest relative error of attention against float64, by dtype.
ROUNDING = {"float32": 1e-5, "bfloat16": 2e-2, "float16": 3e-3}
# Largest mean KL of stored targets from the processor's in float32, nats per token, by dtype. A
# store rounds logits to 1/32 nat.
TARGETS_APART = {"float32": 1e-3, "bfloat16": 2e-2, "float16": 2e-2}
WORKERS = 10  # most processes that share the device; each takes half a GiB of it
BALLAST_MIB = 256  # memory that must show in the figures


@dataclass(frozen=True)
class Setting:
    """How much is computed.

    Attributes:
        tiny: Whether tiny models and few rows are used.
        folder: A scratch folder.
    """

    tiny: bool
    folder: Path

    @property
    def model(self) -> str:
        """Name of the model of the parts that need one."""
        if not self.tiny:
            return BUNDLED
        from tests.conftest import save_tiny

        return str(save_tiny(self.folder / "tiny", "llama"))


@dataclass
class Found:
    """What a part found.

    Attributes:
        numbers: The measurements, in JSON's types.
        problems: What is wrong; the part is ok if there is nothing.
    """

    numbers: dict[str, Any] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    def at_most(self, what: str, value: float, most: float) -> None:
        """Notes a number, and a problem if it is too large or not a number."""
        self.numbers[what] = value
        if not value <= most:
            self.problems.append(f"{what} is {value:.3g}, at most {most:.3g} is right")


def tests(setting: Setting) -> Found:
    """The fast tests, with few workers, as they share one device."""
    chosen = TINY_TESTS if setting.tiny else TESTS
    workers = 0 if setting.tiny else min(WORKERS, max(1, (os.cpu_count() or 2) // 2))
    command = [sys.executable, "-m", "pytest", "-q", "-m", "not slow", "-n", str(workers)]
    made = subprocess.run(
        [*command, "-p", "no:cacheprovider", "--dist", "worksteal", *chosen],
        cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False,
    )  # fmt: skip
    lines = made.stdout.splitlines()
    failed = [line for line in lines if line.startswith(("FAILED", "ERROR"))]
    found = Found({"summary": lines[-1] if lines else "", "failed": failed, "workers": workers})
    if made.returncode:
        found.problems.append(f"pytest ended with status {made.returncode}: {lines[-1:]}")
    return found


def judged(title: str, dtype: str, most: dict[str, float]) -> dict[str, Any]:
    """One family in one dtype, in a process of the pool."""
    from tests.families import BY_TITLE, judge, row

    refused = _listen()
    one = BY_TITLE[title]
    table = (ROOT / "docs/reference/model-families.md").read_text(encoding="utf-8").splitlines()
    try:
        with tempfile.TemporaryDirectory() as folder:
            one.build(Path(folder))
            verdict = judge(Path(folder), dtype=dtype)
    except Exception as error:  # one family must not end the others
        return {"problems": [_short(error)], "refused": refused}
    if verdict.errors.get("rounding", 0.0) > most["scoring"]:
        most = {}  # rounding alone moves this model too far
    return {
        "errors": verdict.errors,
        "problems": [
            f"{what} differs by {verdict.errors[what]:.3g}, at most {limit:.3g} is right"
            for what, limit in most.items()
            if not verdict.errors[what] <= limit
        ],
        "refused": refused,
        "as_in_the_docs": row(one, verdict) in table,
    }


def families(setting: Setting) -> Found:
    """Every family in every dtype, each in the fastest way that was proven on the device."""
    from tests.families import FAMILIES, MOST_APART, MOST_APART_ROUNDED

    titles = TINY_FAMILIES if setting.tiny else tuple(one.title for one in FAMILIES)
    workers = 1 if setting.tiny else min(WORKERS, max(1, (os.cpu_count() or 2) // 2))
    found = Found({"workers": workers})
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=spawn, initializer=_quiet) as pool:
        asked = {
            (title, dtype): pool.submit(
                judged, title, dtype, MOST_APART if dtype == "float32" else MOST_APART_ROUNDED
            )
            for dtype in DTYPES
            for title in titles
        }
        for (title, dtype), future in asked.items():
            one = future.result()
            found.numbers.setdefault(dtype, {})[title] = one
            found.problems += [f"{title} in {dtype}: {problem}" for problem in one["problems"]]
    return found


def attention(setting: Setting) -> Found:
    """Attention of a packed row, and its gradients, against float64 sequence by sequence."""
    import torch

    from instil.models import attention as ours
    from instil.models.load import default_device

    device, found = default_device(), Found()
    heads, shared, size, lengths = 6, 2, 64, [40, 1, 130, 7]
    generator = torch.Generator().manual_seed(0)
    layer = torch.nn.Module()
    layer.num_key_value_groups = heads // shared  # type: ignore[assignment]
    for prefix in (0, 90):
        drawn = [
            torch.randn(1, n, more + sum(lengths), size, generator=generator, dtype=torch.float64)
            for n, more in ((heads, 0), (shared, prefix), (shared, prefix))
        ]
        exact = [part.clone().requires_grad_() for part in drawn]
        wide = [exact[0], *(one.repeat_interleave(heads // shared, 1) for one in exact[1:])]
        starts = [0, *accumulate(lengths)]
        masks = []
        for start, end in pairwise(starts):
            unread = torch.full((end - start, end - start), -torch.inf).triu(1).double()
            masks.append(torch.nn.functional.pad(unread, (prefix, 0)))
        truth = _attended(wide, prefix, starts, masks)
        truth.square().sum().backward()  # type: ignore[no-untyped-call]
        for dtype in DTYPES:
            for way in ("fused", "products", "sdpa"):
                given = [
                    part.to(device, getattr(torch, dtype)).detach().requires_grad_()
                    for part in drawn
                ]
                if way == "sdpa":
                    whole = torch.full((sum(lengths), prefix + sum(lengths)), -torch.inf)
                    whole[:, :prefix] = 0
                    for (start, end), mask in zip(pairwise(starts), masks, strict=True):
                        whole[start:end, prefix + start : prefix + end] = mask[:, prefix:]
                    made, _ = ours.attend(layer, *given, whole[None, None].to(given[0]))
                elif way == "products":
                    made = ours._Products.apply(*given, size**-0.5, lengths)  # type: ignore[no-untyped-call]
                else:
                    bounds = {ours.BOUNDS: torch.tensor(starts)}
                    made, _ = ours.attend(layer, *given, None, **bounds)
                made.double().square().sum().backward()
                name = f"{way} in {dtype} after {prefix} tokens"
                found.at_most(name, _relative(made, truth), ROUNDING[dtype])
                for what, mine, theirs in zip(("query", "key", "value"), given, exact, strict=True):
                    error = _relative(mine.grad, theirs.grad)
                    found.at_most(f"{name}, gradient of the {what}", error, 2 * ROUNDING[dtype])
    return found


def _attended(parts: list[Any], prefix: int, starts: list[int], masks: list[Any]) -> Any:
    """Attention by its definition, shape (1, L, heads, size)."""
    import torch

    query, key, value = parts
    made = []
    for (start, end), mask in zip(pairwise(starts), masks, strict=True):
        k, v = (
            torch.cat([one[:, :, :prefix], one[:, :, prefix + start : prefix + end]], 2)
            for one in (key, value)
        )
        scores = query[:, :, start:end] @ k.transpose(-1, -2) * query.shape[-1] ** -0.5
        made.append((scores + mask).softmax(-1) @ v)
    return torch.cat(made, 2).transpose(1, 2)


def _relative(made: Any, truth: Any) -> float:
    """The error's norm as a share of the truth's."""
    made, truth = made.detach().cpu().double(), truth.detach()
    return float((made - truth).norm() / truth.norm())


def decoding(setting: Setting) -> Found:
    """Greedy completions are the likeliest tokens; a sample does not depend on its batch."""
    import torch
    from tests.families import plain_logits

    from instil.models.generate import Decoding, Ending, generate
    from instil.models.load import load

    found = Found()
    for dtype in DTYPES:
        model = load(setting.model, dtype=dtype)
        prompts = _prompts(model)
        ending = Ending(stop=[], ids=[], text=lambda ids: "")

        def complete(
            batch_size: int, temperature: float, model: Any = model, prompts: Any = prompts,
            ending: Ending = ending,
        ) -> list[list[int]]:  # fmt: skip
            asked = Decoding(16, temperature=temperature, seed=1, batch_size=batch_size)
            made = generate(model, prompts, ending, asked, advance=lambda rows, tokens: None)
            return [one.ids for one in made]

        complete(8, 0.0)  # proves the way, and warms up
        begun = time.perf_counter()
        below, same = [], 0
        for prompt, ids in zip(prompts, greedy := complete(8, 0.0), strict=True):
            logits_TV = plain_logits(model.network, prompt, ids)
            chosen_T = logits_TV.gather(-1, torch.tensor(ids, device=model.device)[:, None])
            below += (logits_TV.amax(-1) - chosen_T[:, 0]).tolist()
        tokens = sum(map(len, greedy))
        found.numbers[f"tokens per second in {dtype}"] = tokens / (time.perf_counter() - begun)
        exact = dtype == "float32"
        worst = max(below) if exact else sum(below) / len(below)
        found.at_most(f"below the largest logit in {dtype}", worst, 1e-3 if exact else 5e-2)
        sampled = complete(8, 1.0), complete(3, 1.0)
        same = sum(a == b for a, b in zip(*sampled, strict=True))
        found.numbers[f"samples that are equal in other batches in {dtype}"] = same
        if exact and same < len(prompts):
            found.problems.append(f"{len(prompts) - same} samples depend on their batch")
    return found


def _prompts(model: Any) -> list[list[int]]:
    """Eight prompts that share a context."""
    context = "You answer in one short sentence and you never guess.\n" * 6
    return [
        model.tokenizer(f"{context}What is {n} plus {n * 7}?\nAnswer:")["input_ids"]
        for n in range(3, 11)
    ]


def _taught(setting: Setting, dtype: str, name: str) -> tuple[Any, Any, Any]:
    """Models, target store and recorder of a small distillation."""
    from instil.losses import ForwardKL
    from instil.models.roles import Models
    from instil.models.tuning import LoRA
    from instil.prompts.pair import AlignedPair
    from instil.recipe.recipe import Recipe
    from instil.system.costs import Recorder
    from instil.system.progress import Display
    from instil.teacher.lessons import Teaching

    display = Display(quiet=True)
    source = setting.model
    recipe = Recipe.parse(
        {"model": source, "task": {"name": "files"}, "teacher": {"mass_per_draw": 0}}
    )
    models = Models.load(source, None, dtype=dtype, tuning=LoRA(), seed=0, display=display)
    tokenizer, recorder = models.student.tokenizer, Recorder()
    pairs = [
        AlignedPair(
            number,
            prompt,
            tokenizer(f"What is {number + 3}?\nAnswer:")["input_ids"],
            tokenizer(f" It is {number * 8}, as everyone knows.")["input_ids"],
        )
        for number, prompt in enumerate(_prompts(models.teacher))
    ]
    store = setting.folder / name
    lessons = Teaching(recipe, models, recorder, display).lessons(pairs, ForwardKL(), store)
    return models, lessons, recorder


def store(setting: Setting) -> Found:
    """Targets of the device, read back from their store, against float32 on the processor."""
    import copy

    from tests.families import plain_logits

    from instil.targets.index import verify

    found = Found()
    for dtype in DTYPES:
        models, lessons, _ = _taught(setting, dtype, f"targets-{dtype}")
        found.problems += [f"{dtype}: {problem}" for problem in verify(lessons.store.path)]
        if dtype == "float32":
            network = copy.deepcopy(models.teacher.network).to("cpu")  # type: ignore[arg-type]
            processor = replace(models.teacher, network=network)
            truth = [  # a new adapter changes nothing
                plain_logits(processor.network, pair.teacher_prompt, pair.completion)
                for pair in lessons.pairs
            ]
        apart = []
        for number, logits_TV in enumerate(truth):
            mine = lessons[number].targets
            p_TK = logits_TV.log_softmax(-1).gather(-1, mine.ids_NK)
            p_TK, q_TK = (one.double().masked_fill(~mine.kept, -1e4) for one in (p_TK, mine.logprobs_NK))  # fmt: skip
            apart += (p_TK.exp() * (p_TK - q_TK) + q_TK.exp() - p_TK.exp()).sum(-1).tolist()
        found.at_most(f"mean KL from the processor's in {dtype}", sum(apart) / len(apart), TARGETS_APART[dtype])  # fmt: skip
    return found


def memory(setting: Setting) -> Found:
    """Peaks of a phase against torch's own, with a known block of memory in it."""
    import torch

    from instil.models.load import default_device
    from instil.system.costs import MEBIBYTE, Recorder

    found, recorder, device = Found(), Recorder(), default_device()
    models, _, taught = _taught(setting, "auto", "memory")
    cost = taught.costs()["teach"]
    found.numbers["teach"] = vars(cost)
    with recorder.phase("train"):
        with recorder.phase("evaluate"):
            block = torch.ones(BALLAST_MIB * MEBIBYTE, dtype=torch.uint8, device=device)
        del block
        own = None
        if device.type == "cuda":
            own = (torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved())
    outer, inner = recorder.costs()["train"], recorder.costs()["evaluate"]
    found.numbers |= {"train": vars(outer), "evaluate": vars(inner)}
    if own is None:
        figures = (cost.peak_allocated_mb, outer.peak_allocated_mb, outer.peak_reserved_mb)
        if any(figure is not None for figure in figures):
            found.problems.append(f"memory of an accelerator that is not there: {figures}")
        found.at_most("block that is missing in the peak, MiB", BALLAST_MIB - inner.peak_rss_mb, 0)
        return found
    weights = sum(one.numel() * one.element_size() for one in models.student.network.parameters())
    found.at_most("weights that the teacher's peak lacks, MiB",
                  weights / MEBIBYTE - (cost.peak_allocated_mb or 0), 0)  # fmt: skip
    for name, mine, theirs in (
        ("allocated", outer.peak_allocated_mb, own[0]),
        ("reserved", outer.peak_reserved_mb, own[1]),
    ):
        apart = abs((mine or 0) - theirs / MEBIBYTE)
        found.at_most(f"{name}: difference from torch's own peak, MiB", apart, 1)
    found.at_most("block that is missing in the peak, MiB",
                  BALLAST_MIB - (inner.peak_allocated_mb or 0), 0)  # fmt: skip
    return found


def training(setting: Setting) -> Found:
    """In each dtype the loss falls."""
    from instil.losses import ForwardKL
    from instil.recipe import sections
    from instil.system.progress import Display
    from instil.training.trainer import train

    found = Found()
    for dtype in DTYPES:
        models, lessons, recorder = _taught(setting, dtype, f"training-{dtype}")
        with recorder.phase("train"):
            report = train(
                models.student.network,  # type: ignore[arg-type]
                lessons,
                objective=ForwardKL(),
                settings=sections.Training(max_steps=12, batch_size=4, learning_rate=2e-3),
                seed=0,
                pad_id=models.student.pad_id,
                checkpoints=setting.folder / f"checkpoints-{dtype}",
                advance=lambda rows, tokens: None,
                display=Display(quiet=True),
            )
        losses = [loss for _, loss in report.loss]
        found.numbers[dtype] = {
            "losses": losses,
            "device": str(models.student.device),
            "cost": vars(recorder.costs()["train"]),
        }
        found.at_most(f"last loss to first in {dtype}", losses[-1] / losses[0], 0.9)
    return found


def speed(setting: Setting) -> Found:
    """Long answers: instil, the plain loop and TRL, on made-up rows."""
    data = setting.folder / "data"
    (data / "gsm8k").mkdir(parents=True)
    (data / "gsm8k" / "train.jsonl").write_text("".join(map(_solved, range(1100))))
    output = setting.folder / "speed.json"
    small = ["--rows", "8", "--epochs", "1", "--k", "1", "--steps", "1"]
    size = small if setting.tiny else ["--k", "24", "--steps", "4"]
    script = Path(__file__).with_name("long_answers_speed.py")
    subprocess.run(
        [sys.executable, str(script), "--data", str(data), *size, "--output", str(output)],
        check=True, stdout=sys.stderr,
    )  # fmt: skip
    return Found(json.loads(output.read_text(encoding="utf-8")))


def _solved(number: int) -> str:
    """A row of arithmetic with an answer of some sentences."""
    a, b, c = number + 2, 3 * number + 1, number % 7 + 2
    question = f"A shop has {a} boxes with {c} pens each, and {b} loose pens. How many are there?"
    answer = (
        f"The boxes hold {a} * {c} = {a * c} pens.\nWith the loose pens there are {a * c} + {b} = "
        f"{a * c + b} pens.\nSo the shop has {a * c + b} pens in all.\n#### {a * c + b}"
    )
    return json.dumps({"question": question, "answer": answer}) + "\n"


# Each part, and the seconds that it may take. Together they are at most 8 minutes.
PARTS: dict[Callable[[Setting], Found], int] = {
    attention: 20,
    decoding: 25,
    store: 25,
    memory: 15,
    training: 25,
    families: 110,
    speed: 110,
    tests: 150,
}
BY_NAME = {part.__name__: part for part in PARTS}
SLOW_MACHINE = 10  # how many times as long a busy processor may take


def run(part: Callable[[Setting], Found], *, tiny: bool) -> dict[str, Any]:
    """Runs a part in this process, and records what came out of it."""
    refused, begun = _listen(), time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        try:
            found = part(Setting(tiny, Path(folder)))
        except Exception as error:  # the other parts must still run
            found = Found({}, [_short(error)])
    return {
        "ok": not found.problems,
        "seconds": round(time.perf_counter() - begun, 1),
        "problems": found.problems,
        "refused": refused,
        "found": found.numbers,
    }


def apart(name: str, *, tiny: bool) -> dict[str, Any]:
    """Runs a part in a process of its own: an error of the device would end all later ones."""
    limit = PARTS[BY_NAME[name]] * (SLOW_MACHINE if tiny else 1)
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "result.json"
        command = [sys.executable, __file__, "--part", name, "--output", str(result)]
        process = subprocess.Popen(
            [*command, *(["--tiny"] if tiny else [])], start_new_session=True
        )
        begun = time.perf_counter()
        problem = ""
        try:
            process.wait(limit)
        except subprocess.TimeoutExpired:
            problem = f"took longer than {limit} seconds"
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        if result.exists() and not problem:
            made: dict[str, Any] = json.loads(result.read_text(encoding="utf-8"))
            return made
    return {
        "ok": False,
        "seconds": round(time.perf_counter() - begun, 1),
        "problems": [problem or f"ended with status {process.returncode}"],
        "refused": [],
        "found": {},
    }


def _listen() -> list[str]:
    """A list that gets a line for each way that is refused from now on."""
    lines: list[str] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(record.getMessage())

    log = logging.getLogger("instil.models.proof")
    log.handlers = [Keep()]
    log.propagate = False
    return lines


def _quiet() -> None:
    """Spares a process the progress bars of libraries, and threads that others need."""
    import warnings

    import torch

    from instil.models.load import quiet_libraries

    torch.set_num_threads(1)
    quiet_libraries()
    warnings.simplefilter("ignore")


def _short(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return re.sub(r"/\S*/", "", f"{type(error).__name__}: {lines[0] if lines else ''}")


def device() -> dict[str, Any]:
    """The device, and what belongs to it."""
    import torch

    from instil.models.load import default_device

    chosen = default_device()
    facts: dict[str, Any] = {"device": chosen.type}
    if chosen.type == "cuda":
        properties = torch.cuda.get_device_properties(chosen)
        facts |= {
            "name": properties.name,
            "memory_gib": round(properties.total_memory / 2**30, 1),
            "capability": f"{properties.major}.{properties.minor}",
            "cuda": torch.version.cuda,
            "bfloat16": torch.cuda.is_bf16_supported(),
        }
    return facts


def main() -> int:
    """Runs the parts one after another; returns the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tiny", action="store_true", help="tiny models; always on a processor")
    parser.add_argument(
        "--only", nargs="+", choices=list(BY_NAME), default=list(BY_NAME),
        help="run only these; other parts stay as they are in the file of --output",
    )  # fmt: skip
    parser.add_argument("--output", type=Path)
    parser.add_argument("--part", choices=list(BY_NAME), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.part:
        _quiet()
        made = run(BY_NAME[arguments.part], tiny=arguments.tiny)
        arguments.output.write_text(json.dumps(made), encoding="utf-8")
        return 0
    from instil.system import environment

    facts = device()
    tiny = arguments.tiny or facts["device"] == "cpu"
    results: dict[str, Any] = {
        "command": "python benchmarks/accelerator_check.py --only " + " ".join(arguments.only),
        **facts,
        "setting": "tiny" if tiny else "whole",
        "parts": {},
    }
    if arguments.output and arguments.output.exists() and len(arguments.only) < len(BY_NAME):
        results["parts"] = json.loads(arguments.output.read_text(encoding="utf-8"))["parts"]
    for name in arguments.only:
        made = apart(name, tiny=tiny)
        results["parts"][name] = made
        print(f"{name}: {'ok' if made['ok'] else 'failed'}, {made['seconds']} s", flush=True)
        for problem in made["problems"]:
            print(f"  {problem}", flush=True)
    results["environment"] = environment.describe()
    if arguments.output:
        arguments.output.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    return int(not all(made["ok"] for made in results["parts"].values()))


if __name__ == "__main__":
    sys.exit(main())
