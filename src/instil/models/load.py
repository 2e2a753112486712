"""Loading a language model and its tokenizer: hub id, local folder or `bundled:NAME`."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import torch
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

from instil.errors import TokenizerMismatchError, TuningError, UnknownModelError
from instil.models import attention, checkpoint
from instil.models.checkpoint import reading
from instil.models.forward import output_embeddings
from instil.models.loading import Loading
from instil.models.number_format import default_device, resolve_dtype
from instil.models.source import Source, resolve
from instil.system import processes
from instil.system.files import content_digest, digest

# By default oneDNN caches the kernels of 1,024 shapes, at 0.6 MB each. To make a kernel again takes
# 0.8 ms. With a cache of 128 kernels, a training step does that 60 times instead of 10 times.
os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "128")
# transformers asks the hub to convert weights without safetensors. A run asks nobody for anything.
os.environ.setdefault("DISABLE_SAFETENSORS_CONVERSION", "1")

PLAIN = Loading()
"""In `dtype`, on one device, with the attention of transformers' choice."""


@dataclass(frozen=True)
class Outline:
    """What is known of a model without loading its weights.

    Attributes:
        name: The name that the user gave.
        source: Where the model was found.
        tokenizer: The tokenizer, with a padding token.
        window: Longest sequence in tokens, or None if the model names no limit.
        rows: Number of tokens that have an embedding; None if the configuration does not say.
        fingerprint: Changes when the weights or the tokenizer may have changed.
        end_ids: Token ids that the model's own files name as ends of a text or turn.
    """

    name: str
    source: Source
    tokenizer: PreTrainedTokenizerBase
    window: int | None
    rows: int | None
    fingerprint: str
    end_ids: tuple[int, ...]

    @property
    def pad_id(self) -> int:
        """The id that fills masked positions. Its value has no effect."""
        pad = int(self.tokenizer.pad_token_id or 0)
        return pad if self.rows is None or pad < self.rows else 0

    def check_ids(self, sequences: Iterable[Sequence[int]], *, where: str) -> None:
        """Refuses token ids that have no embedding.

        Args:
            sequences: Sequences of token ids.
            where: What a sequence is, for the error message.

        Raises:
            UnknownModelError: names the first such token.
        """
        checkpoint.check_ids(self.name, self.tokenizer, self.rows, sequences, where=where)


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


def outline(name: str) -> Outline:
    """Reads a model's configuration and tokenizer.

    Args:
        name: OWNER/NAME or OWNER/NAME@REVISION on the hub, a local folder, or `bundled:NAME`.

    Raises:
        UnknownModelError: there is no such model, or it is not a causal language model.
        HubUnreachableError: it is a hub id and the hub cannot be reached.
    """
    return _outline(name)[0]


def _outline(name: str) -> tuple[Outline, PreTrainedConfig]:
    source = resolve(name)
    with reading(f"the config.json of {name}", mend="take the one that save_pretrained wrote"):
        settings, _ = PreTrainedConfig.get_config_dict(source.path, revision=source.revision)
        checkpoint.check_settings(name, settings)
        config = AutoConfig.from_pretrained(
            source.path, revision=source.revision, trust_remote_code=False
        )
    checkpoint.model_class(name, config)
    with reading(f"the tokenizer of {name}", mend="save the tokenizer beside the model"):
        tokenizer = AutoTokenizer.from_pretrained(
            source.path, revision=source.pinned, trust_remote_code=False
        )
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
    text_config = config.get_text_config()
    rows = getattr(text_config, "vocab_size", None)
    checkpoint.check_vocabulary(name, tokenizer, rows)
    known = Outline(
        name=name,
        source=source,
        tokenizer=tokenizer,
        window=getattr(text_config, "max_position_embeddings", None),
        rows=rows,
        fingerprint=_fingerprint(source, config),
        end_ids=_end_ids(source, config),
    )
    return known, config


