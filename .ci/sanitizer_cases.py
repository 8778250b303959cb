"""The cases that the sanitizers watch: small calls of every op that has a CUDA kernel.

    python .ci/sanitizer_cases.py [--list] [NAME ..]

Inputs are made on the CPU and copied: few kernels run but ours. Results go into memory that
was filled before, since initcheck does not see what the copy engine writes. Whether the values are
right is the tests' question; here they must be finite.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

import chipmunk_kernels as ck


@dataclass(frozen=True)
class Attention:
    """One call over random lists of many lengths, a tenth of them empty."""

    head_dim: int
    query_group: int
    dtype: torch.dtype = torch.bfloat16
    with_rest: bool = False
    groups_per_sm: int = 0
    """0: three groups, the last one short. Else a head with so many groups a multiprocessor: a CTA
    then has several tiles of query rows."""
    with_order: bool = True
    """Whether the lists keep the order that they are made with."""
    by_rows: bool = False
    """Whether the groups are made of rows in another order."""

    def run(self, device: torch.device) -> None:
        if self.groups_per_sm:
            heads, groups = 1, self.groups_per_sm * multiprocessors(device)
        else:
            heads, groups = 2, 3
        queries, keys = groups * self.query_group - 23, 400

        def normal(rows: int) -> Tensor:
            return torch.randn(1, heads, rows, self.head_dim).to(self.dtype).to(device)

        q, k, v = normal(queries), normal(keys), normal(keys)
        counts = torch.randint(0, keys + 1, (1, heads, groups))
        counts[torch.rand(counts.shape) < 0.1] = 0
        mask = torch.rand(*counts.shape, keys).argsort(-1) < counts[..., None]
        columns = ck.columns_from_mask(mask.to(device), query_group=self.query_group)
        if not self.with_order:
            columns = ck.ColumnLists(columns.indices, columns.counts, self.query_group)
        rest = None
        if self.with_rest:
            rest = (normal(queries), torch.randn(1, heads, queries).to(device))
        out = (filled(q), torch.zeros(1, heads, queries).to(device))
        rows = torch.randperm(queries).int().to(device) if self.by_rows else None
        ck.column_sparse_attention(q, k, v, columns, rest=rest, query_rows=rows, out=out)
        lse = out[1].cpu()
        finite(out[0], lse[lse != -torch.inf])


@dataclass(frozen=True)
class Dense:
    """Dense attention, and column sums with a given and with the exact reference."""

    head_dim: int
    query_group: int
    dtype: torch.dtype = torch.bfloat16
    groups_per_sm: int = 0
    """As in `Attention`."""

    def run(self, device: torch.device) -> None:
        heads, groups = (1, self.groups_per_sm * multiprocessors(device))
        if not self.groups_per_sm:
            heads, groups = 2, 3
        queries, keys = groups * self.query_group - 23, 301
        q, k, v = (
            torch.randn(1, heads, rows, self.head_dim).to(self.dtype).to(device)
            for rows in (queries, keys, keys)
        )
        part = (filled(q), torch.zeros(1, heads, queries).to(device))
        ck.dense_attention(q, k, v, out=part)
        finite(*part)
        rows = torch.randperm(queries).int().to(device)
        weights = torch.rand(1, heads, keys).to(device)
        lse = part[1].clone()
        for options in (
            {"reference_lse": lse},
            {"key_weights": weights},
            {"reference_lse": lse, "query_rows": rows},
        ):
            sums = torch.zeros(1, heads, groups, keys).to(device)
            options["query_group"] = self.query_group
            ck.dense_attention_column_sums(q, k, v, **options, out=(*part, sums))
            finite(*part, sums)


def multiprocessors(device: torch.device) -> int:
    if device.type != "cuda":
        return 2
    return torch.cuda.get_device_properties(device).multi_processor_count


def filled(like: Tensor) -> Tensor:
    return torch.zeros(like.shape, dtype=like.dtype).to(like.device)


def finite(*results: Tensor) -> None:
    for result in results:
        if not result.cpu().isfinite().all():
            raise SystemExit("sanitizer_cases: a result is not finite")


def lists(groups: int, n: int, device: torch.device) -> ck.ColumnLists:
    """Empty lists to fill, of the capacity n."""
    zeros = torch.zeros(1, 2, groups, n, dtype=torch.int32).to(device)
    return ck.ColumnLists(zeros, zeros[..., 0].clone(), 192)


def select(dtype: torch.dtype, device: torch.device) -> None:
    """By count and by mass, one for all lists or for each, with and without an order."""
    groups, n = 5, 3_000
    scores = torch.rand(1, 2, groups, n).to(dtype).to(device)
    always = (torch.rand(n) < 0.01).to(device)
    counts = torch.randint(0, n, (1, 2, groups), dtype=torch.int32).to(device)
    masses = torch.rand(2, 1).to(device)
    for options in (
        {"count": 300},
        {"count": 300, "always": always, "random_fraction": 0.3, "seed": 1},
        {"mass": 0.6, "min_count": 7},
        {"count": counts, "max_count": n},
        {"mass": masses, "max_count": n},
    ):
        ck.select_columns(scores, **options, out=lists(groups, n, device))
        made = ck.select_columns(scores, **options)
        made.validate(n)


def masks(device: torch.device) -> None:
    """A mask to lists and back; many lists, so that an order has something to do."""
    mask = (torch.rand(2, 300, 700) < torch.rand(2, 300, 1)).to(device)
    columns = ck.columns_from_mask(mask)
    if not torch.equal(columns.to_mask(700).cpu(), mask.cpu()):
        raise SystemExit("sanitizer_cases: the mask of the lists is another mask")
    ck.columns_from_mask(mask, capacity=100)


def merge(dtype: torch.dtype, device: torch.device) -> None:
    """merge_attention and rest_of_attention, at head dims on and off 16 bytes."""
    for head_dim in (64, 72, 256):
        a, b = (
            (
                torch.randn(2, 3, 77, head_dim).to(dtype).to(device),
                torch.randn(2, 3, 77).to(device),
            )
            for _ in range(2)
        )
        whole = ck.merge_attention(a, b, out=(filled(a[0]), filled(a[1])))
        rest = ck.rest_of_attention(whole, b, out=(filled(a[0]), filled(a[1])))
        finite(*whole, rest[0])


_F16 = torch.float16
CASES: Mapping[str, Callable[[torch.device], None]] = {
    "d64-g192": Attention(64, 192).run,
    "d64-g128-f16-rest": Attention(64, 128, _F16, with_rest=True).run,
    "d96-g64": Attention(96, 64).run,
    "d96-g192-rest": Attention(96, 192, with_rest=True).run,
    "d128-g64-rest": Attention(128, 64, with_rest=True).run,
    "d128-g128-f16": Attention(128, 128, _F16).run,
    "d128-g256": Attention(128, 256).run,
    "d256-g128-f16-rest": Attention(256, 128, _F16, with_rest=True).run,
    "d256-g192": Attention(256, 192).run,
    "tiles-d64-g192-rest": Attention(64, 192, with_rest=True, groups_per_sm=3).run,
    "tiles-d96-g128": Attention(96, 128, groups_per_sm=3, with_order=False).run,
    "tiles-d128-g192-rest": Attention(128, 192, with_rest=True, groups_per_sm=5).run,
    "tiles-d128-g64-f16": Attention(128, 64, _F16, groups_per_sm=5, with_order=False).run,
    "tiles-d256-g192-rest": Attention(256, 192, with_rest=True, groups_per_sm=3).run,
    "d64-g64-rows": Attention(64, 64, by_rows=True).run,
    "d256-g128-rest-rows": Attention(256, 128, with_rest=True, by_rows=True).run,
    "tiles-d128-g192-rest-rows": Attention(
        128, 192, with_rest=True, groups_per_sm=3, by_rows=True
    ).run,
    "dense-d64-g64-f16": Dense(64, 64, _F16).run,
    "dense-d96-g128": Dense(96, 128).run,
    "dense-d256-g128": Dense(256, 128).run,
    "tiles-dense-d128-g192": Dense(128, 192, groups_per_sm=3).run,
    "select-bf16": partial(select, torch.bfloat16),
    "select-f32": partial(select, torch.float32),
    "mask": masks,
    "merge": partial(merge, torch.bfloat16),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("names", nargs="*", help="cases to run; none: all")
    parser.add_argument("--list", action="store_true", help="print the names only")
    parser.add_argument("--device", default="cuda")
    options = parser.parse_args()
    if options.list:
        print("\n".join(CASES))
        return
    unknown = sorted(set(options.names) - set(CASES))
    if unknown:
        sys.exit(f"sanitizer_cases: no such case: {', '.join(unknown)}")
    device = torch.device(options.device)
    for name in options.names or CASES:
        torch.manual_seed(0)
        print(name, flush=True)
        CASES[name](device)
        if device.type == "cuda":
            torch.cuda.synchronize()


if __name__ == "__main__":
    main()
