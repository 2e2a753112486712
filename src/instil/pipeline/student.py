"""The student of a finished run or cell. It answers queries without the context."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

from instil.errors import DataFileError, FieldError
from instil.evaluation.labels import label_logprobs
from instil.methods import METHODS
from instil.models.generate import Decoding, generate
from instil.models.load import LanguageModel, load
from instil.models.loading import Loading
from instil.models.roles import Reshaped
from instil.pipeline.form import form_of
from instil.pipeline.given import own_prompt
from instil.pipeline.labels import student_of
from instil.pipeline.record import ADAPTER
from instil.pipeline.rows import CellRows
from instil.prompts.context import Context
from instil.prompts.format import PromptFormat
from instil.prompts.labels import LabelTokens
from instil.recipe.recipe import Recipe
from instil.results.schema import PREDICTIONS, RESULTS, Prediction, Results
from instil.system.files import read_lines
from instil.tasks.base import PatternTask
from instil.tasks.classification import ClassificationTask
from instil.tasks.conversation import Turn
from instil.tasks.files import Files
from instil.tasks.messages import conversation_of
from instil.tasks.pattern import names, render
from instil.tasks.rows import Row
from instil.teacher.labels import probabilities

Query = str | Mapping[str, object] | Sequence[Mapping[str, object]]


@dataclass(frozen=True)
class Student:
    """A trained model.

    Attributes:
        recipe: Recipe that it was trained with.
        model: The network, with its adapter if it has one, and the tokenizer.
        form: Renders queries in the same format as in training.
        results: Results of its run.
        tokens: Tokens of the labels. None: free-text answers, or a classification head.
    """

    recipe: Recipe
    model: LanguageModel
    form: PromptFormat
    results: Results
    tokens: LabelTokens | None = None

    @classmethod
    def load(cls, folder: Path, *, whole: bool = False) -> Student:
        """Loads the student of a finished run or cell.

        Args:
            folder: Folder of the run, or of the cell of a study.
            whole: Load the base in its dtype, even if the student was trained on it in few bits.

        Raises:
            DataFileError: there is no such folder, or it holds no trained weights.
        """
        results = Results.read(folder / RESULTS)
        recipe = Recipe.parse(results.recipe)
        method = METHODS[results.method]
        # The attention was that of the machine that trained it.
        how = Loading(
            quantization=None if whole else recipe.quantization, device_map=recipe.device_map
        )
        if not results.labels:
            base = load(source_of(results), dtype=results.dtype, how=how)
            model = _with_adapter(base, folder)
            return cls(recipe, model, form_of(recipe, base), results)
        shape = student_of(recipe, method.head, len(results.labels))
        model = _trained(
            replace(shape, name=source_of(results), dtype=results.dtype, how=how), recipe, folder
        )
        form = form_of(recipe, model)
        tokens = None
        if method.head == "language_model":
            query = read_lines(Prediction, folder / PREDICTIONS)[0].input
            tokens = LabelTokens.of(cast(ClassificationTask, recipe.task).verbalizer, form, query)
        return cls(recipe, model, form, results, tokens)

    def answer(self, queries: Sequence[Query]) -> list[str]:
        """Answers each query, with a label or with greedily decoded text.

        Args:
            queries: Inputs as in the training rows: strings, mappings with the fields that the
                pattern of the task names, or conversations, which are lists of messages that end
                with the user's. The context is not sent.

        Raises:
            TypeError: `queries` is a single query and not a list.
            FieldError: a query lacks a field of the pattern.
        """
        if self.results.labels:
            return [max(probs, key=probs.__getitem__) for probs in self.probabilities(queries)]
        limit = cast(int, self.results.prompt.max_new_tokens)
        answers = generate(
            self.model,
            self.prompts(queries),
            self.form.ending,
            Decoding(max_new_tokens=limit),
            advance=lambda rows, tokens: None,
        )
        return [self.form.decode(generated.ids) for generated in answers]

    def probabilities(self, queries: Sequence[Query]) -> list[dict[str, float]]:
        """Returns the probability of each label for each query. They sum to 1 per query.

        Args:
            queries: As for `answer`.

        Raises:
            TypeError: `queries` is a single query and not a list, or the answers are free text.
            FieldError: a query lacks a field of the pattern.
        """
        labels = self.results.labels
        if not labels:
            raise TypeError("this student answers with free text and has no labels; use answer()")
        prompts = self.prompts(queries)
        if not prompts:
            return []
        logprobs_RL = label_logprobs(
            self.model,
            prompts,
            self.tokens,
            batch_size=self.recipe.evaluation.batch_size,
            advance=lambda rows, tokens: None,
        )
        return [
            dict(zip(labels, values, strict=True)) for values in probabilities(logprobs_RL).tolist()
        ]

    def prompts(self, queries: Sequence[Query]) -> Sequence[list[int]]:
        """The token ids that the student reads for each query; see `answer`."""
        if isinstance(queries, str | Mapping):
            raise TypeError("queries must be a list, got a single query; pass [query]")
        rows = [self._row(query, f"query {n}") for n, query in enumerate(queries, 1)]
        contexts = [self.alone] * len(rows)
        if METHODS[self.results.method].context:
            contexts = CellRows.of(self.recipe).contexts.contexts(0, rows, "queries")
        prompts = self.form.prompts(rows, contexts)
        self.model.check_ids(prompts, where="query")
        return prompts

    @property
    def alone(self) -> Context:
        """The text that the student reads before a query."""
        task = self.recipe.task
        if isinstance(task, Files):
            return own_prompt(task)
        return Context(instruction=getattr(task, "prefix", None) or None)

    def _row(self, query: Query, where: str) -> Row:
        if isinstance(query, str | Mapping):
            return Row(self._text(query, where))
        said = conversation_of({"messages": query}, where)
        assert said is not None
        if said.messages[-1].role not in ("user", "tool"):
            raise FieldError(
                f"{where}: the conversation does not end with the user",
                got=f"its last message is the {said.messages[-1].role}'s",
                mend="leave out what comes after the user's last message",
            )
        return Row(said.messages[-1].content, turn=Turn(said, len(said.messages)))

    def _text(self, query: str | Mapping[str, object], where: str) -> str:
        """Returns the query, filled into the pattern of the task."""
        task = self.recipe.task
        pattern = task.pattern if isinstance(task, PatternTask) else "{input}"
        if isinstance(query, str):
            fields = sorted(names(pattern))
            if len(fields) > 1:
                raise FieldError(
                    f"{where}: a string, but the pattern of the task has several fields",
                    allowed=f"a mapping with {', '.join(map(repr, fields))}",
                    mend="pass a mapping for each query",
                )
            query = {fields[0]: query}
        return render(pattern, query, where)


def source_of(results: Results) -> str:
    """The name of the student's model: where it was found, or as typed if it is there no more."""
    found = Path(results.model_source)
    gone = not results.model_source or (found.is_absolute() and not found.is_dir())
    return results.model if gone else results.model_source


