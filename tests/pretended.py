"""A CUDA device that is none, for machines without a GPU: what mixes devices fails as it would on one.

Its tensors lie in memory and compute there, but say that they are on cuda:0. A call that takes tensors of both devices, or
hands one to numpy, raises; `.to` and `.cpu` go between them. No number is a GPU's: this tells whether the code would run.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map

CUDA, CPU = torch.device("cuda", 0), torch.device("cpu")
# What a GPU's tensors say of themselves.
SAID = {"device": CUDA, "is_cuda": True, "is_cpu": False}
MOVES = ("to", "cpu", "cuda", "copy_", "__set__")


class Pretended(torch.Tensor):
    """A tensor that says it is on cuda:0."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _called(func, args, kwargs or {})


class _Mode(TorchFunctionMode):
    """As `Pretended`, for calls without such a tensor: what makes one on a device that is named."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _called(func, args, kwargs or {})


@contextmanager
def pretended_cuda(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    class Event:
        def record(self) -> None: ...
        def synchronize(self) -> None: ...

    answers = {
        "is_available": True, "device_count": 1, "is_initialized": False, "current_device": 0, "set_device": None,
        "is_bf16_supported": True, "mem_get_info": (8 << 30, 8 << 30), "get_device_name": "pretended",
    }  # fmt: skip
    with monkeypatch.context() as patched, _Mode():
        for name, answer in answers.items():
            patched.setattr(torch.cuda, name, lambda *_, answer=answer, **__: answer)
        patched.setattr(torch.cuda, "Event", Event)
        patched.setattr(torch.nn.Module, "to", _module_to)
        yield


_moved = torch.nn.Module.to


def _module_to(network: torch.nn.Module, *args: Any, **kwargs: Any) -> torch.nn.Module:
    """`Module.to`, which would leave the parameters the objects that they are: for networks that are not trained."""
    if not args or torch.device(args[0]).type != "cuda":
        return _moved(network, *args, **kwargs)
    for module in network.modules():
        for tensors in (module._parameters, module._buffers):
            for name, tensor in tensors.items():
                tensors[name] = None if tensor is None else tensor.detach().to(CUDA)  # type: ignore[assignment]
    return network


def _called(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    if func is torch.device:
        return func(*args, **kwargs)
    name = getattr(func, "__name__", "")
    attribute = getattr(getattr(func, "__self__", None), "__name__", "") if name == "__get__" else ""
    if name == "pin_memory":
        return args[0]
    if attribute in SAID:
        return SAID[attribute] if isinstance(args[0], Pretended) else func(*args, **kwargs)
    tensors = [each for each in tree_leaves((args, kwargs)) if isinstance(each, torch.Tensor)]
    here = [each for each in tensors if isinstance(each, Pretended)]
    if here and name in ("numpy", "__array__"):
        raise TypeError("can't convert cuda:0 device type tensor to numpy")
    if name not in MOVES:
        _check_one_device(name, args, here, [each for each in tensors if not isinstance(each, Pretended)])
    target = _target(name, args, kwargs, bool(here))
    with torch._C.DisableTorchFunction():
        made = func(
            *tree_map(_on_cpu, args), **{key: _on_cpu(value) for key, value in kwargs.items() if key != "pin_memory"}
        )
    moved = name in ("to", "cpu", "cuda") and isinstance(args[0], Pretended) != (target == CUDA)
    return tree_map(lambda each: _as(each, target, moved=moved) if isinstance(each, torch.Tensor) else each, made)


def _check_one_device(name: str, args: Any, here: list[torch.Tensor], there: list[torch.Tensor]) -> None:
    if name == "__setitem__" and isinstance(args[2], torch.Tensor):
        # Values are copied, whatever their device.
        here, there = ([each for each in side if each is not args[2]] for side in (here, there))
    if name in ("__getitem__", "__setitem__") and isinstance(args[0], Pretended):
        # As CUDA does: indices may lie in memory.
        return
    # A scalar tensor in memory counts as a number.
    if here and any(each.dim() for each in there):
        raise RuntimeError(f"Expected all tensors to be on the same device, but found cuda:0 and cpu ({name})")


def _target(name: str, args: Any, kwargs: dict[str, Any], here: bool) -> torch.device:
    """Where the result is to lie."""
    named = kwargs.get("device")
    if name == "to":
        for given in args[1:]:
            if isinstance(given, torch.Tensor):
                named = given.device
            elif isinstance(given, str | torch.device):
                named = given
    if name == "cpu" or (name == "copy_" and not isinstance(args[0], Pretended)):
        return CPU
    if named is None:
        return CUDA if here or name == "cuda" else CPU
    return CUDA if torch.device(named).type == "cuda" else CPU


def _on_cpu(value: Any) -> Any:
    """A device's name, as the call is really to get it."""
    if isinstance(value, torch.device) or (isinstance(value, str) and value.split(":")[0] == "cuda"):
        return CPU
    return value


def _as(tensor: torch.Tensor, target: torch.device, *, moved: bool) -> torch.Tensor:
    with torch._C.DisableTorchFunction():
        # Between devices there is no sharing of memory.
        tensor = tensor.as_subclass(torch.Tensor).clone() if moved else tensor
        if target == CUDA:
            return tensor if isinstance(tensor, Pretended) else tensor.as_subclass(Pretended)
        return tensor.as_subclass(torch.Tensor) if isinstance(tensor, Pretended) else tensor
