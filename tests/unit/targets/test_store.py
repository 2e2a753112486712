from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st

from instil import cli
from instil.errors import NotFiniteLossError, TargetStoreError
from instil.targets.codec import STEP, decode, encode, pack, unpack
from instil.targets.draws import trim
from instil.targets.index import StoreInfo
from instil.targets.prediction import LOG_ZERO, Targets
from instil.targets.selection import Selection
from instil.targets.store import StorePlan, TargetStore, build, verify

VOCABULARY, TOP_K = 300, 16
LENGTHS = [1, 4, 2, 7, 3, 3, 5, 1, 6, 2]
SHARDS = ["shard-00000.arrow", "shard-00001.arrow", "shard-00002.arrow", "shard-00003.arrow"]


def made(
    tokens: int,
    *,
    vocabulary: int = VOCABULARY,
    top_k: int = TOP_K,
    temperature: float = 1.0,
    scale: float = 3.0,
    seed: int = 0,
) -> Targets:
    generator = torch.Generator().manual_seed(seed)
    logits_NV = torch.randn(tokens, vocabulary, generator=generator) * scale + 12
    return Targets.of(logits_NV, top_k=top_k, temperature=temperature)


KEPT = Selection(top_k=TOP_K, mass=0.9)


def a_plan(fingerprint: str = "f", kept: Selection = KEPT) -> StorePlan:
    return StorePlan(fingerprint, LENGTHS, VOCABULARY, kept, shard_rows=3, shard_tokens=100)


