"""Settings that the processes of a launch cannot run are refused before any work."""

from __future__ import annotations

from collections.abc import Sequence

from instil.errors import ConfigError, LaunchError
from instil.losses import Objective
from instil.recipe import sections
from instil.system import processes


def check(
    settings: sections.Training, objective: Objective, at_steps: int | Sequence[int] | None
) -> None:
    """Refuses settings that the processes of this launch cannot run.

    Call it before the teacher's work.

    Args:
        settings: Optimisation.
        objective: The loss.
        at_steps: When the student is evaluated during training.

    Raises:
        ConfigError: a batch has fewer rows than there are processes.
        LaunchError: FSDP does not support the settings.
    """
    if settings.batch_size < processes.count():
        raise ConfigError(
            "training.batch_size is shared by all processes",
            got=f"{settings.batch_size} rows for {processes.count()} processes",
            allowed=f"at least {processes.count()}",
            mend="raise it, or start fewer processes",
        )
    if not processes.split_layers():
        return
    if settings.until:
        raise LaunchError(
            "training cannot end by itself with FSDP, which splits the layers of the student",
            got=f"training.until: {_shown(settings.until)}",
            mend="set training.max_steps or training.epochs and leave out training.until, or start "
            "the processes without --use_fsdp",
        )
    if at_steps:
        raise LaunchError(
            "a student cannot be evaluated during training with FSDP, which splits its layers",
            got=f"evaluation.at_steps: {at_steps}",
            mend="set evaluation.at_steps to null, or start the processes without --use_fsdp",
        )
    if objective.needs_hidden_states:
        raise LaunchError(
            "a loss of hidden states needs the teacher's full layers, but FSDP splits them",
            got=f"objective: {objective.name}",
            mend="start the processes without --use_fsdp",
        )


def _shown(until: str | sections.KlShare) -> str:
    return until if isinstance(until, str) else f"{{kl_share: {until.kl_share:g}}}"
