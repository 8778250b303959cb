"""The suite "select": what it takes to make column lists from scores, beside torch.topk."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from attention_cases import reason
from attention_report import MODES, Row, time_cells
from gpu_machine import Machine, timed
from torch import Tensor

import chipmunk_kernels as ck
from chipmunk_kernels import reference

SELECT = "select"
COUNT, PER_LIST, MASS, TOPK = "count", "count per list", "mass", "torch.topk"
WITH_ORDER = ", order"
MASS_SHARE = 0.8
HEADER = (
    f"{'lists x columns (count)':<28}  {'variant':<22} {'cold ms':>9} {'sust. ms':>9} {'GB/s':>6} "
    f"{'order us':>8}"
)
Options = Mapping[str, Any]


@dataclass(frozen=True)
class SelectCase:
    """Scores of one attention layer: heads x groups lists of `columns` scores."""

    name: str
    heads: int
    groups: int
    columns: int
    count: int
    dtype: str = "bfloat16"

    @property
    def title(self) -> str:
        """For messages."""
        return f"select {self.name}, {self.count} columns"

    @property
    def lists(self) -> int:
        return self.heads * self.groups


CASES = (
    SelectCase("flux-1024", heads=24, groups=24, columns=4_608, count=784),
    SelectCase("16k", heads=24, groups=86, columns=16_384, count=1_120),
    SelectCase("hunyuan-720p", heads=24, groups=621, columns=119_056, count=8_288),
)


def random_scores(case: SelectCase, device: torch.device) -> Tensor:
    """`[1, heads, groups, columns]`, log-normal like column sums; the same at every call."""
    generator = torch.Generator(device).manual_seed(0)
    shape = (1, case.heads, case.groups, case.columns)
    dtype = getattr(torch, case.dtype)
    return torch.randn(shape, generator=generator, device=device, dtype=dtype).exp_()


def budgets(case: SelectCase, device: torch.device) -> dict[str, Options]:
    """The options of `select_columns` by the name of what they bound."""
    generator = torch.Generator().manual_seed(0)
    shape = (1, case.heads, case.groups)
    counts = torch.randint(1, 2 * case.count, shape, generator=generator, dtype=torch.int32)
    longest = min(2 * case.count, case.columns)
    return {
        COUNT: {"count": case.count},
        PER_LIST: {"count": counts.clamp(max=case.columns).to(device), "max_count": longest},
        MASS: {"mass": MASS_SHARE},
    }


def variants(scores: Tensor, options: Options, name: str) -> dict[str, Callable[[], Any]]:
    """Into given lists, without an order and, where lists have one, with it.

    Raises RuntimeError where the lists are not those of the reference.
    """
    ordered = ck.select_columns(scores, **options)
    plain = ck.ColumnLists(ordered.indices, ordered.counts, ordered.query_group)
    ordered.validate(scores.shape[-1])
    check(scores, options, ordered)
    runs = {name: partial(ck.select_columns, scores, **options, out=plain)}
    if ordered.order is not None:
        runs[name + WITH_ORDER] = partial(ck.select_columns, scores, **options, out=ordered)
    return runs


def check(scores: Tensor, options: Options, got: ck.ColumnLists) -> None:
    """Compares the first, middle and last list with the reference, entry by entry."""
    lists = scores.shape[1] * scores.shape[2]
    for index in sorted({0, lists // 2, lists - 1}):
        head, group = divmod(index, scores.shape[2])
        own = {
            key: int(value[0, head, group]) if isinstance(value, Tensor) else value
            for key, value in options.items()
        }
        indices, counts = reference.select_columns(scores[0, head, group][None], **own)
        count = int(counts[0])
        found = got.indices[0, head, group, :count]
        if int(got.counts[0, head, group]) != count or not torch.equal(found, indices[0, :count]):
            raise RuntimeError(f"WRONG: list {index} is not the reference's")


def measure(case: SelectCase, options: argparse.Namespace, machine: Machine) -> Row:
    """One row: checked, timed, with derived figures."""
    scores = random_scores(case, machine.device)
    runs: dict[str, Callable[[], Any]] = {}
    left_out: dict[str, str] = {}
    for name, budget in budgets(case, machine.device).items():
        try:
            runs.update(variants(scores, budget, name))
        except Exception as error:  # the others go on
            left_out[name] = reason(error)
    if case.count <= case.columns:
        topk = partial(scores.topk, case.count, sorted=False)
        try:
            topk()
            runs[TOPK] = topk
        except RuntimeError as error:  # no memory
            left_out[TOPK] = reason(error)
    row: Row = {
        "shape": case.name,
        "lists": case.lists,
        "columns": case.columns,
        "count": case.count,
        "dtype": case.dtype,
        "mass": MASS_SHARE,
        "variants": timed(runs, options, machine),
        "left_out": left_out,
    }
    derive(row, scores.nbytes)
    return row


def derive(row: Row, score_bytes: int) -> None:
    """Adds GB/s, the scores counted once, and what an order costs in microseconds."""
    for mode in MODES:
        times = {n: v[mode]["median_ms"] for n, v in row["variants"].items() if mode in v}
        for name, ms in times.items():
            row["variants"][name][mode]["gb_s"] = round(score_bytes / ms / 1e6, 1)
            plain = name.removesuffix(WITH_ORDER)
            if plain != name:
                cost = (ms - times[plain]) * 1e3
                row["variants"][name][mode]["order_us"] = round(cost, 2)


def lines(row: Row) -> Iterator[str]:
    """The row as lines of the table."""
    lead = f"{row['lists']:,} x {row['columns']:,} ({row['count']:,})"
    lead = f"{lead:<28}"
    for name, variant in row["variants"].items():
        figures = variant.get("sustained") or variant.get("launches", {})
        cells = [
            *time_cells(variant),
            f"{figures['gb_s']:6.0f}",
            f"{figures['order_us']:8.1f}" if "order_us" in figures else "",
        ]
        yield f"{lead}  {name:<22} {' '.join(cells)}".rstrip()
        lead = " " * len(lead)
    for name, why in row["left_out"].items():
        yield f"{lead}  {name:<22} left out: {why}"
        lead = " " * len(lead)
