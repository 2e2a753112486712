"""The student of a finished run: it answers queries without the context."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import yaml
from peft import PeftModel

from instil.models.generate import Decoding, generate
from instil.models.load import LanguageModel, load
from instil.prompts.format import PromptFormat, prompt_format
from instil.recipe.recipe import Recipe
from instil.results.schema import RESULTS, Results


@dataclass(frozen=True)
class Student:
    """A base model with a distilled adapter.

    Attributes:
        model: The network, an adapter on it, and its tokenizer.
        prompt_format: Renders queries as the student has learnt them.
        max_new_tokens: Limit of an answer.
    """

    model: LanguageModel
    prompt_format: PromptFormat
    max_new_tokens: int

    @classmethod
    def load(cls, run: Path) -> Student:
        """Loads the student of a run folder.

        Args:
            run: A finished run.
        """
        results = Results.read(run / RESULTS)
        settings = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
        recipe = Recipe.parse(settings["recipe"])
        base = load(recipe.model, dtype=results.dtype)
        network = PeftModel.from_pretrained(base.network, str(run / "adapter"))
        network.eval()
        return cls(
            model=replace(base, network=network),  # type: ignore[arg-type]
            prompt_format=prompt_format(base.tokenizer, recipe.prompt),
            max_new_tokens=results.max_new_tokens,
        )

    def answer(self, queries: Sequence[str]) -> list[str]:
        """Answers each query, greedily.

        Args:
            queries: Inputs as in the training rows; the context is not sent.

        Raises:
            TypeError: one text in place of a list of texts.
        """
        if isinstance(queries, str):
            raise TypeError("queries is a list of texts, got one text; pass [text]")
        prompts = [self.prompt_format.prompt_ids(query) for query in queries]
        decoding = Decoding(max_new_tokens=self.max_new_tokens)
        made = generate(
            self.model,
            prompts,
            self.prompt_format.ending,
            decoding,
            advance=lambda rows, tokens: None,
        )
        return [self.prompt_format.decode(one.ids) for one in made]