class Teacher:
    """Scores in another order than it is asked in, and remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[list[int]] = []

    def __call__(self, numbers: Sequence[int]) -> Iterator[tuple[int, list[int], Targets]]:
        self.asked.append(list(numbers))
        for number in reversed(numbers):
            targets = trim(made(LENGTHS[number], seed=number), KEPT)
            yield number, [number + 1] * LENGTHS[number], targets


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("stores") / "store"
    build(path, a_plan(), Teacher())
    return path


@pytest.fixture
def store(built: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(built, tmp_path / "store"))


@given(st.lists(st.integers(0, 2**40) | st.integers(0, 9), max_size=200))
def test_packed_numbers_come_back(numbers: list[int]) -> None:
    assert unpack(pack(np.array(numbers, np.int64)), len(numbers)).tolist() == numbers


@pytest.mark.parametrize("count", range(1, 40))
def test_planes_that_compression_leaves_as_long_come_back(count: int) -> None:
    for most in (2, 3, 20, 300):
        numbers = np.random.default_rng(count).integers(0, most, count)
        assert unpack(pack(numbers), count).tolist() == numbers.tolist()


def test_unsorted_outcomes_are_refused() -> None:
    targets = made(2)
    flipped = Targets(
        targets.ids_NK.flip(-1), targets.logprobs_NK.flip(-1), targets.log_tail_N,
        targets.logsumexp_N, 1.0,
    )  # fmt: skip
    with pytest.raises(ValueError, match="likeliest first"):
        encode(flipped)


@given(
    tokens=st.integers(1, 6),
    vocabulary=st.sampled_from([2, 17, 300, 70_000]),
    top_k=st.integers(1, 40),
    temperature=st.sampled_from([0.5, 1.0, 3.0]),
    scale=st.sampled_from([0.0, 0.1, 3.0, 20.0]),
    mass=st.sampled_from([0.01, 0.5, 0.9, 0.99, 1.0]),
    min_probability=st.sampled_from([0.0, 1e-3, 0.2]),
    seed=st.integers(0, 99),
)
def test_decoded_targets_are_near_and_sum_to_one(
    tokens: int,
    vocabulary: int,
    top_k: int,
    temperature: float,
    scale: float,
    mass: float,
    min_probability: float,
    seed: int,
) -> None:
    dense = made(
        tokens,
        vocabulary=vocabulary,
        top_k=top_k,
        temperature=temperature,
        scale=scale,
        seed=seed,
    )
    kept = trim(dense, Selection(top_k=top_k, mass=mass, min_probability=min_probability))
    got = decode(encode(kept), tokens=tokens, temperature=temperature)
    assert got.temperature == temperature
    mask = torch.ones_like(got.ids_NK, dtype=torch.bool) if got.kept_NK is None else got.kept_NK
    expected = (
        torch.ones_like(kept.ids_NK, dtype=torch.bool) if kept.kept_NK is None else kept.kept_NK
    )
    assert torch.equal(mask, expected)
    assert torch.equal(got.ids_NK, kept.ids_NK)
    assert (got.logprobs_NK[~mask] == LOG_ZERO).all()
    one = got.logprobs_NK.double().exp().sum(-1) + got.log_tail_N.double().exp()
    torch.testing.assert_close(one, torch.ones(tokens, dtype=torch.double), atol=1e-5, rtol=0)
    rounding = 1e-4
    logprob_error = (got.logprobs_NK - kept.logprobs_NK).abs()[mask]
    assert logprob_error.max() <= STEP + rounding
    assert (got.logsumexp_N - kept.logsumexp_N).abs().max() <= STEP / 2 + rounding
    raw = got.logprobs_NK + got.logsumexp_N[:, None]
    was = kept.logprobs_NK + kept.logsumexp_N[:, None]
    assert (raw - was)[mask].abs().max() <= STEP / 2 + rounding
    some_tail = kept.log_tail_N > -50
    assert ((got.log_tail_N - kept.log_tail_N).abs()[some_tail] <= STEP + rounding).all()


@pytest.mark.parametrize(
    ("rule", "outcomes"),
    [
        (Selection(top_k=1024), 300),
        (Selection(top_k=64), 64),
        (Selection(top_k=64, mass_per_draw=0.1), 128),
        (Selection(top_k=1024, min_probability=2e-4), 100),
        (Selection(top_k=1024, mass=0.99, at_least=256), 256),
        (Selection(top_k=32, mass=0.99), 32),
    ],
)
def test_space_is_set_aside_for_what_a_token_usually_keeps(rule: Selection, outcomes: int) -> None:
    assert rule.token_bytes(VOCABULARY) == outcomes * 4


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_that_are_not_finite_are_refused(value: float) -> None:
    targets = made(3)
    targets.logsumexp_N[1] = value
    with pytest.raises(NotFiniteLossError, match="token 2 of 3"):
        encode(targets)


def test_impossible_outcomes_stay_impossible() -> None:
    logits_NV = torch.full((1, 4), float("-inf"))
    logits_NV[0, 2] = 5.0
    got = decode(encode(Targets.of(logits_NV, top_k=2, temperature=1.0)), tokens=1, temperature=1.0)
    assert got.ids_NK[0, 0] == 2
    assert got.logprobs_NK[0, 0] == 0
    assert got.logprobs_NK[0, 1].exp() == 0
    assert got.log_tail_N.exp() == 0


@given(st.floats(-20, 20), st.integers(1, 5))
def test_impossible_outcomes_are_not_rounded_to_possible_ones(shift: float, finite: int) -> None:
    """A loss that leaves them out knows them by their value."""
    logits_NV = torch.full((1, 12), float("-inf"))
    logits_NV[0, :finite] = shift + torch.arange(finite) * 0.77
    targets = Targets.of(logits_NV, top_k=10, temperature=1.0)
    got = decode(encode(targets), tokens=1, temperature=1.0)
    assert torch.equal(got.logprobs_NK == LOG_ZERO, targets.logprobs_NK == LOG_ZERO)
    assert (got.logprobs_NK == LOG_ZERO).sum() == 10 - finite


def test_rows_are_read_in_any_order(built: Path) -> None:
    store = TargetStore.open(built, fingerprint="f")
    assert len(store) == len(LENGTHS)
    for number in [7, 0, 9, 3, 3, *range(10)]:
        got, dense = store[number], trim(made(LENGTHS[number], seed=number), KEPT)
        assert (got.row, got.completion) == (number, [number + 1] * LENGTHS[number])
        assert torch.equal(got.targets.ids_NK, dense.ids_NK)
        assert (got.targets.logsumexp_N - dense.logsumexp_N).abs().max() < STEP
    assert store[-1].row == 9
    assert [row.row for row in store] == list(range(10))
    with pytest.raises(IndexError):
        store[10]


def test_info_counts_what_is_stored(built: Path) -> None:
    info = TargetStore.open(built).info
    assert (info.rows, info.tokens, info.stored_tokens) == (10, sum(LENGTHS), sum(LENGTHS))
    assert [shard.file for shard in info.shards] == SHARDS
    assert info.stored_bytes == sum(path.stat().st_size for path in built.glob("*.arrow"))
    assert info.shards[1].most_kept <= TOP_K


def test_datasets_opens_a_shard_by_itself(built: Path) -> None:
    shard = Dataset.from_file(str(built / SHARDS[1]))
    assert shard["row"][:] == [3, 4, 5]
    assert shard[1]["completion"] == [5, 5, 5]
    assert shard.cache_files  # it is mapped, not read


def test_long_rows_get_shards_of_their_own() -> None:
    plan = StorePlan("f", [5, 20, 1, 1, 9, 3], 10, KEPT, shard_rows=3, shard_tokens=10)
    cut = [list(numbers) for numbers in plan.shards().values()]
    assert cut == [[0], [1], [2, 3], [4], [5]]
    assert StorePlan("f", [], 10, KEPT).shards() == {}


def test_an_empty_store_is_whole(tmp_path: Path) -> None:
    build(tmp_path / "store", StorePlan("f", [], 10, KEPT), Teacher())
    assert len(TargetStore.open(tmp_path / "store")) == 0


@given(place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7), shard=st.integers(0, 3))
def test_a_flipped_bit_is_found_and_its_shard_named(
    built: Path, place: float, bit: int, shard: int
) -> None:
    path = built / SHARDS[shard]
    before = path.read_bytes()
    damaged = bytearray(before)
    damaged[int(place * len(before))] ^= 1 << bit
    path.write_bytes(damaged)
    try:
        (problem,) = verify(built)
        assert problem.startswith(f"{SHARDS[shard]}: changed, sha256 ")
        with pytest.raises(TargetStoreError, match=rf"is damaged; got: {SHARDS[shard]}: changed"):
            TargetStore.open(built)
    finally:
        path.write_bytes(before)
    assert verify(built) == []


@given(place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_a_flipped_bit_in_the_index_is_found_or_changes_nothing(
    built: Path, place: float, bit: int
) -> None:
    path = built / "store.json"
    before, info = path.read_bytes(), StoreInfo.read(path)
    damaged = bytearray(before)
    damaged[int(place * len(before))] ^= 1 << bit
    path.write_bytes(damaged)
    try:
        problems = verify(built)
        if problems:
            assert [problem.partition(":")[0] for problem in problems] == ["store.json"]
            with pytest.raises(
                TargetStoreError, match=r"was changed after it was written|another version"
            ):
                TargetStore.open(built)
        else:  # space between two fields
            assert StoreInfo.read(path) == info
    finally:
        path.write_bytes(before)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-9])


def grow(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\0")


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (cut, "too short, {less:,} bytes, expected {size:,}"),
        (grow, "too long, {more:,} bytes, expected {size:,}"),
        (Path.unlink, "missing"),
        (flip, "changed, sha256 "),
    ],
)
def test_only_the_damaged_shard_is_computed_again(
    store: Path, damage: object, told: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = store / SHARDS[2]
    size = path.stat().st_size
    damage(path)  # type: ignore[operator]
    told = f"{SHARDS[2]}: {told.format(less=size - 9, more=size + 1, size=size)}"
    (problem,) = verify(store)
    assert problem.startswith(told)
    teacher, advanced = Teacher(), []
    build(store, a_plan(), teacher, advance=lambda rows, tokens: advanced.append((rows, tokens)))
    assert teacher.asked == [[6, 7, 8]]
    assert advanced == [(7, 0)]
    assert f"computing again: {told}" in caplog.text
    assert verify(store) == []
    assert [row.row for row in TargetStore.open(store)] == list(range(10))


def test_a_whole_store_is_not_computed_again(store: Path) -> None:
    teacher = Teacher()
    build(store, a_plan(), teacher)
    assert teacher.asked == []


@pytest.mark.parametrize(
    "change", [{"fingerprint": "g"}, {"kept": Selection(top_k=TOP_K, mass=0.5)}]
)
def test_a_store_of_something_else_is_refused(store: Path, change: dict[str, object]) -> None:
    (name,) = change
    teacher, plan = Teacher(), a_plan(**change)  # type: ignore[arg-type]
    with pytest.raises(
        TargetStoreError, match=f"made with other settings; got: another {name}; mend: name another"
    ):
        build(store, plan, teacher)
    assert teacher.asked == []
    assert verify(store) == []


def test_another_name_of_the_same_teacher_finds_its_store(store: Path) -> None:
    teacher = Teacher()
    build(store, replace(a_plan(), teacher="a copy of the model"), teacher)
    assert teacher.asked == []


def test_shards_cut_otherwise_are_refused(store: Path) -> None:
    plan = StorePlan("f", LENGTHS, VOCABULARY, KEPT, shard_rows=2)
    with pytest.raises(TargetStoreError, match="another shards"):
        build(store, plan, Teacher())


@pytest.mark.parametrize("damage", [flip, Path.unlink])
def test_a_damaged_index_is_named_and_brought_back_from_its_copy(
    store: Path, damage: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    damage(store / "store.json")
    (problem,) = verify(store)
    assert problem.startswith("store.json: ")
    with pytest.raises(TargetStoreError):
        TargetStore.open(store)
    teacher = Teacher()
    build(store, a_plan(), teacher)
    assert teacher.asked == []
    assert "store.json: read from its copy" in caplog.text
    assert verify(store) == []


def test_a_copy_that_is_behind_costs_the_shards_that_it_does_not_list(store: Path) -> None:
    info = StoreInfo.read(store / "store.json")
    before = info.having(info.shards[:-1])
    (store / "store.copy.json").write_text(before.model_dump_json())
    flip(store / "store.json")
    teacher = Teacher()
    build(store, a_plan(), teacher)
    assert teacher.asked == [[9]]
    assert verify(store) == []


def test_an_index_whose_copy_is_damaged_too_is_refused(store: Path) -> None:
    flip(store / "store.json")
    flip(store / "store.copy.json")
    with pytest.raises(TargetStoreError, match=f"if that fails, remove {store}"):
        build(store, a_plan(), Teacher())


def test_an_index_of_another_version_says_so(store: Path) -> None:
    index = store / "store.json"
    index.write_text(index.read_text().replace('"schema_version": 3', '"schema_version": 2'))
    with pytest.raises(TargetStoreError, match="another version of instil; got: schema_version"):
        TargetStore.open(store)


def test_builders_of_one_store_wait_for_each_other(tmp_path: Path) -> None:
    """They write files of the same names; the second one finds what the first one has made."""
    teachers = [Teacher(), Teacher()]
    with ThreadPoolExecutor(2) as pool:
        made = [pool.submit(build, tmp_path / "store", a_plan(), one) for one in teachers]
        assert [len(one.result()) for one in made] == [10, 10]
    assert sorted(len(one.asked) for one in teachers) == [0, 4]
    assert verify(tmp_path / "store") == []


def test_what_cannot_be_opened_says_why(store: Path, tmp_path: Path) -> None:
    with pytest.raises(
        TargetStoreError, match=r"nothing is not a target store; got: no store\.json"
    ):
        TargetStore.open(tmp_path / "nothing")
    with pytest.raises(TargetStoreError, match="is not a target store"):
        verify(tmp_path)
    with pytest.raises(TargetStoreError, match="another fingerprint"):
        TargetStore.open(store, fingerprint="g")
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(TargetStoreError, match="is a file; mend: name a folder"):
        build(file, a_plan(), Teacher())


def test_answers_to_another_question_are_refused(tmp_path: Path) -> None:
    def fewer(numbers: Sequence[int]) -> Iterator[tuple[int, list[int], Targets]]:
        return (answer for answer in Teacher()(numbers) if answer[0] != 1)

    def longer(numbers: Sequence[int]) -> Iterator[tuple[int, list[int], Targets]]:
        return ((n, [*ids, 0], targets) for n, ids, targets in Teacher()(numbers))

    with pytest.raises(
        ValueError, match="rows 0 to 2 were requested, but `score` returned other rows"
    ):
        build(tmp_path / "a", a_plan(), fewer)
    with pytest.raises(ValueError, match=r"row 2: the plan has 2 tokens .* got 3 tokens"):
        build(tmp_path / "b", a_plan(), longer)


# One process imports everything and forks itself for each moment; a fork builds a store until it is killed.
KILLED = """
import os, signal, sys
from pathlib import Path
from tests.unit.targets import test_store as t
from instil.targets.store import build

