"""Loading a language model and its tokenizer: hub id, local folder or `bundled:NAME`."""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from instil.errors import (
    HubUnreachableError,
    TokenizerMismatchError,
    TuningError,
    UnknownModelError,
)
from instil.models import attention, bundled
from instil.models.forward import output_embeddings
from instil.system import processes
from instil.system.files import content_digest, digest

# By default oneDNN caches the kernels of 1,024 shapes, at 0.6 MB each. To make a kernel again takes
# 0.8 ms. With a cache of 128 kernels, a training step does that 60 times instead of 10 times.
os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "128")

# A smaller speed-up of bfloat16 does not justify its rounding errors.
WORTHWHILE_SPEEDUP = 1.3


@dataclass(frozen=True)
class Outline:
    """What is known of a model without loading its weights.

    Attributes:
        name: The name that the user gave.
        source: The folder or hub id that transformers loads.
        tokenizer: The tokenizer, with a padding token.
        window: Longest sequence in tokens, or None if the model names no limit.
        fingerprint: Changes when the weights or the tokenizer may have changed.
        end_ids: Token ids that the model's own files name as ends of a text or turn.
    """

    name: str
    source: str
    tokenizer: PreTrainedTokenizerBase
    window: int | None
    fingerprint: str
    end_ids: tuple[int, ...]


@dataclass(frozen=True)
class LanguageModel(Outline):
    """A causal language model with its weights.

    Attributes:
        network: The weights, in evaluation mode.
    """

    network: PreTrainedModel

    @property
    def dtype(self) -> str:
        """`float32`, `bfloat16` or `float16`."""
        return str(self.network.dtype).removeprefix("torch.")

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.network.device

    @property
    def pad_id(self) -> int:
        """The id that fills masked positions. Its value has no effect."""
        return int(self.tokenizer.pad_token_id or 0)


def outline(name: str) -> Outline:
    """Reads a model's configuration and tokenizer.

    Args:
        name: Hub id, local folder, or `bundled:NAME`.

    Raises:
        UnknownModelError: there is no such model.
        HubUnreachableError: it is a hub id and the hub cannot be reached.
    """
    source = resolve(name)
    with _loading(name):
        network_config = AutoConfig.from_pretrained(source, trust_remote_code=False)
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
    return Outline(
        name=name,
        source=source,
        tokenizer=tokenizer,
        window=getattr(network_config.get_text_config(), "max_position_embeddings", None),
        fingerprint=_fingerprint(source, network_config),
        end_ids=_end_ids(source, network_config),
    )


def load(name: str, *, dtype: str = "auto") -> LanguageModel:
    """Loads a model for inference. No code from the hub is run.

    Args:
        name: Hub id, local folder, or `bundled:NAME`.
        dtype: `auto`, `float32`, `bfloat16` or `float16`.

    Raises:
        UnknownModelError: there is no such model.
        HubUnreachableError: it is a hub id and the hub cannot be reached.
    """
    known = outline(name)
    device = default_device()
    with _loading(name):
        network = AutoModelForCausalLM.from_pretrained(
            known.source,
            dtype=getattr(torch, resolve_dtype(dtype)),
            use_safetensors=True,
            trust_remote_code=False,
        )
    if network.can_generate() is False:
        raise UnknownModelError(
            f"{name} is not a causal language model", got=type(network).__name__
        )
    network = network.to(device).eval()  # type: ignore[arg-type]
    # A slice of the hidden states is not contiguous. On CPU, `linear` then becomes a batched
    # product that copies the full output embedding per row (0.9 GB for 16 rows, with a vocabulary
    # of 49k).
    output_embeddings(network).register_forward_pre_hook(_contiguous)
    attention.install(network)
    # The model's own settings may penalise repetition or cut the distribution. Prompts of different
    # length would then be decoded by different rules.
    network.generation_config = GenerationConfig()  # type: ignore[no-untyped-call]
    return LanguageModel(**vars(known), network=network)


def load_for_training(name: str, *, dtype: str) -> LanguageModel:
    """Loads a model whose own weights will be trained.

    The weights are float32, and the model computes in `dtype`. A bfloat16 weight could change only
    in steps of 2^-8 of its size, and an update of 1e-5 would be rounded away.

    Args:
        name: Hub id, local folder, or `bundled:NAME`.
        dtype: `auto`, `float32`, `bfloat16` or `float16`.

    Raises:
        TuningError: `dtype` is float16, whose gradients vanish without a scaler.
    """
    computed = resolve_dtype(dtype)
    if computed == "float16":
        raise TuningError(
            "tuning full and bitfit need dtype float32 or bfloat16",
            got="dtype: float16",
            mend="use dtype: bfloat16, or tuning: {name: lora}",
        )
    model = load(name, dtype="float32")
    if computed != "float32":
        cast = torch.autocast(model.device.type, dtype=getattr(torch, computed))
        model.network.forward = cast(model.network.forward)
    return model


def quiet_libraries() -> None:
    """Hides the progress bars and messages of libraries, because instil shows its own."""
    from huggingface_hub.utils.tqdm import disable_progress_bars
    from transformers.utils import logging

    disable_progress_bars()
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    warnings.simplefilter("ignore", FutureWarning)  # libraries warn about each other


@contextmanager
def _loading(name: str) -> Iterator[None]:
    """Turns transformers' errors about a model that cannot be read into `UnknownModelError`."""
    try:
        yield
    except (OSError, ValueError, ImportError, SafetensorError) as error:
        raise UnknownModelError(
            f"{name} cannot be loaded as a causal language model",
            got=str(error).strip().splitlines()[0],
            allowed="a folder or hub id with config.json, weights in safetensors and a tokenizer",
            mend="check the name; save the tokenizer beside the model if it is missing",
        ) from None


