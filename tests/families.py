"""A tiny random model of each family that people fine-tune, and what instil computes with it.

Each way to compute is compared with the plainest one: a forward pass of one row alone, without a
cache, and plain PEFT. `docs/reference/model-families.md` is the table of what comes out.
"""

from __future__ import annotations

import copy
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from peft import PeftModel, get_peft_model
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, set_seed

from instil.losses import ForwardKL
from instil.models.branches import Branches
from instil.models.forward import CACHE
from instil.models.generate import Decoding, Ending, generate
from instil.models.label_reader import read_labels
from instil.models.load import LanguageModel, load
from instil.models.reader import COMPLETIONS, Reader
from instil.models.tuning import LoRA
from instil.recipe import sections
from instil.targets.prediction import TargetRow, Targets
from instil.training import trainer
from instil.training.collation import proven_collator
from tests.conftest import byte_tokenizer

TOKENS = 320  # size of the vocabulary: the 259 of the tokenizer, and padding
WINDOW = 24  # of layers that look back a fixed distance; the shared prefix is longer
GAIN = 4.0  # random weights are enlarged, so that every token that is read shows in the logits

BASE: dict[str, Any] = {
    "vocab_size": TOKENS,
    "hidden_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 96,
    "max_position_embeddings": 512,
    "bos_token_id": 1,
    "eos_token_id": 0,
    "pad_token_id": 2,
    "tie_word_embeddings": False,
}
HEAD: dict[str, Any] = {"head_dim": 16}
EXPERTS: dict[str, Any] = {
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 48,
}
LOCAL: dict[str, Any] = {"num_local_experts": 4, "num_experts_per_tok": 2}
SLIDING: dict[str, Any] = {"sliding_window": WINDOW}
DELTA: dict[str, Any] = {
    "linear_num_value_heads": 4,
    "linear_num_key_heads": 2,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
}
STATE: dict[str, Any] = {
    "mamba_n_heads": 8,
    "mamba_d_head": 16,
    "mamba_d_state": 16,
    "mamba_n_groups": 1,
    "mamba_chunk_size": 8,
    "mamba_expand": 2,
}
GPT: dict[str, Any] = {
    "vocab_size": TOKENS,
    "n_embd": 64,
    "n_layer": 3,
    "n_head": 4,
    "n_positions": 512,
    "bos_token_id": 1,
    "eos_token_id": 0,
}
LATENT: dict[str, Any] = {
    "num_key_value_heads": 4,
    "n_routed_experts": 4,
    "n_group": 1,
    "topk_group": 1,
    "num_experts_per_tok": 2,
    "n_shared_experts": 1,
    "moe_intermediate_size": 48,
    "first_k_dense_replace": 1,
    "q_lora_rank": 32,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 16,
    "v_head_dim": 16,
}
CONV: dict[str, Any] = {
    "layer_types": ["conv", "full_attention", "conv", "full_attention"],
    "block_multiple_of": 16,
    "block_ff_dim": 96,
}
HYBRID: dict[str, Any] = {"layer_types": ["mamba", "attention", "mamba", "attention"]}


@dataclass(frozen=True)
class Family:
    """A family of models.

    Attributes:
        title: Its name in the table.
        kind: transformers' name for it.
        config: The settings of a tiny model, beside or in place of `BASE`.
        base: Whether `BASE` applies.
    """

    title: str
    kind: str
    config: dict[str, Any]
    base: bool = True

    def build(self, folder: Path) -> None:
        """Saves a tiny random model with a tokenizer."""
        set_seed(0)
        config = AutoConfig.for_model(self.kind, **(BASE if self.base else {}) | self.config)
        network = AutoModelForCausalLM.from_config(config).float()
        with torch.no_grad():
            for name, weight in network.named_parameters():
                if weight.dim() >= 2 and not name.endswith("A_log"):
                    weight.mul_(GAIN)
        network.config.dtype = "float32"
        network.save_pretrained(folder)
        byte_tokenizer().save_pretrained(folder)