rename = Path.replace

def build_until(moment, folder):
    teacher, seen = t.Teacher(), []

    def die():
        os.kill(os.getpid(), signal.SIGKILL)

    def replace(self, target):
        name = Path(target).name
        seen.append(name)
        third = seen.count("shard-00002.arrow")
        if moment == "before the shard's rename" and third:
            die()
        if moment == "before the index's rename" and third and name == "store.json":
            die()
        done = rename(self, target)
        if moment == "after the shard's rename" and third:
            die()
        if moment == "after the index's rename" and third and name == "store.json":
            die()
        if moment == "after the copy's rename" and third and name == "store.copy.json":
            die()
        return done

    def score(numbers):
        for count, answer in enumerate(teacher(numbers)):
            if moment == "while the teacher scores" and numbers[0] == 6 and count:
                die()
            yield answer

    Path.replace = replace
    build(folder, t.a_plan(), score)

for moment in t.MOMENTS:
    fork = os.fork()
    if not fork:
        try:
            build_until(moment, Path(sys.argv[1]) / moment / "store")
        finally:
            os._exit(1)  # it should be dead
    ended = os.waitstatus_to_exitcode(os.waitpid(fork, 0)[1])
    assert ended == -signal.SIGKILL, (moment, ended)
"""
MOMENTS = {  # -> shards that are left
    "while the teacher scores": 2,
    "before the shard's rename": 2,
    "after the shard's rename": 2,
    "before the index's rename": 2,
    "after the index's rename": 3,
    "after the copy's rename": 3,
}


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of folders: moment -> the store that was being built when its process was killed."""
    folder = tmp_path_factory.mktemp("killed")
    root = Path(__file__).parents[3]
    subprocess.run([sys.executable, "-c", KILLED, str(folder)], cwd=root, check=True)
    return folder


