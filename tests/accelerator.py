"""A pretended accelerator: finds tensors of two devices that meet, on a machine without one.

Numbers are computed on the processor. A tensor that was moved to the accelerator is marked, and
says of itself that it is there. What is computed from it is marked, too. An operation that a real
accelerator would refuse, because some of its tensors are marked and others are not, raises
`Mixed`. Only the marks are pretended, so all numbers are right.

Tests can run on it: `python -m pytest -m "not slow" -p tests.accelerator FILE`. Gradient checkpointing
cannot: what is computed again within the backward pass loses the marks.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import Mock, patch

import pytest
import torch
from accelerate.state import AcceleratorState, PartialState
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import TrainingArguments

DEVICE = torch.device("cuda", 0)
# Operations that accept tensors of two devices: copies, and indices that lie on the processor.
COPIES = ("copy_", "_to_copy", "set_", "resize_as_", "_has_compatible_shallow_copy_type")
INDEXING = ("index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index")
GENERATOR = torch.Generator


class Mixed(BaseException):
    """Tensors of two devices met in one operation. No `except Exception` hides it."""


def there(tensor: torch.Tensor) -> bool:
    """Whether a tensor is on the pretended accelerator."""
    with torch._C.DisableTorchFunction():
        return getattr(tensor.untyped_storage(), "there", False)


def put(made: Any) -> Any:
    """Marks the tensors among what an operation has made."""
    with torch._C.DisableTorchFunction():
        for one in tree_leaves(made):
            if isinstance(one, torch.Tensor):
                one.untyped_storage().there = True  # type: ignore[attr-defined]
    return made


def tensors(values: Any) -> list[torch.Tensor]:
    return [one for one in tree_leaves(values) if isinstance(one, torch.Tensor)]


class _Watch(TorchDispatchMode):
    """Marks what is computed from marked tensors, and refuses mixtures.

    Attributes:
        inside: Whether an operation of many steps runs, whose own tensors are all there.
    """

    inside = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func.overloadpacket.__name__
        given = tensors((args, kwargs))
        marked = [there(one) for one in given]
        made = func(*args, **kwargs)
        if self.inside:
            return put(made)
        if not any(marked) or name in ("_local_scalar_dense", "copy_"):
            return made
        if name in INDEXING:
            if not marked[0]:
                raise Mixed(f"{name}: an index is on the accelerator, and the tensor is not")
        elif name not in COPIES:
            apart = [one for one, on in zip(given, marked, strict=True) if not on and one.dim() > 0]
            if apart:
                shapes = ", ".join(str(tuple(one.shape)) for one in apart)
                raise Mixed(f"{name}: tensors of shape {shapes} are not on the accelerator")
        return put(made)


class _Place(TorchFunctionMode):
    """Understands the accelerator's name where a device is named."""

    def __init__(self, watch: _Watch) -> None:
        super().__init__()
        self.watch = watch

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        name = getattr(func, "__name__", "")
        first = args[0] if args and isinstance(args[0], torch.Tensor) else None
        if func == torch.Tensor.device.__get__:  # type: ignore[attr-defined]
            return DEVICE if there(first) else func(*args)  # type: ignore[arg-type]
        if func == torch.Tensor.is_cuda.__get__:  # type: ignore[attr-defined]
            return there(first)  # type: ignore[arg-type]
        if name == "numpy" and first is not None and there(first) and not kwargs.get("force"):
            raise Mixed("numpy() of a tensor on the accelerator")
        if name == "scaled_dot_product_attention" and first is not None and there(first):
            if not all(map(there, tensors((args, kwargs)))):
                raise Mixed("scaled_dot_product_attention: not all tensors are on the accelerator")
            with patch.object(self.watch, "inside", new=True):
                return func(*args, **kwargs)
        generator = kwargs.get("generator")
        drawn = generator is not None and first is not None
        if drawn and isinstance(generator, _Generator) != there(first):  # type: ignore[arg-type]
            raise Mixed(f"{name}: the generator is not on the device of the tensor")
        if name == "pin_memory":
            return first
        if name == "__deepcopy__" and first is not None:
            made = func(*args, **kwargs)
            return put(made) if there(first) else made
        if first is not None and name in ("to", "cpu", "cuda", "type_as"):
            return self._moved(func, name, first, args, kwargs)
        named = kwargs.get("device")
        if named is not None and _is_there(named):
            return put(func(*args, **kwargs | {"device": "cpu"}))
        return func(*args, **kwargs)

    def _moved(
        self, func: Any, name: str, tensor: torch.Tensor, args: Any, kwargs: dict[str, Any]
    ) -> Any:
        """What `to` and its sisters give: a marked copy, an unmarked copy, or the tensor itself."""
        wanted = there(tensor)
        if name in ("cpu", "cuda"):
            wanted, args, kwargs = name == "cuda", (tensor,), {}
            func = torch.Tensor.to
            kwargs = {"device": "cpu"}
        elif name == "type_as":
            wanted = there(args[1])
        else:
            arguments = []
            for one in args[1:]:
                if isinstance(one, torch.Tensor):
                    wanted = there(one)
                elif isinstance(one, str | torch.device | int) and not isinstance(one, bool):
                    wanted, one = _is_there(one), torch.device("cpu")
                arguments.append(one)
            if kwargs.get("device") is not None:
                wanted = _is_there(kwargs["device"])
                kwargs["device"] = "cpu"
            kwargs.pop("non_blocking", None)
            args = (tensor, *arguments)
        made = func(*args, **kwargs)
        if there(made) == wanted:
            return made
        with torch._C.DisableTorchFunction():
            made = made.clone()
            if wanted:
                return put(made)
            made.untyped_storage().there = False
            return made


