"""The ops as torch operators, `torch.ops.chipmunk_kernels.*`.

Every operator is an out-variant: it returns nothing and declares what it writes, so that
torch.compile, functionalisation and CUDA graphs see the truth. `ck.*` functions allocate the
outputs and call these. Registered on import, which happens with that of `chipmunk_kernels` if torch
is there by then, else when an op first sees a tensor.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from chipmunk_kernels import _core
from chipmunk_kernels.arguments import type_name
from chipmunk_kernels.ops import checked
from chipmunk_kernels.ops.columns import ColumnLists
from chipmunk_kernels.ops.mlp import MlpCache
from chipmunk_kernels.ops.schemas import OPS, Op

# `Any`: torch leaves the types of these open
_torch: Any = torch
_torch_library: Any = torch.library
_forward_ad: Any = torch.autograd.forward_ad

# torch >= 2.10 tells its current stream through DLPack's exchange table, and lends tensors that
# require grad; from older ones both are fetched here.
_HAS_EXCHANGE_TABLE = hasattr(Tensor, "__dlpack_c_exchange_api__")


def _to_host(tensor: Tensor) -> Tensor:
    return tensor.detach().cpu()


def _on_cpu(op: Op, call: Callable[..., None]) -> Callable[..., None]:
    def run(*args: Any) -> None:
        if _may_want_gradients(args):
            _refuse_gradients(op, args)
        if not _HAS_EXCHANGE_TABLE:
            args = _detached(args)
        if _core.checks_enabled():
            checked.check(op, args, _to_host)
        call(*args, torch.get_num_threads())

    return run


def _on_cuda(op: Op, call: Callable[..., None]) -> Callable[..., None]:
    def run(*args: Any) -> None:
        if _may_want_gradients(args):
            _refuse_gradients(op, args)
        if _core.checks_enabled():
            checked.check(op, args, _to_host)
        if _HAS_EXCHANGE_TABLE:
            call(*args)
            return
        device = next(a.device for a in args if isinstance(a, Tensor) and a.is_cuda)
        with torch.cuda.device(device):
            call(*_detached(args), stream=torch.cuda.current_stream(device).cuda_stream)

    return run


def _detached(args: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(a.detach() if isinstance(a, Tensor) else a for a in args)


def _fake(op: Op) -> Callable[..., None]:
    """Outputs are arguments already; all that is left is to refuse what the op would refuse."""

    def run(*args: Any) -> None:
        _refuse_gradients(op, args)
        first = args[0]
        for argument, arg in zip(op.arguments, args, strict=True):
            if isinstance(arg, Tensor) and arg.device != first.device:
                expected = f"device {first.device} as {op.arguments[0].public}"
                raise ValueError(
                    f"{op.name}: {argument.public}: expected {expected}, got {arg.device}"
                )
        try:
            known = {name: _known(arg) for name, arg in zip(op.names, args, strict=True)}
        except _UnknownSize:
            return  # it is known when the op runs
        if "seed" in known:
            known["seed"] = 0  # none is drawn for a call that only checks
        getattr(_core, op.name)(**known)

    return run


class _UnknownSize(Exception):
    """A size that depends on data."""


def _known(value: Any) -> Any:
    """What the extension can look at: shapes for tensors, the example's sizes for symbols."""
    if isinstance(value, Tensor):
        shape, strides = ([_known(n) for n in numbers] for numbers in (value.shape, value.stride()))
        dtype = str(value.dtype).removeprefix("torch.")
        device = value.device
        return _core.ShapeOnly(
            shape, strides, dtype, device.index if device.type == "cuda" else None
        )
    if isinstance(value, (torch.SymInt, torch.SymFloat)):
        node: Any = getattr(value, "node")  # noqa: B009  (torch leaves its type open)
        if not node.has_hint():
            raise _UnknownSize
        return node.hint
    return value


def _under_vmap(op: Op) -> Callable[..., None]:
    def run(*args: Any) -> None:
        del args
        raise _core.UnsupportedError(
            f"{op.name}: has no batching rule for torch.vmap; call it on the whole batch"
        )

    return run


def _under_functorch(op: Op) -> Callable[..., None]:
    """Of a level of torch.func.grad, jvp and their like: only here are its gradients seen."""

    def run(*args: Any) -> None:
        _refuse_gradients(op, args)
        functorch: Any = importlib.import_module("torch._functorch.pyfunctorch")
        level = functorch.retrieve_current_functorch_interpreter()
        unwrap: Callable[[Tensor, int], Tensor] = _torch._C._functorch._unwrap_for_grad
        args = tuple(unwrap(a, level.level()) if isinstance(a, Tensor) else a for a in args)
        with level.lower():
            getattr(torch.ops.chipmunk_kernels, op.name).default(*args)

    return run


def _may_want_gradients(args: tuple[Any, ...]) -> bool:
    """False for nearly all calls, and quick to say so."""
    if _forward_ad._current_level >= 0:
        return True
    return torch.is_grad_enabled() and _torch._C._any_requires_grad(*args)


