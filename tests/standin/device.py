"""A stand-in accelerator, in Python: torch device type "standin", strict where real chips are.

What it is: a PrivateUse1 device whose tensors wrap CPU tensors. A CPU tensor that meets one of
them raises, as on a real chip, and `.numpy()` raises; so code that forgets a device or says "cpu"
or "cuda" fails here. What it is not: asynchronous, fast, or a model of any chip's arithmetic (it
has the CPU's bits), and it is one device with no collective of its own.

`install()` registers it in this process, once; PrivateUse1 holds one name per process, so it does
not go together with a vendor's package that took that name. Importing this module installs
nothing.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch.utils import backend_registration
from torch.utils._pytree import tree_flatten, tree_unflatten

NAME = "standin"

_aten = torch.ops.aten
# Operations that move numbers between devices: here a CPU tensor may meet one of ours.
_TRANSFERS = {_aten.copy_.default, _aten._to_copy.default, _aten._copy_from.default}
# Operations that torch would otherwise take apart for a device without a kernel of its own, where
# the CPU has one: with these the stand-in has the CPU's bits.
_OWN_KERNELS = ("silu_backward", "mish_backward", "native_channel_shuffle")
# Operations that change a tensor's shape in place, which a wrapper cannot follow.
_RESHAPING = {
    _aten.resize_.default,
    _aten.resize_as_.default,
    _aten.set_.source_Storage_storage_offset,
    _aten.set_.source_Tensor,
    _aten.t_.default,
    _aten.transpose_.default,
    _aten.squeeze_.default,
    _aten.squeeze_.dim,
    _aten.unsqueeze_.default,
    _aten.as_strided_.default,
}


class StandinTensor(torch.Tensor):
    """A tensor of the stand-in device; `inner` is the CPU tensor that holds its numbers."""

    inner: torch.Tensor

    @staticmethod
    def __new__(cls, inner: torch.Tensor) -> StandinTensor:
        assert type(inner) is torch.Tensor and inner.device.type == "cpu"
        made = torch.Tensor._make_wrapper_subclass(
            cls,
            inner.size(),
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            layout=inner.layout,
            device=torch.device(NAME, 0),
            requires_grad=False,
        )
        made.inner = inner
        return made

    def __tensor_flatten__(self) -> tuple[list[str], None]:
        return ["inner"], None

    @staticmethod
    def __tensor_unflatten__(
        inner_tensors: dict[str, torch.Tensor], meta: None, outer_size: Any, outer_stride: Any
    ) -> StandinTensor:
        return StandinTensor(inner_tensors["inner"])

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        return _run(func, args, kwargs or {})

    def tolist(self) -> Any:
        return self.detach().cpu().tolist()

    def __repr__(self, *, tensor_contents: Any = None) -> str:
        return f"standin({self.inner.detach()!r})"


def _unwrapped(value: Any, *, strict: bool, func: Any) -> Any:
    """The CPU side of one argument; a CPU tensor with dimensions raises where it may not mix."""
    if isinstance(value, StandinTensor):
        return value.inner
    if isinstance(value, torch.Tensor):
        # Real chips take a number that torch wrapped as a tensor without dimensions.
        if strict and value.dim() > 0:
            raise RuntimeError(
                f"{func}: a tensor of shape {tuple(value.shape)} on {value.device} meets one on "
                f"{NAME}: all tensors must be on the same device"
            )
        return value
    if isinstance(value, torch.device) and value.type == NAME:
        return torch.device("cpu")
    return value


@functools.cache
def _written(func: Any) -> tuple[tuple[int | str, ...], bool]:
    """Where the arguments are that this operation returns after writing to them."""
    places: list[int | str] = []
    for returned in func._schema.returns:
        if returned.alias_info is None or not returned.alias_info.is_write:
            continue
        for position, argument in enumerate(func._schema.arguments):
            alias = argument.alias_info
            if alias is not None and alias.before_set == returned.alias_info.before_set:
                places.append(argument.name if argument.kwarg_only else position)
    return tuple(places), len(places) == len(func._schema.returns) > 0


def _run(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Run an operation on the CPU side and put what comes out on the stand-in."""
    if func in _RESHAPING:
        raise NotImplementedError(f"{func}: the stand-in cannot change a shape in place")
    leaves, tree = tree_flatten((args, kwargs))
    strict = func not in _TRANSFERS
    plain = [_unwrapped(leaf, strict=strict, func=func) for leaf in leaves]
    inner_args, inner_kwargs = tree_unflatten(plain, tree)
    out = func(*inner_args, **inner_kwargs)
    places, all_written = _written(func)
    if all_written:
        returned = [kwargs[p] if isinstance(p, str) else args[p] for p in places]
        return returned[0] if len(returned) == 1 else tuple(returned)
    device = kwargs.get("device")
    if device is not None and torch.device(device).type != NAME:
        return out
    results, out_tree = tree_flatten(out)
    return tree_unflatten([_wrapped(result) for result in results], out_tree)


def _wrapped(value: Any) -> Any:
    if isinstance(value, torch.Tensor) and not isinstance(value, StandinTensor):
        return StandinTensor(value)
    return value


def _fallback(func: Any, *args: Any, **kwargs: Any) -> Any:
    """Operations that reach the device without a tensor of it: the factories."""
    return _run(func, args, kwargs)


class _Module:
    """What torch expects to find as `torch.standin`."""

    def is_available(self) -> bool:
        return True

    def is_initialized(self) -> bool:
        return True

    def device_count(self) -> int:
        return 1

    def current_device(self) -> int:
        return 0

    def set_device(self, device: Any) -> None:
        assert torch.device(NAME, 0) == torch.device(device) or device == 0

    def synchronize(self, device: Any = None) -> None:
        pass

    def get_device_name(self, index: int = 0) -> str:
        return "stand-in"

    def _is_in_bad_fork(self) -> bool:
        return False

    def manual_seed_all(self, seed: int) -> None:
        pass


_libraries: list[torch.library.Library] = []


def install() -> None:
    """Register the device in this process; a second call does nothing."""
    if _libraries or hasattr(torch, NAME):
        return
    backend_registration._setup_privateuseone_for_python_backend(NAME, _Module())
    library = torch.library.Library("_", "IMPL")
    library.fallback(_fallback, "PrivateUse1")
    own = torch.library.Library("aten", "IMPL")
    for name in _OWN_KERNELS:
        func = getattr(_aten, name).default
        own.impl(name, functools.partial(_fallback, func), "PrivateUse1")
    _libraries.extend([library, own])
