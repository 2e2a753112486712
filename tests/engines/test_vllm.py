"""A real vLLM server on this machine (`make engines`): what it writes and scores is what this process does."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from tests.small import QUIET, nothing, plain_logits
from typer.testing import CliRunner

import instil
from instil.cli import app
from instil.engines import vllm
from instil.engines.engine import Wanted
from instil.engines.vllm import VLLM, serving
from instil.errors import EngineError
from instil.models.generate import Decoding, Ending, generate
from instil.models.load import LanguageModel, load
from instil.pipeline.cluster import teach_on_ray
from instil.pipeline.text import TextSteps
from instil.prompts.format import PlainPrompt, prompt_format
from instil.prompts.pair import AlignedPair
from instil.recipe.recipe import Recipe
from instil.recipe.sections import Engine, Prompt
from instil.results.schema import Results
from instil.targets.selection import Selection
from instil.teacher.lessons import in_store
from instil.teacher.logged import Logged
from instil.teacher.scorer import Scorer

MODEL = "bundled:smollm2-135m-instruct"
ROOT = Path(__file__).parents[2]
pytestmark = [
    pytest.mark.engine,
    pytest.mark.bundled,
    pytest.mark.timeout(900),
    pytest.mark.skipif(
        not (ROOT / vllm.USUAL).exists() and vllm.PYTHON not in os.environ,
        reason="needs vLLM: make engines",
    ),
]
WORDS = ["red", "seven", "apple", "Monday", "river", "to run", "cold", "paper"]
LEAD = "Q: hot\nA: cold\n\nQ: up\nA: down\n\nQ: big\nA: small\n\n" * 3


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    return load(MODEL, dtype="bfloat16")


@pytest.fixture(scope="module")
def form(model: LanguageModel) -> PlainPrompt:
    usual = Prompt()
    return PlainPrompt(
        model.tokenizer,
        pattern=usual.pattern,
        completion=usual.completion,
        separator=usual.separator,
        ends=model.end_ids,
    )


@pytest.fixture(scope="module")
def prompts(form: PlainPrompt) -> list[list[int]]:
    return [form.tokens.ids(f"{LEAD}Q: {word}\nA:", special=True) for word in WORDS]


@pytest.fixture(scope="module")
def server(
    model: LanguageModel, prompts: list[list[int]], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[VLLM]:
    with serving(Wanted(Engine(), model, 64, None, prompts, QUIET)) as found:
        yield found


def test_greedy_answers_are_those_of_this_process(
    server: VLLM, model: LanguageModel, form: PlainPrompt, prompts: list[list[int]]
) -> None:
    decoding = Decoding(16)
    own = generate(model, prompts, form.ending, decoding, advance=nothing)
    theirs = dict[int, Any]()
    for places, made, _ in server.completed(prompts, form.ending, decoding, known=[0]):
        theirs.update(zip(places, made, strict=True))
    assert sorted(theirs) == [*range(1, len(prompts))]  # the first one is known
    same = [theirs[n].ids == own[n].ids for n in theirs]
    assert sum(same) >= len(same) - 1  # another rounding may tip one
    for one in theirs.values():
        assert one.finished == form.ending.stops(one.ids) or one.ids[-1] in form.ending.ids
        assert len(one.ids) <= 16


def test_only_what_is_named_ends_an_answer(server: VLLM, prompts: list[list[int]]) -> None:
    endless = Ending((), (), lambda ids: "")
    for _, made, _ in server.completed(prompts, endless, Decoding(40)):
        assert {len(one.ids) for one in made} == {40}


def test_samples_depend_on_the_seed_and_the_row(server: VLLM, prompts: list[list[int]]) -> None:
    def drawn(seed: int, numbers: list[int]) -> list[list[int]]:
        decoding = Decoding(12, temperature=1.0, seed=seed)
        asked = [prompts[0]] * len(numbers)
        ((_, made, _),) = server.completed(
            asked, Ending((), (), lambda ids: ""), decoding, numbers=numbers
        )
        return [one.ids for one in made]

    first = drawn(0, [0, 1, 2, 3])
    assert len({tuple(ids) for ids in first}) > 1
    assert drawn(0, [3])[0] == first[3]
    assert drawn(1, [0, 1, 2, 3]) != first


def test_scores_are_those_of_this_process(
    server: VLLM, model: LanguageModel, prompts: list[list[int]]
) -> None:
    pairs = [
        AlignedPair(n, prompt, prompt, model.tokenizer(f" {word} again\n")["input_ids"])
        for n, (prompt, word) in enumerate(zip(prompts, WORDS, strict=True))
    ]
    kept = Selection(top_k=32, min_probability=1e-3)
    scorer = Scorer.of(
        model,
        pairs,
        vocabulary=len(model.tokenizer),
        kept=kept,
        temperature=1.0,
        batch_size=8,
        advance=nothing,
    )
    own = dict(scorer.score(range(len(pairs))))
    theirs = dict(
        server.scored(
            [(p.teacher_prompt, p.completion) for p in pairs], kept, vocabulary=len(model.tokenizer)
        )
    )
    assert theirs.keys() == own.keys()
    apart = []
    for number, one in own.items():
        two = theirs[number]
        assert len(two.ids_NK) == len(pairs[number].completion)
        mass = two.logprobs_NK.double().exp().sum(-1) + two.log_tail_N.double().exp()
        torch.testing.assert_close(mass, torch.ones_like(mass), atol=1e-3, rtol=0)
        apart += (one.logprobs_NK[:, 0] - two.logprobs_NK[:, 0]).abs().tolist()
    assert sum(apart) / len(apart) < 0.05


def test_log_probabilities_of_its_api_are_those_of_this_process(
    server: VLLM, model: LanguageModel, tmp_path: Path
) -> None:
    """`instil answer --logprobs` on the server's own interface, as any OpenAI-compatible one."""
    rows, answered = tmp_path / "rows.jsonl", tmp_path / "answered.jsonl"
    # An emoji is several tokens, and none of them is a whole character.
    asked = ["Say: café", "Count to five.", "Answer with an emoji."]
    rows.write_text("".join(json.dumps({"input": one}) + "\n" for one in asked))
    command = ["answer", str(rows), "--url", f"{server.url}/v1", "--model", "base", "--output"]
    more = [str(answered), "--logprobs", "20", "--max-tokens", "12", "--quiet"]
    found = CliRunner().invoke(app, [*command, *more])
    assert found.exit_code == 0, found.output
    form = prompt_format(model.tokenizer, Prompt(), ends=model.end_ids)
    told = instil.read_rows(answered, need_output=True)
    logged = Logged(told, form.tokens, len(model.tokenizer))
    completions = [form.completion_ids(row) for row in told]
    logged.check(enumerate(completions))
    counted = logged.counted(enumerate(completions))
    assert counted.rows == 3
    assert counted.tokens >= sum(len(ids) - 2 for ids in completions)
    apart = []
    for number, (row, completion) in enumerate(zip(told, completions, strict=True)):
        known = logged.known(number, completion)
        logits_NV = plain_logits(model.network, form.prompt_ids(row.input), completion)
        for step, own_V in zip(known, logits_NV.log_softmax(-1), strict=False):
            assert len(step) >= 20
            apart += [abs(p - float(own_V[token])) for token, p in step if p > -5]
    assert sum(apart) / len(apart) < 0.1