class _Generator(GENERATOR):  # type: ignore[valid-type,misc]
    """A generator of the accelerator."""


def _generator(device: Any = None) -> torch.Generator:
    return _Generator() if device is not None and _is_there(device) else GENERATOR()


def _is_there(device: Any) -> bool:
    if isinstance(device, int):
        return True
    return torch.device(device).type == DEVICE.type


@contextmanager
def pretended() -> Iterator[None]:
    """Lets the block run as if there was an accelerator."""
    setup = TrainingArguments.__dict__["_setup_devices"]

    def device(self: Any) -> torch.device:
        if "_there" not in vars(self):  # only once, as accelerate's state is made new
            with patch.object(self, "use_cpu", new=True):
                setup.__get__(self, type(self))
            vars(self)["_there"] = True
        PartialState._shared_state["device"] = DEVICE
        return DEVICE

    autocast = torch.autocast.__init__

    def cast(self: Any, device_type: str, *args: Any, **kwargs: Any) -> None:
        autocast(self, "cpu" if device_type == DEVICE.type else device_type, *args, **kwargs)

    def on_processor(name: str) -> Any:
        usual = getattr(torch, name)

        def asked(device_type: str = DEVICE.type) -> Any:
            return usual("cpu" if device_type == DEVICE.type else device_type)

        return patch.object(torch, name, asked)

    accelerator = torch.accelerator
    watch = _Watch()
    with ExitStack() as stack:
        for change in (
            patch.object(accelerator, "current_accelerator", lambda check_available=False: DEVICE),
            patch.object(accelerator, "is_available", lambda: True),
            patch.object(accelerator, "current_stream", lambda: Mock(is_capturing=lambda: False)),
            patch.object(torch.cuda, "is_bf16_supported", lambda: False),
            patch.object(TrainingArguments, "_setup_devices", property(device)),
            patch.object(torch, "Generator", _generator),
            patch.object(torch.autocast, "__init__", cast),
            on_processor("is_autocast_enabled"),
            on_processor("get_autocast_dtype"),
            warnings.catch_warnings(),
            watch,
            _Place(watch),
        ):
            stack.enter_context(change)
        warnings.filterwarnings("ignore", message=".*pin_memory.*")
        try:
            yield
        finally:
            AcceleratorState._reset_state(reset_partial_state=True)


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_protocol() -> Iterator[None]:
    """As a plugin: each test with its fixtures runs as if there was an accelerator."""
    with pretended():
        yield
