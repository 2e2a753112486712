"""A finished run is judged again: by other rules and metrics, and on other rows."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

import instil
from instil.cli import app
from instil.evaluation.retention import TOKENS, prompts_by_kind
from instil.results.schema import EVALUATION, EvaluationRow, Prediction, Results
from instil.system.files import read_lines

SYSTEM = "Answer every question with one number, and nothing else. Never say hello."
CHATS = [
    [("What is 2 and 3?", "5"), ("And one more?", "6")],
    [("What is 1 and 1?", "2")],
    [("What is 4 and 4?", "8")],
    [("What is 7 and 2?", "9"), ("Thanks", "0")],
    [("What is 3 and 3?", "6")],
    [("Is 4 even?", "1")],
    [("What is 5 and 1?", "6")],
    [("What is 8 and 8?", "16")],
    [("Say hello", "0")],
    [("What is 9 and 1?", "10")],
]
RULES = "- {name: digits, must_regex: '^[0-9]+$'}\n- {name: short, max_words: 3}\n"


def conversation(turns: list[tuple[str, str]], *, system: str | None = SYSTEM) -> dict[str, Any]:
    messages = [{"role": "system", "content": system}] if system else []
    for asked, answered in turns:
        messages.append({"role": "user", "content": asked})
        if answered:
            messages.append({"role": "assistant", "content": answered})
    return {"messages": messages}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, model_folders: dict[str, Path]) -> instil.Run:
    folder = tmp_path_factory.mktemp("check")
    (folder / "rules.yaml").write_text(RULES)
    return instil.distill(
        str(model_folders["llama"]),
        inputs=[conversation(turns) for turns in CHATS],
        logs={"context_from_logs": True},
        output=folder / "run",
        teacher={"completions": "gold"},
        training={"max_steps": 2},
        evaluation={
            "rules": folder / "rules.yaml",
            "metrics": ["exact", "token_f1"],
            "drift_tokens": 20,
            "general_prompts": 7,
        },
        dtype="float32",
        quiet=True,
    )


def invoke(*arguments: str) -> tuple[int, str]:
    found = CliRunner().invoke(app, [*arguments])
    return found.exit_code, found.output


def test_a_run_holds_what_its_answers_are_judged_by(run: instil.Run) -> None:
    rows = read_lines(EvaluationRow, run.path / EVALUATION)
    lines = run.predictions
    assert len(lines) == 3 * len(rows)
    assert {row.turn for row in rows} <= {1, 2}
    later = [row for row in rows if row.turn == 2]
    assert all(row.messages[-1].content == row.input for row in rows)
    assert all(len(row.messages) == 3 for row in later)
    for line in lines:
        assert set(line.values) == {"exact", "token_f1"}
        assert set(line.rules) == {"digits", "short"}
        assert line.correct == bool(line.values["exact"])
        assert line.kl is None or line.kl >= 0
        assert line.ending in ("finished", "cut", "repeats")
    for method in run.results.methods:
        written = method.scores[0].written
        assert written is not None
        of = [line for line in lines if line.method == method.method]
        assert written.rules["short"].value == sum(line.rules["short"] for line in of) / len(of)
        f1 = sum(line.values["token_f1"] for line in of) / len(of)
        assert written.metrics["token_f1"].value == pytest.approx(f1)
        assert written.ends.tokens_mean == pytest.approx(
            sum(line.tokens or 0 for line in of) / len(of)
        )
    student = run.results.methods[0]
    assert student.retention is not None
    assert student.retention.prompts == 7
    assert student.scores[0].written is not None
    assert student.scores[0].written.leaks is not None
    assert student.scores[0].written.with_context is not None


def test_stored_answers_are_judged_by_other_rules(run: instil.Run, tmp_path: Path) -> None:
    rules = tmp_path / "other.yaml"
    rules.write_text("- {name: any, min_words: 0}\n- {name: none, min_words: 999}\n")
    status, said = invoke(
        "check", str(run.path), "--rules", str(rules), "--min-rule", "any=1", "--max-drift", "9"
    )
    assert status == 0, said
    assert "none" in said
    status, said = invoke(
        "check", str(run.path), "--rules", str(rules), "--min-rule", "*=0.5", "--max-kl-share", "0"
    )
    assert status == 3
    assert "too few answers obey the rule 'none'; got: 0.000" in said
    assert "the student's predictions are too far from its teacher's" in said
    assert Results.read(run.path / "results.json") == run.results  # nothing of the run is changed


def test_the_same_rules_and_metrics_give_the_same_scores(run: instil.Run) -> None:
    from instil.metrics import comparing
    from instil.metrics.rules import read_rules
    from instil.pipeline.checking import check_stored

    rules = read_rules(run.path.parent / "rules.yaml")
    metrics = [comparing("exact"), comparing("token_f1")]
    results, lines = check_stored(run.path, metrics=metrics, rules=rules)
    assert results == run.results

    def key(line: Prediction) -> tuple[str, str, int]:
        return line.method, line.set, line.row

    assert sorted(lines, key=key) == sorted(run.predictions, key=key)


def test_the_student_is_judged_on_other_rows(
    run: instil.Run, jsonl: Callable[[str, list[dict[str, Any]]], Path]
) -> None:
    new = [
        conversation([("What is 2 and 2?", "4"), ("And 3?", "7")]),
        conversation([("What is 6 and 1?", "")], system=None),
        conversation([("What is 5 and 5?", "")], system="Answer in words."),
    ]
    path = jsonl("new.jsonl", new)
    arguments = ["check", str(run.path), "--eval", str(path), "--quiet", "--max-kl-share", "99"]
    status, said = invoke(*arguments)
    assert status == 0, said
    folder = run.path / "checks" / "new"
    found = Results.read(folder / "results.json")
    assert [result.method for result in found.methods] == [r.method for r in run.results.methods]
    assert found.methods[0].scores[0].rows == 4
    assert found.training == run.results.training
    assert {"train", "evaluate"} <= set(found.phases)
    assert found.phases["train"] == run.results.phases["train"]
    assert (folder / "report.html").is_file()
    rows = read_lines(EvaluationRow, folder / EVALUATION)
    assert [row.input for row in rows] == [
        "What is 2 and 2?",
        "And 3?",
        "What is 6 and 1?",
        "What is 5 and 5?",
    ]
    # Without a system message, the context of the run is read; another one is a row's own.
    student = found.methods[0].prompt_tokens_mean
    assert (found.result("in_context") or found.methods[0]).prompt_tokens_mean > student
    status, said = invoke(*arguments)
    assert status == 2
    assert "already exists" in said
    assert invoke(*arguments, "--overwrite")[0] == 0


def test_the_run_is_judged_on_its_own_rows_as_before(
    run: instil.Run, jsonl: Callable[[str, list[dict[str, Any]]], Path], tmp_path: Path
) -> None:
    rows = read_lines(EvaluationRow, run.path / EVALUATION)
    whole = [
        {
            "messages": [
                {"role": "system", "content": SYSTEM},
                *({"role": one.role, "content": one.content, "weight": 0} for one in row.messages),
                {"role": "assistant", "content": row.output},
            ]
        }
        for row in rows
    ]
    path = jsonl("again.jsonl", whole)
    status, said = invoke(
        "check", str(run.path), "--eval", str(path), "--output", str(tmp_path / "again"), "--quiet"
    )
    assert status in (0, 3), said
    found = Results.read(tmp_path / "again" / "results.json")
    for before, after in zip(run.results.methods, found.methods, strict=True):
        one, two = before.scores[0], after.scores[0]
        assert (one.accuracy, one.rows) == (two.accuracy, two.rows)
        assert two.cross_entropy == pytest.approx(one.cross_entropy, abs=1e-4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "nowhere"),
        (["RUN", "--rules", "nowhere.yaml"], "the rules cannot be read"),
        (["RUN", "--metric", "exat"], "did you mean 'exact'"),
        (["RUN", "--min-rule", "digits"], "NAME=VALUE"),
        (["RUN", "--eval", "nowhere.jsonl"], "nowhere.jsonl"),
    ],
)
def test_a_wrong_check_is_refused(run: instil.Run, arguments: list[str], message: str) -> None:
    given = [str(run.path) if one == "RUN" else one for one in arguments]
    status, said = invoke("check", *given)
    assert status == 2
    assert message in said


def test_a_file_of_rules_is_tried_on_logs(
    jsonl: Callable[[str, list[dict[str, Any]]], Path], tmp_path: Path
) -> None:
    path = jsonl("logs.jsonl", [conversation(turns) for turns in CHATS])
    rules = tmp_path / "rules.yaml"
    rules.write_text(f"{RULES}- {{name: even, must_regex: '[02468]$', when: {{turn: later}}}}\n")
    status, said = invoke("rules", "check", str(rules), str(path))
    assert status == 0, said
    lines = {line.split()[1]: line for line in said.splitlines() if line.startswith("│")}
    assert "100.0%" in lines["digits"]
    assert "12" in lines["digits"]
    assert " 2 " in lines["even"]
    assert "must_regex" not in said  # no rule is broken
    rules.write_text("- {name: hello, starts_with: Hello}\n")
    status, said = invoke("rules", "check", str(rules), str(path))
    assert "0.0%" in said
    assert "asked     What is 2 and 3?" in said
    assert "answered  5" in said


def test_rules_are_drafted(tmp_path: Path) -> None:
    prompt = tmp_path / "prompt.txt"
    prompt.write_text('Begin with "Hi!". Write at most 9 words.')
    status, said = invoke("rules", "draft", str(prompt))
    assert status == 0
    assert "starts_with: Hi!" in said
    output = tmp_path / "rules.yaml"
    assert invoke("rules", "draft", str(prompt), "--output", str(output))[0] == 0
    assert output.read_text() == said
    status, said = invoke("rules", "draft", str(prompt), "--output", str(output))
    assert (status, "already exists" in said) == (2, True)


def test_limits_are_checked_when_a_run_ends(run: instil.Run) -> None:
    run.check(max_kl_share=99, min_rule={"short": 0.0}, max_drift=9)
    with pytest.raises(instil.InstilError, match="the rule 'shrt' was not measured"):
        run.check(min_rule={"shrt": 0.5})
    path = run.path.parent / "gate.yaml"
    path.write_text(json.dumps({"min_metric": {"token_f1": 1.0}}))
    with pytest.raises(instil.InstilError, match="by the metric 'token_f1'"):
        run.check(path)


def test_a_judge_compares_student_and_teacher(
    run: instil.Run, model_folders: dict[str, Path], tmp_path: Path
) -> None:
    output = tmp_path / "judged"
    arguments = ["check", str(run.path), "--judge", str(model_folders["llama"]), "--quiet"]
    status, said = invoke(
        *arguments, "--judge-rows", "2", "--output", str(output), "--max-drift", "9"
    )
    assert status == 0, said
    assert "win rate" in said
    written = Results.read(output / "results.json").methods[0].scores[0].written
    assert written is not None
    assert written.judged is not None
    assert written.judged.rows == 2
    assert "compared the student" in (output / "report.html").read_text(encoding="utf-8")
    status, said = invoke(*arguments, "--output", str(output))
    assert (status, "already exists" in said) == (2, True)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--judge", "http://127.0.0.1:1/v1"], "add --judge-model NAME"),
        (["--judge-model", "large"], "--judge-model: there is no --judge to which this belongs"),
        (
            ["--judge-rows", "5", "--judge-key-env", "K"],
            "--judge-key-env, --judge-rows: there is no",
        ),
        (["--judge", "nowhere/at-all"], "nowhere/at-all"),
    ],
)
def test_a_wrong_judge_is_refused(run: instil.Run, arguments: list[str], message: str) -> None:
    status, said = invoke("check", str(run.path), *arguments)
    assert status == 2
    assert message in said


class Plain:
    """The run with transformers and peft alone."""

    def __init__(self, run: instil.Run) -> None:
        from peft import PeftModel
        from transformers import AutoModelForCausalLM, AutoTokenizer

        self.results = run.results
        self.tokenizer: Any = AutoTokenizer.from_pretrained(self.results.model)
        base: Any = AutoModelForCausalLM.from_pretrained(self.results.model, dtype=torch.float32)
        self.network: Any = PeftModel.from_pretrained(base, str(run.adapter)).eval()
        assert self.results.context is not None
        self.head = [one.model_dump() for one in self.results.context.messages[:-1]]

    def prompt(self, messages: list[dict[str, str]]) -> list[int]:
        text = self.tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, tokenize=False
        )
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def gold(self, messages: list[dict[str, str]], output: str) -> list[int]:
        answer = {"role": "assistant", "content": output}
        text = self.tokenizer.apply_chat_template([*messages, answer], tokenize=False)
        whole = list(self.tokenizer(text, add_special_tokens=False)["input_ids"])
        rest = whole[len(self.prompt(messages)) :]
        ends = [n for n, token in enumerate(rest) if token in self.results.prompt.end_ids]
        return rest[: ends[0] + 1]

    @torch.inference_mode()
    def logits(self, prompt: list[int], completion: list[int], *, adapter: bool) -> torch.Tensor:
        with nullcontext() if adapter else self.network.disable_adapter():
            ids = torch.tensor([prompt + completion])
            return self.network(input_ids=ids).logits[0, len(prompt) - 1 : -1].double()

    def greedy(self, prompt: list[int], limit: int, *, adapter: bool) -> list[int]:
        made: list[int] = []
        while len(made) < limit and not (made and made[-1] in self.results.prompt.end_ids):
            made.append(int(self.logits(prompt, [*made, 0], adapter=adapter)[-1].argmax()))
        return made


def kl(p: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
    """KL of each token, in nats."""
    return (p.softmax(-1) * (p.log_softmax(-1) - q.log_softmax(-1))).sum(-1)


def test_every_number_is_that_of_plain_transformers_and_peft(run: instil.Run) -> None:
    plain = Plain(run)
    rows = read_lines(EvaluationRow, run.path / EVALUATION)
    lines = {(line.method, line.row): line for line in run.predictions}
    limit = run.results.prompt.max_new_tokens
    assert limit is not None
    on_gold: dict[str, list[torch.Tensor]] = {"distillation": [], "zero_shot": []}
    on_own: dict[str, list[torch.Tensor]] = {"distillation": [], "zero_shot": []}
    lengths: dict[str, list[int]] = {}
    entropies: dict[str, list[torch.Tensor]] = {}
    first_turn: list[torch.Tensor] = []
    for row in rows:
        said = [one.model_dump() for one in row.messages]
        student, teacher = plain.prompt(said), plain.prompt([*plain.head, *said])
        assert row.output is not None
        gold = plain.gold(said, row.output)
        prompts = {
            "zero_shot": (student, False),
            "in_context": (teacher, False),
            "distillation": (student, True),
            "context again": (teacher, True),
        }
        own = plain.greedy(student, limit, adapter=True)
        for name, (prompt, adapter) in prompts.items():
            found = plain.logits(prompt, gold, adapter=adapter)
            picked = found.log_softmax(-1)[range(len(gold)), gold]
            entropies.setdefault(name, []).append(-picked)
            if name == "context again":
                continue
            made = plain.greedy(prompt, limit, adapter=adapter)
            lengths.setdefault(name, []).append(len(made))
            line = lines[name, row.row]  # type: ignore[index]
            assert line.tokens == len(made)
            assert line.ending == ("finished" if len(made) < limit else line.ending)
            if name == "in_context":
                continue
            divergence = kl(plain.logits(teacher, gold, adapter=False), found)
            on_gold[name].append(divergence)
            assert line.kl == pytest.approx(float(divergence.mean()), abs=1e-4)
            if name == "distillation" and row.turn == 1:
                first_turn.append(divergence)
            on_own[name].append(
                kl(
                    plain.logits(teacher, own, adapter=False),
                    plain.logits(student, own, adapter=adapter),
                )
            )
    for method in run.results.methods:
        score = method.scores[0]
        written = score.written
        assert written is not None
        assert score.cross_entropy == pytest.approx(
            float(torch.cat(entropies[method.method]).mean()), abs=1e-4
        )
        assert written.ends.tokens_mean == pytest.approx(sum(lengths[method.method]) / len(rows))
        if method.method == "in_context":
            continue
        assert score.fidelity is not None
        assert written.on_own is not None
        found = float(torch.cat(on_gold[method.method]).mean())
        assert score.fidelity.kl_to_teacher == pytest.approx(found, abs=1e-4)
        found = float(torch.cat(on_own[method.method]).mean())
        assert written.on_own.kl_to_teacher == pytest.approx(found, abs=1e-4)
    student_result = run.results.methods[0].scores[0].written
    assert student_result is not None
    again, before = (torch.cat(entropies[name]).mean() for name in ("context again", "in_context"))
    assert student_result.with_context == pytest.approx(float(again - before), abs=1e-4)
    assert student_result.by_turn[0].kl_to_teacher == pytest.approx(
        float(torch.cat(first_turn).mean()), abs=1e-4
    )


def test_general_answers_are_those_of_plain_transformers_and_peft(run: instil.Run) -> None:
    plain = Plain(run)
    found = run.results.methods[0].retention
    assert found is not None
    for kind, prompts in prompts_by_kind(6).items():
        divergences, same, sizes = [], [], [[], []]  # type: ignore[var-annotated]
        for text in prompts:
            prompt = plain.prompt([{"role": "user", "content": text}])
            base, student = (plain.greedy(prompt, TOKENS, adapter=on) for on in (False, True))
            divergences.append(
                kl(*(plain.logits(prompt, base, adapter=on) for on in (False, True)))
            )
            same.append(base == student)
            sizes[0].append(len(base))
            sizes[1].append(len(student))
        one = found.kinds[kind]
        assert one.kl_to_base == pytest.approx(float(torch.cat(divergences).mean()), abs=1e-4)
        assert one.same_answer.value == sum(same) / len(same)
        assert one.length == pytest.approx(sum(sizes[1]) / sum(sizes[0]))


def test_nothing_but_a_check_is_replaced(
    run: instil.Run, jsonl: Callable[[str, list[dict[str, Any]]], Path], tmp_path: Path
) -> None:
    path = jsonl("rows.jsonl", [conversation(CHATS[0])])
    kept = tmp_path / "kept"
    kept.mkdir()
    (kept / "letter.txt").write_text("dear")
    for output in (run.path, run.path.parent, kept):
        for more in (["--eval", str(path)], ["--rules", str(run.path.parent / "rules.yaml")]):
            status, said = invoke(
                "check", str(run.path), *more, "--output", str(output), "--overwrite", "--quiet"
            )
            assert status == 2, said
    assert (kept / "letter.txt").read_text() == "dear"
    assert run.adapter.is_dir()
    assert not list(run.path.parent.glob("*.partial"))


def test_the_report_is_named_only_if_it_holds_the_new_scores(run: instil.Run) -> None:
    rules = str(run.path.parent / "rules.yaml")
    limits = ("--max-drift", "9")
    assert "report   " in invoke("check", str(run.path), *limits)[1]
    assert "report   " not in invoke("check", str(run.path), "--rules", rules, *limits)[1]
