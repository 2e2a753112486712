"""Makes a model of a student that other programs load, and uploads it."""

from __future__ import annotations

import shutil
from pathlib import Path

from transformers import GenerationConfig

from instil.errors import ConfigError, DataFileError, HubUnreachableError, OutputExistsError
from instil.pipeline import card
from instil.pipeline.record import ADAPTER
from instil.pipeline.serving import merge
from instil.pipeline.student import Student
from instil.results.schema import EVALUATION, RESULTS, EvaluationRow, Results
from instil.system.files import read_lines

CARD = "README.md"


def write_merged(run: Path, output: Path) -> None:
    """Writes a student's whole model: the adapter is merged into the weights.

    Args:
        run: Folder of the run.
        output: New folder for weights, configuration, tokenizer and card.

    Raises:
        DataFileError: the run has no adapter.
        OutputExistsError: there is something at `output`.
    """
    if output.exists():
        raise OutputExistsError(f"{output} already exists", mend="name a new folder")
    if not (run / ADAPTER).is_dir():
        raise DataFileError(
            f"{run} holds no adapter to merge", mend="use a run that trained an adapter"
        )
    student = Student.load(run, whole=True)
    results, rows = Results.read(run / RESULTS), run / EVALUATION
    example = read_lines(EvaluationRow, rows)[0].input if rows.is_file() else "…"
    tokenizer, network = student.model.tokenizer, merge(student)
    ends = student.results.prompt.end_ids or None
    network.generation_config = GenerationConfig(  # type: ignore[no-untyped-call]
        eos_token_id=ends, pad_token_id=student.model.pad_id
    )
    text = card.render(results, example=example, merged=True)
    output.parent.mkdir(parents=True, exist_ok=True)
    work = output.with_name(f"{output.name}.part")
    shutil.rmtree(work, ignore_errors=True)
    try:
        network.save_pretrained(work)
        tokenizer.save_pretrained(work)
        (work / CARD).write_text(text, encoding="utf-8")
        work.rename(output)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def pushed(folder: Path, name: str, *, public: bool) -> str:
    """Uploads a folder to the hub, by the hub's own client.

    Args:
        folder: Folder with a model or an adapter, and its card.
        name: OWNER/NAME.
        public: Whether everybody may see it.

    Returns:
        The address.

    Raises:
        DataFileError: there is no such folder.
        ConfigError: the model is there already, and public where it should be private, or not so.
        HubUnreachableError: the hub refuses it, or cannot be reached.
    """
    from huggingface_hub import HfApi

    if not folder.is_dir():
        raise DataFileError(f"there is nothing to upload at {folder}")
    hub = HfApi()
    try:
        address = hub.create_repo(name, private=not public, exist_ok=True)
        private = hub.repo_info(address.repo_id).private
        if bool(private) != public:
            hub.upload_folder(repo_id=address.repo_id, folder_path=folder)
    except Exception as error:  # the hub's client and its own client raise many kinds
        raise HubUnreachableError(
            f"{folder} cannot be uploaded to {name}",
            got=f"{type(error).__name__}: {' '.join(str(error).split())[:300]}",
            mend="check the name, `hf auth whoami`, and that HF_HUB_OFFLINE is not set",
        ) from error
    if bool(private) == public:
        raise ConfigError(
            f"{name} is there already, and is {'private' if private else 'public'}",
            mend="leave out --public" if private else "pass --public, or name another model",
        )
    return str(address)
