"""The column-sparse MLP: recompute the selected hidden units, keep the others from a cache.

x is `[B, M, K]`, w1 `[F, K]` (`[2F, K]` for the gated activations), b1 `[F]` (`[2F]`) or None, w2t
`[F, N]`, the fc2 weight transposed; one dtype: float32 (CPU only), bfloat16 or float16. Tokens are
in groups of 128 rows; a column is a hidden unit. Every function raises ValueError
"op: argument: expected .., got .." for a wrong argument, and UnsupportedError for what this build
or machine cannot do, before anything is written.

Activations: "gelu_tanh", "gelu" (exact erf), "silu", "relu", and two gated forms, where the first F
rows of w1 give the value and the last F the gate: "swiglu" is value * silu(gate), "geglu"
value * gelu(gate).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, TypeVar, cast, get_args

from chipmunk_kernels import _core
from chipmunk_kernels.arguments import refuse, type_name
from chipmunk_kernels.ops.arrays import (
    ArrayLibrary,
    device_name,
    dtype_name,
    library_of,
    size,
)
from chipmunk_kernels.ops.columns import ColumnLists, columns_from_mask, require_lists
from chipmunk_kernels.ops.schemas import OPS

Activation = Literal["gelu_tanh", "gelu", "silu", "relu", "swiglu", "geglu"]
Array = TypeVar("Array")


@dataclass(eq=False)
class MlpCache:
    """What the MLP keeps from one step to the next; `column_sparse_mlp` updates both in place."""

    activations: Any
    """`[B, F, M]` in x's dtype, token index last."""
    output: Any
    """`[B, M, N]`, fc2's bias included."""

    @classmethod
    def from_dense(
        cls,
        x: Any,
        w1: Any,
        b1: Any,
        w2t: Any,
        b2: Any,
        activation: Activation,
    ) -> MlpCache:
        """A full pass through the MLP, by the sparse ops with every column selected.

        So a later sparse pass over the same x changes nothing but rounding.

        Args:
            x: `[B, M, K]`.
            w1: `[F, K]`, gated `[2F, K]`.
            b1: `[F]`, gated `[2F]`, or None.
            w2t: `[F, N]`.
            b2: `[N]` or None.
            activation: see the module.
        """
        op = "from_dense"
        _check_activation(op, activation)
        library = library_of(op, "x", x)
        named = {"x": x, "w1": w1, "b1": b1, "w2t": w2t, "b2": b2}
        library.check(op, named, {"x": x})
        if b2 is not None:
            _check_b2(op, x, w2t, b2)
        batch, tokens, hidden = size(x, 0), size(x, 1), size(w1, 0)
        if activation in ("swiglu", "geglu"):
            hidden //= 2
        groups = -(-tokens // _core.MLP_QUERY_GROUP)
        activations = library.empty((batch, hidden, tokens), None, x)
        activations[...] = 0
        output = library.empty((batch, tokens, size(w2t, 1)), None, x)
        output[...] = 0 if b2 is None else b2
        every_column = library.empty((batch, groups, hidden), "bool", x)
        every_column[...] = True
        columns = columns_from_mask(every_column, query_group=_core.MLP_QUERY_GROUP)
        cache = cls(activations, output)
        column_sparse_mlp(x, w1, b1, w2t, columns, cache, activation=activation)
        return cache


def column_sparse_fc1(
    x: Array,
    w1: Array,
    b1: Array | None,
    columns: ColumnLists,
    activation_cache: Array,
    *,
    activation: Activation,
    out: Array | None = None,
) -> Array:
    """New activations of the selected hidden units into the cache, their changes into the result.

    For each group and selected f: new = activation(x w1[f] + b1[f]), rounded to x's dtype;
    delta = new - cached, rounded; cached = new.

    Args:
        x, w1, b1, activation: see the module.
        columns: lists with query_group 128 and indices `[B, ceil(M / 128), capacity]`.
        activation_cache: `[B, F, M]` in x's dtype, updated in place.
        out: packed_delta to write to; None allocates it.

    Returns:
        packed_delta `[B, groups, capacity, 128]` in x's dtype: at [b, g, p, r] the delta of hidden
        unit indices[b, g, p] for token 128 g + r, 0 for tokens past M. Rows p >= count are not
        written.
    """
    op = OPS["column_sparse_fc1"]
    _check_activation(op.name, activation)
    _check_lists(op.name, columns)
    library = library_of(op.name, "x", x)
    packed_delta = _packed_delta(library, x, columns) if out is None else out
    args = op.arrange(
        x=x,
        w1=w1,
        b1=b1,
        indices=columns.indices,
        counts=columns.counts,
        activation=activation,
        activation_cache=activation_cache,
        packed_delta=packed_delta,
    )
    library.run(op, args)
    return library.finish(packed_delta)


def column_sparse_fc2(packed_delta: Array, w2t: Array, columns: ColumnLists, out: Array) -> Array:
    """out[b, m] += sum over the selected f of delta[f, m] * w2t[f], in place; rounded once.

    Args:
        packed_delta: `[B, groups, capacity, 128]` from `column_sparse_fc1`.
        w2t: `[F, N]`.
        columns: the lists that packed_delta was made with.
        out: `[B, M, N]`, updated in place.

    Returns:
        out, the same array.
    """
    op = OPS["column_sparse_fc2"]
    _check_lists(op.name, columns)
    args = op.arrange(
        packed_delta=packed_delta,
        w2t=w2t,
        indices=columns.indices,
        counts=columns.counts,
        out=out,
    )
    library_of(op.name, "packed_delta", packed_delta).run(op, args)
    return out


def column_sparse_mlp(
    x: Array,
    w1: Array,
    b1: Array | None,
    w2t: Array,
    columns: ColumnLists,
    cache: MlpCache,
    *,
    activation: Activation,
) -> Array:
    """`column_sparse_fc1`, then `column_sparse_fc2`, on a cache.

    Args:
        x, w1, b1, w2t, activation: see the module.
        columns: lists with query_group 128 and indices `[B, ceil(M / 128), capacity]`.
        cache: of the previous step; both arrays are updated in place.

    Returns:
        `cache.output` itself, not a copy: the next call overwrites it.
    """
    op = OPS["column_sparse_mlp"]
    _check_activation(op.name, activation)
    if not isinstance(cast("object", cache), MlpCache):
        raise ValueError(f"{op.name}: cache: expected an MlpCache, got {type_name(cache)}")
    _check_lists(op.name, columns)
    library = library_of(op.name, "x", x)
    args = op.arrange(
        x=x,
        w1=w1,
        b1=b1,
        w2t=w2t,
        indices=columns.indices,
        counts=columns.counts,
        activation=activation,
        activation_cache=cache.activations,
        packed_delta=_packed_delta(library, x, columns),
        out=cache.output,
    )
    library.run(op, args)
    return cache.output


def _check_activation(op: str, activation: object) -> None:
    """What is no string; of the strings, the extension knows the right ones."""
    if not isinstance(activation, str):
        refuse(op, "activation", f"one of {', '.join(get_args(Activation))}", activation)


def _check_lists(op: str, columns: ColumnLists) -> None:
    require_lists(op, columns)
    if columns.query_group != _core.MLP_QUERY_GROUP:
        raise ValueError(
            f"{op}: columns.query_group: expected {_core.MLP_QUERY_GROUP}, "
            f"got {columns.query_group}"
        )


def _check_b2(op: str, x: Any, w2t: Any, b2: Any) -> None:
    """What assigning b2 to an array would let pass."""
    if not hasattr(b2, "shape"):
        raise ValueError(f"{op}: b2: expected an array that DLPack can share, got {type_name(b2)}")
    if tuple(b2.shape) != (size(w2t, 1),):
        raise ValueError(
            f"{op}: b2: expected shape [out_channels={size(w2t, 1)}], got {list(b2.shape)}"
        )
    # equal objects first: torch.compile knows those, not their names
    if b2.dtype != x.dtype and dtype_name(b2) != dtype_name(x):
        raise ValueError(f"{op}: b2: expected dtype {dtype_name(x)} as x, got {dtype_name(b2)}")
    devices = [getattr(array, "device", None) for array in (x, b2)]
    if devices[0] != devices[1] and device_name(b2) != device_name(x):
        raise ValueError(f"{op}: b2: expected device {device_name(x)} as x, got {device_name(b2)}")


def _packed_delta(library: ArrayLibrary, x: Any, columns: ColumnLists) -> Any:
    shape = (*getattr(columns.indices, "shape", ()), _core.MLP_QUERY_GROUP)
    return library.empty(shape, None, x)
