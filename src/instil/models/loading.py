"""How a model's weights are loaded: in few bits, over several devices, with another attention."""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from instil.errors import TuningError, UnknownModelError
from instil.system.settings import Settings

if TYPE_CHECKING:
    import torch


class Quantization(Settings):
    """Weights in 4 or 8 bits (bitsandbytes), with an adapter on them: QLoRA.

    4 bits are NF4 with double quantisation (Dettmers et al. 2023, arXiv:2305.14314), 8 bits are
    LLM.int8 (Dettmers et al. 2022, arXiv:2208.07339).
    """

    bits: Literal[4, 8] = Field(4, description="Bits of a weight.")
    teacher: bool = Field(
        True,
        description="Whether the teacher is quantised, too. false: it is a second copy of the "
        "weights, in dtype.",
    )


class Loading(Settings):
    """How a model's weights are loaded."""

    quantization: Quantization | None = None
    device_map: Literal["auto"] | None = None
    attn_implementation: str | None = None

    @property
    def in_dtype(self) -> Loading:
        """The same without quantisation."""
        return self.model_copy(update={"quantization": None})

    @property
    def of_teacher(self) -> Loading:
        """How the teacher is loaded, if it is a copy of its own."""
        whole = self.quantization is not None and not self.quantization.teacher
        return self.in_dtype if whole else self

    @property
    def identity(self) -> list[str]:
        """What changes the predictions of a model that is loaded in this way."""
        return [] if self.quantization is None else [f"bitsandbytes, {self.quantization.bits} bits"]

    def options(self, name: str, dtype: torch.dtype, *, quantised: bool) -> dict[str, Any]:
        """The arguments of `from_pretrained`.

        Args:
            name: The name of the model that the user gave.
            dtype: Number format in which the model computes.
            quantised: Whether its files hold quantised weights.

        Raises:
            UnknownModelError: the model is quantised already, or a library is missing.
            TuningError: several processes were started, and one model is to use all devices.
        """
        from instil.models.number_format import default_device
        from instil.system import processes

        made: dict[str, Any] = {"dtype": dtype}
        if self.attn_implementation is not None:
            made["attn_implementation"] = self.attn_implementation
        if self.device_map is not None:
            if processes.count() > 1:
                raise TuningError(
                    "device_map: auto spreads one model over all devices",
                    got=f"{processes.count()} processes, each with a model of its own",
                    mend="start one process, or leave device_map out",
                )
            made["device_map"] = self.device_map
        if self.quantization is not None:
            if quantised:
                raise UnknownModelError(
                    f"{name} is quantised already",
                    got="a quantization_config in its config.json, and quantization in the recipe",
                    mend="leave quantization out, or use the model in bfloat16",
                )
            made["quantization_config"] = _bitsandbytes(self.quantization.bits, dtype)
            made.setdefault("device_map", {"": default_device()})
        return made

    def check(self, name: str, network: Any) -> None:
        """Refuses a model of which a part did not fit the accelerators.

        Args:
            name: The name of the model that the user gave.
            network: The loaded model.

        Raises:
            UnknownModelError: names how many of its parts were left outside.
        """
        from instil.models.number_format import default_device

        places = getattr(network, "hf_device_map", {})
        outside = [part for part, place in places.items() if str(place) in ("cpu", "disk")]
        if default_device().type != "cpu" and outside:
            raise UnknownModelError(
                f"{name} does not fit the memory of the accelerators",
                got=f"{len(outside)} of {len(places)} parts left outside, such as {outside[0]}",
                mend="load it in fewer bits (quantization: {bits: 4}), or use larger accelerators",
            )


def check_library() -> None:
    """Refuses to go on without the library that quantises.

    Raises:
        UnknownModelError: it is not installed.
    """
    if find_spec("bitsandbytes") is None:
        raise UnknownModelError(
            "weights in few bits need the library bitsandbytes", mend="pip install 'instil[quant]'"
        )


def _bitsandbytes(bits: int, dtype: torch.dtype) -> Any:
    check_library()
    from transformers import BitsAndBytesConfig

    made: Any = BitsAndBytesConfig
    if bits == 8:
        return made(load_in_8bit=True)
    return made(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )
