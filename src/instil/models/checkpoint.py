"""What a checkpoint must be: a causal language model with all of its weights and a token's rows.

transformers makes missing weights anew, at random, and only logs it. It loads an encoder, or the
decoder of an encoder-decoder, as if it were a causal language model. Here each of these is refused.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError, safe_open
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoModelForMaskedLM,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from instil.errors import InstilError, UnknownModelError

WHOLE = "a folder or hub id with config.json, weights in safetensors and a tokenizer"
# Names of transformers' classes for models that do not predict the next token.
OTHER_TASKS = re.compile(
    r"For(SequenceClassification|TokenClassification|QuestionAnswering|MultipleChoice|MaskedLM|"
    r"NextSentencePrediction|PreTraining|RewardModel|TextEncoding|Classification)$|RewardModel$"
)
HEADS = {"score", "classifier", "classification_head", "qa_outputs"}  # of such models
ENCODER = "a model that reads later tokens too (an encoder)"


@contextmanager
def reading(what: str, *, mend: str, folder: Path | None = None) -> Iterator[None]:
    """Turns the libraries' errors about a model that cannot be read into `UnknownModelError`.

    Args:
        what: What is read, for the error message.
        mend: How to correct it.
        folder: Folder of weights. If one of its files cannot be opened, the message names it.
    """
    try:
        yield
    except (InstilError, torch.OutOfMemoryError, MemoryError):
        raise
    except Exception as error:
        raise UnknownModelError(
            f"{what} cannot be read",
            got=(folder and _damaged(folder)) or _gist(error),
            allowed=WHOLE,
            mend=mend,
        ) from error


def _gist(error: Exception) -> str:
    """The first line of an error's message; more lines if the first only announces the next."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    ends = (n for n, line in enumerate(lines, 1) if not line.endswith(":"))
    gist = " ".join(lines[: next(ends, 1)])
    if isinstance(error, OSError | ValueError | ImportError) and gist:
        return gist
    return f"{type(error).__name__}: {gist}"


def _damaged(folder: Path) -> str:
    """The first safetensors file of a folder that cannot be opened, and why; else empty."""
    files, pickles = sorted(folder.glob("*.safetensors")), sorted(folder.glob("*.bin"))
    if pickles and not files:
        return f"only {pickles[0].name}, a pickle, which could run code and is not opened"
    for file in files:
        try:
            with safe_open(file, "pt"):
                pass
        except (OSError, SafetensorError) as error:
            return f"{file.name}: {error}"
    return ""


def check_settings(name: str, settings: Mapping[str, Any]) -> None:
    """Refuses the content of a `config.json` that this version of transformers cannot read.

    Args:
        name: The name that the user gave.
        settings: The content.

    Raises:
        UnknownModelError: it names no architecture, or one that is unknown or needs its own code.
    """
    architecture = settings.get("model_type")
    if not architecture:
        raise UnknownModelError(
            f"{name} does not say which architecture it has",
            got=f"a config.json without model_type; it has {_some(settings) or 'no entries'}",
            allowed=WHOLE,
            mend="take the config.json that save_pretrained wrote",
        )
    if architecture in CONFIG_MAPPING:
        return
    if "auto_map" in settings:
        raise UnknownModelError(
            f"{name} needs Python code of its own, and instil runs no code of a model",
            got=f"architecture {architecture!r}, with auto_map in its config.json",
            allowed=f"an architecture that transformers {transformers.__version__} has",
            mend="use a version of the model that transformers loads without trust_remote_code",
        )
    raise UnknownModelError(
        f"transformers {transformers.__version__} does not know the architecture of {name}",
        got=repr(architecture),
        mend="install a newer transformers, or use another model",
    )


def model_class(name: str, config: PreTrainedConfig) -> Any:
    """The class of transformers that loads a model as a causal language model.

    A model of text and images is loaded whole. It reads text alone.

    Args:
        name: The name that the user gave.
        config: Its configuration.

    Raises:
        UnknownModelError: it is not a causal language model.
    """
    kind: Any = type(config)
    trained_as = ", ".join(config.architectures or ()) or config.model_type
    text: Any = config.get_text_config()
    found = None
    if getattr(config, "is_encoder_decoder", False):
        found = "an encoder-decoder"
    elif OTHER_TASKS.search(trained_as):
        found = "a model with another output layer than that of a language model"
    elif kind in AutoModelForMaskedLM._model_mapping and not getattr(config, "is_decoder", False):
        found = ENCODER
    elif kind in AutoModelForCausalLM._model_mapping:
        return AutoModelForCausalLM
    elif kind in AutoModelForImageTextToText._model_mapping and text is not config:
        return AutoModelForImageTextToText
    raise UnknownModelError(
        f"{name} is not a causal language model",
        got=f"{trained_as}, {found or 'which transformers does not load as one'}",
        allowed="a decoder that predicts the next token, such as Llama, Qwen, Gemma or GPT-2",
        mend="use such a model",
    )


