"""Column lists: which columns each group of query rows uses, and the ops that make them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from chipmunk_kernels.arguments import integer, is_on_cpu, real, refuse, type_name
from chipmunk_kernels.ops import checked
from chipmunk_kernels.ops.arrays import (
    ArrayLibrary,
    device_name,
    dtype_name,
    library_of,
    size,
)
from chipmunk_kernels.ops.schemas import OPS

_INT32_MAX = 2**31 - 1


@dataclass(frozen=True, eq=False)
class ColumnLists:
    """One list of columns for each group of `query_group` rows.

    Made by `select_columns`, `columns_from_mask`, or by hand. A list holds `counts` columns, any
    number from 0 to `capacity`; what stands past the count is never read. Making one checks
    nothing: every op checks shapes and dtypes, `validate` the contents. Lists can be pickled, and
    `torch.load(weights_only=True)` takes them once this package has seen torch.
    """

    indices: Any
    """`[*lead, groups, capacity]` int32, ascending and unique up to the count; `lead` is
    `[batch, heads]` for attention, `[batch]` for the MLP."""
    counts: Any
    """`[*lead, groups]` int32."""
    query_group: int = 192
    """Rows per group: 64, 128, 192 or 256; always 128 for the MLP."""
    order: Any = None
    """None, or `[3, lists]` int32: a schedule that `select_columns` and `columns_from_mask` make
    for lists on a CUDA device, so that attention takes no longer for lists of unequal length. It
    costs or saves time and never changes a result."""

    def __post_init__(self) -> None:
        """Takes integers of any kind."""
        query_group = group_size("ColumnLists", "query_group", self.query_group)
        object.__setattr__(self, "query_group", query_group)

    def validate(self, n: int | None = None) -> None:
        """Looks at every list; waits for the GPU if they live there.

        Args:
            n: number of columns there are; None leaves the upper bound of the indices unchecked.

        Raises:
            ValueError: a count outside [0, capacity], or a list that is not ascending, not unique
                or not within [0, n), or an order that does not take every list once; names the
                first such list.
        """
        lists = {
            "columns.indices": self.indices,
            "columns.counts": self.counts,
            "columns.order": self.order,
        }
        library = library_of("validate", "columns.indices", self.indices)
        library.check("validate", lists)
        n = _INT32_MAX if n is None else _number_of_columns("validate", "n", n)
        checked.validate("validate", [*lists.values()], n, library.to_host)

    def to_mask(self, n: int) -> Any:
        """The lists as a mask: bool `[*lead, groups, n]`, true where a column is listed.

        Raises:
            ValueError: `n` is negative, or the lists are no lists.
        """
        op = OPS["columns_to_mask"]
        library = library_of(op.name, "columns.indices", self.indices)
        n = _number_of_columns(op.name, "n", n)
        mask = library.empty((*self.indices.shape[:-1], n), "bool", self.indices)
        library.run(op, op.arrange(indices=self.indices, counts=self.counts, mask=mask))
        return library.finish(mask)

    def to(self, device: Any) -> ColumnLists:
        """The lists on another device, in the terms of their array library.

        The order is dropped if the device changes: it was made for one.
        """
        library = library_of("to", "columns.indices", self.indices)
        indices = library.to_device(self.indices, device)
        same_device = device_name(indices) == device_name(self.indices)
        return ColumnLists(
            indices,
            library.to_device(self.counts, device),
            self.query_group,
            self.order if same_device else None,
        )

    def __repr__(self) -> str:
        """Shapes alone: the contents may be on a GPU."""
        *groups, capacity = self.indices.shape
        order = "" if self.order is None else ", with an order"
        return (
            f"ColumnLists(groups={list(groups)}, capacity={capacity}, "
            f"query_group={self.query_group}, device={device_name(self.indices)}{order})"
        )


def select_columns(
    scores: Any,
    *,
    count: Any = None,
    mass: Any = None,
    min_count: int = 0,
    max_count: int | None = None,
    always: Any = None,
    random_fraction: float = 0.0,
    seed: int | None = None,
    query_group: int = 192,
    out: ColumnLists | None = None,
) -> ColumnLists:
    """The best columns of each group, by score. Does not wait for the GPU.

    `always` columns come first, then the others by descending score, ties to the lower index. A NaN
    score ranks lowest; negative and NaN scores weigh nothing in `mass`. With `count`, a list holds
    max(count, number of `always` columns) of them; with `mass`, the fewest that hold all `always`
    columns and whose scores sum to at least that fraction of the group's total. `min_count` and
    `max_count` clamp both, and no list is longer than its capacity.

    Args:
        scores: `[*lead, groups, n]` float32, bfloat16 or float16, such as the column sums of
            `dense_attention_column_sums`.
        count: columns per group; exactly one of `count` and `mass` is given. A number for all
            groups, or an array of integers that broadcasts to `[*lead, groups]`, such as a budget
            per head `[heads, 1]`. An array needs `max_count`, as nobody waits to look into it; its
            numbers are clamped to [0, n].
        mass: fraction, 0 to 1, of a group's sum of scores: a number, or a floating-point array as
            for `count`, rounded to float32 and clamped, NaN to 0.
        min_count: at least so many columns in every list.
        max_count: at most so many; also the capacity of the lists.
        always: bool, broadcastable to scores.
        random_fraction: 0 to 1, the share drawn uniformly from the columns not chosen by score:
            with `count` in place of the last ones, with `mass` in addition.
        seed: of that draw, 64 bits: one seed gives the same lists on every device. None takes a new
            one from Python's `random` at every call; in a CUDA graph, at capture.
        query_group: rows per group, recorded in the result.
        out: lists to fill instead of new ones; their capacity bounds the lists too. Their order is
            made anew if they have one.

    Returns:
        Lists with the capacity min(n, max_count) if `max_count` is given, else
        min(n, max(count, min_count)) by `count` without `always`, else n.

    Raises:
        ValueError: a wrong argument; the text names it, what was expected and what came.
    """
    op = OPS["select_columns"]
    library = library_of(op.name, "scores", scores)
    count, counts = _number_or_array(library, op.name, "count", count, _number_of_columns)
    mass, masses = _number_or_array(library, op.name, "mass", mass, _fraction)
    min_count = _number_of_columns(op.name, "min_count", min_count)
    if max_count is None and (counts is not None or masses is not None):
        given = "count" if masses is None else "mass"
        refuse(op.name, "max_count", f"a number, as an array for {given} gives no capacity", None)
    if max_count is not None:
        max_count = _number_of_columns(op.name, "max_count", max_count)
    lists = out
    if lists is None:
        capacity = size(scores, -1)
        if max_count is not None:
            capacity = min(capacity, max_count)
        elif count is not None and always is None:
            capacity = min(capacity, max(count, min_count))
        lists = _empty_lists(library, scores, capacity, query_group)
    require_lists(op.name, lists, "out")
    args = op.arrange(
        scores=scores,
        always=always,
        count=count,
        count_per_list=counts,
        mass=mass,
        mass_per_list=masses,
        min_count=min_count,
        max_count=max_count,
        random_fraction=_fraction(op.name, "random_fraction", random_fraction),
        seed=None if seed is None else _signed(integer(op.name, "seed", seed)),
        query_group=lists.query_group,
        indices=lists.indices,
        counts=lists.counts,
        order=lists.order,
    )
    library.run(op, args)
    return _finished(library, lists)


def columns_from_mask(
    mask: Any,
    *,
    query_group: int = 192,
    capacity: int | None = None,
    out: ColumnLists | None = None,
) -> ColumnLists:
    """Lists the true entries of each row of a mask. Does not wait for the GPU.

    Args:
        mask: bool `[*lead, groups, n]`.
        query_group: rows per group, recorded in the result.
        capacity: of the lists; None means n. A row with more true entries keeps the lowest (with
            CHIPMUNK_CHECK=1 that is a ValueError).
        out: lists to fill instead of new ones. Their order is made anew if they have one.

    Raises:
        ValueError: a wrong argument; the text names it, what was expected and what came.
    """
    op = OPS["columns_from_mask"]
    library = library_of(op.name, "mask", mask)
    if capacity is None:
        capacity = size(mask, -1)
    capacity = _number_of_columns(op.name, "capacity", capacity)
    lists = _empty_lists(library, mask, capacity, query_group) if out is None else out
    require_lists(op.name, lists, "out")
    args = op.arrange(
        mask=mask,
        query_group=lists.query_group,
        indices=lists.indices,
        counts=lists.counts,
        order=lists.order,
    )
    library.run(op, args)
    return _finished(library, lists)


def require_lists(op: str, columns: Any, argument: str = "columns") -> None:
    """Refuses what is no `ColumnLists`."""
    if not isinstance(columns, ColumnLists):
        raise ValueError(f"{op}: {argument}: expected ColumnLists, got {type_name(columns)}")


def group_size(op: str, name: str, value: Any) -> int:
    """An integer that fits 64 bits; whether it is a size that the kernels know, the ops tell."""
    expected = "a positive number below 2^31"
    size = integer(op, name, value, expected)
    return size if -(2**63) <= size < 2**63 else refuse(op, name, expected, size)


def _number_of_columns(op: str, name: str, value: Any) -> int:
    """Refuses fractions, such as a count of 0.1 * n, what is negative, and what is no number."""
    expected = "a number of columns >= 0"
    number = integer(op, name, value, expected)
    if number < 0:
        refuse(op, name, expected, number)
    return number if number < 2**63 else 2**63 - 1  # more than any array has, and it fits the ops


def _fraction(op: str, name: str, value: Any) -> float:
    return real(op, name, value, "a fraction from 0 to 1")


def _is_array(value: Any) -> bool:
    """Not a number: arrays without dimensions count as numbers where they can be read at once."""
    shape = getattr(value, "shape", None)
    return shape is not None and (len(shape) > 0 or not is_on_cpu(value))


def _number_or_array(
    library: ArrayLibrary, op: str, name: str, value: Any, number: Callable[[str, str, Any], Any]
) -> tuple[Any, Any]:
    """One number for all lists, and an array of one for each: the one that was given, and None."""
    if value is None:
        return None, None
    if not _is_array(value):
        return number(op, name, value), None
    dtype, kinds, words = {
        "count": ("int32", ("int", "uint"), "an integer dtype"),
        "mass": ("float32", ("float", "bfloat"), "a floating-point dtype"),
    }[name]
    name = f"{name}_per_list"
    library.check(op, {name: value})
    if dtype_name(value) == dtype:
        return None, value
    if not dtype_name(value).startswith(kinds):
        raise ValueError(f"{op}: {name}: expected {words}, got {dtype_name(value)}")
    if type(library_of(op, name, value)) is not type(library):
        raise ValueError(
            f"{op}: {name}: expected {dtype}, or an array of the library of scores, "
            f"got {type_name(value)}"
        )
    return None, library.cast(value, dtype)


def _signed(seed: int) -> int:
    """The int64 with the bits of an unsigned number."""
    return (seed + 2**63) % 2**64 - 2**63


def _empty_lists(library: ArrayLibrary, rows: Any, capacity: int, query_group: int) -> ColumnLists:
    lead = tuple(rows.shape[:-1])
    return ColumnLists(
        library.empty((*lead, capacity), "int32", rows),
        library.empty(lead, "int32", rows),
        query_group,
        library.empty((3, math.prod(lead)), "int32", rows) if library.has_order(rows) else None,
    )


def _finished(library: ArrayLibrary, lists: ColumnLists) -> ColumnLists:
    indices, counts = library.finish(lists.indices), library.finish(lists.counts)
    return ColumnLists(indices, counts, lists.query_group, lists.order)