@pytest.mark.skipif(find_spec("ray") is None, reason="needs Ray: pip install 'instil[ray]'")
def test_workers_of_a_cluster_teach_on_servers_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs = tmp_path / "inputs.jsonl"
    inputs.write_text("".join(json.dumps({"input": word}) + "\n" for word in WORDS))
    demos = tmp_path / "demos.jsonl"
    demos.write_text(json.dumps({"input": "hot", "output": "cold"}))
    recipe = Recipe.parse(
        {
            "model": MODEL,
            "dtype": "float32",
            "task": {"name": "files", "inputs": str(inputs), "demos": str(demos)},
            "prompt": {"format": "plain"},
            "teacher": {"engine": {"name": "vllm"}, "max_new_tokens": 4},
        }
    )
    monkeypatch.chdir(ROOT)
    stored = teach_on_ray(recipe, tmp_path / "ray", workers=1, display=QUIET)
    steps = TextSteps.prepare(recipe, store=tmp_path / "here", display=QUIET)
    pairs, _ = steps.pairs(steps.learnt)
    steps.close()
    order = in_store(pairs)
    assert len(stored) == len(pairs)
    for number, of in enumerate(order):
        assert stored[number].completion == pairs[of].completion


def test_another_model_is_refused(server: VLLM, model: LanguageModel, tmp_path: Path) -> None:
    network: Any = model.network
    weight = network.get_output_embeddings().weight
    before = weight.detach().clone()
    try:
        with torch.no_grad():
            weight.mul_(0.5)
        settings = Engine(url=server.url)
        wanted = Wanted(
            settings, model, 64, None, [model.tokenizer("One, two,")["input_ids"]], QUIET
        )
        with pytest.raises(EngineError, match="vLLM does not compute what"), serving(wanted):
            pytest.fail("it is not taken")
    finally:
        with torch.no_grad():
            weight.copy_(before)


def test_an_adapter_is_served_and_judged(tmp_path: Path) -> None:
    run = instil.distill(
        MODEL,
        context=instil.FewShot(
            [{"input": "hot", "output": "cold"}, {"input": "up", "output": "down"}]
        ),
        inputs=[{"input": word} for word in WORDS],
        eval=[{"input": "big", "output": "small"}, {"input": "left", "output": "right"}],
        output=tmp_path / "run",
        prompt={"format": "plain"},
        teacher={"max_new_tokens": 8, "engine": {"name": "vllm"}},
        training={"max_steps": 4},
        evaluation={"drift_tokens": 20, "general_prompts": 7},
        keep={"source": "none"},
        dtype="bfloat16",
        quiet=True,
    )
    stored = Results.read(run.path / "results.json")
    assert stored.recipe["teacher"]["engine"]["name"] == "vllm"
    found = CliRunner().invoke(app, ["check", str(run.path), "--engine", "vllm", "--quiet"])
    assert found.exit_code in (0, 3), found.output
    (score,) = Results.read(run.path / "checks" / "vllm" / "results.json").served
    assert score.where == "vLLM, bfloat16"
    assert (score.rows, score.same_answer.n) == (2, 2)
    assert "As served" in (run.path / "checks" / "vllm" / "report.html").read_text()


def test_a_server_of_one_s_own_ends_with_its_command() -> None:
    port = vllm.free_port()
    command = [
        sys.executable,
        "-m",
        "instil",
        "engine",
        "start",
        "--model",
        MODEL,
        "--port",
        str(port),
    ]
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        time.sleep(5)
        assert process.poll() is None
        others = psutil.Process(process.pid).children(recursive=True)
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(120)
    _, alive = psutil.wait_procs(others, timeout=60)
    assert not alive