def _refuse_gradients(op: Op, args: tuple[Any, ...]) -> None:
    """Refuses tensors whose gradient would be lost, backward or forward."""
    grad, forward = torch.is_grad_enabled(), _forward_ad._current_level >= 0
    for argument, arg in zip(op.arguments, args, strict=True):
        if isinstance(arg, Tensor):
            if grad and arg.requires_grad:
                raise _requires_grad(op.name, argument.public)
            if forward and _forward_ad.unpack_dual(arg).tangent is not None:
                raise _core.UnsupportedError(
                    f"{op.name}: {argument.public}: carries a forward-mode tangent, and there is "
                    "no derivative; call on the primal"
                )


def _requires_grad(op: str, name: str) -> _core.UnsupportedError:
    return _core.UnsupportedError(
        f"{op}: {name}: requires grad, and there is no backward pass; call under torch.no_grad()"
    )


def _register(library: Any, op: Op) -> Callable[..., None]:
    library.define(op.schema, tags=(torch.Tag.pt2_compliant_tag,))
    overload: Any = getattr(torch.ops.chipmunk_kernels, op.name).default
    call: Callable[..., None] = getattr(_core, op.name)
    # the kernels refuse gradients themselves: a Python kernel here would cost as much as they do
    library.impl(op.name, _torch_library.fallthrough_kernel, "Autograd")
    library.impl(op.name, _on_cpu(op, call), "CPU")
    library.impl(op.name, _on_cuda(op, call), "CUDA")
    library.impl(op.name, _under_vmap(op), "FuncTorchBatched")
    library.impl(op.name, _under_functorch(op), "FuncTorchDynamicLayerBackMode")
    _torch_library.register_fake(f"chipmunk_kernels::{op.name}", _fake(op), lib=library)
    return overload


@dataclass(frozen=True)
class _Registration:
    """What torch's registry holds of us; it outlives this module where that is imported again."""

    schemas: list[str]
    library: Any
    overloads: dict[str, Callable[..., None]]


def _registration() -> _Registration:
    """The operators: those of an earlier import if they take the same arguments, else new ones."""
    schemas = [op.schema for op in OPS.values()]
    namespace = torch.ops.chipmunk_kernels.__dict__
    earlier = namespace.get("_registration")
    if earlier is not None:
        if earlier.schemas == schemas:
            return earlier
        earlier.library._destroy()
    library = _torch_library.Library("chipmunk_kernels", "DEF")
    overloads = {name: _register(library, op) for name, op in OPS.items()}
    made = _Registration(schemas, library, overloads)
    namespace["_registration"] = made
    return made


_NONE: Mapping[str, Any] = {}


class TorchArrays:
    """torch, as `ops.arrays.ArrayLibrary` describes it."""

    def __init__(self, overloads: dict[str, Callable[..., None]]) -> None:
        """Takes the operators by name."""
        self._overloads = overloads

    def check(self, op: str, arrays: Mapping[str, Any], written: Mapping[str, Any] = _NONE) -> None:
        """Refuses what is no tensor, and tensors that want a gradient."""
        for name, array in arrays.items():
            if array is None:
                continue
            if not isinstance(array, Tensor):
                raise ValueError(f"{op}: {name}: expected a torch.Tensor, got {type_name(array)}")
            if torch.is_grad_enabled() and array.requires_grad:
                raise _requires_grad(op, name)

    def empty(self, shape: tuple[int, ...], dtype: str | None, like: Tensor) -> Tensor:
        """See `ArrayLibrary`."""
        chosen = like.dtype if dtype is None else getattr(torch, dtype)
        # a plain tuple: torch takes longer over a torch.Size
        return torch.empty(tuple(shape), dtype=chosen, device=like.device)

    def empty_like(self, like: Tensor) -> Tensor:
        """See `ArrayLibrary`."""
        return torch.empty_like(like)

    def has_order(self, like: Tensor) -> bool:
        """See `ArrayLibrary`."""
        return like.is_cuda

    def cast(self, array: Tensor, dtype: str) -> Tensor:
        """See `ArrayLibrary`."""
        if dtype == "int32" and array.dtype.itemsize > 2:
            array = array.double().clamp(0, 2**31 - 1)  # torch cannot clamp unsigned integers
        return array.to(getattr(torch, dtype))

    def run(self, op: Op, args: tuple[Any, ...]) -> None:
        """See `ArrayLibrary`."""
        if torch.compiler.is_compiling():
            self.check(op.name, op.arrays(args))
            self._overloads[op.name](*args)
            return
        try:
            self._overloads[op.name](*args)
        except RuntimeError:  # torch's words for what is no tensor; looked at only where it failed
            self.check(op.name, op.arrays(args))
            raise

    def finish(self, output: Tensor) -> Tensor:
        """See `ArrayLibrary`."""
        return output

    def to_device(self, array: Tensor, device: Any) -> Tensor:
        """See `ArrayLibrary`."""
        return array.to(device)

    def to_host(self, array: Tensor) -> Tensor:
        """See `ArrayLibrary`."""
        return _to_host(array)


TORCH = TorchArrays(_registration().overloads)
_torch.serialization.add_safe_globals([ColumnLists, MlpCache])  # for torch.load(weights_only=True)