@pytest.mark.parametrize(("moment", "left"), MOMENTS.items())
def test_killed_at_any_moment_at_most_one_shard_is_lost(
    killed: Path, moment: str, left: int
) -> None:
    store, rows = killed / moment / "store", 3 * left
    assert verify(store) == [f"rows {rows} to 9 of 10: not computed yet"]
    with pytest.raises(TargetStoreError, match=rf"not complete; got: {rows} of 10 rows; mend: run"):
        TargetStore.open(store)
    teacher = Teacher()
    build(store, a_plan(), teacher)
    assert teacher.asked == [[6, 7, 8], [9]][left - 2 :]
    assert verify(store) == []
    assert [row.row for row in TargetStore.open(store)] == list(range(10))
    names = sorted(path.name for path in store.iterdir())
    assert names == [*SHARDS, "store.copy.json", "store.json"]


def test_one_shard_is_one_batch(built: Path) -> None:
    with pa.memory_map(str(built / SHARDS[0])) as source, pa.ipc.open_stream(source) as reader:
        assert [len(batch) for batch in reader] == [3]


def command(*arguments: str) -> int:
    try:
        cli.app(["targets", *arguments], standalone_mode=False)
    except SystemExit as exit:
        return int(exit.code or 0)
    return 0


def test_info_is_printed(built: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert command("info", str(built)) == 0
    shown = capfd.readouterr().out
    for text in ("10 of 10", "34 of 34", "bytes per token", "at most 16 of 300", "mass of 0.9"):
        assert text in shown
    assert command("info", str(built), "--json") == 0
    told = json.loads(capfd.readouterr().out)
    info = TargetStore.open(built).info
    assert told["bytes_per_token"] == info.stored_bytes / 34
    assert (told["fingerprint"], told["shards"], told["whole"]) == ("f", 4, True)


def test_verify_ends_with_a_status(
    store: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert command("verify", str(store)) == 0
    assert "4 shards, no problem found" in capfd.readouterr().out
    flip(store / SHARDS[1])
    (store / SHARDS[3]).unlink()
    assert command("verify", str(store)) == 1
    problems = capfd.readouterr().err.splitlines()
    assert [problem.split(":")[0] for problem in problems] == [SHARDS[1], SHARDS[3]]
    assert command("verify", str(tmp_path / "nothing")) == 2


def test_a_store_without_its_index_is_not_passed_over_in_a_folder_of_stores(
    store: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(store, store.parent / "whole")
    (store / "store.json").unlink()
    assert command("verify", str(store.parent)) == 1
    told = capfd.readouterr()
    assert told.err.startswith("store: store.json: ")
    assert "whole: 4 shards, no problem found" in told.out
    assert command("info", str(store.parent), "--json") == 0
    assert set(json.loads(capfd.readouterr().out)) == {"store", "whole"}
