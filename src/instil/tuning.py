"""Which weights a student may change."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import BaseModel, ConfigDict, Field

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel


class LoRA(BaseModel):
    """Low-rank adapters on every linear layer (Hu et al. 2021, arXiv:2106.09685)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Literal["lora"] = "lora"
    r: int = Field(8, ge=1)
    alpha: int = Field(16, ge=1)
    dropout: float = Field(0.0, ge=0, lt=1)

    def apply(self, model: PreTrainedModel, *, seed: int) -> PeftModel:
        """Wraps `model`; its own weights are frozen and shared, not copied.

        The adapter starts as a no-op (B = 0), so the student starts as the base model. Its weights are float32
        whatever the base's dtype.
        """
        from peft import LoraConfig, get_peft_model
        from transformers import set_seed
        from transformers.pytorch_utils import Conv1D

        set_seed(seed)
        config = LoraConfig(
            r=self.r,
            lora_alpha=self.alpha,
            lora_dropout=self.dropout,
            target_modules="all-linear",
            # GPT-2 keeps its weights transposed.
            fan_in_fan_out=any(isinstance(module, Conv1D) for module in model.modules()),
            task_type="CAUSAL_LM",
        )
        return get_peft_model(model, config)
