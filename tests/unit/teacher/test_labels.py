from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.conftest import save_tiny

from instil.errors import AlignmentError
from instil.models import forward, label_reader
from instil.models.load import LanguageModel, load, outline
from instil.models.reader import Packing
from instil.prompts.context import Context
from instil.prompts.format import PlainPrompt
from instil.prompts.labels import LabelTokens
from instil.system.costs import Recorder
from instil.system.progress import Display
from instil.tasks.rows import Row
from instil.teacher import labels
from instil.teacher.labels import (
    LabelScores,
    LabelTeacher,
    average,
    log_reference,
    probabilities,
)

SHOTS = Context(demonstrations=(Row("one fish", "Yes"), Row("two fish", "No")))
QUERIES = [
    Row("a very long query about fish"),
    Row("red"),
    Row("blue fish, and more of it"),
    Row("x"),
    Row("red fish"),
    Row("y"),
]
VERBALIZERS = {
    "one path": {"yes": ["Y", "S"], "no": ["N"]},
    "several paths": {"up": ["a1"], "down": ["a2", "b34"], "flat": ["b5"]},
}
Make = Callable[..., LabelTeacher]


@pytest.fixture
def teacher(tmp_path: Path) -> Make:
    """Makes a teacher whose store is in the test's folder."""

    def make(
        name: str | Path, *, paths: str = "one path", dtype: str = "float32", batch_size: int = 4
    ) -> LabelTeacher:
        known = outline(str(name))
        form = PlainPrompt(
            known.tokenizer, pattern="{input}?", completion=" {output}\n", separator="\n"
        )
        choices = LabelTokens.of(VERBALIZERS[paths], form, "q")
        store, display = tmp_path / "store", Display(quiet=True)
        return LabelTeacher(known, dtype, form, choices, store, batch_size, display)

    return make


def score(
    one: LabelTeacher,
    queries: Sequence[Row] = QUERIES,
    context: Context = SHOTS,
    *,
    recorder: Recorder | None = None,
    **asked: Any,
) -> tuple[LabelScores, bool]:
    recorder = recorder or Recorder()
    contexts = [context] * len(queries)
    return one.score("reads", queries, contexts, recorder=recorder, phase="teach", **asked)


@torch.no_grad()
def naive(model: LanguageModel, one: LabelTeacher, size: int | None = None) -> torch.Tensor:
    """Every row, every form, every token: a whole forward pass each."""
    rows = []
    for query in QUERIES:
        prompt = one.form.prompt_ids(query.input, SHOTS)
        labels = []
        for forms in one.choices.forms:
            sums = []
            for ids in forms:
                logits = model.network(
                    input_ids=torch.tensor([prompt + list(ids)], device=model.device)
                ).logits[0]
                logprobs = logits[len(prompt) - 1 : -1, :size].double().log_softmax(-1)
                sums.append(logprobs[range(len(ids)), list(ids)].sum())
            labels.append(torch.stack(sums).logsumexp(0))
        rows.append(torch.stack(labels))
    return torch.stack(rows).float().cpu()


