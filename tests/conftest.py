"""Tiny models and tokenizers, built in memory: every architecture trait that matters, in milliseconds."""

from __future__ import annotations

import atexit
import copy
import gc
import json
import os
import shutil
import signal
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

# Before torch is loaded: the workers of `make test` share the cores, and so do what they start.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import hypothesis
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
    set_seed,
)

from instil.models.load import LanguageModel, load
from instil.system.disk import cache_folder

# Tests store what models write in a folder of their own, with the models that are converted already.
if "INSTIL_TESTED" not in os.environ:
    usual = cache_folder()
    os.environ["INSTIL_TESTED"] = "1"  # the workers of `make test` share the folder
    os.environ["INSTIL_CACHE"] = tempfile.mkdtemp(prefix="instil-cache-")
    atexit.register(shutil.rmtree, os.environ["INSTIL_CACHE"], ignore_errors=True)
    for known in (*usual.glob("*/config.json"), *usual.glob("*.json")):
        known = known if known.parent == usual else known.parent
        (cache_folder() / known.name).symlink_to(known)

# A job in a shell's background ignores Ctrl-C, and so would the commands that the tests start.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
# A busy machine is no error.
hypothesis.settings.register_profile("instil", deadline=None)
hypothesis.settings.load_profile("instil")

SPECIAL = ["<|end|>", "<|start|>", "<|pad|>"]
CHAT_TEMPLATE = (
    "{% for m in messages %}<|start|>{{ m['role'] }}\n{{ m['content'] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant\n"
    "{% if enable_thinking is defined and not enable_thinking %}[no thinking]{% endif %}{% endif %}"
)


def byte_tokenizer(*, chat: bool = True) -> PreTrainedTokenizerFast:
    """One token a byte, three special ones: any text comes back as it was."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: number for number, token in enumerate([*SPECIAL, *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=SPECIAL[0], bos_token=SPECIAL[1], pad_token=SPECIAL[2]
    )
    if chat:
        fast.chat_template = CHAT_TEMPLATE
    return fast


def tiny_llama(vocabulary: int, window: int = 512) -> PreTrainedModel:
    """No biases, grouped queries, rotary positions."""
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=vocabulary,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=window,
            initializer_range=0.2,
        )
    )


def tiny_opt(vocabulary: int, window: int = 512) -> PreTrainedModel:
    """Biases everywhere, learned positions, dropout."""
    return OPTForCausalLM(
        OPTConfig(
            vocab_size=vocabulary,
            hidden_size=32,
            ffn_dim=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=window,
            word_embed_proj_dim=32,
            init_std=0.2,
            dropout=0.1,
        )
    )


def tiny_gpt2(vocabulary: int, window: int = 512) -> PreTrainedModel:
    """Conv1D layers with biases, learned positions, dropout."""
    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=vocabulary,
            n_embd=32,
            n_layer=2,
            n_head=4,
            n_positions=window,
            initializer_range=0.2,
        )
    )


def tiny_qwen3(vocabulary: int, window: int = 512) -> PreTrainedModel:
    """Queries and keys are normalised, heads are wider than their share, input and output embeddings are one."""
    return Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=vocabulary,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=16,
            max_position_embeddings=window,
            initializer_range=0.2,
            tie_word_embeddings=True,
        )
    )


FAMILIES: dict[str, Callable[..., PreTrainedModel]] = {
    "llama": tiny_llama,
    "opt": tiny_opt,
    "qwen3": tiny_qwen3,
    "gpt2": tiny_gpt2,
}


def save_tiny(
    folder: Path, family: str, *, chat: bool = True, window: int = 512, seed: int = 0
) -> Path:
    """A tiny model in a folder, as `from_pretrained` wants it."""
    set_seed(seed)
    tokenizer = byte_tokenizer(chat=chat)
    FAMILIES[family](len(tokenizer), window).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def model_folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Family -> folder of a tiny model of it."""
    root = tmp_path_factory.mktemp("models")
    return {family: save_tiny(root / family, family) for family in FAMILIES}


@pytest.fixture(scope="session")
def loaded(model_folders: dict[str, Path]) -> dict[str, LanguageModel]:
    """Family -> a tiny model of it in float32, to be copied: tests change what they get."""
    return {family: load(str(path), dtype="float32") for family, path in model_folders.items()}


@pytest.fixture(params=list(FAMILIES))
def any_model(request: pytest.FixtureRequest, loaded: dict[str, LanguageModel]) -> LanguageModel:
    """A tiny model of each family, in float32; each test has its own."""
    return copy.deepcopy(loaded[request.param])


@pytest.fixture
def llama(loaded: dict[str, LanguageModel]) -> LanguageModel:
    """A tiny model, in float32; each test has its own."""
    return copy.deepcopy(loaded["llama"])


@pytest.fixture
def jsonl(tmp_path: Path) -> Callable[[str, list[dict[str, Any]]], Path]:
    """Writes rows to a JSON Lines file."""

    def write(name: str, rows: list[dict[str, Any]]) -> Path:
        path = tmp_path / name
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return path

    return write


def pytest_collection_finish() -> None:
    """Spares the garbage collector what lives to the end; each training collects, over libraries and tests."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _no_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_DISABLE_TELEMETRY", "1")
    torch.manual_seed(0)