def check_weights(name: str, network: PreTrainedModel, loaded: Mapping[str, Any]) -> None:
    """Refuses a model some of whose weights were not in its files, or were left unread.

    Args:
        name: The name that the user gave.
        network: The model.
        loaded: What transformers says of its weights (`output_loading_info`).

    Raises:
        UnknownModelError: names some of these weights.
    """
    kind = type(network).__name__
    missing = loaded["missing_keys"]
    resized = [key for key, *_ in loaded["mismatched_keys"]]
    # Files may hold what the model does not need, such as another model for images. But a weight
    # of a layer that the model has changes what the layer computes.
    layers = {layer for layer, module in network.named_modules() if hasattr(module, "weight")}
    left = [
        key
        for key in loaded["unexpected_keys"]
        if key.partition(".")[0] in HEADS or any(parent in layers for parent in _parents(key))
    ]
    for what, keys in (
        ("has no value in its files", missing),
        ("has another shape in its files", resized),
        ("is in its files, but not in the model", left),
    ):
        if keys:
            raise UnknownModelError(
                f"{name} is not a whole {kind}: a weight {what}",
                got=f"{len(keys):,} such weights: {_some(keys)}",
                allowed="files with exactly the weights that config.json describes",
                mend="use a checkpoint of the causal language model itself; one without an output "
                "layer, with that of another task, quantised or with an adapter is another",
            )
    small = [key for key, p in network.named_parameters() if "float8" in str(p.dtype)]
    if small:
        raise UnknownModelError(
            f"{name} has weights in float8, which this machine cannot multiply",
            got=_some(small),
            allowed="weights in float32, bfloat16 or float16",
            mend="use the model in bfloat16",
        )


def check_text(name: str, network: PreTrainedModel) -> None:
    """Refuses a model of text and images that cannot read text alone.

    Args:
        name: The name that the user gave.
        network: The model, on any device.

    Raises:
        UnknownModelError: it needs an image.
    """
    try:
        with torch.inference_mode():
            network(input_ids=torch.zeros(1, 2, dtype=torch.long, device=network.device))
    except Exception as error:
        raise UnknownModelError(
            f"{name} cannot read text without an image",
            got=_gist(error),
            mend="use a language model, or the language model that this one was made from",
        ) from error


def check_vocabulary(name: str, tokenizer: PreTrainedTokenizerBase, rows: int | None) -> None:
    """Refuses a tokenizer whose own vocabulary is larger than the model's embedding.

    Tokens that were added to it may lie beyond: some models have added tokens for images that their
    text never holds. `check_ids` refuses them where they occur.

    Args:
        name: The name that the user gave.
        tokenizer: The model's tokenizer.
        rows: Rows of the model's embedding; None if that is not known.

    Raises:
        UnknownModelError: names a token without a row.
    """
    added = tokenizer.get_added_vocab()
    beyond = [
        n for t, n in tokenizer.get_vocab().items() if t not in added and n >= (rows or n + 1)
    ]
    if beyond:
        raise _without_row(name, tokenizer, rows, min(beyond), "of its tokenizer")


def check_ids(
    name: str,
    tokenizer: PreTrainedTokenizerBase,
    rows: int | None,
    sequences: Iterable[Sequence[int]],
    *,
    where: str,
) -> None:
    """Refuses token ids for which the model has no embedding.

    Args:
        name: The name that the user gave.
        tokenizer: The model's tokenizer.
        rows: Rows of the model's embedding; None if that is not known.
        sequences: Sequences of token ids.
        where: What a sequence is, for the error message.

    Raises:
        UnknownModelError: names the first such token.
    """
    if rows is None or max(tokenizer.get_vocab().values(), default=0) < rows:
        return
    for number, ids in enumerate(sequences, 1):
        beyond = next((token for token in ids if token >= rows), None)
        if beyond is not None:
            raise _without_row(name, tokenizer, rows, beyond, f"in {where} {number}")


def _without_row(
    name: str, tokenizer: PreTrainedTokenizerBase, rows: int | None, token: int, where: str
) -> UnknownModelError:
    return UnknownModelError(
        f"{name} has no embedding for a token {where}",
        got=f"token {tokenizer.convert_ids_to_tokens(token)!r} with id {token:,}",
        allowed=f"ids below {rows:,}, the number of rows in the model's embedding",
        mend="use the tokenizer that belongs to the model; or resize the model "
        "(resize_token_embeddings), train the new rows and save both together",
    )


def _parents(key: str) -> Iterator[str]:
    """All modules that a weight may belong to, from the innermost on."""
    while "." in key:
        key = key.rpartition(".")[0]
        yield key


def _some(names: Iterable[str]) -> str:
    """The first names of many."""
    first, *more = [*sorted(names), ""]
    shown = [first, *more[:2]]
    return ", ".join(name for name in shown if name) + (" …" if len(more) > 3 else "")