def load(name: str, *, dtype: str = "auto", how: Loading = PLAIN) -> LanguageModel:
    """Loads a model for inference. No code from the hub is run.

    Of a folder, only weights in safetensors are read. Older models on the hub have nothing but
    `pytorch_model.bin`, which torch reads with `weights_only`: it makes tensors and runs no code.

    Args:
        name: As for `outline`.
        dtype: `auto`, `float32`, `bfloat16` or `float16`.
        how: In how many bits, over which devices, and with which attention.

    Raises:
        UnknownModelError: there is no such model, it is not a causal language model, some of its
            weights are missing, or it cannot be loaded in this way.
        TuningError: several processes were started, and one model is to use all devices.
        HubUnreachableError: it is a hub id and the hub cannot be reached.
    """
    processes.join()  # each process then has a device of its own
    known, config = _outline(name)
    quantised = getattr(config, "quantization_config", None) is not None
    path = known.source.path
    kind, local = checkpoint.model_class(name, config), Path(path).is_dir()
    options = how.options(name, getattr(torch, resolve_dtype(dtype)), quantised=quantised)
    with reading(
        f"the weights of {name}",
        folder=Path(path) if local else None,
        mend=_mend(how, quantised=quantised),
    ):
        network, loaded = kind.from_pretrained(
            path,
            revision=known.source.pinned,
            use_safetensors=True if local else None,
            trust_remote_code=False,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # `check_weights` names them
            **options,
        )
    if network.can_generate() is False:
        raise UnknownModelError(
            f"{name} is not a causal language model", got=type(network).__name__
        )
    checkpoint.check_weights(name, network, loaded)
    how.check(name, network)
    network = (network if "device_map" in options else network.to(default_device())).eval()
    if kind is not AutoModelForCausalLM:
        checkpoint.check_text(name, network)
    # A slice of the hidden states is not contiguous. On CPU, `linear` then becomes a batched
    # product that copies the full output embedding per row (0.9 GB for 16 rows, with a vocabulary
    # of 49k).
    output_embeddings(network).register_forward_pre_hook(_contiguous)
    attention.install(network)
    # The model's own settings may penalise repetition or cut the distribution. Prompts of different
    # length would then be decoded by different rules.
    network.generation_config = GenerationConfig()  # type: ignore[no-untyped-call]
    whole = known.fingerprint
    if how.identity:  # its predictions are others
        known = replace(known, fingerprint=digest([whole, how.identity]))
    return LanguageModel(**vars(known), network=network)


def _mend(how: Loading, *, quantised: bool) -> str:
    """How to correct weights that cannot be read."""
    if how.quantization is not None:
        return "leave quantization out if bitsandbytes does not support this machine"
    if how.attn_implementation is not None:
        return "leave attn_implementation out, or install what it needs"
    if quantised:
        return "install what its quantisation needs, or use the model in bfloat16"
    return "copy or download its files again; save weights with save_pretrained"


def loader(name: str) -> str:
    """The name of transformers' class that loads a model, for a program that loads it without instil.

    Args:
        name: As for `outline`.
    """
    source = resolve(name)
    config = AutoConfig.from_pretrained(
        source.path, revision=source.pinned, trust_remote_code=False
    )
    return str(checkpoint.model_class(name, config).__name__)


def load_for_training(name: str, *, dtype: str, how: Loading = PLAIN) -> LanguageModel:
    """Loads a model whose own weights will be trained.

    The weights are float32, and the model computes in `dtype`. A bfloat16 weight could change only
    in steps of 2^-8 of its size, and an update of 1e-5 would be rounded away.

    Args:
        name: As for `outline`.
        dtype: `auto`, `float32`, `bfloat16` or `float16`.
        how: As for `load`.

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
    model = load(name, dtype="float32", how=how)
    if computed != "float32":
        cast = torch.autocast(model.device.type, dtype=getattr(torch, computed))
        model.network.forward = cast(model.network.forward)
    return model


def quiet_libraries() -> None:
    """Hides the progress bars and messages of libraries, because instil shows its own."""
    import logging as standard

    from huggingface_hub.utils.tqdm import disable_progress_bars
    from transformers.utils import logging

    # It warns of each product of 8 bits that it casts.
    standard.getLogger("bitsandbytes.autograd._functions").setLevel(standard.ERROR)
    disable_progress_bars()
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    warnings.simplefilter("ignore", FutureWarning)  # libraries warn about each other


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


def _contiguous(module: torch.nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return (args[0].contiguous(), *args[1:])


def _end_ids(source: Source, network_config: PreTrainedConfig) -> tuple[int, ...]:
    """The ends that config.json and generation_config.json name; there may be no such file."""
    named: list[object] = [network_config.get_text_config()]
    with suppress(OSError, ValueError):
        pinned = source.pinned or "main"
        named.append(GenerationConfig.from_pretrained(source.path, revision=pinned))
    found: set[int] = set()
    for config in named:
        ends = getattr(config, "eos_token_id", None)
        found.update(ends if isinstance(ends, list | tuple) else [ends] if ends is not None else [])
    return tuple(sorted(found))


def _fingerprint(source: Source, network_config: PreTrainedConfig) -> str:
    """A digest of the weights: of the hub's commit, or of the content of a folder's files.

    It does not depend on the folder's path.
    """
    folder = Path(source.path)
    identity: list[object]
    if folder.is_dir():
        files = [path for path in sorted(folder.iterdir()) if path.is_file()]
        identity = [[path.name, _content(path, path.stat().st_mtime_ns)] for path in files]
    else:
        identity = [network_config.to_json_string(use_diff=False), source.commit]
    return digest(identity)


@cache
def _content(path: Path, changed: int) -> str:
    """A digest of a file's content, cached because models are opened more than once.

    Args:
        path: The file.
        changed: Its time of change, ns; a new time makes a new cache entry.
    """
    return content_digest(path)