def resolve(name: str) -> str:
    """Turns a model's name into what transformers loads: a folder, or a hub id that exists.

    Raises:
        UnknownModelError: there is no such model.
        HubUnreachableError: it is a hub id and the hub cannot be reached.
    """
    if name.startswith(bundled.PREFIX):
        return str(bundled.folder(name))
    if Path(name).is_dir():
        if not (Path(name) / "config.json").is_file():
            raise UnknownModelError(
                f"{name} is a folder without a model",
                got="no config.json in it",
                mend="name the folder that save_pretrained wrote",
            )
        return name
    _check_hub(name)
    return name


def _check_hub(name: str) -> None:
    from huggingface_hub import HfApi, try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError

    try:
        if isinstance(try_to_load_from_cache(name, "config.json"), str):
            return
        HfApi().model_info(name, timeout=10)
    except HFValidationError:
        raise UnknownModelError(
            f"no model {name!r}",
            got="neither a folder nor a valid hub id",
            allowed=f"OWNER/NAME on the hub, a local folder, {', '.join(bundled.PREFIX + n for n in bundled.PACKAGES)}",
            mend="check the path",
        ) from None
    except RepositoryNotFoundError as error:  # also raised for a gated model
        raise UnknownModelError(
            f"the hub has no model {name!r} that you can read",
            got=str(error).splitlines()[0],
            mend="check the spelling; log in with `hf auth login` if it is private or gated",
        ) from None
    except Exception as error:  # the hub's client passes on the errors of its HTTP library
        raise HubUnreachableError(
            f"{name} is not a local folder, and the hub cannot be reached",
            got=f"{type(error).__name__}: {error}",
            allowed=f"a local folder, or {', '.join(bundled.PREFIX + n for n in bundled.PACKAGES)}",
            mend="connect to the network, or use a local folder or a bundled: model",
        ) from None


def check_same_tokens(teacher: LanguageModel | Outline, student: LanguageModel | Outline) -> None:
    """Refuses two models whose token ids mean different texts.

    Raises:
        TokenizerMismatchError: names the first difference.
    """
    ours, theirs = student.tokenizer.get_vocab(), teacher.tokenizer.get_vocab()
    probe = "Über 3,141 naïve\n\tcafés: def f(x): return x**2 — 東京 🙂"
    if (
        ours == theirs
        and student.tokenizer(probe)["input_ids"] == teacher.tokenizer(probe)["input_ids"]
    ):
        return
    differing = sorted(set(ours.items()) ^ set(theirs.items()))
    raise TokenizerMismatchError(
        f"teacher {teacher.name} and student {student.name} have different tokenizers",
        got=f"{len(theirs):,} and {len(ours):,} tokens"
        + (
            f"; the first difference is {differing[0][0]!r}"
            if differing
            else "; they split the same text differently"
        ),
        allowed="two models with the same tokenizer, such as two of one family",
        mend="use another teacher, or leave it out: the student is then its own teacher",
    )


def default_device() -> torch.device:
    """The accelerator if there is one, else the CPU."""
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    return accelerator or torch.device("cpu")


@cache
def resolve_dtype(name: str) -> str:
    """Turns `auto` into the fastest dtype of this machine; the main process measures it once."""
    if name != "auto":
        return name
    fastest = processes.main_does(lambda: fastest_dtype(default_device()))
    return str(fastest).removeprefix("torch.")


def fastest_dtype(device: torch.device) -> torch.dtype:
    """bfloat16 where it is faster, float32 elsewhere.

    An accelerator reports whether it supports bfloat16. Some processors multiply bfloat16 five
    times faster than float32, and others multiply it more slowly. So a small product is timed in
    both.
    """
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32

    def seconds(dtype: torch.dtype) -> float:
        a, b = (
            torch.ones(shape, dtype=dtype, device=device) for shape in ((256, 1024), (1024, 1024))
        )
        best = float("inf")
        for _ in range(8):
            start = time.perf_counter()
            (a @ b).sum().item()  # .item() waits for an accelerator
            best = min(best, time.perf_counter() - start)
        return best

    faster = seconds(torch.float32) / seconds(torch.bfloat16)
    return torch.bfloat16 if faster >= WORTHWHILE_SPEEDUP else torch.float32


def _contiguous(module: torch.nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return (args[0].contiguous(), *args[1:])


def _end_ids(source: str, network_config: PreTrainedConfig) -> tuple[int, ...]:
    """The ends that config.json and generation_config.json name; there may be no such file."""
    named: list[object] = [network_config.get_text_config()]
    with suppress(OSError, ValueError):
        named.append(GenerationConfig.from_pretrained(source))
    found: set[int] = set()
    for config in named:
        ends = getattr(config, "eos_token_id", None)
        found.update(ends if isinstance(ends, list | tuple) else [ends] if ends is not None else [])
    return tuple(sorted(found))


def _fingerprint(source: str, network_config: PreTrainedConfig) -> str:
    """A digest of the weights: of the hub's commit, or of the content of a folder's files.

    It does not depend on the folder's path.
    """
    folder = Path(source)
    identity: list[object]
    if folder.is_dir():
        files = [path for path in sorted(folder.iterdir()) if path.is_file()]
        identity = [[path.name, _content(path, path.stat().st_mtime_ns)] for path in files]
    else:
        identity = [
            network_config.to_json_string(use_diff=False),
            getattr(network_config, "_commit_hash", None),
        ]
    return digest(identity)


@cache
def _content(path: Path, changed: int) -> str:
    """A digest of a file's content, cached because models are opened more than once.

    Args:
        path: The file.
        changed: Its time of change, ns; a new time makes a new cache entry.
    """
    return content_digest(path)
