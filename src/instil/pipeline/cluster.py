"""Computes the targets of a recipe on the workers of a Ray cluster.

A worker holds the teacher, or starts its engine, and prepares the whole recipe as a run does. So it
knows all rows, which of them share a context, and which are read together. It only gets numbers:
rows to complete, or a shard to score. It writes into the same folder as all others, so the process
that began holds no rows. Without an engine, the store has the bytes that one process would have
written. If a worker is lost, Ray starts another one, which does its piece of work again.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from instil.errors import ConfigError, EngineError, InstilError
from instil.models.generate import Decoding, batches
from instil.pipeline.text import TextSteps
from instil.prompts.pair import AlignedPair
from instil.recipe.recipe import Recipe
from instil.system.costs import Recorder
from instil.system.locks import hold
from instil.system.progress import Display
from instil.system.sequences import Computed
from instil.targets.index import Shard
from instil.targets.store import Missing, StorePlan, TargetStore, filled, write_shard
from instil.teacher.journal import Journal
from instil.teacher.lessons import in_store

PIECES = 16
"""Pieces of work that each worker gets. With more pieces, less is lost with a worker, but each piece
reads its context again."""

RESTARTS = 20
"""How often a worker is started again, and a piece of work is tried again."""

Piece = tuple[int, list[int]]
"""Number of the sample, and numbers of the rows to complete."""


class Worker:
    """The teacher on a machine of the cluster.

    Args:
        settings: The recipe.
        home: Folder from which relative paths count.
        store: Folder of the target stores.
        name: What tells it from the other workers.
        share: Part of its wall time that is counted, because others work beside it.

    Raises:
        ConfigError: its machine has no such folder.
        InstilError: as for a run.
    """

    def __init__(
        self, settings: dict[str, Any], home: str, store: str, name: str, share: float
    ) -> None:
        if not Path(home).is_dir():
            raise ConfigError(
                f"a machine of the cluster has no folder {home}",
                mend="begin in a folder that all machines share",
            )
        os.chdir(home)
        self._name, self._store, self._share = name, Path(store), share
        self._steps = TextSteps.prepare(
            Recipe.parse(settings), store=self._store, display=Display(quiet=True)
        )
        self._spent = Recorder()

    def ready(self) -> None:
        """Returns when the teacher is loaded."""

    def locks(self) -> list[Path]:
        """The files to lock while completions are written."""
        return [journal.lock for journal in self._journals]

    def missing(self, workers: int) -> list[Piece]:
        """The pieces that are not written yet.

        Args:
            workers: Number of workers.
        """
        rows, model = self._steps.learnt, self._steps.models.teacher
        pieces = list[Piece]()
        for sample, (decoding, journal) in enumerate(
            zip(self._decodings, self._journals, strict=True)
        ):
            known = journal.read().completions.keys()
            if len(known) == len(rows.rows):
                continue
            with self._steps.models.adapter(on=False):
                together = [*batches(model, rows.teacher_prompts, decoding)]
            size = -(-len(together) // (workers * PIECES))
            for start in range(0, len(together), size):
                piece = [n for batch in together[start : start + size] for n in batch]
                if not known >= {*piece}:
                    pieces.append((sample, piece))
        return pieces

    def write(self, sample: int, piece: Sequence[int]) -> int:
        """Completes some rows, and keeps the completions. Returns the number of rows."""
        prompts, journal = self._steps.learnt.teacher_prompts, self._journals[sample]
        others = {*range(len(prompts))}.difference(piece)
        known = others.union(journal.read().completions)
        self._steps.writer.write(prompts, self._decodings[sample], journal, known=known, what="")
        return len(piece)

    def plan(self) -> tuple[Path, StorePlan]:
        """The folder of the store and its content. All completions must be written."""
        return self._planned

    def score(self, file: str, numbers: range) -> tuple[Shard, dict[str, float]]:
        """Scores the rows of a shard, and writes it. Returns it with its cost."""
        path, plan = self._planned
        predicted, spent = self._predicted, self._spent
        with self._steps.models.adapter(on=False), spent.phase("teach"):
            shard = write_shard(
                path / file,
                numbers,
                plan,
                lambda asked: (
                    (number, self._pairs[number].completion, targets)
                    for number, targets in predicted(asked)
                ),
            )
        told = spent.spent("teach")
        self._spent = Recorder()
        return shard, told | {"wall_seconds": told["wall_seconds"] * self._share}

    def close(self) -> None:
        """Ends its engine, if it has started one."""
        self._steps.close()

    @cached_property
    def _decodings(self) -> list[Decoding]:
        if self._steps.recipe.teacher.completions == "gold":
            return []
        return self._steps.writer.decodings(self._steps.max_new_tokens)

    @cached_property
    def _journals(self) -> list[Journal]:
        """Where the completions are kept: one for each sample of a row."""
        prompts, writer = self._steps.learnt.teacher_prompts, self._steps.writer
        return [
            writer.journal(prompts, one, worker=self._name, share=self._share)
            for one in self._decodings
        ]

    @cached_property
    def _pairs(self) -> Sequence[AlignedPair]:
        pairs, _ = self._steps.pairs(self._steps.learnt)
        return Computed.picked(pairs, in_store(pairs))

    @cached_property
    def _planned(self) -> tuple[Path, StorePlan]:
        return self._steps.teaching.planned(self._pairs, self._store)

    @cached_property
    def _predicted(self) -> Callable[[Sequence[int]], Iterator[tuple[int, Any]]]:
        _, plan = self._planned

        def advance(rows: int, tokens: int) -> None:
            self._spent.count("teach", tokens=tokens, steps=int(rows > 0))

        return self._steps.teaching.predictions(self._pairs, plan, advance)


def teach_on_ray(recipe: Recipe, store: Path, *, workers: int, display: Display) -> TargetStore:
    """Computes and stores the targets of a cell with free-text answers.

    The cluster is the one that `RAY_ADDRESS` names, or that runs on this machine; without one, it is
    started here, and ended. All its machines must see the files of the recipe and the store under
    the same paths.

    Args:
        recipe: All settings. Its method learns from targets.
        store: Folder of target stores.
        workers: Number of workers. Each gets an accelerator, if the cluster has any.
        display: Shows progress.

    Raises:
        ConfigError: Ray is not installed, or the recipe needs what workers cannot do.
        InstilError: as for a run.
    """
    if find_spec("ray") is None:
        raise ConfigError("--on ray needs the library ray", mend="pip install 'instil[ray]'")
    if recipe.training.make_inputs:
        raise ConfigError(
            "--on ray: workers complete and score the rows that are given",
            got="training.make_inputs",
            mend="leave it out, or compute the targets in one process",
        )
    import ray

    own = not ray.is_initialized()
    try:
        if own:
            ray.init(include_dashboard=False, log_to_driver=False, logging_level=logging.CRITICAL)
        return _on(ray, recipe, store, workers, display)
    except (InstilError, KeyboardInterrupt):
        raise
    except Exception as error:  # Ray's own errors are of many kinds
        cause = _cause(error)
        if isinstance(cause, InstilError):
            raise cause from None
        raise EngineError(
            "the work on the Ray cluster failed",
            got=f"{type(cause).__name__}: {' '.join(str(cause).split())[:300]}",
            mend=f"check RAY_ADDRESS (now {os.environ.get('RAY_ADDRESS') or 'not set'}) and the "
            "cluster; what was computed is kept, and the same command resumes",
        ) from error
    finally:
        if own and ray.is_initialized():
            ray.shutdown()


def _on(ray: Any, recipe: Recipe, store: Path, workers: int, display: Display) -> TargetStore:
    needs = placed([node["Resources"] for node in ray.nodes() if node["Alive"]], workers)
    kind = ray.remote(max_restarts=RESTARTS, max_task_retries=RESTARTS, **needs)(Worker)
    settings, home = recipe.model_dump(mode="json"), str(Path.cwd())
    display.note(f"{workers} workers load the teacher")
    pool = [
        kind.remote(settings, home, str(store.absolute()), f"worker-{number}", 1 / workers)
        for number in range(workers)
    ]
    # An error in the recipe would come at every try, so this is tried once.
    ray.get([one.ready.options(max_task_retries=0).remote() for one in pool])
    with ExitStack() as held:
        for lock in ray.get(pool[0].locks.remote()):  # another run may be writing some
            held.enter_context(hold(lock, of=store, wait=True))
        pieces = ray.get(pool[0].missing.remote(workers))
        with display.bar("workers write completions", sum(len(of) for _, of in pieces)) as bar:
            for rows in _done(pool, lambda worker, piece: worker.write.remote(*piece), pieces):
                bar.advance(rows)
    path, plan = ray.get(pool[0].plan.remote())
    costs = Recorder()
    costs.keep_at(path.with_name(path.name + ".spent.json"))

    with display.bar("workers score completions", len(plan.lengths)) as bar:

        def write(missing: Missing) -> Iterator[list[Shard]]:
            for shard, spent in _done(pool, lambda worker, one: worker.score.remote(*one), missing):
                costs.add("teach", spent)
                costs.keep()
                bar.advance(shard.rows)
                yield [shard]

        stored = filled(path, plan, write, advance=lambda rows, _: bar.advance(rows))
    ray.get([one.close.remote() for one in pool])
    return stored


def placed(machines: Sequence[dict[str, float]], workers: int) -> dict[str, int]:
    """What each worker gets: an accelerator if there are any, and an equal part of the cores.

    Args:
        machines: What each machine of the cluster has, by Ray's names.
        workers: Number of workers.

    Raises:
        ConfigError: the cluster has no place for all of them.
    """
    cards = [int(one.get("GPU", 0)) for one in machines]
    cores = [int(one.get("CPU", 0)) for one in machines]

    def places(each: int) -> int:
        free = [of // each for of in cores]
        return sum(map(min, free, cards)) if any(cards) else sum(free)

    fitting = [each for each in range(1, max(cores, default=0) + 1) if places(each) >= workers]
    if not fitting:
        raise ConfigError(
            "the Ray cluster has no place for all workers",
            got=f"{workers} workers, {sum(cards)} accelerators and {sum(cores)} cores",
            allowed=f"at most {places(1)} workers",
            mend="ask for fewer workers (--workers)",
        )
    return {"num_cpus": max(fitting), **({"num_gpus": 1} if any(cards) else {})}


def _done(
    pool: Sequence[Any], ask: Callable[[Any, Any], Any], work: Sequence[Any]
) -> Iterator[Any]:
    """The results of pieces of work, as they are ready. Each worker has one at a time."""
    from ray.util import ActorPool

    yield from ActorPool([*pool]).map_unordered(ask, [*work])


def _cause(error: Exception) -> Exception:
    """The error of a worker's own work, which Ray wraps once or twice; else Ray's."""
    for wrapped in (error, *error.args):
        cause = getattr(wrapped, "cause", None)
        if isinstance(cause, Exception):
            return cause
    return error
