"""The extension's ops with CHIPMUNK_CHECK=1: lists and query_rows are looked into before each call.

Costs a pass over them, and for arrays on a GPU a copy to the CPU that waits for the stream; it does
not work while a CUDA graph is captured.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from chipmunk_kernels import _core
from chipmunk_kernels.ops.schemas import Op


def call(
    op: Op,
    args: Sequence[Any],
    *,
    cpu_threads: int = 0,
    stream: int | None = None,
    to_host: Callable[[Any], Any],
) -> None:
    """Calls the extension's op.

    Args:
        op: the op.
        args: its arguments, in order.
        cpu_threads: for the CPU backend; 0 means all that the process may use.
        stream: address of the CUDA stream; None means the current one of the arrays' library.
        to_host: copies an array to the CPU.
    """
    if _core.checks_enabled():
        check(op, args, to_host)
    getattr(_core, op.name)(*args, cpu_threads, stream)


def validate(op: str, lists: Sequence[Any], n: int, to_host: Callable[[Any], Any]) -> None:
    """`_core.validate_columns` on a copy on the CPU, with errors in the name of `op`.

    Args:
        op: for messages.
        lists: indices, counts and order; None where there is none.
        n: number of columns there are.
        to_host: copies an array to the CPU.
    """
    indices, counts, order = (a if a is None else to_host(a) for a in lists)
    try:
        _core.validate_columns(indices, counts, n, order)
    except ValueError as error:
        raise ValueError(str(error).replace("validate_columns", op, 1)) from None


def check(op: Op, args: Sequence[Any], to_host: Callable[[Any], Any]) -> None:
    """Looks at the lists and at query_rows among the arguments of an op.

    Arguments of a wrong shape or dtype pass here: the op itself has the message for them.
    """
    named = dict(zip(op.names, args, strict=True))
    if op.name == "columns_from_mask":
        _check_capacity(op.name, named["mask"], named["indices"], to_host)
    if named.get("query_rows") is not None:
        _check_query_rows(op.name, named["query_rows"], _size(named["q"], 2), to_host)
    if op.columns is not None:
        argument, dim = op.columns
        n = _size(named[argument], dim)
        if n is not None:
            lists = named["indices"], named["counts"], named.get("order")
            validate(op.name, lists, n, to_host)


def _check_query_rows(
    op: str, query_rows: Any, queries: int | None, to_host: Callable[[Any], Any]
) -> None:
    dtype = str(getattr(query_rows, "dtype", None)).removeprefix("torch.")
    if dtype != "int32" or tuple(query_rows.shape) != (queries,):
        return
    rows = np.asarray(to_host(query_rows))
    is_wrong = np.ones(len(rows), np.bool_)
    is_wrong[np.unique(rows, return_index=True)[1]] = False  # where a number comes first
    is_wrong |= (rows < 0) | (rows >= len(rows))
    if is_wrong.any():
        position = int(is_wrong.argmax())
        number = int(rows[position])
        again = " a second time" if 0 <= number < len(rows) else ""
        raise ValueError(
            f"{op}: query_rows: expected a permutation of 0 to queries={queries}, exclusive, "
            f"got {number}{again} at [{position}]"
        )


def _check_capacity(op: str, mask: Any, indices: Any, to_host: Callable[[Any], Any]) -> None:
    if len(mask.shape) < 2 or not str(mask.dtype).endswith("bool"):
        return
    capacity = _size(indices, -1)
    longest = int(to_host(mask.sum(-1).max())) if 0 not in mask.shape else 0
    if capacity is not None and longest > capacity:
        raise ValueError(
            f"{op}: mask: expected at most capacity={capacity} columns in a row, got {longest}"
        )


def _size(array: Any, dim: int) -> int | None:
    shape = getattr(array, "shape", ())
    return shape[dim] if -len(shape) <= dim < len(shape) else None
