"""Column lists: which columns each group of query rows uses, and the ops that make them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from chipmunk_kernels.arguments import integer, real, refuse, type_name
from chipmunk_kernels.ops import checked
from chipmunk_kernels.ops.arrays import library_of, size

_INT32_MAX = 2**31 - 1


@dataclass(frozen=True, eq=False)
class ColumnLists:
    """One list of columns for each group of `query_group` consecutive rows.

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
                or not within [0, n); names the first such list.
        """
        library = library_of("validate", "columns.indices", self.indices)
        library.check("validate", _named(self))
        n = _INT32_MAX if n is None else _number_of_columns("validate", "n", n)
        checked.validate("validate", self.indices, self.counts, n, library.to_host)

    def to_mask(self, n: int) -> Any:
        """The lists as a mask: bool `[*lead, groups, n]`, true where a column is listed.

        Raises:
            ValueError: `n` is negative, or the lists are no lists.
        """
        library = library_of("columns_to_mask", "columns.indices", self.indices)
        library.check("columns_to_mask", _named(self))
        n = _number_of_columns("columns_to_mask", "n", n)
        mask = library.empty((*self.indices.shape[:-1], n), "bool", self.indices)
        library.run("columns_to_mask", self.indices, self.counts, mask)
        return library.finish(mask)

    def to(self, device: Any) -> ColumnLists:
        """The lists on another device, in the terms of their array library."""
        library = library_of("to", "columns.indices", self.indices)
        return ColumnLists(
            library.to_device(self.indices, device),
            library.to_device(self.counts, device),
            self.query_group,
        )

    def __repr__(self) -> str:
        """Shapes alone: the contents may be on a GPU."""
        *groups, capacity = self.indices.shape
        device = getattr(self.indices, "device", "cpu")
        return (
            f"ColumnLists(groups={list(groups)}, capacity={capacity}, "
            f"query_group={self.query_group}, device={device})"
        )


def select_columns(
    scores: Any,
    *,
    count: int | None = None,
    mass: float | None = None,
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
        count: columns per group; exactly one of `count` and `mass` is given.
        mass: fraction, 0 to 1.
        min_count: at least so many columns in every list.
        max_count: at most so many; also the capacity of the lists.
        always: bool, broadcastable to scores.
        random_fraction: 0 to 1, the share drawn uniformly from the columns not chosen by score:
            with `count` in place of the last ones, with `mass` in addition.
        seed: of that draw, 64 bits: one seed gives the same lists on every device. None takes a new
            one from Python's `random` at every call; in a CUDA graph, at capture.
        query_group: rows per group, recorded in the result.
        out: lists to fill instead of new ones; their capacity bounds the lists too.

    Returns:
        Lists with the capacity min(n, max_count) if `max_count` is given, else
        min(n, max(count, min_count)) by `count` without `always`, else n.

    Raises:
        ValueError: a wrong argument; the text names it, what was expected and what came.
    """
    library = library_of("select_columns", "scores", scores)
    library.check("select_columns", {"scores": scores, "always": always})
    op = "select_columns"
    count = None if count is None else _number_of_columns(op, "count", count)
    mass = None if mass is None else real(op, "mass", mass, "a fraction from 0 to 1")
    min_count = _number_of_columns(op, "min_count", min_count)
    max_count = None if max_count is None else _number_of_columns(op, "max_count", max_count)
    random_fraction = real(op, "random_fraction", random_fraction, "a fraction from 0 to 1")
    if out is None:
        n = size(scores, -1)
        capacity = n
        if max_count is not None:
            capacity = min(n, max(0, max_count))
        elif count is not None and always is None:
            capacity = min(n, max(0, count, min_count))
        out = _empty_lists(library, scores, capacity, query_group)
    else:
        require_lists("select_columns", out, "out")
        library.check_in_place("select_columns", _named(out))
    if seed is not None:
        seed = integer(op, "seed", seed)
        seed = (seed + 2**63) % 2**64 - 2**63  # the int64 with the bits of an unsigned number
    library.run(
        "select_columns",
        scores,
        always,
        count,
        mass,
        min_count,
        max_count,
        random_fraction,
        seed,
        out.indices,
        out.counts,
    )
    return _finished(library, out)


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
        out: lists to fill instead of new ones.

    Raises:
        ValueError: a wrong argument; the text names it, what was expected and what came.
    """
    library = library_of("columns_from_mask", "mask", mask)
    library.check("columns_from_mask", {"mask": mask})
    if capacity is None:
        capacity = size(mask, -1)
    capacity = _number_of_columns("columns_from_mask", "capacity", capacity)
    if out is None:
        out = _empty_lists(library, mask, capacity, query_group)
    else:
        require_lists("columns_from_mask", out, "out")
        library.check_in_place("columns_from_mask", _named(out))
    library.run("columns_from_mask", mask, out.indices, out.counts)
    return _finished(library, out)


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


def _named(lists: ColumnLists) -> dict[str, Any]:
    return {"columns.indices": lists.indices, "columns.counts": lists.counts}


def _empty_lists(library: Any, rows: Any, capacity: int, query_group: int) -> ColumnLists:
    lead = tuple(rows.shape[:-1])
    return ColumnLists(
        library.empty((*lead, capacity), "int32", rows),
        library.empty(lead, "int32", rows),
        query_group,
    )


def _finished(library: Any, lists: ColumnLists) -> ColumnLists:
    return ColumnLists(
        library.finish(lists.indices), library.finish(lists.counts), lists.query_group
    )
