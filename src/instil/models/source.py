"""Where a model is: a folder, a model on the hub, or `bundled:NAME`.

Nothing here needs torch, so a study can be planned without it.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from pathlib import Path

from instil.errors import HubUnreachableError, UnknownModelError
from instil.models import bundled

NAMES = ", ".join(bundled.PREFIX + name for name in bundled.PACKAGES)
# Files of weights. Each is passed as a model by users who have only this file.
WEIGHTS = (".gguf", ".safetensors", ".bin", ".pt", ".pth", ".ckpt")


@dataclass(frozen=True)
class Source:
    """A model that was found.

    Attributes:
        name: The name that the user gave.
        path: What transformers loads: an absolute folder, or OWNER/NAME on the hub.
        revision: Branch, tag or commit on the hub. None: its default branch, or a folder.
    """

    name: str = field(compare=False)
    path: str
    revision: str | None = None

    @property
    def commit(self) -> str | None:
        """The commit of a model on the hub, if this machine has its files; else None."""
        return None if Path(self.path).is_dir() else _cached_commit(self.path, self.revision)

    @property
    def pinned(self) -> str | None:
        """The commit, or the revision where the commit is not known; None for a folder."""
        return self.commit or self.revision

    @property
    def anywhere(self) -> str:
        """A name that leads to the same weights from every working directory of this machine."""
        if self.name.startswith(bundled.PREFIX):
            return self.name
        return f"{self.path}@{self.pinned}" if self.pinned else self.path


def resolve(name: str) -> Source:
    """Finds a model by its name.

    Args:
        name: OWNER/NAME or OWNER/NAME@REVISION on the hub, a local folder, or `bundled:NAME`.

    Raises:
        UnknownModelError: there is no such model.
        HubUnreachableError: it is a hub id and the hub cannot be reached.
    """
    if name.startswith(bundled.PREFIX):
        return Source(name, str(bundled.folder(name)))
    if not name.strip():
        raise UnknownModelError(
            "model: no model is named",
            got=repr(name),
            allowed=f"OWNER/NAME on the hub, a local folder, {NAMES}",
            mend="name a model",
        )
    path = Path(os.path.abspath(os.path.expanduser(name)))  # noqa: PTH100, PTH111 - never raise
    if os.path.isdir(path):  # noqa: PTH112 - does not raise if a folder above cannot be read
        _check_folder(name, path)
        return Source(name, str(path))
    if os.path.exists(path) or path.suffix in WEIGHTS:  # noqa: PTH110 - as above
        raise UnknownModelError(
            f"{name} is a file" if path.exists() else f"there is no file {name}",
            got="a GGUF file" if path.suffix == ".gguf" else f"a file {path.suffix}".strip(),
            allowed="a folder as save_pretrained writes it: config.json, weights in safetensors "
            "and a tokenizer",
            mend="name the folder of the model that this file was made from"
            if path.suffix == ".gguf"
            else "name the folder that holds the file",
        )
    hub_id, _, revision = name.partition("@")
    source = Source(name, hub_id, revision) if revision else Source(name, name)
    _check_hub(source)
    return source


def on_hub(name: str) -> bool:
    """Whether a name is one of the hub and not of this machine. It is not looked up there."""
    return not name.startswith(bundled.PREFIX) and not Path(name).expanduser().is_dir()


def moved(name: str, before: str | None) -> bool:
    """Whether a model on the hub has another commit on this machine than in an earlier run.

    It asks no network, and is False if a commit is not known.

    Args:
        name: The name that the user gave.
        before: Its `Source.anywhere` in the earlier run.
    """
    from huggingface_hub.errors import HFValidationError

    hub_id, _, commit = (before or "").partition("@")
    asked, _, revision = name.partition("@")
    if not commit or hub_id != asked:
        return False
    try:
        now = _cached_commit(hub_id, revision or None)
    except HFValidationError:
        return False
    return now is not None and now != commit


def _cached_commit(hub_id: str, revision: str | None) -> str | None:
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(hub_id, "config.json", revision=revision)
    return Path(found).parent.name if isinstance(found, str) else None


def _check_folder(name: str, folder: Path) -> None:
    """Refuses a folder that holds something else than a model, and says what."""
    try:
        files = {path.name for path in folder.iterdir()}
    except OSError as error:
        raise UnknownModelError(
            f"{name} cannot be read", got=str(error.strerror), mend="change its permissions"
        ) from None
    base = _entry(folder / "adapter_config.json", "base_model_name_or_path")
    if base is not None:
        both = "config.json" in files
        raise UnknownModelError(
            f"{name} holds a PEFT adapter" + (" beside a model" if both else ", not a model"),
            got="adapter_config.json in it",
            allowed="a folder with a whole model and no adapter",
            mend="move the adapter to another folder"
            if both
            else f"name its base, {base}; to continue from the adapter, merge it into the base "
            "(merge_and_unload), save the result with its tokenizer, and name that folder",
        )
    if "config.json" in files:
        return
    got, mend = "no config.json in it", "name the folder that save_pretrained wrote"
    model = _entry(folder / "results.json", "model")
    inner = sorted(
        str(path.parent.relative_to(folder))
        for pattern in ("*/config.json", "snapshots/*/config.json")
        for path in folder.glob(pattern)
    )
    if model is not None:
        got = "a run of instil: its results and trained weights"
        mend = f"name the model of this run, {model}"
    elif "study.json" in files:
        got, mend = "a study of instil", "name the model that its recipe names"
    elif any(file.endswith(".gguf") for file in files):
        got, mend = "only GGUF files", "name the folder of the model that they were made from"
    if inner:
        mend = f"name a folder in it: {', '.join(inner[:3])}"
    raise UnknownModelError(f"{name} is a folder without a model", got=got, mend=mend)


def _entry(file: Path, key: str) -> str | None:
    """A text in a JSON file: None without the file, and "?" if it does not hold the text."""
    if not file.is_file():
        return None
    try:
        return str(json.loads(file.read_text(encoding="utf-8"))[key])
    except (OSError, ValueError, LookupError, TypeError):
        return "?"


def _check_hub(source: Source) -> None:
    """Refuses what is no model on the hub, unless its files are on this machine."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import (
        HFValidationError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    name, hub_id, revision = source.name, source.path, source.revision
    try:
        if _cached_commit(hub_id, revision) is not None:
            return
        found = HfApi().model_info(hub_id, revision=revision, timeout=10)
    except HFValidationError:
        raise UnknownModelError(
            f"no model {name!r}",
            got="a web address" if "://" in name else "neither a folder nor a valid hub id",
            allowed=f"OWNER/NAME or OWNER/NAME@REVISION on the hub, a local folder, {NAMES}",
            mend="use its OWNER/NAME" if "://" in name else "check the path",
        ) from None
    except RevisionNotFoundError:
        raise UnknownModelError(
            f"the hub's model {hub_id} has no revision {revision!r}",
            allowed="a branch, a tag or a commit of it",
            mend="correct what stands after the @, or leave it out",
        ) from None
    except RepositoryNotFoundError as error:  # also raised for a gated model
        raise UnknownModelError(
            f"there is no folder {name}, and the hub has no model {hub_id!r} that you can read",
            got=str(error).splitlines()[0],
            mend="check the spelling; log in with `hf auth login` if it is private or gated",
        ) from None
    except Exception as error:  # the hub's client passes on the errors of its HTTP library
        raise HubUnreachableError(
            f"{name} is not a local folder or in this machine's cache, and the hub cannot be reached",
            got=f"{type(error).__name__}: {error}",
            allowed=f"a local folder, or {NAMES}",
            mend="connect to the network, or use a local folder or a bundled: model",
        ) from None
    files = {sibling.rfilename for sibling in found.siblings or ()}
    if "config.json" not in files and "adapter_config.json" in files:
        raise UnknownModelError(
            f"{name} holds a PEFT adapter, not a model",
            got="adapter_config.json in it",
            mend="name its base; to continue from the adapter, merge it into the base",
        )
