"""What a call costs beside the kernel: column-sparse attention on five tensors without any query.

Such a call passes every layer and check, and returns where the kernel would start. Each round times
100 calls of every variant, in turn; the median round counts. On a machine that is busy with other
things the fastest round says more.

    python bench/bench_overhead.py [--rounds 300] [--no-write]
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import torch
from timing import alternate, write
from torch.nn import functional

import chipmunk_kernels as ck
from chipmunk_kernels import _core

CALLS = 100


def variants() -> dict[str, Callable[[], object]]:
    """The same call at every layer, and one of torch's for comparison."""
    q, k = torch.empty(1, 4, 0, 64), torch.empty(1, 4, 100, 64)
    columns = ck.ColumnLists(
        torch.empty(1, 4, 0, 8, dtype=torch.int32), torch.empty(1, 4, 0, dtype=torch.int32), 64
    )
    indices, counts = columns.indices, columns.counts
    out, lse = torch.empty_like(q), torch.empty(1, 4, 0)
    operator: Any = torch.ops.chipmunk_kernels.column_sparse_attention.default
    arguments = (q, k, k, indices, counts, None, 64, None, None, None, None, out, lse)
    n_q, n_k = q.numpy(), k.numpy()
    n_columns = ck.ColumnLists(indices.numpy(), counts.numpy(), 64)
    return {
        "ck, allocating": lambda: ck.column_sparse_attention(q, k, k, columns),
        "ck, out given": lambda: ck.column_sparse_attention(q, k, k, columns, out=(out, lse)),
        "torch operator": lambda: operator(*arguments),
        "extension": lambda: _core.column_sparse_attention(*arguments),
        "ck, numpy, allocating": lambda: ck.column_sparse_attention(n_q, n_k, n_k, n_columns),
        "two torch.empty": lambda: (torch.empty_like(q), torch.empty(q.shape[:-1])),
        "torch sdpa, no query": lambda: functional.scaled_dot_product_attention(q, k, k),
    }


def repeated(call: Callable[[], object]) -> Callable[[], None]:
    """`CALLS` calls in one."""

    def run() -> None:
        for _ in range(CALLS):
            call()

    return run


def main() -> None:
    """Prints a table; writes results/overhead.json."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=300)
    parser.add_argument("--no-write", action="store_true")
    options = parser.parse_args()
    torch.set_grad_enabled(False)
    times = alternate(
        {name: repeated(call) for name, call in variants().items()}, rounds=options.rounds
    )
    rows = {
        name: {key.replace("_ms", "_us"): round(ms * 1e3 / CALLS, 2) for key, ms in row.items()}
        for name, row in times.items()
    }
    for name, row in rows.items():
        print(f"{name:24} {row['median_us']:6.2f} us   (fastest round {row['min_us']:.2f})")
    if not options.no_write:
        result = {"op": "column_sparse_attention", "tensors": 5, "calls_per_round": CALLS}
        print(write("overhead", {**result, "rounds": options.rounds, "variants": rows}))


if __name__ == "__main__":
    main()
