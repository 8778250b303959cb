"""The ops as torch operators, `torch.ops.chipmunk_kernels.*`.

Every operator is an out-variant: it returns nothing and declares what it writes, so that
torch.compile, functionalisation and CUDA graphs see the truth. `ck.*` functions allocate the
outputs and call these. Registered on import, which happens with that of `chipmunk_kernels` if torch
is there by then, else when an op first sees a tensor.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from chipmunk_kernels import _core
from chipmunk_kernels.arguments import type_name
from chipmunk_kernels.ops import checked
from chipmunk_kernels.ops.columns import ColumnLists
from chipmunk_kernels.ops.mlp import MlpCache

SCHEMAS = {
    "dense_attention": (
        "(Tensor q, Tensor k, Tensor v, float? softmax_scale, Tensor(a!) out, Tensor(b!) lse) -> ()"
    ),
    "dense_attention_column_sums": (
        "(Tensor q, Tensor k, Tensor v, Tensor? reference_lse, SymInt query_group, "
        "float? softmax_scale, Tensor(a!) out, Tensor(b!) lse, Tensor(c!) column_sums) -> ()"
    ),
    "column_sparse_attention": (
        "(Tensor q, Tensor k, Tensor v, Tensor indices, Tensor counts, SymInt query_group, "
        "Tensor? rest_out, Tensor? rest_lse, float? softmax_scale, "
        "Tensor(a!) out, Tensor(b!) lse) -> ()"
    ),
    "merge_attention": (
        "(Tensor a_out, Tensor a_lse, Tensor b_out, Tensor b_lse, "
        "Tensor(a!) out, Tensor(b!) lse) -> ()"
    ),
    "rest_of_attention": (
        "(Tensor whole_out, Tensor whole_lse, Tensor selected_out, Tensor selected_lse, "
        "Tensor(a!) out, Tensor(b!) lse) -> ()"
    ),
    "select_columns": (
        "(Tensor scores, Tensor? always, SymInt? count, float? mass, SymInt min_count, "
        "SymInt? max_count, float random_fraction, SymInt? seed, "
        "Tensor(a!) indices, Tensor(b!) counts) -> ()"
    ),
    "columns_from_mask": "(Tensor mask, Tensor(a!) indices, Tensor(b!) counts) -> ()",
    "columns_to_mask": "(Tensor indices, Tensor counts, Tensor(a!) mask) -> ()",
    "column_sparse_fc1": (
        "(Tensor x, Tensor w1, Tensor? b1, Tensor indices, Tensor counts, str activation, "
        "Tensor(a!) activation_cache, Tensor(b!) packed_delta) -> ()"
    ),
    "column_sparse_fc2": (
        "(Tensor packed_delta, Tensor w2t, Tensor indices, Tensor counts, Tensor(a!) out) -> ()"
    ),
    "column_sparse_mlp": (
        "(Tensor x, Tensor w1, Tensor? b1, Tensor w2t, Tensor indices, Tensor counts, "
        "str activation, Tensor(a!) activation_cache, Tensor(b!) packed_delta, "
        "Tensor(c!) out) -> ()"
    ),
}

# `Any`: torch leaves the types of these open
_torch: Any = torch
_torch_library: Any = torch.library
_forward_ad: Any = torch.autograd.forward_ad

# torch >= 2.10 tells its current stream through DLPack's exchange table, and lends tensors that
# require grad; from older ones both are fetched here.
_HAS_EXCHANGE_TABLE = hasattr(Tensor, "__dlpack_c_exchange_api__")


def _to_host(tensor: Tensor) -> Tensor:
    return tensor.detach().cpu()


def _on_cpu(op: str, names: Sequence[str], call: Callable[..., None]) -> Callable[..., None]:
    def run(*args: Any) -> None:
        if torch.is_grad_enabled() or _forward_ad._current_level >= 0:
            _refuse_gradients(op, names, args)
        if not _HAS_EXCHANGE_TABLE:
            args = _detached(args)
        if _core.checks_enabled():
            checked.check(op, args, _to_host)
        call(*args, torch.get_num_threads())

    return run


def _on_cuda(op: str, names: Sequence[str], call: Callable[..., None]) -> Callable[..., None]:
    def run(*args: Any) -> None:
        if torch.is_grad_enabled() or _forward_ad._current_level >= 0:
            _refuse_gradients(op, names, args)
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


def _fake(op: str, names: Sequence[str]) -> Callable[..., None]:
    """Outputs are arguments already; all that a fake can say is whether devices agree."""

    def run(*args: Any) -> None:
        _refuse_gradients(op, names, args)
        first = args[0]
        for name, arg in zip(names, args, strict=True):
            if isinstance(arg, Tensor) and arg.device != first.device:
                raise ValueError(
                    f"{op}: {name}: expected device {first.device} as {names[0]}, got {arg.device}"
                )

    return run


def _under_vmap(op: str) -> Callable[..., None]:
    def run(*args: Any) -> None:
        del args
        raise _core.UnsupportedError(
            f"{op}: has no batching rule for torch.vmap; call it on the whole batch"
        )

    return run


def _under_functorch(op: str, names: Sequence[str]) -> Callable[..., None]:
    """Of a level of torch.func.grad, jvp and their like: only here are its gradients seen."""

    def run(*args: Any) -> None:
        _refuse_gradients(op, names, args)
        functorch: Any = importlib.import_module("torch._functorch.pyfunctorch")
        level = functorch.retrieve_current_functorch_interpreter()
        unwrap: Callable[[Tensor, int], Tensor] = _torch._C._functorch._unwrap_for_grad
        args = tuple(unwrap(a, level.level()) if isinstance(a, Tensor) else a for a in args)
        with level.lower():
            getattr(torch.ops.chipmunk_kernels, op).default(*args)

    return run


def _refuse_gradients(op: str, names: Sequence[str], args: tuple[Any, ...]) -> None:
    """Refuses tensors whose gradient would be lost, backward or forward."""
    grad, forward = torch.is_grad_enabled(), _forward_ad._current_level >= 0
    for name, arg in zip(names, args, strict=True):
        if isinstance(arg, Tensor):
            if grad and arg.requires_grad:
                raise _requires_grad(op, name)
            if forward and _forward_ad.unpack_dual(arg).tangent is not None:
                raise _core.UnsupportedError(
                    f"{op}: {name}: carries a forward-mode tangent, and there is no derivative; "
                    "call on the primal"
                )


def _requires_grad(op: str, name: str) -> _core.UnsupportedError:
    return _core.UnsupportedError(
        f"{op}: {name}: requires grad, and there is no backward pass; call under torch.no_grad()"
    )


def _public_name(argument: str) -> str:
    """What messages call an operator's argument: columns.indices, rest.lse."""
    name = re.sub(r"^(indices|counts)$", r"columns.\1", argument)
    return re.sub(r"^(a|b|rest|whole|selected)_(out|lse)$", r"\1.\2", name)


def _register(library: Any, op: str, schema: str) -> Callable[..., None]:
    library.define(op + schema, tags=(torch.Tag.pt2_compliant_tag,))
    overload: Any = getattr(torch.ops.chipmunk_kernels, op).default
    call: Callable[..., None] = getattr(_core, op)
    names = [_public_name(argument.name) for argument in overload._schema.arguments]
    # the kernels refuse gradients themselves: a Python kernel here would cost as much as they do
    library.impl(op, _torch_library.fallthrough_kernel, "Autograd")
    library.impl(op, _on_cpu(op, names, call), "CPU")
    library.impl(op, _on_cuda(op, names, call), "CUDA")
    library.impl(op, _under_vmap(op), "FuncTorchBatched")
    library.impl(op, _under_functorch(op, names), "FuncTorchDynamicLayerBackMode")
    _torch_library.register_fake(f"chipmunk_kernels::{op}", _fake(op, names), lib=library)
    return overload


@dataclass(frozen=True)
class _Registration:
    """What torch's registry holds of us; it outlives this module where that is imported again."""

    schemas: dict[str, str]
    library: Any
    overloads: dict[str, Callable[..., None]]


def _registration() -> _Registration:
    """The operators: those of an earlier import if they take the same arguments, else new ones."""
    namespace = torch.ops.chipmunk_kernels.__dict__
    earlier = namespace.get("_registration")
    if earlier is not None:
        if earlier.schemas == SCHEMAS:
            return earlier
        earlier.library._destroy()
    library = _torch_library.Library("chipmunk_kernels", "DEF")
    overloads = {op: _register(library, op, schema) for op, schema in SCHEMAS.items()}
    made = _Registration(SCHEMAS, library, overloads)
    namespace["_registration"] = made
    return made


class TorchArrays:
    """torch, as `ops.arrays.ArrayLibrary` describes it."""

    def __init__(self, overloads: dict[str, Callable[..., None]]) -> None:
        """Takes the operators by name."""
        self._overloads = overloads

    def check(self, op: str, arrays: Mapping[str, Any]) -> None:
        """Refuses what is no tensor, and tensors that want a gradient."""
        grad = torch.is_grad_enabled()
        for name, array in arrays.items():
            if array is None:
                continue
            if not isinstance(array, Tensor):
                raise ValueError(f"{op}: {name}: expected a torch.Tensor, got {type_name(array)}")
            if grad and array.requires_grad:
                raise _requires_grad(op, name)

    def check_in_place(self, op: str, arrays: Mapping[str, Any]) -> None:
        """Nothing to refuse."""

    def empty(self, shape: tuple[int, ...], dtype: str | None, like: Tensor) -> Tensor:
        """See `ArrayLibrary`."""
        chosen = like.dtype if dtype is None else getattr(torch, dtype)
        # a plain tuple: torch takes longer over a torch.Size
        return torch.empty(tuple(shape), dtype=chosen, device=like.device)

    def empty_like(self, like: Tensor) -> Tensor:
        """See `ArrayLibrary`."""
        return torch.empty_like(like)

    def run(self, op: str, *args: Any) -> None:
        """See `ArrayLibrary`."""
        self._overloads[op](*args)

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
