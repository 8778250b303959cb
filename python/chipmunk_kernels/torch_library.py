"""The ops as torch operators, `torch.ops.chipmunk_kernels.*`.

Every operator is an out-variant: it returns nothing and declares what it writes, so that
torch.compile, functionalisation and CUDA graphs see the truth. `ck.*` functions allocate the
outputs and call these. Registered on import, which happens with that of `chipmunk_kernels` if torch
is there by then, else when an op first sees a tensor.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from chipmunk_kernels import _core
from chipmunk_kernels.ops import checked
from chipmunk_kernels.ops.arrays import type_name

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
_torch_library: Any = torch.library
_LIBRARY = _torch_library.Library("chipmunk_kernels", "DEF")

# torch >= 2.10 tells its current stream through DLPack's exchange table, and lends tensors that
# require grad; from older ones both are fetched here.
_HAS_EXCHANGE_TABLE = hasattr(Tensor, "__dlpack_c_exchange_api__")


def _to_host(tensor: Tensor) -> Tensor:
    return tensor.detach().cpu()


def _on_cpu(op: str, call: Callable[..., None]) -> Callable[..., None]:
    def run(*args: Any) -> None:
        if not _HAS_EXCHANGE_TABLE:
            args = _detached(args)
        if _core.checks_enabled():
            checked.check(op, args, _to_host)
        call(*args, torch.get_num_threads())

    return run


def _on_cuda(op: str, call: Callable[..., None]) -> Callable[..., None]:
    def run(*args: Any) -> None:
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


def _fake(op: str, names: list[str]) -> Callable[..., None]:
    """Outputs are arguments already; all that a fake can say is whether devices agree."""

    def run(*args: Any) -> None:
        first = args[0]
        for name, arg in zip(names, args, strict=True):
            if isinstance(arg, Tensor) and arg.device != first.device:
                raise ValueError(
                    f"{op}: {name}: expected device {first.device} as {names[0]}, got {arg.device}"
                )

    return run


def _public_name(argument: str) -> str:
    """What messages call an operator's argument: columns.indices, rest.lse."""
    name = re.sub(r"^(indices|counts)$", r"columns.\1", argument)
    return re.sub(r"^(a|b|rest|whole|selected)_(out|lse)$", r"\1.\2", name)


def _register(op: str, schema: str) -> Callable[..., None]:
    _LIBRARY.define(op + schema, tags=(torch.Tag.pt2_compliant_tag,))
    overload: Any = getattr(torch.ops.chipmunk_kernels, op).default
    call: Callable[..., None] = getattr(_core, op)
    names = [_public_name(argument.name) for argument in overload._schema.arguments]
    _LIBRARY.impl(op, _on_cpu(op, call), "CPU")
    _LIBRARY.impl(op, _on_cuda(op, call), "CUDA")
    _torch_library.register_fake(f"chipmunk_kernels::{op}", _fake(op, names), lib=_LIBRARY)
    return overload


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
                raise _core.UnsupportedError(
                    f"{op}: {name}: requires grad, and there is no backward pass; "
                    "call under torch.no_grad()"
                )

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


TORCH = TorchArrays({op: _register(op, schema) for op, schema in SCHEMAS.items()})