def load_adapter(network: Any, folder: Path) -> None:
    """Gives a network with a new adapter the trained weights of a run.

    Args:
        network: The network, with an adapter of the same shape.
        folder: Folder of the run.

    Raises:
        DataFileError: the run holds no adapter.
    """
    from peft import load_peft_weights, set_peft_model_state_dict

    if not (folder / ADAPTER).is_dir():
        raise _no_weights(folder)
    weights = load_peft_weights(str(folder / ADAPTER), device="cpu")
    set_peft_model_state_dict(network, weights)


def _with_adapter(base: LanguageModel, folder: Path) -> LanguageModel:
    from peft import PeftModel

    if not (folder / ADAPTER).is_dir():
        raise _no_weights(folder)
    network: Any = PeftModel.from_pretrained(base.network, str(folder / ADAPTER))
    return replace(base, network=network.eval())


def _trained(shape: Reshaped, recipe: Recipe, folder: Path) -> LanguageModel:
    """Loads the student of a classification recipe, with its trained weights."""
    if (folder / ADAPTER).is_dir():
        return _with_adapter(shape.load(tuning=None, seed=recipe.seed), folder)
    if (folder / "model").is_dir():  # its own configuration names its layers and its head
        full = Reshaped(str(folder / "model"), dtype=shape.dtype)
        return full.load(tuning=recipe.tuning, seed=recipe.seed)
    weights = folder / "trained.safetensors"
    if not weights.is_file():
        raise _no_weights(folder)
    from safetensors.torch import load_file

    model = shape.load(tuning=recipe.tuning, seed=recipe.seed)
    model.network.load_state_dict(load_file(weights), strict=False)
    return model


def _no_weights(folder: Path) -> DataFileError:
    return DataFileError(
        f"{folder} holds no trained weights",
        got="a method without training, or a recipe with student.save: false",
        mend="use a method that trains, with student.save: true",
    )
