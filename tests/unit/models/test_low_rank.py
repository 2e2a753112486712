"""The linear layer with its adapter in one operation, against PEFT's own layer."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft.tuners import lora
from tests.conftest import tiny_llama, tiny_opt
from torch import Tensor

from instil.models.low_rank import LowRankLinear, install
from instil.models.tuning import LoRA


def adapted(dtype: torch.dtype, *, bias: bool, **settings: Any) -> Any:
    """A layer from 6 to 10 with an adapter that is no no-op."""
    torch.manual_seed(0)
    base = torch.nn.Sequential(torch.nn.Linear(6, 10, bias=bias)).to(dtype)
    config = LoraConfig(r=3, lora_alpha=7, target_modules=["0"], **settings)
    network = get_peft_model(base, config).train()  # type: ignore[arg-type]
    torch.nn.init.normal_(network.base_model.model[0].lora_B["default"].weight)
    return network


def outcome(network: Any, x: Tensor) -> list[Tensor]:
    """The output, the gradient of the inputs, and that of each trained weight."""
    torch.manual_seed(1)  # of the dropout
    given = x.clone().requires_grad_()
    made = network(given)
    trained = [p for p in network.parameters() if p.requires_grad]
    return [made, *torch.autograd.grad(made.square().sum(), [given, *trained])]


@pytest.mark.parametrize(
    ("bias", "dropout", "shape"), list(product([False, True], [0.0, 0.5], [(5, 6), (2, 4, 6)]))
)
def test_output_and_gradients_are_pefts(bias: bool, dropout: float, shape: tuple[int, ...]) -> None:
    network = adapted(torch.float64, bias=bias, lora_dropout=dropout)
    x = torch.randn(shape, dtype=torch.float64)
    theirs = outcome(network, x)
    install(network)
    assert type(network.base_model.model[0]) is LowRankLinear
    ours = outcome(network, x)
    for one, other in zip(ours, theirs, strict=True):
        assert one.dtype == other.dtype
        assert torch.allclose(one, other, rtol=1e-5, atol=1e-5)  # PEFT keeps adapters in float32


def test_in_bfloat16_it_errs_by_no_more_than_its_rounding() -> None:
    network = adapted(torch.bfloat16, bias=True)
    x = torch.randn(64, 6, dtype=torch.bfloat16)
    install(network)
    ours = outcome(network, x)
    exact = outcome(network.double(), x.double())
    assert ours[2].dtype == torch.float32  # the adapter's
    for mine, right in zip(ours, exact, strict=True):
        assert (mine - right).norm() < 2**-7 * right.norm()


def test_inputs_that_need_no_gradient_get_none() -> None:
    network = adapted(torch.float32, bias=False)
    install(network)
    network(torch.randn(4, 6)).sum().backward()
    layer = network.base_model.model[0]
    assert layer.lora_A["default"].weight.grad.abs().sum() > 0
    assert layer.get_base_layer().weight.grad is None


@pytest.mark.parametrize(
    "state", ["disabled", "merged", "float16", "dora", "two adapters", "autocast"]
)
def test_what_it_has_no_operation_for_is_pefts(state: str) -> None:
    dtype = torch.float16 if state == "float16" else torch.float32
    network = adapted(dtype, bias=True, use_dora=state == "dora")
    layer, x = network.base_model.model[0], torch.randn(4, 6).to(dtype)
    if state == "two adapters":
        network.add_adapter("other", LoraConfig(r=2, target_modules=["0"], init_lora_weights=False))
        network.base_model.set_adapter(["default", "other"])
    elif state == "disabled":
        layer.enable_adapters(False)
    elif state == "merged":
        layer.merge()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=state == "autocast"):
        before = network(x)
        install(network)
        assert isinstance(layer, LowRankLinear)
        assert torch.equal(network(x), before)


def test_layers_that_are_not_plainly_linear_are_left_alone() -> None:
    quantised = type("Quantised", (torch.nn.Linear,), {})
    network = adapted(torch.float32, bias=True)
    network.base_model.model[0].base_layer.__class__ = quantised
    install(network)
    assert type(network.base_model.model[0]) is lora.Linear


@pytest.mark.parametrize("build", [tiny_llama, tiny_opt])
def test_every_linear_layer_of_a_student_runs_so(build: Any) -> None:
    network = LoRA(r=2).apply(build(40), seed=0)
    layers = [module for module in network.modules() if isinstance(module, lora.Linear)]
    assert layers
    assert all(type(module) is LowRankLinear for module in layers)