def family(
    title: str, kind: str, *settings: dict[str, Any], base: bool = True, **more: Any
) -> Family:
    merged: dict[str, Any] = {}
    for some in (*settings, more):
        merged |= some
    return Family(title, kind, merged, base)


FAMILIES = [
    family("Llama 2, 3; SmolLM 2", "llama"),
    family("Llama 4", "llama4_text", HEAD, LOCAL, num_experts_per_tok=1, intermediate_size_mlp=96,
           attention_chunk_size=WINDOW, no_rope_layers=[1, 1, 1, 0]),
    family("Qwen 2, 2.5", "qwen2"),
    family("Qwen 2 with a sliding window", "qwen2", SLIDING, use_sliding_window=True, max_window_layers=1),
    family("Qwen 3", "qwen3", HEAD),
    family("Qwen 3 MoE", "qwen3_moe", HEAD, EXPERTS),
    family("Qwen 3 Next", "qwen3_next", HEAD, EXPERTS, DELTA, shared_expert_intermediate_size=48),
    family("Qwen 3.5", "qwen3_5_text", HEAD, DELTA),
    family("Gemma", "gemma", HEAD),
    family("Gemma 2", "gemma2", HEAD, SLIDING),
    family("Gemma 3", "gemma3_text", HEAD, SLIDING, num_hidden_layers=6),
    family("Gemma 4", "gemma4_text", HEAD, SLIDING, num_hidden_layers=6,
           vocab_size_per_layer_input=TOKENS, hidden_size_per_layer_input=16),
    family("Mistral", "mistral", sliding_window=None),
    family("Mistral with a sliding window", "mistral", SLIDING),
    family("Ministral 3", "ministral3", HEAD),
    family("Mixtral", "mixtral", LOCAL),
    family("Phi 1, 2", "phi"),
    family("Phi 3, 4", "phi3", sliding_window=None),
    family("Phi 3 with a sliding window", "phi3", SLIDING),
    family("GPT-2", "gpt2", GPT, base=False),
    family("OPT", "opt", ffn_dim=96, word_embed_proj_dim=64, hidden_size=64, num_hidden_layers=3,
           num_attention_heads=4, max_position_embeddings=512, vocab_size=TOKENS, bos_token_id=1,
           eos_token_id=0, pad_token_id=2, base=False),
    family("GPT-NeoX, Pythia", "gpt_neox", num_key_value_heads=None),
    family("GPT-J", "gptj", GPT, rotary_dim=8, base=False),
    family("GPT-Neo", "gpt_neo", vocab_size=TOKENS, hidden_size=64, num_layers=2, num_heads=4,
           attention_types=[[["global", "local"], 1]], window_size=WINDOW,
           max_position_embeddings=512, bos_token_id=1, eos_token_id=0, base=False),
    family("Falcon", "falcon", multi_query=True, alibi=False, num_kv_heads=1),
    family("Falcon with ALiBi", "falcon", multi_query=False, parallel_attn=False, bias=True,
           alibi=True, num_kv_heads=4),
    family("Falcon Mamba", "falcon_mamba", state_size=8),
    family("Falcon H1", "falcon_h1", HEAD, STATE, mamba_d_ssm=64, mamba_n_heads=4),
    family("Bloom", "bloom", vocab_size=TOKENS, hidden_size=64, n_layer=3, n_head=4, bos_token_id=1,
           eos_token_id=0, base=False),
    family("MPT", "mpt", vocab_size=TOKENS, d_model=64, n_layers=3, n_heads=4, max_seq_len=512,
           base=False),
    family("gpt-oss", "gpt_oss", HEAD, LOCAL, SLIDING, intermediate_size=64),
    family("LFM 2", "lfm2", CONV),
    family("Granite 3", "granite", logits_scaling=8.0, attention_multiplier=0.0625,
           embedding_multiplier=2.0, residual_multiplier=0.5),
    family("Granite 4 (hybrid)", "granitemoehybrid", HYBRID, STATE, LOCAL,
           shared_intermediate_size=48),
    family("Bamba", "bamba", STATE, attn_layer_indices=[1, 3]),
    family("Jamba", "jamba", attn_layer_period=2, attn_layer_offset=1, expert_layer_period=2,
           expert_layer_offset=1, num_experts=2, num_experts_per_tok=1, mamba_d_state=8,
           mamba_dt_rank=8, use_mamba_kernels=False),
    family("Zamba 2", "zamba2", layers_block_type=["mamba", "hybrid", "mamba", "hybrid"],
           num_key_value_heads=4, n_mamba_heads=8, mamba_headdim=16, mamba_d_state=16,
           mamba_ngroups=1, chunk_size=8, hybrid_layer_ids=[1, 3], use_mem_rope=True,
           num_mem_blocks=1, attention_head_dim=32),
    family("Nemotron H", "nemotron_h", HEAD, mamba_num_heads=8, mamba_head_dim=16, ssm_state_size=16,
           n_groups=1, chunk_size=8, hybrid_override_pattern="M*M-"),
    family("OLMo 2", "olmo2"),
    family("OLMo 3", "olmo3", SLIDING),
    family("Command R", "cohere", tie_word_embeddings=True),
    family("Command R7B, Command A", "cohere2", SLIDING, tie_word_embeddings=True),
    family("SmolLM 3", "smollm3"),
    family("DeepSeek V3, R1", "deepseek_v3", LATENT),
    family("GLM 4", "glm4", HEAD),
    family("GLM 4.5 MoE", "glm4_moe", HEAD, EXPERTS, n_routed_experts=4, n_group=1, topk_group=1,
           first_k_dense_replace=1),
    family("StarCoder 2", "starcoder2", sliding_window=None),
    family("StableLM 2", "stablelm"),
    family("EXAONE 4", "exaone4", SLIDING, sliding_window_pattern=4),
    family("ERNIE 4.5", "ernie4_5", HEAD),
    family("Hunyuan", "hunyuan_v1_dense", HEAD),
    family("Seed-OSS", "seed_oss", HEAD),
    family("MiniMax", "minimax", HEAD, LOCAL, block_size=16),
    family("Mamba", "mamba", state_size=8),
    family("Mamba 2", "mamba2", state_size=16, num_heads=8, head_dim=16, expand=2, n_groups=1,
           chunk_size=8),
    family("RecurrentGemma", "recurrent_gemma", num_key_value_heads=1, lru_width=64,
           attention_window_size=WINDOW, num_hidden_layers=3),
    family("RWKV", "rwkv", attention_hidden_size=64, context_length=512),
    family("LFM 3", "lfm3", CONV),
    family("OLMo Hybrid", "olmo_hybrid", DELTA),
    family("Kimi Linear", "kimi_linear", LATENT, num_experts=4, num_experts_per_token=2,
           num_expert_group=1, linear_head_dim=16, linear_num_heads=4, model_max_length=512,
           layer_types=["linear_attention", "full_attention"] * 2,
           mlp_layer_types=["dense", "sparse", "sparse", "sparse"]),
    family("InternLM 3", "internlm3", HEAD),
    family("MiniCPM 3", "minicpm3", LATENT),
    family("Nemotron", "nemotron"),
    family("Arcee", "arcee"),
    family("Apertus", "apertus"),
    family("XGLM", "xglm", vocab_size=TOKENS, d_model=64, ffn_dim=96, num_layers=3, attention_heads=4,
           max_position_embeddings=512, bos_token_id=1, eos_token_id=0, pad_token_id=2, base=False),
    family("BioGPT", "biogpt"),
]  # fmt: skip
BY_TITLE = {one.title: one for one in FAMILIES}

SHARED = list(range(40, 100))  # token ids of a context
RESTS = [[101, 102, 103], [104] * 9, [105, 106], [107, 108, 109, 110, 111, 112], [113, 114, 115]]
ANSWERS = [
    [120, 121, 122],
    [123],
    [124, 125, 126, 127, 128, 129, 130],
    [131, 132],
    [133, 134, 135, 136],
]
PROMPTS = [SHARED + rest for rest in RESTS]
STUDENT_PROMPTS = [SHARED[:5] + rest for rest in RESTS]
LABELS = Branches.of({(120, 121), (120, 122, 123), (124,), (125, 121, 120)})
NODES = len(LABELS.nodes)


@dataclass(frozen=True)
class Verdict:
    """How instil computes with a family, and how far that is from the plainest way.

    Attributes:
        scoring: How rows with a shared context are scored.
        decoding: How they are decoded.
        training: How lessons are trained on.
        adapted: The layers that get an adapter by default.
        errors: Differences by what was compared: the largest ones in float32, mean ones in
            bfloat16 and float16, where single tokens differ by chance. `rounding` is how far the
            plainest way itself is from float32 there.
    """

    scoring: str
    decoding: str
    training: str
    adapted: str
    errors: dict[str, float]


def judge(folder: Path, *, dtype: str = "float32") -> Verdict:
    """Compares everything that instil computes with a model with the plainest way."""
    model = load(str(folder), dtype=dtype)
    reference = plain_model(folder, model)
    errors: dict[str, float] = {}

    reader = Reader(model, PROMPTS, [[a] for a in ANSWERS], packing=COMPLETIONS, batch_size=3)
    errors["scoring"] = 0.0
    for one in reader.read():
        with torch.inference_mode():
            made_NV = torch.cat(list(one.logits.chunks()))
        plain_NV = torch.cat([plain_logits(reference, PROMPTS[n], ANSWERS[n]) for n in one.rows])
        errors["scoring"] = max(errors["scoring"], apart(made_NV, plain_NV, model.network.dtype))
        prefix = reader._prefix.length if reader._prefix else 0
        packed = len(one.batch.input_ids_BL) == 1 < len(one.rows)
    scoring = ("packed, " if packed else "") + ("context once" if prefix else "context per row")

    errors["labels"] = labels(model, reference)
    errors["decoding"], decoding = decoded(model, reference)
    if model.network.dtype != torch.float32:
        exact = copy.deepcopy(reference).float()
        rows = list(zip(STUDENT_PROMPTS, ANSWERS, strict=True))
        errors["rounding"] = max(
            apart(plain_logits(reference, *row), plain_logits(exact, *row), reference.dtype)
            for row in rows
        )
    adapted, training, errors["gradients"], student = trained(model, folder, reference)
    errors["reloaded"] = reloaded(student, folder, reference)
    return Verdict(scoring, decoding, training, adapted, errors)


