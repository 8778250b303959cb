"""Attention over all keys, over selected columns, and the softmax algebra that joins the two.

q is `[B, Hq, Nq, D]`, k and v are `[B, Hkv, Nk, D]`, Hq a multiple of Hkv, in one dtype: float32
(CPU only), bfloat16 or float16. Strides are free but for the contiguous last dimension, so a
`[B, N, H, D]` tensor comes in as its transposed view. lse is `[B, Hq, Nq]` float32, the natural
logarithm of the sum of exp of the scaled scores. Every function raises ValueError
"op: argument: expected .., got .." for a wrong argument, and UnsupportedError for what this build
or machine cannot do, before anything is written.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar, cast

from chipmunk_kernels.arguments import real, type_name
from chipmunk_kernels.ops.arrays import ArrayLibrary, library_of, size
from chipmunk_kernels.ops.columns import ColumnLists, group_size, require_lists
from chipmunk_kernels.ops.schemas import OPS

Array = TypeVar("Array")


def dense_attention(
    q: Array,
    k: Array,
    v: Array,
    *,
    query_rows: Array | None = None,
    softmax_scale: float | None = None,
    out: Array | tuple[Array | None, Array | None] | None = None,
) -> tuple[Array, Array]:
    """Softmax attention over all keys.

    Args:
        q: queries `[B, Hq, Nq, D]`.
        k: keys `[B, Hkv, Nk, D]`.
        v: values `[B, Hkv, Nk, D]`.
        query_rows: as the other ops take it; the result does not depend on it.
        softmax_scale: factor of the scores; 1 / sqrt(D) if None.
        out: where to write: out, or (out, lse), None standing for a new array.

    Returns:
        out, shaped and typed as q, and lse `[B, Hq, Nq]` float32. Without any key: zeros, -inf.
    """
    op = OPS["dense_attention"]
    library = library_of(op.name, "q", q)
    result, lse = _part(library, q, *_given(op.name, out, 2))
    args = op.arrange(
        q=q,
        k=k,
        v=v,
        query_rows=query_rows,
        softmax_scale=_scale(op.name, softmax_scale),
        out=result,
        lse=lse,
    )
    library.run(op, args)
    return library.finish(result), library.finish(lse)


def dense_attention_column_sums(
    q: Array,
    k: Array,
    v: Array,
    *,
    reference_lse: Array | None = None,
    key_weights: Array | None = None,
    query_rows: Array | None = None,
    query_group: int = 192,
    softmax_scale: float | None = None,
    out: Array | tuple[Array | None, Array | None, Array | None] | None = None,
) -> tuple[Array, Array, Array]:
    """Dense attention, and how much weight each group of queries gives to each key.

    `column_sums[b, h, g, j]` = sum over the rows i of group g of exp(score_ij - reference_lse_i).
    A row whose reference is infinite contributes 0.

    Args:
        q, k, v, softmax_scale: as in `dense_attention`.
        reference_lse: `[B, Hq, Nq]` float32, usually the previous step's lse; None means the exact
            one, at the price of a second pass over the scores.
        key_weights: `[B, Hkv, Nk]` float32; each key's sums are multiplied by its weight, so that
            a key whose value changed a lot counts more. None: all 1.
        query_rows: int32 permutation `[Nq]`; group g holds the queries
            `query_rows[g * query_group : (g + 1) * query_group]`. All arrays stay in the caller's
            order. None: as they come.
        query_group: rows per group: 64, 128, 192 or 256 (on a GPU 64, 128 or 192, at head dim 256
            64 or 128).
        out: where to write: out, or (out, lse, column_sums), None standing for a new array.
            column_sums may be bfloat16; a new one is float32.

    Returns:
        out and lse as `dense_attention` gives them, and column_sums `[B, Hq, groups, Nk]`.
    """
    op = OPS["dense_attention_column_sums"]
    query_group = group_size(op.name, "query_group", query_group)
    library = library_of(op.name, "q", q)
    result, lse, sums = _given(op.name, out, 3)
    result, lse = _part(library, q, result, lse)
    if sums is None:
        groups = -(-size(q, 2) // query_group) if query_group > 0 else 0
        sums = library.empty((size(q, 0), size(q, 1), groups, size(k, 2)), "float32", q)
    args = op.arrange(
        q=q,
        k=k,
        v=v,
        reference_lse=reference_lse,
        key_weights=key_weights,
        query_rows=query_rows,
        query_group=query_group,
        softmax_scale=_scale(op.name, softmax_scale),
        out=result,
        lse=lse,
        column_sums=sums,
    )
    library.run(op, args)
    return library.finish(result), library.finish(lse), library.finish(sums)


def column_sparse_attention(
    q: Array,
    k: Array,
    v: Array,
    columns: ColumnLists,
    *,
    rest: tuple[Array, Array] | None = None,
    query_rows: Array | None = None,
    softmax_scale: float | None = None,
    out: Array | tuple[Array | None, Array | None] | None = None,
) -> tuple[Array, Array]:
    """Attention of each group of queries over its own list of keys, merged with `rest` if given.

    Keys and values that a group does not list do not reach its rows, whatever they hold. Indices
    outside [0, Nk) are undefined behaviour; CHIPMUNK_CHECK=1 looks for them.

    Args:
        q, k, v, softmax_scale: as in `dense_attention`.
        columns: lists with indices `[B, Hq, groups, capacity]`, groups = ceil(Nq / query_group).
        rest: (out, lse) of the attention over all other keys, or a stale copy of it: the result is
            the exact softmax merge of both.
        query_rows: int32 permutation `[Nq]`; group g holds the queries
            `query_rows[g * query_group : (g + 1) * query_group]`. q, out, lse and rest stay in the
            caller's order. None: as they come. CHIPMUNK_CHECK=1 checks that it is a permutation.
        out: where to write: out, or (out, lse), None standing for a new array. `rest` itself will
            do: it is read before it is written.

    Returns:
        out, shaped and typed as q, and lse `[B, Hq, Nq]` float32. Where a list is empty: the rest
        alone, or zeros and -inf.
    """
    op = OPS["column_sparse_attention"]
    rest_out, rest_lse = (None, None) if rest is None else _pair(op.name, "rest", rest)
    if rest is not None and rest_out is None:  # which would pass for no rest at all
        raise ValueError(
            f"{op.name}: rest.out: expected an array that DLPack can share, got NoneType"
        )
    require_lists(op.name, columns)
    library = library_of(op.name, "q", q)
    result, lse = _part(library, q, *_given(op.name, out, 2))
    args = op.arrange(
        q=q,
        k=k,
        v=v,
        indices=columns.indices,
        counts=columns.counts,
        order=columns.order,
        query_group=columns.query_group,
        rest_out=rest_out,
        rest_lse=rest_lse,
        query_rows=query_rows,
        softmax_scale=_scale(op.name, softmax_scale),
        out=result,
        lse=lse,
    )
    library.run(op, args)
    return library.finish(result), library.finish(lse)


def merge_attention(
    a: tuple[Array, Array],
    b: tuple[Array, Array],
    *,
    out: Array | tuple[Array | None, Array | None] | None = None,
) -> tuple[Array, Array]:
    """The attention over the union of two disjoint sets of keys.

    Args:
        a: (out, lse) over the first set: out `[B, H, N, D]`, lse `[B, H, N]` float32. Where lse is
            -inf, out is not looked at.
        b: the same over the second set.
        out: where to write: out, or (out, lse), None standing for a new array.

    Returns:
        (out, lse) over both, out in a's dtype.
    """
    return _combine("merge_attention", {"a": a, "b": b}, out)


def rest_of_attention(
    whole: tuple[Array, Array],
    selected: tuple[Array, Array],
    *,
    out: Array | tuple[Array | None, Array | None] | None = None,
) -> tuple[Array, Array]:
    """The part of `whole` that `selected` leaves: merging the result with `selected` gives `whole`.

    Where nothing is left, zeros and -inf; where so little is left that the difference of two
    rounded outputs is noise, out is that of `whole`.

    Args:
        whole: (out, lse) over all keys: out `[B, H, N, D]`, lse `[B, H, N]` float32.
        selected: (out, lse) over some of them.
        out: where to write: out, or (out, lse), None standing for a new array.

    Returns:
        (out, lse) over the others, out in whole's dtype.
    """
    return _combine("rest_of_attention", {"whole": whole, "selected": selected}, out)


def _scale(op: str, softmax_scale: Any) -> float | None:
    if softmax_scale is None:
        return None
    return real(op, "softmax_scale", softmax_scale, "a finite number")


def _combine(name: str, parts: Mapping[str, object], out: object) -> Any:
    op = OPS[name]
    arguments: dict[str, Any] = {}
    for part, pair in parts.items():
        arguments[f"{part}_out"], arguments[f"{part}_lse"] = _pair(name, part, pair)
    first = op.arguments[0]
    like = arguments[first.name]
    library = library_of(name, first.public, like)
    result, lse = _part(library, like, *_given(name, out, 2))
    library.run(op, op.arrange(**arguments, out=result, lse=lse))
    return library.finish(result), library.finish(lse)


def _pair(op: str, name: str, part: object) -> tuple[Any, Any]:
    pair = cast("Sequence[Any]", part if isinstance(part, (tuple, list)) else ())
    if len(pair) != 2:
        kind = type_name(cast("object", part))
        raise ValueError(f"{op}: {name}: expected a pair (out, lse), got {kind}")
    return pair[0], pair[1]


def _given(op: str, out: object, count: int) -> Sequence[Any]:
    """The outputs that the caller gave, None for those that are to be allocated."""
    if not isinstance(out, (tuple, list)):
        return [out] + [None] * (count - 1)
    given = cast("Sequence[Any]", out)
    if len(given) != count:
        raise ValueError(
            f"{op}: out: expected an array or a tuple of {count}, got a tuple of {len(given)}"
        )
    return given


def _part(library: ArrayLibrary, q: Any, out: Any, lse: Any) -> tuple[Any, Any]:
    """The outputs out and lse, allocated where not given."""
    if out is None:
        out = library.empty_like(q)
    if lse is None:
        lse = library.empty(q.shape[:-1], "float32", q)
    return out, lse
