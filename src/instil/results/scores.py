"""The schemas of scores: accuracy, likelihood, fidelity, what is written, and drift."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from instil.system.files import Strict

Domain = Literal["in", "out"]
Completions = Literal["gold", "teacher"]


class Proportion(Strict):
    """A share of rows, or a mean of numbers from 0 to 1, with its 95 % interval.

    It is Wilson's interval for a share, and that of a bootstrap over rows for a mean.
    """

    value: float = Field(ge=0, le=1, description="The share or the mean.")
    low: float = Field(ge=0, le=1, description="Lower bound of the interval.")
    high: float = Field(ge=0, le=1, description="Upper bound of the interval.")
    n: int = Field(ge=1, description="Number of rows.")


class Interval(Strict):
    """A 95 % interval."""

    low: float = Field(description="Lower bound.")
    high: float = Field(description="Upper bound.")


class SingleContext(Strict):
    """Accuracy of the teacher with one of several contexts."""

    accuracy: float = Field(description="Accuracy without calibration.")
    calibrated: float | None = Field(
        description="Accuracy with the teacher's calibration; null without calibration."
    )


class Fidelity(Strict):
    """How close a model's predictions are to the teacher's."""

    kl_to_teacher: float = Field(
        description="KL(teacher || model) in nats. Labels: mean per row, over the labels. Free "
        "text: mean per completion token, over the full vocabulary; with teacher.targets logged, "
        "over the outcomes that the rows tell and the rest as one."
    )
    agreement: float = Field(
        description="Share of rows (free text: of completion tokens) for which both predict the "
        "same label (free text: token)."
    )


class PartFidelity(Fidelity):
    """How close a model's predictions are to the teacher's, on a part of the tokens."""

    part: str = Field(description="The part, such as `turn 2` or `tokens 5 to 16`.")
    tokens: int = Field(ge=1, description="Number of its tokens.")


class OwnFidelity(Fidelity):
    """How close a model's predictions are to the teacher's, where the student writes."""

    tokens: int = Field(ge=1, description="Number of tokens that the student wrote.")


class Ends(Strict):
    """How long answers are, and how they end."""

    tokens_mean: float = Field(description="Mean length in tokens, with the one that ends it.")
    cut: Proportion = Field(description="Share of answers without an end.")
    repeats: Proportion = Field(
        description="Share of answers without an end that repeat themselves. They are cut early: 4 "
        "times the same text, in 64 tokens or more."
    )


class LeakedPhrase(Strict):
    """A phrase of the context that the student writes more often than its teacher."""

    text: str = Field(description="The phrase, without case and punctuation.")
    student: int = Field(description="Number of the student's answers with it.")
    teacher: int = Field(description="Number of the teacher's answers with it.")


class Leaks(Strict):
    """What a student says of its context, and its teacher does not."""

    share: Proportion = Field(
        description="Share of the student's answers with such a phrase, where the teacher's answer "
        "has none."
    )
    phrases: list[LeakedPhrase] = Field(
        description="Phrases of 6 words or more of the context, and phrases that speak of it, that "
        "the student writes more often than its teacher, clear of chance."
    )
    verbatim: Proportion = Field(
        description="Share of the student's answers with 8 or more words in a row of the context."
    )
    verbatim_teacher: Proportion = Field(description="The same of the teacher's answers.")


class JudgeScore(Strict):
    """How often a judge prefers the student's answers to the teacher's."""

    judge: str = Field(description="Model that judged, and its server.")
    rows: int = Field(description="Number of rows.")
    wins: int = Field(description="Rows on which the student is better, in both orders.")
    losses: int = Field(description="Rows on which the teacher is better, in both orders.")
    equal: int = Field(description="Rows with equal answers; they are ties, without asking.")
    unread: int = Field(
        description="Verdicts that are neither A nor B nor tie. They count as ties."
    )
    win_rate: Proportion = Field(
        description="Wins, and half of the ties, as a share of the rows. 0.5: as good as the teacher."
    )
    same_in_both_orders: Proportion | None = Field(
        description="Share of the pairs that were judged the same in both orders; null if all answers "
        "are equal."
    )


class Written(Strict):
    """What the answers of a method on one set are like."""

    ends: Ends
    metrics: dict[str, Proportion] = Field(
        {}, description="Metric of `evaluation.metrics` -> its mean over rows with a gold output."
    )
    rules: dict[str, Proportion] = Field(
        {}, description="Rule -> share of the answers that obey it, of those to which it applies."
    )
    same_answer: Proportion | None = Field(
        None, description="Share of answers that are the teacher's; null without a teacher."
    )
    same_start: float | None = Field(
        None,
        description="Mean share of the teacher's answer, in tokens, before the first difference; "
        "null without a teacher.",
    )
    on_own: OwnFidelity | None = Field(
        None,
        description="Fidelity to the teacher on the student's own answers; null without a teacher or "
        "a student.",
    )
    leaks: Leaks | None = Field(
        None,
        description="What the student says of its context; null for other methods, without "
        "in-context answers, and if rows have different contexts.",
    )
    with_context: float | None = Field(
        None,
        description="The context put back before the student: its cross-entropy of the completions, "
        "less that of in-context, in nats per token, on at most 50 rows. Near 0: it still listens. "
        "null for other methods, and if the context does not fit the student.",
    )
    judged: JudgeScore | None = Field(
        None, description="What a judge says; null if none was asked (instil check --judge)."
    )
    by_turn: list[PartFidelity] = Field(
        [], description="Fidelity by turn of the conversation. Empty without conversations."
    )
    by_position: list[PartFidelity] = Field(
        [], description="Fidelity by the place of a token in the completion."
    )


class SetScore(Strict):
    """The scores of a method on one evaluation set."""

    name: str = Field(description="Name of the set, for example `mnli_mismatched`.")
    domain: Domain = Field(
        description="in: the rows come from the same source as the training rows. out: from "
        "another source."
    )
    rows: int = Field(ge=1, description="Number of rows.")
    accuracy: Proportion | None = Field(
        description="Share of right answers, or the mean of the first metric; null if no row has a "
        "gold output."
    )
    chance: float = Field(0.0, description="1 / number of labels; 0 for free text.")
    majority: float = Field(
        0.0, description="Share of the most frequent gold label; 0 for free text."
    )
    calibration_error: float | None = Field(
        None,
        description="Expected calibration error of the predicted label's probability, with 10 "
        "equal bins; null for free text.",
    )
    cross_entropy: float | None = Field(
        None, description="Cross-entropy of the completions, in nats per token; null for labels."
    )
    fidelity: Fidelity | None = Field(
        None, description="Fidelity to the teacher; null without a teacher."
    )
    tokens: int | None = Field(
        None,
        description="Number of completion tokens; null for labels. Fidelity is measured on all of "
        "them, or, with teacher.targets logged, on those with log-probabilities.",
    )
    completions: Completions | None = Field(
        None,
        description="Source of these completions. gold: outputs of the rows. teacher: written by "
        "the teacher, because a row has no output. null for labels.",
    )
    written: Written | None = Field(None, description="What the answers are like; null for labels.")
    verbalizer_mass: float | None = Field(
        None,
        description="Mean total probability of all surface forms of all labels; null for a "
        "classification head and for free text.",
    )
    confusion: dict[str, dict[str, int]] = Field(
        {},
        description="Confusion matrix: gold label -> predicted label -> number of rows. Every "
        "label occurs in both places. Empty for free text.",
    )
    single_contexts: list[SingleContext] = Field(
        [], description="Scores of each context alone, if predictions are averaged over several."
    )


class ServedScore(Strict):
    """How a student answers where it will be served, beside its answers in its run."""

    where: str = Field(description="Engine and dtype, such as `vLLM, bfloat16`.")
    set: str = Field(description="Name of the evaluation set.")
    rows: int = Field(ge=1, description="Number of rows.")
    same_answer: Proportion = Field(description="Share of rows with the same answer as in the run.")
    accuracy: Proportion | None = Field(
        description="Share of right answers, or the mean of the first metric; null without outputs."
    )
    accuracy_in_process: Proportion | None = Field(
        description="The same of the run; null without outputs, and if the metric gives numbers."
    )
    p: float | None = Field(
        description="McNemar's exact test between the two; null as before.",
    )
    rules: dict[str, Proportion] = Field(
        {}, description="Rule -> share of the answers that obey it, of those to which it applies."
    )
    seconds: float = Field(description="Seconds for all answers.")


class HarnessScore(Strict):
    """A metric of a task of lm-evaluation-harness, of a student and of its base."""

    task: str = Field(description="Name of the task.")
    metric: str = Field(description="Name of the metric.")
    base: float = Field(description="Value of the base.")
    base_error: float | None = Field(description="Its standard error, as the harness gives it.")
    student: float = Field(description="Value of the student.")
    student_error: float | None = Field(description="Its standard error.")
    examples: int | None = Field(None, description="Number of examples; null for a group of tasks.")


class KindDrift(Strict):
    """How much a student has changed on one kind of text."""

    kl_to_base: float = Field(description="KL(base || student), in nats per token.")
    same_top: float = Field(
        description="Share of positions where both expect the same token as the likeliest."
    )
    tokens: int = Field(description="Number of tokens in this text.")


class Drift(Strict):
    """How much a student has changed on text that is unrelated to the task."""

    kl_to_base: float = Field(description="KL(base || student), in nats per token.")
    same_top: float | None = Field(
        None,
        description="Share of positions where base and student expect the same token as the "
        "likeliest. null: it was not measured.",
    )
    tokens: int = Field(description="Number of tokens in this text.")
    kinds: dict[str, KindDrift] = Field({}, description="The same by kind of text.")


class KindRetention(Strict):
    """How a student answers general prompts of one kind, beside its base."""

    kl_to_base: float = Field(
        description="KL(base || student) on the base's own answers, in nats per token."
    )
    same_answer: Proportion = Field(
        description="Share of prompts to which both give the same answer, in its first 32 tokens."
    )
    length: float = Field(description="Mean length of the student's answers, of the base's.")
    prompts: int = Field(description="Number of prompts.")
    obeyed: Proportion | None = Field(
        None,
        description="Share of the student's answers with the form that the prompt asks for; null for "
        "prompts that ask for none.",
    )
    obeyed_by_base: Proportion | None = Field(None, description="The same of the base's answers.")


class Retention(KindRetention):
    """How a student answers general prompts, beside its base."""

    kinds: dict[str, KindRetention] = Field(description="The same by kind of prompt.")
