"""The extension's ops with CHIPMUNK_CHECK=1: the lists' contents are looked at before each call.

Costs a pass over the lists, and for lists on a GPU a copy to the CPU that waits for the stream; it
does not work while a CUDA graph is captured.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from chipmunk_kernels import _core


def call(
    op: str,
    args: tuple[Any, ...],
    *,
    cpu_threads: int = 0,
    stream: int | None = None,
    to_host: Callable[[Any], Any],
) -> None:
    """Calls `_core.<op>(*args)`.

    Args:
        op: name of the out-variant.
        args: its inputs, options and outputs.
        cpu_threads: for the CPU backend; 0 means all that the process may use.
        stream: address of the CUDA stream; None means the current one of the arrays' library.
        to_host: copies an array to the CPU.
    """
    if _core.checks_enabled():
        check(op, args, to_host)
    getattr(_core, op)(*args, cpu_threads, stream)


def validate(op: str, indices: Any, counts: Any, n: int, to_host: Callable[[Any], Any]) -> None:
    """`_core.validate_columns` on a copy on the CPU, with errors in the name of `op`."""
    indices, counts = (a if a is None else to_host(a) for a in (indices, counts))
    try:
        _core.validate_columns(indices, counts, n)
    except ValueError as error:
        raise ValueError(str(error).replace("validate_columns", op, 1)) from None


def check(op: str, args: tuple[Any, ...], to_host: Callable[[Any], Any]) -> None:
    """Looks at the lists among the arguments of `_core.<op>`.

    Arguments of a wrong rank or dtype pass here: the op itself has the message for them.
    """
    if op == "columns_from_mask":
        mask, indices, _ = args
        if len(mask.shape) < 2 or not str(mask.dtype).endswith("bool"):
            return
        capacity = _size(indices, -1)
        longest = int(to_host(mask.sum(-1).max())) if 0 not in mask.shape else 0
        if capacity is not None and longest > capacity:
            raise ValueError(
                f"{op}: mask: expected at most capacity={capacity} columns in a row, got {longest}"
            )
        return
    if op == "column_sparse_attention":
        _, k, _, indices, counts, *_ = args
        n = _size(k, 2)
    elif op == "column_sparse_fc1":
        _, _, _, indices, counts, _, activation_cache, _ = args
        n = _size(activation_cache, 1)
    elif op == "column_sparse_fc2":
        _, w2t, indices, counts, _ = args
        n = _size(w2t, 0)
    elif op == "column_sparse_mlp":
        _, _, _, w2t, indices, counts, *_ = args
        n = _size(w2t, 0)
    elif op == "columns_to_mask":
        indices, counts, mask = args
        n = _size(mask, -1)
    else:
        return
    if n is not None:
        validate(op, indices, counts, n, to_host)


def _size(array: Any, dim: int) -> int | None:
    shape = getattr(array, "shape", ())
    return shape[dim] if -len(shape) <= dim < len(shape) else None
