from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from instil.errors import FieldError
from instil.tasks import NLI, Paraphrase, Sentiment, Task, Topic
from instil.tasks.family import Family
from instil.tasks.rows import Row

FAMILIES: list[type[Family]] = [NLI, Paraphrase, Sentiment, Topic]
ROOT = Path(__file__).parent.parent.parent.parent
DATA = Path(os.environ.get("INSTIL_DATA", ROOT.parent / "shared" / "data"))


def write(folder: Path, file: str, *rows: dict[str, object]) -> None:
    path = folder / file
    path.parent.mkdir(exist_ok=True)
    path.write_text("\n".join(map(json.dumps, rows)))


@pytest.fixture
def nli(tmp_path: Path) -> Path:
    pairs = [
        {"premise": label, "hypothesis": "h", "label": label}
        for label in ("entailment", "neutral", "contradiction")
    ]
    for file in ("train", "dev_matched", "dev_mismatched_1k"):
        write(tmp_path, f"mnli/{file}.jsonl", *pairs)
    for file, other in (("rte/dev", "not_entailment"), ("hans/eval_subset", "non-entailment")):
        rows = [{"premise": o, "hypothesis": "h", "label": o} for o in ("entailment", other)]
        write(tmp_path, f"{file}.jsonl", *rows)
    return tmp_path


def test_two_way_inference_drops_neutral_and_joins_all_that_is_no_entailment(nli: Path) -> None:
    read = NLI(folder=nli).read()
    rows = [
        Row("Premise: entailment\nHypothesis: h\nAnswer:", "entailment"),
        Row("Premise: contradiction\nHypothesis: h\nAnswer:", "not_entailment"),
    ]
    assert read.train == rows
    assert read.in_domain == {"mnli_matched": rows}
    assert list(read.out_of_domain) == ["mnli_mismatched", "rte", "hans"]
    assert read.out_of_domain["mnli_mismatched"] == rows
    for name in ("rte", "hans"):
        outputs = [row.output for row in read.out_of_domain[name]]
        assert outputs == ["entailment", "not_entailment"]


def test_three_way_inference_keeps_neutral_and_asks_for_maybe(nli: Path) -> None:
    task = NLI(folder=nli, ways=3)
    assert task.prefix.endswith("Answer with yes, no or maybe.")
    assert task.verbalizer["neutral"] == ("Maybe", "maybe")
    assert [row.output for row in task.read().train] == list(task.labels)
    assert list(task.read().out_of_domain) == ["mnli_mismatched"]
    assert task.digest() != NLI(folder=nli, out_of_domain=("mnli_mismatched",)).digest()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"ways": 3, "out_of_domain": ["hans"]}, "'hans' has only two labels"),
        ({"ways": 3, "train": "rte_train"}, "'rte_train' has only two labels.*ways: 2"),
        ({"train": "mnli_trian"}, "no set 'mnli_trian'; did you mean 'mnli_train'"),
        ({"out_of_domain": ["mnli_matched"]}, "given twice"),
        ({"in_domain": ["mnli_train"]}, "given twice"),
        ({"in_domain": [], "out_of_domain": []}, "there is no evaluation set; put at least one"),
        (
            {"verbalizer": {"yes": "Yes", "no": "No"}},
            "has the labels 'yes', 'no'; it must have those of this task: 'entailment', 'not_entailment'",
        ),
    ],
)
def test_settings_that_cannot_work_are_refused(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        NLI.model_validate(settings)


def test_pattern_prefix_and_surface_forms_may_be_changed(tmp_path: Path) -> None:
    for file in ("train", "eval"):
        rows = {"question1": "a", "question2": "b", "label": "duplicate", "id": "q1"}
        write(tmp_path, f"qqp/{file}.jsonl", rows)
    task = Paraphrase(
        folder=tmp_path,
        prefix="",
        pattern="[{id}] {second}? {question1}",
        verbalizer={"not_paraphrase": ("differ",), "paraphrase": ("same",)},
        out_of_domain=(),
    )
    assert task.read().train == [Row("[q1] b? a", "paraphrase")]
    assert task.labels == ("not_paraphrase", "paraphrase")
    with pytest.raises(FieldError, match=r"train\.jsonl, line 1: there is no field 'third'"):
        Paraphrase(folder=tmp_path, pattern="{third}", out_of_domain=()).read()


@pytest.mark.parametrize("family", FAMILIES)
def test_the_defaults_hold_what_is_demanded_of_settings(family: type[Family]) -> None:
    adapter: TypeAdapter[Any] = TypeAdapter(Task)
    task = family()
    assert adapter.validate_python(task.model_dump(mode="json")) == task
    for known in family.sets.values():
        assert {label for label in known.labels.values() if label} <= set(NLI(ways=3).labels) | set(
            task.labels
        )


@pytest.mark.skipif(
    not DATA.is_dir(), reason="no local copy of the sets: name its folder in INSTIL_DATA"
)
@pytest.mark.parametrize(
    ("family", "counts"),
    [
        # Rows of train, rte_train aside, and of every other set, as the local copy's README counts
        # them; of MNLI without the neutral ones.
        (
            NLI,
            {
                "mnli_train": 4000 - 1333,
                "mnli_matched": 2000,
                "mnli_mismatched": 680,
                "rte_train": 2488,
                "rte": 277,
                "hans": 308,
            },
        ),
        (Paraphrase, {"qqp_train": 4000, "qqp": 2802, "paws": 1998}),
        (
            Sentiment,
            {"sst2_train": 4000, "sst2": 1821, "amazon": 990, "imdb": 997, "yelp": 996},
        ),
        (Topic, {"ag_news_train": 4000, "ag_news": 3000}),
    ],
)
def test_every_set_of_the_local_copy_is_read(family: type[Family], counts: dict[str, int]) -> None:
    train, *others = family.sets
    task = family.model_validate(
        {"folder": DATA, "train": train, "in_domain": others, "out_of_domain": []}
    )
    read = task.read()
    found = {train: len(read.train), **{name: len(rows) for name, rows in read.in_domain.items()}}
    assert found == counts
    for rows in (read.train, *read.in_domain.values()):
        assert {row.output for row in rows} == set(task.labels)
    assert len(task.digest()) == 64