def labels(model: LanguageModel, reference: Any) -> float:
    """Largest difference at the nodes of labels of several tokens, with and without a context."""
    worst = 0.0
    for prompts in (PROMPTS, STUDENT_PROMPTS, PROMPTS[:1]):
        made = read_labels(
            model,
            prompts,
            LABELS,
            batch_size=3,
            advance=lambda rows, tokens: None,
            make=lambda chunks: {"logits": torch.cat(list(chunks)).reshape(-1, NODES, TOKENS)},
        )["logits"]
        for made_PV, prompt in zip(made, prompts, strict=True):
            plain = [plain_logits(reference, [*prompt, *node], [0]) for node in LABELS.nodes]
            worst = max(worst, apart(made_PV, torch.cat(plain).cpu(), model.network.dtype))
    return worst


def plain_model(folder: Path, model: LanguageModel) -> Any:
    """The same weights as transformers loads them."""
    network = AutoModelForCausalLM.from_pretrained(folder, dtype=model.network.dtype)
    return network.to(model.device).eval()


@torch.no_grad()
def plain_logits(network: Any, prompt: list[int], completion: list[int]) -> Tensor:
    """The textbook way: one row, no padding, no cache."""
    ids_BL = torch.tensor([prompt + completion[:-1]], device=network.device)
    logits = network(input_ids=ids_BL, use_cache=False).logits[0].float()
    return cast(Tensor, logits[len(prompt) - 1 :])


