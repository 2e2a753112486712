"""The client of vLLM, without a server. `tests/engines` holds it against a real one."""

from __future__ import annotations

import json
import math
import sys
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from instil.engines import vllm
from instil.engines.vllm import python_of, started_by
from instil.errors import ConfigError, EngineError
from instil.models.repeats import EVERY, cut
from instil.models.source import Source
from instil.recipe.grid import override
from instil.recipe.recipe import Recipe
from instil.targets.selection import Selection
from instil.targets.told import told_targets


def top(*outcomes: tuple[int, float]) -> list[tuple[int, float]]:
    return [(token, math.log(share)) for token, share in outcomes]


def test_the_likeliest_outcomes_are_kept_and_the_others_are_one() -> None:
    # The token that is written may come last, whatever its rank.
    steps = [top((5, 0.5), (2, 0.2), (7, 0.01), (9, 0.25)), top((1, 0.9))]
    made = told_targets(steps, Selection(top_k=3), 100)
    assert made.ids_NK[0].tolist() == [5, 9, 2]
    torch.testing.assert_close(made.logprobs_NK[0].exp(), torch.tensor([0.5, 0.25, 0.2]))
    torch.testing.assert_close(made.log_tail_N.exp(), torch.tensor([0.05, 0.1]))
    assert made.kept.tolist() == [[True, True, True], [True, False, False]]
    assert made.excess_N is None
    rule = Selection(top_k=3, min_probability=0.22)
    trimmed = told_targets(steps, rule, 100)
    assert trimmed.kept.tolist() == [[True, True], [True, False]]
    torch.testing.assert_close(trimmed.log_tail_N.exp(), torch.tensor([0.25, 0.1]))


def test_outcomes_beyond_the_vocabulary_get_no_probability() -> None:
    made = told_targets([top((5, 0.5), (200, 0.2), (2, 0.2))], Selection(top_k=3), 100)
    assert made.ids_NK[0].tolist() == [5, 2]
    torch.testing.assert_close(made.logprobs_NK[0].exp(), torch.tensor([0.625, 0.25]))
    torch.testing.assert_close(made.log_tail_N.exp(), torch.tensor([0.125]))


def test_a_rank_that_vllm_does_not_know_is_refused(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text(json.dumps({"r": 600}))
    with pytest.raises(EngineError, match="serves no adapter of this rank; got: 600"):
        vllm._rank(tmp_path)


def test_a_tail_of_nothing_is_finite() -> None:
    made = told_targets([top((5, 1.0))], Selection(top_k=3), 100)
    assert made.log_tail_N.isfinite().all()
    assert made.log_tail_N.exp().item() == 0.0


def test_an_adapter_is_served_with_the_rank_that_vllm_knows(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text(json.dumps({"r": 12}))
    command, environment = started_by(
        Source("owner/small@abc", "owner/small", "abc"),
        port=81,
        dtype="bfloat16",
        outcomes=256,
        adapter=tmp_path,
        python=Path(sys.executable),
        options=["--seed", "1"],
    )
    assert command[0] == sys.executable
    assert command[-2:] == ["--seed", "1"]
    pairs = dict(pairwise(command))
    assert pairs["--model"] == "owner/small"
    assert pairs["--revision"] == pairs["--tokenizer-revision"] == "abc"
    assert pairs["--max-lora-rank"] == "16"
    assert pairs["--lora-modules"] == f"adapter={tmp_path}"
    assert pairs["--max-logprobs"] == "257"
    assert (Path(environment["PYTHONPATH"].split(":")[0]) / "instil_forced.py").is_file()


def test_a_python_without_vllm_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(vllm.PYTHON, raising=False)
    with pytest.raises(EngineError, match=r"vLLM is not installed; allowed: .*INSTIL_VLLM_PYTHON"):
        python_of(None)
    with pytest.raises(EngineError, match="there is no Python /none/python"):
        python_of(Path("/none/python"))
    monkeypatch.setenv(vllm.PYTHON, sys.executable)
    assert python_of(None) == Path(sys.executable)
    usual = tmp_path / vllm.USUAL
    usual.parent.mkdir(parents=True)
    usual.touch()
    monkeypatch.delenv(vllm.PYTHON)
    assert python_of(None) == vllm.USUAL


def test_a_text_that_repeats_itself_is_cut_where_this_process_would() -> None:
    assert cut([*range(100)]) is None
    assert cut([1, 2] * 60) == 64
    assert cut([*range(10), *[7] * 90]) == -(-74 // EVERY) * EVERY


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("objective={name: logit_mse, top_k: 8}", "logit_mse reads more of the teacher"),
        ("objective={name: hidden_state}", "hidden_state reads more of the teacher"),
        ("objective=[{name: forward_kl}, {name: hidden_state}]", "sum reads more of the teacher"),
        ("objective.temperature=2", "at temperature 1 .got objective.temperature 2"),
        ("teacher.engine={name: vlm}", "teacher.engine.name: unknown value 'vlm'; did you mean"),
        ("teacher.engine={name: vllm, url: localhost}", "begins with http"),
    ],
)
def test_settings_that_an_engine_cannot_serve_are_refused(change: str, said: str) -> None:
    settings = override({"model": "m", "teacher": {"engine": {"name": "vllm"}}}, [change])
    with pytest.raises(ConfigError, match=said):
        Recipe.parse(settings)
