"""Kept texts: text on which a student must stay as its base is, with the base's predictions.

The base writes them itself, sampled at temperature 1: from the start of a text, from the start of
a line, and as the user's turn of its own chat template. The others are chats: the base writes the
user's turn, and then answers it. What a model writes freely is a sample of what it knows (Xu et al.
2024, arXiv:2406.08464, make instructions in this way), so no other data is needed. The texts and
their targets do not depend on the task. They are stored, and every run of the model with the same
settings uses them again.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from instil.errors import ChatTemplateError, FieldError
from instil.losses.forward_kl import ForwardKL
from instil.methods import Phase
from instil.models.generate import Decoding, Ending
from instil.models.load import LanguageModel
from instil.models.roles import Models
from instil.prompts.format import ChatPrompt, PromptFormat
from instil.prompts.pair import AlignedPair, check_window
from instil.recipe.keep import Keep
from instil.recipe.recipe import Recipe
from instil.recipe.sections import Teacher
from instil.system.costs import Recorder
from instil.system.progress import Display
from instil.tasks.kept_texts import read_kept
from instil.teacher.completions import Writer
from instil.teacher.lessons import Lessons, Teaching


@dataclass(frozen=True)
class Keeper:
    """Makes the kept texts of a run.

    Attributes:
        recipe: All settings.
        base: The student before training. An adapter on it is turned off.
        form: Prompt format of the run.
        folder: Where the texts and their targets are stored.
        recorder: Counts the cost.
        display: Shows progress.
    """

    recipe: Recipe
    base: LanguageModel
    form: PromptFormat
    folder: Path
    recorder: Recorder
    display: Display

    def lessons(self) -> Lessons | None:
        """The texts with the base's predictions; None if the base cannot write any.

        All processes of a launch must call this.

        Raises:
            AlignmentError: a text of a file does not fit the model's window.
            DataFormatError: a file cannot be read.
            FieldError: a row of a file has neither a text nor an input, or an output that the
                prompt format does not allow.
        """
        keep = self.recipe.keep
        pairs = self._of_file(keep.source) if isinstance(keep.source, Path) else self._own(keep)
        if not pairs:
            return None
        teaching = Teaching(self._plain, self._models, self._spent, self.display)
        lessons = teaching.lessons(pairs, ForwardKL(), self.folder)
        phases: tuple[Phase, ...] = ("generate", "teach")
        for phase in phases:
            self.recorder.put("keep", self._spent.spent(phase))
        if "teach" in self._spent.reused:
            self.recorder.reused.add("keep")
        return lessons

    @cached_property
    def _spent(self) -> Recorder:
        return Recorder()

    @property
    def _plain(self) -> Recipe:
        """The recipe without what concerns the teacher of the rows, so that all runs share texts."""
        return self.recipe.model_copy(update={"teacher": Teacher(), "objective": ForwardKL()})

    @property
    def _models(self) -> Models:
        return Models(teacher=self.base, student=self.base)

    def _own(self, keep: Keep) -> list[AlignedPair]:
        """Texts that the base writes: as many from each start, and chats if it has a template."""
        chats = self._chats(round(keep.rows * keep.chats))
        starts = [ids for ids in self._starts() if self._fits(ids)]
        if not starts:
            self.display.warn("the model has no token to begin a text with, so no texts are kept")
            return _pairs(*chats)
        prompts = [starts[number % len(starts)] for number in range(keep.rows - len(chats[0]))]
        # Nothing ends a text: what follows the end of a turn is another turn.
        written = self._freely(prompts, Ending((), (), self.form.tokens.text))
        return _pairs(prompts + chats[0], written + chats[1])

    def _chats(self, count: int) -> tuple[list[list[int]], list[list[int]]]:
        """Prompts and answers of chats: the base writes the user's turn, and then answers it."""
        form = self._chat
        turn = form and form.tokens.ids(form.opening, special=False)
        if not form or not turn or not self._fits(turn):
            return [], []
        said = self._freely([turn] * count, form.ending)
        asked = [text for ids in said if (text := form.tokens.text(ids, skip_special=True).strip())]
        prompts = [ids for text in asked if self._fits(ids := form.prompt_ids(text))]
        return prompts, self._freely(prompts, form.ending)

    def _starts(self) -> list[list[int]]:
        """What the base writes on from: the start of a text, of a line, and of a user's turn."""
        tokens = self.form.tokens
        starts = [tokens.start, [*tokens.start, *tokens.line_break]]
        if self._chat and (turn := self._chat.tokens.ids(self._chat.opening, special=False)):
            starts.append(turn)
        return starts

    @cached_property
    def _chat(self) -> ChatPrompt | None:
        """The chat format as it is without any settings; None if there is no usable template."""
        with suppress(ChatTemplateError):
            return ChatPrompt(self.base.tokenizer, template_kwargs={}, ends=self.base.end_ids)
        return None

    def _fits(self, prompt: Sequence[int]) -> bool:
        window, rows = self.base.window or math.inf, self.base.rows or math.inf
        return 0 < len(prompt) < window and max(prompt) < rows

    def _freely(self, prompts: list[list[int]], ending: Ending) -> list[list[int]]:
        """What the base writes after prompts, sampled at temperature 1."""
        room = (self.base.window or math.inf) - max(map(len, prompts), default=0)
        tokens = int(min(self.recipe.keep.tokens, room))
        decoding = Decoding(tokens, temperature=1.0, batch_size=self.recipe.evaluation.batch_size)
        return self._written(prompts, ending, decoding)

    def _of_file(self, path: Path) -> list[AlignedPair]:
        """The user's texts. The base answers inputs without an output."""
        form, tokens = self.form, self.form.tokens
        prompts: list[list[int]] = []
        completions: list[list[int] | None] = []
        for number, row in enumerate(read_kept(path), 1):
            try:
                known = form.completion_ids(row) if row.input and row.output else None
            except FieldError as error:
                what = f"{path}, row {number}: {error.what}"
                raise FieldError(what, got=error.got, mend=error.mend) from None
            if not row.input:
                known = tokens.ids(tokens.marked(row.output or ""), special=False)
            prompts.append(form.prompt_ids(row.input) if row.input else tokens.start)
            completions.append(known)
            check_window(
                len(prompts[-1]),
                len(known or []) or self.recipe.keep.tokens,
                self.base.window,
                where=f"{path}, row {number}",
                side="kept",
                mend="shorten the text",
            )
        self.base.check_ids(prompts, where=f"the prompt of {path}, row")
        self.base.check_ids([ids or [] for ids in completions], where=f"the text of {path}, row")
        asked = [number for number, ids in enumerate(completions) if ids is None]
        if asked:
            tokens_each = self.recipe.keep.tokens
            decoding = Decoding(tokens_each, batch_size=self.recipe.evaluation.batch_size)
            answers = self._written([prompts[n] for n in asked], form.ending, decoding)
            for number, ids in zip(asked, answers, strict=True):
                completions[number] = ids
        return _pairs(prompts, [ids or [] for ids in completions])

    def _written(
        self, prompts: Sequence[list[int]], ending: Ending, decoding: Decoding
    ) -> list[list[int]]:
        writer = Writer(self._plain, self._models, ending, self.folder, self._spent, self.display)
        what = "base writes texts to keep"
        return [made.ids for made in writer.stored(prompts, decoding, what=what)]


def _pairs(prompts: Sequence[list[int]], completions: Sequence[list[int]]) -> list[AlignedPair]:
    """The same prompt for teacher and student."""
    return [
        AlignedPair(number, prompt, prompt, ids)
        for number, (prompt, ids) in enumerate(zip(prompts, completions, strict=True))
    ]