def apart(made_NV: Tensor, plain_NV: Tensor, dtype: torch.dtype) -> float:
    """Largest difference of log-probabilities in float32, mean KL in other dtypes, nats."""
    q_NV, p_NV = made_NV.log_softmax(-1), plain_NV.log_softmax(-1)
    if dtype == torch.float32:
        return float((q_NV - p_NV).abs().max())
    return float((p_NV.exp() * (p_NV - q_NV)).sum(-1).mean())


def decoded(model: LanguageModel, reference: Any) -> tuple[float, str]:
    """Greedy completions against argmax of whole forward passes.

    Returns:
        How far the logit of a chosen token is below the largest one, as in `Verdict.errors`; and
        the way.
    """
    ending = Ending(stop=[], ids=[], text=lambda ids: "")
    seen: list[int] = []
    usual = model.network.generate

    def watched(ids_BL: Tensor, **settings: Any) -> Any:
        cache = settings[CACHE]
        seen.append(0 if cache is None else int(cache.get_seq_length()))
        cached.append(settings["generation_config"].use_cache)
        return usual(ids_BL, **settings)  # type: ignore[operator]

    cached: list[bool] = []
    model.network.generate = watched  # type: ignore[assignment]
    made = generate(
        model, PROMPTS, ending, Decoding(max_new_tokens=8), advance=lambda rows, tokens: None
    )
    del model.network.generate
    below: list[float] = []
    for prompt, completion in zip(PROMPTS, made, strict=True):
        logits_TV = plain_logits(reference, prompt, completion.ids)
        chosen_T = logits_TV.gather(
            -1, torch.tensor(completion.ids, device=logits_TV.device)[:, None]
        )
        below += (logits_TV.amax(-1) - chosen_T[:, 0]).tolist()
    worst = max(below) if reference.dtype == torch.float32 else sum(below) / len(below)
    if not cached[-1]:
        return worst, "without a cache"
    return worst, "context once" if seen[-1] else "context per row"


def trained(
    model: LanguageModel, folder: Path, reference: Any
) -> tuple[str, str, float, LanguageModel]:
    """Loss and gradients of a training step, against plain PEFT row by row.

    Returns:
        The adapted layers, the way, the relative error of all gradients, and the student.
    """
    no_dropout(model.network)
    network = LoRA().apply(model.network, seed=0)
    plain = copy.deepcopy(reference)
    no_dropout(plain)
    plain = get_peft_model(plain, network.peft_config["default"])
    generator = torch.Generator().manual_seed(1)
    mine, theirs = dict(network.named_parameters()), dict(plain.named_parameters())
    learnt = [name for name, weight in mine.items() if weight.requires_grad]
    for name in learnt:
        if "lora_B" in name or "embedding_B" in name:
            mine[name].data = (torch.randn(mine[name].shape, generator=generator) * 0.05).to(
                mine[name]
            )
        theirs[name].data.copy_(mine[name].data)
    network.eval()

    rows = []
    for n, (prompt, completion) in enumerate(zip(STUDENT_PROMPTS, ANSWERS, strict=True)):
        logits_TV = torch.randn(len(completion), TOKENS, generator=generator) * 3
        targets = Targets.of(logits_TV, top_k=64, temperature=1.0)
        rows.append(TargetRow(n, prompt, completion, targets))
    collator = proven_collator(
        network, rows, batch_size=len(rows), pad_id=model.pad_id, online=None
    )
    objective = ForwardKL()
    with tempfile.TemporaryDirectory() as scratch:
        settings = sections.Training(batch_size=len(rows), max_steps=2)
        course = trainer.Course.of(settings, len(rows))
        arguments = trainer._arguments(
            settings, course, seed=0, folder=Path(scratch), resumable=False
        )
        ours = trainer.DistillationTrainer(
            model=network, args=arguments, train_dataset=trainer.Numbers(range(len(rows))),
            data_collator=collator, objective=objective, course=course,
            advance=lambda a, b: None, online=None,
        )  # fmt: skip
        batch = collator(range(len(rows)))
        network.train()
        for part in batch["parts"]:
            (ours._weighted(network, part, 1 / len(batch["labels"]))).backward()
    plain.train()
    for row in rows:
        ids_BL = torch.tensor([row.student_prompt + row.completion[:-1]], device=plain.device)
        logits_TV = plain(input_ids=ids_BL, use_cache=False).logits[0].float()
        targets = cast(Targets, row.targets).to(plain.device)
        completion = torch.tensor(row.completion, device=plain.device)
        loss_T = objective(logits_TV[len(row.student_prompt) - 1 :], completion, targets)
        (loss_T.sum() / len(batch["labels"])).backward()
    wrong = whole = 0.0
    for name in learnt:
        zero = torch.zeros_like(mine[name])
        a, b = (zero if one.grad is None else one.grad for one in (mine[name], theirs[name]))
        wrong += float((a - b).double().square().sum())
        whole += float(b.double().square().sum())
    network.eval()
    network.zero_grad()
    adapted = sorted({name.split(".lora_")[0].rpartition(".")[2] for name in learnt})
    way = collator.together.name.lower()
    error = (wrong / whole) ** 0.5
    return ", ".join(adapted), way, error, LanguageModel(**vars(model) | {"network": network})


