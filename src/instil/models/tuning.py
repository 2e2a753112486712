"""Which weights of a student are trained. They are always float32; see `load.load_for_training`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field

from instil.errors import TuningError
from instil.system import processes
from instil.system.settings import Settings

if TYPE_CHECKING:
    from pathlib import Path

    from peft import PeftModel
    from transformers import PreTrainedModel


class LoRA(Settings):
    """Low-rank adapters on linear layers (Hu et al. 2021, arXiv:2106.09685)."""

    trains_base: ClassVar[bool] = False

    name: Literal["lora"] = "lora"
    r: int = Field(8, ge=1)
    alpha: int = Field(16, ge=1)
    dropout: float = Field(0.0, ge=0, lt=1)
    modules: tuple[str, ...] | None = Field(
        None,
        min_length=1,
        description="names of the layers with an adapter, such as q_proj; null: every linear layer "
        "of the text decoder but its output layer, routers of experts, and the layers of a "
        "state-space mixer that kernels read directly",
    )
    layers: tuple[int, ...] | None = Field(
        None,
        min_length=1,
        description="numbers of the decoder's blocks whose linear layers have an adapter, from 0; null: "
        "all blocks",
    )

    def apply(self, model: PreTrainedModel, *, seed: int, head: str | None = None) -> PeftModel:
        """Wraps `model` with an adapter; the model's own weights are frozen and shared, not copied.

        At first the adapter has no effect (B = 0), so the student starts as the base model. The
        adapter's weights are float32 whatever the base's dtype.

        Args:
            model: The base.
            seed: Seed of the adapter's initial weights.
            head: Name of a new classification head; all its weights are trained.

        Raises:
            TuningError: `modules` or `layers` names a layer that cannot have an adapter, or the model
                is quantised in a way that cannot be trained.
        """
        from peft import LoraConfig, get_peft_model
        from transformers import set_seed
        from transformers.pytorch_utils import Conv1D

        from instil.models import adaptable, low_rank

        _check_quantised(model, trains_base=False)
        if getattr(model, "hf_quantizer", None) is not None and processes.split_layers():
            raise TuningError(
                "FSDP splits the layers of the student, and weights in few bits cannot be split",
                mend="start the processes without --use_fsdp, or leave quantization out",
            )
        layers = adaptable.targets(
            model, self.modules, self.layers, r=self.r, lora_alpha=self.alpha
        )
        set_seed(seed)
        config = LoraConfig(
            **layers,
            lora_dropout=self.dropout,
            modules_to_save=[head] if head else None,
            # GPT-2 stores its weights transposed.
            fan_in_fan_out=any(isinstance(module, Conv1D) for module in model.modules()),
            task_type="CAUSAL_LM",
        )
        try:
            network = get_peft_model(model, config)
        except ValueError as error:
            raise TuningError(
                f"peft cannot put an adapter on {type(model).__name__}",
                got=str(error).splitlines()[0],
                mend="name other layers in tuning.modules (on the command line, "
                "--set 'tuning.modules=[NAME, NAME]')",
            ) from None
        low_rank.install(network)
        return network

    def save(self, network: Any, folder: Path, *, head: bool = False) -> None:
        """Writes the adapter in PEFT's format."""
        network.save_pretrained(folder / "adapter", save_embedding_layers=False)


class Full(Settings):
    """All weights."""

    trains_base: ClassVar[bool] = True

    name: Literal["full"] = "full"

    def apply(
        self, model: PreTrainedModel, *, seed: int, head: str | None = None
    ) -> PreTrainedModel:
        """Makes every weight of `model` trainable.

        Raises:
            TuningError: the model is quantised.
        """
        _check_quantised(model, trains_base=True)
        return model.requires_grad_(True)

    def save(self, network: Any, folder: Path, *, head: bool = False) -> None:
        """Writes the full model in transformers' format.

        transformers has no class for a model with our classification head. Such a model is written
        as with BitFit.
        """
        if head:
            _save_trained(network, folder)
        else:
            network.save_pretrained(folder / "model")


class BitFit(Settings):
    """Only bias terms (Ben Zaken et al. 2022, arXiv:2106.10199)."""

    trains_base: ClassVar[bool] = True

    name: Literal["bitfit"] = "bitfit"

    def apply(
        self, model: PreTrainedModel, *, seed: int, head: str | None = None
    ) -> PreTrainedModel:
        """Makes the bias terms of `model` trainable, and a new head.

        Raises:
            TuningError: the model is quantised, or has no bias terms, so there is nothing to train.
        """
        _check_quantised(model, trains_base=True)
        biases = [name for name, _ in model.named_parameters() if name.endswith("bias")]
        if not biases:
            raise TuningError(
                "bitfit trains bias terms, but "
                f"{model.name_or_path or type(model).__name__} has none",
                got=f"{type(model).__name__} with 0 bias terms",
                allowed="a model with biases, such as OPT or GPT-2",
                mend="use tuning: {name: lora} or full",
            )
        for name, weight in model.named_parameters():
            weight.requires_grad_(name.endswith("bias") or bool(head and name.startswith(head)))
        return model

    def save(self, network: Any, folder: Path, *, head: bool = False) -> None:
        """Writes only the trained weights. Load them over the base with `strict=False`."""
        _save_trained(network, folder)


def _check_quantised(model: PreTrainedModel, *, trains_base: bool) -> None:
    """Refuses a quantised model that cannot be trained, before the teacher's work.

    Raises:
        TuningError: as above.
    """
    quantiser: Any = getattr(model, "hf_quantizer", None)
    if quantiser is not None and (trains_base or not quantiser.is_trainable):
        raise TuningError(
            f"{model.name_or_path} is quantised, and its weights cannot be trained"
            if trains_base
            else f"{model.name_or_path} is quantised in a way that an adapter cannot be trained on",
            got=str(quantiser.quantization_config.quant_method),
            mend="use the model in bfloat16",
        )


def _save_trained(network: Any, folder: Path) -> None:
    from safetensors.torch import save_file

    trained = {n: p.detach().contiguous() for n, p in network.named_parameters() if p.requires_grad}
    save_file(trained, folder / "trained.safetensors")


Tuning = Annotated[LoRA | Full | BitFit, Field(discriminator="name")]