@pytest.fixture(params=["branches", "packed paths", "padded paths"])
def batches(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """All ways to put rows into one forward pass; called with what it takes, about that many rows."""

    def of(rows: int) -> None:
        packed = request.param == "packed paths"
        packing = Packing(tokens=rows * 20, masked=True) if packed else None
        monkeypatch.setattr(label_reader, "LABELS", packing)
        if request.param != "branches":
            monkeypatch.setattr(label_reader, "reach", lambda network: 0)

    of(4)
    return of


@pytest.mark.usefixtures("batches")
@pytest.mark.parametrize("paths", VERBALIZERS)
def test_shared_prefix_and_batches_equal_separate_full_forwards(
    any_model: LanguageModel, teacher: Make, paths: str
) -> None:
    one = teacher(any_model.name, paths=paths)
    assert (len(one.choices.branches.paths) > 1) == (paths == "several paths")
    got, reused = score(one)
    assert not reused
    torch.testing.assert_close(got.logprobs_RL, naive(any_model, one), atol=1e-4, rtol=0)
    prompts = [one.form.prompt_ids(query.input, SHOTS) for query in QUERIES]
    assert got.prompt_tokens == pytest.approx(sum(map(len, prompts)) / len(prompts))
    assert got.vocabulary is None


@pytest.mark.parametrize("size", [1, 2, 64])
def test_rows_come_back_in_order_whatever_the_batches(
    model_folders: dict[str, Path], teacher: Make, batches: Callable[..., None], size: int
) -> None:
    """Rows may be computed by length: the labels and the next-token targets are put back alike."""
    batches(size)
    one = teacher(model_folders["llama"], paths="several paths", batch_size=size)
    recorder = Recorder()
    got, _ = score(one, top_k=9, temperature=2.0, recorder=recorder)
    passes = recorder.costs()["teach"].steps
    assert passes == 1 if size == 64 else passes > 1
    for number, query in enumerate(QUERIES):
        (alone, reused) = score(one, [query], top_k=9, temperature=2.0)
        assert not reused
        torch.testing.assert_close(
            got.logprobs_RL[number : number + 1], alone.logprobs_RL, atol=1e-4, rtol=0
        )
        assert got.vocabulary is not None
        assert alone.vocabulary is not None
        part = got.vocabulary.split([one.choices.positions] * len(QUERIES))[number]
        assert part.temperature == alone.vocabulary.temperature == 2
        assert torch.equal(part.ids_NK, alone.vocabulary.ids_NK)
        torch.testing.assert_close(
            part.logprobs_NK, alone.vocabulary.logprobs_NK, atol=1e-4, rtol=0
        )
        torch.testing.assert_close(part.log_tail_N, alone.vocabulary.log_tail_N, atol=1e-4, rtol=0)


def test_next_token_targets_are_those_of_the_deciding_positions(
    llama: LanguageModel, teacher: Make
) -> None:
    one = teacher(llama.name, paths="several paths")
    got, _ = score(one, top_k=5)
    assert got.vocabulary is not None
    expected = []
    for query in QUERIES:
        prompt = one.form.prompt_ids(query.input, SHOTS)
        for node in one.choices.branches.nodes:
            with torch.no_grad():
                ids_BL = torch.tensor([[*prompt, *node]], device=llama.device)
                logits = llama.network(input_ids=ids_BL).logits[0]
            expected.append(logits[-1].log_softmax(-1))
    logprobs_NK, ids_NK = torch.stack(expected).cpu().topk(5)
    assert torch.equal(got.vocabulary.ids_NK, ids_NK)
    torch.testing.assert_close(got.vocabulary.logprobs_NK, logprobs_NK, atol=1e-4, rtol=0)


@pytest.mark.usefixtures("batches")
def test_what_is_stored_is_read_without_the_model_and_its_cost_is_told_again(
    model_folders: dict[str, Path], teacher: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, spent = Recorder(), {"top_k": 9}
    computed, reused = score(teacher(model_folders["llama"]), recorder=first, **spent)
    assert not reused

    def fail(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("the model was loaded")

    monkeypatch.setattr(labels, "load", fail)
    second = Recorder()
    read, reused = score(teacher(model_folders["llama"], batch_size=1), recorder=second, **spent)
    assert reused
    assert torch.equal(read.logprobs_RL, computed.logprobs_RL)
    assert read.vocabulary is not None
    assert computed.vocabulary is not None
    for name in labels.KEPT:
        assert torch.equal(getattr(read.vocabulary, name), getattr(computed.vocabulary, name))
    cost = first.costs()["teach"]
    assert second.costs()["teach"] == cost
    assert cost.wall_seconds > 0
    assert cost.steps == 2
    prompts = [teacher(model_folders["llama"]).form.prompt_ids(q.input, SHOTS) for q in QUERIES]
    shared = next(n for n in range(999) if len({tuple(p[: n + 1]) for p in prompts}) > 1)
    # What is shared once; of each row the rest, and the space that all labels begin with.
    assert cost.tokens == shared + sum(len(p) - shared + 1 for p in prompts)
    with pytest.raises(AssertionError, match="the model was loaded"):
        score(teacher(model_folders["llama"]), QUERIES[1:])


def test_the_store_tells_apart_all_that_predictions_depend_on(
    model_folders: dict[str, Path], teacher: Make, tmp_path: Path
) -> None:
    llama, opt = model_folders["llama"], model_folders["opt"]
    other_context = Context(demonstrations=SHOTS.demonstrations[::-1])
    asked: list[Callable[[], tuple[LabelScores, bool]]] = [
        lambda: score(teacher(llama)),
        lambda: score(teacher(opt)),
        lambda: score(teacher(llama, dtype="bfloat16")),
        lambda: score(teacher(llama, paths="several paths")),
        lambda: score(teacher(llama), QUERIES[::-1]),
        lambda: score(teacher(llama), QUERIES[:-1]),
        lambda: score(teacher(llama), context=other_context),
        lambda: score(teacher(llama), top_k=3),
        lambda: score(teacher(llama), top_k=4),
        lambda: score(teacher(llama), top_k=3, temperature=2.0),
    ]
    assert [ask()[1] for ask in asked] == [False] * len(asked)
    assert [ask()[1] for ask in asked] == [True] * len(asked)
    names = [path.suffix for path in (tmp_path / "store").iterdir()]
    assert names == [".safetensors"] * len(asked)


def test_weights_written_anew_are_another_model(
    model_folders: dict[str, Path], teacher: Make, tmp_path: Path
) -> None:
    folder = save_tiny(tmp_path / "model", "llama", seed=1)
    before, _ = score(teacher(folder))
    save_tiny(folder, "llama", seed=2)
    after, reused = score(teacher(folder))
    assert not reused
    assert not torch.allclose(before.logprobs_RL, after.logprobs_RL, atol=1e-2)


def test_labels_alone_have_no_temperature(model_folders: dict[str, Path], teacher: Make) -> None:
    score(teacher(model_folders["llama"]))
    assert score(teacher(model_folders["llama"]), temperature=2.0)[1]


@pytest.mark.usefixtures("batches")
def test_nothing_half_computed_is_stored(
    model_folders: dict[str, Path],
    teacher: Make,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    one = teacher(model_folders["llama"])
    real, calls = forward.completion_logits, []

    def interrupted(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(*args, **kwargs)

    monkeypatch.setattr(forward, "completion_logits", interrupted)
    with pytest.raises(KeyboardInterrupt):
        score(one)
    assert not list(tmp_path.rglob("*.safetensors"))
    assert not score(one)[1]
    assert score(teacher(model_folders["llama"]))[1]


def test_what_pads_a_vocabulary_has_no_probability(
    llama: LanguageModel, teacher: Make, tmp_path: Path
) -> None:
    """A larger embedding whose rows beyond the tokenizer's would win every softmax."""
    size = len(llama.tokenizer)
    expected = naive(llama, teacher(llama.name))
    llama.network.resize_token_embeddings(size + 61, mean_resizing=False)
    with torch.no_grad():
        head = llama.network.get_output_embeddings().weight  # type: ignore[no-untyped-call]
        head[size:] = 3 * head[:61]
    llama.network.save_pretrained(tmp_path / "padded")
    llama.tokenizer.save_pretrained(tmp_path / "padded")
    padded = load(str(tmp_path / "padded"), dtype="float32")
    one = teacher(tmp_path / "padded")
    assert (naive(padded, one) < expected - 0.1).any()
    got, _ = score(one, top_k=10_000)
    torch.testing.assert_close(got.logprobs_RL, expected, atol=1e-4, rtol=0)
    assert got.vocabulary is not None
    assert got.vocabulary.ids_NK.shape[1] == size
    assert got.vocabulary.ids_NK.max() < size
    sums = got.vocabulary.logprobs_NK.exp().sum(-1)
    torch.testing.assert_close(sums, torch.ones_like(sums))


def test_a_prompt_beyond_the_window_is_refused_before_anything_is_computed(
    teacher: Make, tmp_path: Path
) -> None:
    folder = save_tiny(tmp_path / "short", "opt", window=32)
    one = teacher(folder)
    with pytest.raises(
        AlignmentError, match=r"row 1: the full prompt has.*use fewer demonstrations"
    ):
        score(one)
    assert not list((tmp_path / "store").glob("*"))
    assert score(one, QUERIES, Context())[0].logprobs_RL.shape == (6, 2)


def test_the_weights_are_let_go_and_come_back(
    model_folders: dict[str, Path], teacher: Make
) -> None:
    one = teacher(model_folders["llama"])
    one.release()
    first = one.model
    assert one.model is first
    one.release()
    assert one.model is not first


def test_the_file_says_what_it_is_of(
    model_folders: dict[str, Path], teacher: Make, tmp_path: Path
) -> None:
    from safetensors import safe_open

    score(teacher(model_folders["llama"]))
    (path,) = (tmp_path / "store").iterdir()
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    assert metadata["fingerprint"].startswith(path.stem)
    assert json.loads(metadata["spent"])["steps"] > 0


def logprobs(rows: list[list[float]]) -> torch.Tensor:
    return torch.tensor(rows, dtype=torch.float64).log()


def test_probabilities_are_of_the_labels_among_themselves() -> None:
    got = probabilities(logprobs([[0.1, 0.3], [0.02, 0.02]]))
    torch.testing.assert_close(got, logprobs([[0.25, 0.75], [0.5, 0.5]]).exp())


def test_calibration_by_hand() -> None:
    """p / r is (0.6 / 0.8, 0.4 / 0.2) = (0.75, 2): of their sum 2.75, 3 and 8 elevenths."""
    got = probabilities(
        logprobs([[0.06, 0.04]]), torch.tensor([0.8, 0.2], dtype=torch.float64).log()
    )
    torch.testing.assert_close(got, torch.tensor([[3 / 11, 8 / 11]], dtype=torch.float64))


def test_a_reference_without_a_tilt_changes_nothing() -> None:
    said = logprobs([[0.1, 0.3, 0.2], [0.5, 0.1, 0.1]])
    even = torch.full((3,), 1 / 3, dtype=torch.float64)
    torch.testing.assert_close(probabilities(said, even), probabilities(said))


def test_the_reference_itself_is_calibrated_to_even() -> None:
    said = logprobs([[0.5, 0.1, 0.15]])
    got = probabilities(said, log_reference(said))
    torch.testing.assert_close(got, torch.full((1, 3), 1 / 3, dtype=torch.float64))


def test_the_reference_is_the_mean_of_normalised_predictions() -> None:
    """The first row has a tenth of the second's mass, and as much weight."""
    got = log_reference(logprobs([[0.01, 0.03], [0.3, 0.1]])).exp()
    torch.testing.assert_close(got, torch.tensor([0.5, 0.5], dtype=torch.float64))


@pytest.mark.parametrize("seed", range(3))
def test_the_mean_prediction_takes_a_tilt_out(seed: int) -> None:
    """A predictor that knows the labels and leans to the first one, whatever the query."""
    generator = torch.Generator().manual_seed(seed)
    gold = torch.arange(3).repeat(200)
    logits = 0.5 * torch.randn(600, 3, generator=generator) + 1.5 * torch.eye(3)[gold]
    tilted = (logits + torch.tensor([3.0, 0.0, -1.0])).log_softmax(-1) - 5
    before = probabilities(tilted)
    after = probabilities(tilted, log_reference(tilted))
    assert before.mean(0)[0] > 0.85
    assert (after.mean(0) - 1 / 3).abs().max() < 0.15
    assert (after.argmax(-1) == gold).float().mean() > 0.8
    assert (before.argmax(-1) == gold).float().mean() < 0.6


def test_the_average_is_of_probabilities() -> None:
    one = torch.tensor([[1.0, 0.0], [0.4, 0.6]])
    other = torch.tensor([[0.0, 1.0], [0.2, 0.8]])
    torch.testing.assert_close(average([one, other]), torch.tensor([[0.5, 0.5], [0.3, 0.7]]))
    assert torch.equal(average([one]), one)


def test_a_reference_that_would_vanish_divides_all_the_same() -> None:
    said = torch.tensor([[-1.0, -120.0], [-2.0, -130.0]])
    calibrated = probabilities(said, log_reference(said))
    assert torch.isfinite(calibrated).all()
    assert calibrated[0, 1] > calibrated[1, 1]


def test_predictions_of_an_older_algorithm_are_not_read(
    teacher: Make, model_folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    score(teacher(model_folders["llama"]))
    assert score(teacher(model_folders["llama"]))[1]
    monkeypatch.setattr(labels, "ALGORITHM", labels.ALGORITHM + 1)
    assert not score(teacher(model_folders["llama"]))[1]