def no_dropout(network: PreTrainedModel) -> None:
    """Turns dropout off, which would differ from pass to pass."""
    for module in network.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        for name, value in list(vars(module).items()):
            if "dropout" in name and isinstance(value, float):
                setattr(module, name, 0.0)


def reloaded(student: LanguageModel, folder: Path, reference: Any) -> float:
    """The adapter as plain PEFT loads it over the base, against the student in memory."""
    with tempfile.TemporaryDirectory() as scratch:
        LoRA().save(student.network, Path(scratch))
        again = PeftModel.from_pretrained(copy.deepcopy(reference), f"{scratch}/adapter").eval()
    rows = list(zip(STUDENT_PROMPTS, ANSWERS, strict=True))
    return max(
        apart(plain_logits(student.network, *row), plain_logits(again, *row), reference.dtype)
        for row in rows
    )


# How far a number may be from the plainest way in float32: log-probabilities and logits in nats,
# gradients as a share of their norm.
MOST_APART = {
    "scoring": 1e-3,
    "labels": 1e-3,
    "decoding": 1e-3,
    "gradients": 1e-4,
    "reloaded": 1e-3,
}
# The same for means in bfloat16 and float16. A model whose plainest way is further than `scoring`
# from float32 is chaotic in this dtype (RWKV with enlarged weights), and nothing can be compared.
MOST_APART_ROUNDED = {
    "scoring": 2e-2,
    "labels": 2e-2,
    "decoding": 5e-2,
    "gradients": 0.1,
    "reloaded": 5e-3,
}


def row(one: Family, verdict: Verdict) -> str:
    """The family's row of the table in the docs."""
    cells = [one.title, f"`{one.kind}`", verdict.scoring, verdict.decoding, verdict.training]
    return f"| {' | '.join(cells)} | {verdict.adapted} |"


def main() -> None:
    """Writes the table into the docs."""
    page = Path(__file__).parent.parent / "docs/reference/model-families.md"
    text = page.read_text(encoding="utf-8")
    start, end = (text.index(mark) for mark in ("| --- |", "<!-- families:end -->"))
    rows = []
    for one in FAMILIES:
        with tempfile.TemporaryDirectory() as folder:
            one.build(Path(folder))
            rows.append(row(one, judge(Path(folder))))
    start = text.index("\n", start) + 1
    page.write_text(
        text[:start] + "".join(f"{one}\n" for one in rows) + text[end:], encoding="utf-8"
    )


if __name__ == "__main__":
    main()
