"""The teacher's completions, stored in files, so that the same ones are never generated again."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock

from instil.models.generate import Decoding, Generated, generate
from instil.models.roles import Models
from instil.prompts.format import PromptFormat
from instil.prompts.rendered import RenderedRows
from instil.recipe.recipe import Recipe
from instil.system import processes
from instil.system.costs import Recorder
from instil.system.environment import ALGORITHM
from instil.system.files import digest, digest_ids, written_whole
from instil.system.progress import Display

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Writer:
    """Generates the teacher's completions, or reads them from a file.

    Attributes:
        recipe: Settings of the completions and their folder.
        models: Teacher and student.
        form: Prompt format.
        store: Folder of the files if the recipe sets none.
        recorder: Counts their cost.
        display: Shows progress.
    """

    recipe: Recipe
    models: Models
    form: PromptFormat
    store: Path
    recorder: Recorder
    display: Display

    def learnt(
        self, rows: RenderedRows, *, max_new_tokens: int
    ) -> tuple[list[tuple[int, list[int]]], int]:
        """The completions that the student learns to predict: gold outputs, or the teacher's.

        Args:
            rows: The training rows.
            max_new_tokens: Maximum tokens of a completion that the teacher generates.

        Returns:
            Completions as (number of the row, token ids), and how many were cut at the maximum.
        """
        settings = self.recipe.teacher
        if settings.completions == "gold":
            return list(enumerate(rows.need_gold())), 0
        learnt: list[tuple[int, list[int]]] = []
        truncated = 0
        for sample in range(settings.samples):
            decoding = Decoding(
                max_new_tokens=max_new_tokens,
                temperature=settings.sampling_temperature,
                seed=self.recipe.seed * settings.samples + sample,
                batch_size=self.recipe.evaluation.batch_size,
            )
            made = self._stored(rows, decoding)
            truncated += sum(not completion.finished for completion in made)
            learnt += [(n, completion.ids) for n, completion in enumerate(made)]
        if truncated:
            self.display.warn(
                f"{truncated} of {len(learnt)} completions were cut at {max_new_tokens} "
                "tokens; increase teacher.max_new_tokens so that the teacher can finish"
            )
        return learnt, truncated

    def held_out(self, rows: RenderedRows, *, max_new_tokens: int) -> list[list[int]]:
        """The teacher's greedy completions of held-out rows, in token ids."""
        decoding = Decoding(max_new_tokens, batch_size=self.recipe.evaluation.batch_size)
        return [completion.ids for completion in self._stored(rows, decoding)]

    def _stored(self, rows: RenderedRows, decoding: Decoding) -> list[Generated]:
        """The teacher's completions, read from the file if they were generated before."""
        model, form = self.models.teacher, self.form
        drawn = [decoding.temperature, decoding.seed if decoding.temperature else None]
        ends = [form.end_ids, form.stop, decoding.max_new_tokens]
        made_by = [ALGORITHM, model.fingerprint, model.dtype]
        asked = digest_ids([*made_by, *drawn, *ends], rows.teacher_prompts)
        name = f"completions-{asked[:32]}.json"
        path = (self.recipe.teacher.store or self.store) / name
        stored = keep(path, lambda: self._write(rows, decoding))
        if stored.reused:
            self.recorder.reused.add("generate")
        # The stored cost is that of all processes, so only the main process counts it. It is all
        # that these completions have ever cost: a run that resumes has part of it in its sums.
        spent = stored.spent if processes.is_main() else Recorder().spent("generate")
        self.recorder.put("generate", spent)
        return stored.completions

    def _write(
        self, rows: RenderedRows, decoding: Decoding
    ) -> tuple[list[Generated], dict[str, float]]:
        """Generates the completions, each process its share; returns them and their cost."""
        prompts, measured = rows.teacher_prompts, Recorder()
        mine = processes.share(len(prompts))
        with (
            measured.phase("generate"),
            self.models.adapter(on=False),
            self.display.bar("teacher writes completions", len(mine)) as bar,
        ):
            made = generate(
                self.models.teacher,
                [prompts[number] for number in mine],
                self.form.ending,
                decoding,
                advance=measured.advance("generate", bar.advance),
                numbers=mine,
            )
            made = processes.put_together(made)
        measured.add_other_processes()
        return made, measured.spent("generate")


@dataclass(frozen=True)
class StoredCompletions:
    """Completions from a file.

    Attributes:
        completions: One completion per prompt.
        spent: Their cost over all processes, in the form of `Recorder.spent`.
        reused: Whether they were in the file before.
    """

    completions: list[Generated]
    spent: dict[str, float]
    reused: bool


def keep(
    path: Path, write: Callable[[], tuple[list[Generated], dict[str, float]]]
) -> StoredCompletions:
    """Reads the file, or generates the completions and writes it.

    If another run is writing the file, this waits for it. All processes of a launch must call this.

    Args:
        path: The file; its name has a fingerprint of all that the completions depend on.
        write: Generates the completions; returns them and their cost.
    """
    with ExitStack() as held:
        content = processes.main_does(lambda: _begin(path, held))
        reused = content is not None
        if content is None:
            made, spent = write()
            content = {"spent": spent, "completions": [asdict(found) for found in made]}
            if processes.is_main():
                with written_whole(path) as work:
                    with_digest = content | {"sha256": digest(content)}
                    work.write_text(json.dumps(with_digest), encoding="utf-8")
    completions = [Generated(**fields) for fields in content["completions"]]
    return StoredCompletions(completions, content["spent"], reused)


def _begin(path: Path, held: ExitStack) -> dict[str, Any] | None:
    """The valid content of the file; if there is none, locks the file until `held` closes."""
    content = _read(path)
    if content is None:
        path.parent.mkdir(parents=True, exist_ok=True)
        held.enter_context(FileLock(path.with_name(f"{path.name}.lock")))
        content = _read(path)  # another run may have written it meanwhile
    return content


def _read(path: Path) -> dict[str, Any] | None:
    if not path.exists():
        return None
    try:
        content: dict[str, Any] = json.loads(path.read_bytes())
        valid = content.pop("sha256", None) == digest(content)
    except (ValueError, AttributeError, TypeError):  # not JSON, or not an object
        valid = False
    if not valid:
        _LOG.warning("%s is damaged; the teacher generates the completions again", path)
    return content if valid else None
