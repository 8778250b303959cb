"""The one list of every op's arguments: inputs, options, outputs, as torch writes a schema.

From it come torch's registration, the extension's stub (`python -m chipmunk_kernels.ops.stub`), the
names in messages, and where CHIPMUNK_CHECK=1 finds the lists. The functions of `ops` pass arguments
by these names; their order matters here alone, and in the bindings.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

_SCHEMAS = """
dense_attention(Tensor q, Tensor k, Tensor v, Tensor? query_rows, float? softmax_scale,
    Tensor(a!) out, Tensor(b!) lse)
dense_attention_column_sums(Tensor q, Tensor k, Tensor v, Tensor? reference_lse,
    Tensor? key_weights, Tensor? query_rows, SymInt query_group, float? softmax_scale,
    Tensor(a!) out, Tensor(b!) lse, Tensor(c!) column_sums)
column_sparse_attention(Tensor q, Tensor k, Tensor v, Tensor indices, Tensor counts,
    Tensor? order, SymInt query_group, Tensor? rest_out, Tensor? rest_lse, Tensor? query_rows,
    float? softmax_scale, Tensor(a!) out, Tensor(b!) lse)
merge_attention(Tensor a_out, Tensor a_lse, Tensor b_out, Tensor b_lse,
    Tensor(a!) out, Tensor(b!) lse)
rest_of_attention(Tensor whole_out, Tensor whole_lse, Tensor selected_out, Tensor selected_lse,
    Tensor(a!) out, Tensor(b!) lse)
select_columns(Tensor scores, Tensor? always, SymInt? count, Tensor? count_per_list, float? mass,
    Tensor? mass_per_list, SymInt min_count, SymInt? max_count, float random_fraction, SymInt? seed,
    SymInt query_group, Tensor(a!) indices, Tensor(b!) counts, Tensor(c!)? order)
columns_from_mask(Tensor mask, SymInt query_group, Tensor(a!) indices, Tensor(b!) counts,
    Tensor(c!)? order)
columns_to_mask(Tensor indices, Tensor counts, Tensor(a!) mask)
column_sparse_fc1(Tensor x, Tensor w1, Tensor? b1, Tensor indices, Tensor counts, str activation,
    Tensor(a!) activation_cache, Tensor(b!) packed_delta)
column_sparse_fc2(Tensor packed_delta, Tensor w2t, Tensor indices, Tensor counts, Tensor(a!) out)
column_sparse_mlp(Tensor x, Tensor w1, Tensor? b1, Tensor w2t, Tensor indices, Tensor counts,
    str activation, Tensor(a!) activation_cache, Tensor(b!) packed_delta, Tensor(c!) out)
"""

# What messages call an argument, where `_public_name` has no rule for it.
_PUBLIC_NAMES = {
    "column_sparse_mlp": {"activation_cache": "cache.activations", "out": "cache.output"},
}

# Ops that read lists: the argument and its dimension that tell how many columns there are.
_COLUMNS = {
    "column_sparse_attention": ("k", 2),
    "column_sparse_fc1": ("activation_cache", 1),
    "column_sparse_fc2": ("w2t", 0),
    "column_sparse_mlp": ("w2t", 0),
    "columns_to_mask": ("mask", -1),
}


@dataclass(frozen=True)
class Argument:
    """One argument of an op."""

    name: str
    """In the torch operator, the extension and `ops`."""
    kind: str
    """torch's word for its type: "Tensor", "Tensor?", "SymInt", "float?", "str", .."""
    public: str
    """What messages call it: "columns.indices" for `indices`."""
    is_written: bool

    @property
    def is_tensor(self) -> bool:
        """Whether it is an array, or one that may be None."""
        return self.kind.startswith("Tensor")


@dataclass(frozen=True)
class Op:
    """One op: its name and its arguments."""

    name: str
    schema: str
    """As torch registers it, name included."""
    arguments: tuple[Argument, ...]
    names: tuple[str, ...]
    """Of all arguments, in order."""
    arrange: Callable[..., tuple[Any, ...]]
    """Takes all arguments by name and gives them in order."""
    columns: tuple[str, int] | None
    """For an op that reads lists, the argument and dimension that count the columns."""

    def arrays(self, args: Sequence[Any], *, written: bool = False) -> dict[str, Any]:
        """The arrays among `args`, all arguments in order, by their public names; None: no array.

        Args:
            args: the arguments.
            written: only those that the op writes.
        """
        return {
            argument.public: arg
            for argument, arg in zip(self.arguments, args, strict=True)
            if argument.is_tensor and (argument.is_written or not written)
        }


def _public_name(op: str, argument: str) -> str:
    special = _PUBLIC_NAMES.get(op, {})
    name = re.sub(r"^(indices|counts|order)$", r"columns.\1", argument)
    name = re.sub(r"^(a|b|rest|whole|selected)_(out|lse)$", r"\1.\2", name)
    return special.get(argument, name)


def _parse(text: str) -> Op:
    schema = " ".join(text.split())
    match = re.fullmatch(r"(\w+)\((.*)\)", schema)
    assert match is not None
    op = match[1]
    arguments: list[Argument] = []
    for argument in match[2].split(", "):
        kind, name = argument.split(" ")
        written = "!" in kind
        kind = re.sub(r"\(.*\)", "", kind)
        arguments.append(Argument(name, kind, _public_name(op, name), written))
    names = ", ".join(a.name for a in arguments)
    return Op(
        name=op,
        schema=f"{schema} -> ()",
        arguments=tuple(arguments),
        names=tuple(a.name for a in arguments),
        arrange=eval(f"lambda *, {names}: ({names})"),  # Python's own keyword call is the fastest
        columns=_COLUMNS.get(op),
    )


OPS: Mapping[str, Op] = {op.name: op for op in map(_parse, re.split(r"\n(?=\w)", _SCHEMAS.strip()))}
"""By name."""
