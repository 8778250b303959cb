"""Times the attention ops against torch's scaled_dot_product_attention on the CPU.

    python bench/bench_attention_cpu.py [--sparsity 0.9] [--head-dim 64] [--rounds 20] [--no-write]

All run in one process, in turn. "torch" is dense attention in eager torch without gradients,
"dense" is `ck.dense_attention`, "sums" `ck.dense_attention_column_sums` with the previous step's
lse, "exact sums" the same in two passes, "sparse" `ck.column_sparse_attention` over random columns,
"merged" the same with a rest. GFLOP/s count the multiplications and additions of the columns that
each visits, once.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import torch
from timing import alternate, write
from torch.nn import functional

import chipmunk_kernels as ck
from chipmunk_kernels import reference

BATCH, HEADS, TOKENS = 1, 2, 4096
QUERY_GROUP = 192


class Case:
    """One dtype's tensors and lists."""

    def __init__(self, dtype: torch.dtype, head_dim: int, sparsity: float) -> None:
        generator = torch.Generator().manual_seed(0)
        self.q, self.k, self.v = (
            torch.randn(BATCH, HEADS, TOKENS, head_dim, generator=generator).to(dtype)
            for _ in range(3)
        )
        groups = -(-TOKENS // QUERY_GROUP)
        scores = torch.rand(BATCH, HEADS, groups, TOKENS, generator=generator)
        count = round((1 - sparsity) * TOKENS)
        self.columns = ck.select_columns(scores, count=count, query_group=QUERY_GROUP)
        out, self.lse = ck.dense_attention(self.q, self.k, self.v)
        self.rest = (out, self.lse)

    def variants(self) -> dict[str, Callable[[], object]]:
        q, k, v = self.q, self.k, self.v

        def torchs() -> torch.Tensor:
            with torch.inference_mode():
                return functional.scaled_dot_product_attention(q, k, v)

        return {
            "torch": torchs,
            "dense": lambda: ck.dense_attention(q, k, v),
            "sums": lambda: ck.dense_attention_column_sums(
                q, k, v, reference_lse=self.lse, query_group=QUERY_GROUP
            ),
            "exact sums": lambda: ck.dense_attention_column_sums(q, k, v, query_group=QUERY_GROUP),
            "sparse": lambda: ck.column_sparse_attention(q, k, v, self.columns),
            "merged": lambda: ck.column_sparse_attention(q, k, v, self.columns, rest=self.rest),
        }

    def check(self) -> dict[str, float]:
        """Largest errors against float64, ours and torch's in this dtype; raises if one of ours is
        more than twice torch's and a rounding."""
        wide = [t.double() for t in (self.q, self.k, self.v)]
        dense, _ = reference.dense_attention(*wide)
        lists = (self.columns.indices, self.columns.counts, QUERY_GROUP)
        sparse, _ = reference.column_sparse_attention(*wide, *lists)
        torchs = functional.scaled_dot_product_attention(self.q, self.k, self.v)
        # Fewer columns average out less: plain torch over the same ones is what sparse can match.
        torch_sparse, _ = reference.column_sparse_attention(self.q, self.k, self.v, *lists)
        errors = {
            "torch": _error(torchs, dense),
            "dense": _error(ck.dense_attention(self.q, self.k, self.v)[0], dense),
            "torch_sparse": _error(torch_sparse, sparse),
            "sparse": _error(
                ck.column_sparse_attention(self.q, self.k, self.v, self.columns)[0], sparse
            ),
        }
        epsilon = torch.finfo(self.q.dtype).eps
        for ours, theirs, expected in (
            ("dense", "torch", dense),
            ("sparse", "torch_sparse", sparse),
        ):
            if not errors[ours] <= 2 * errors[theirs] + epsilon * expected.abs().max().item():
                raise SystemExit(f"{self.q.dtype} {ours}: wrong, largest errors {errors}")
        return errors


def _error(got: torch.Tensor, expected: torch.Tensor) -> float:
    return (got.double() - expected).abs().max().item()


def main() -> None:
    """Checks, times, prints and writes the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sparsity", type=float, default=0.9, help="share of columns left out")
    parser.add_argument("--head-dim", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--no-write", action="store_true", help="leave bench/results alone")
    arguments = parser.parse_args()

    dtypes = (torch.float32, torch.bfloat16, torch.float16)
    cases = {
        str(dtype).removeprefix("torch."): Case(dtype, arguments.head_dim, arguments.sparsity)
        for dtype in dtypes
    }
    errors = {name: case.check() for name, case in cases.items()}
    times = alternate(
        {
            f"{name} {kind}": run
            for name, case in cases.items()
            for kind, run in case.variants().items()
        },
        rounds=arguments.rounds,
    )

    flops = 4 * BATCH * HEADS * TOKENS * TOKENS * arguments.head_dim
    kept = cases["float32"].columns.counts.double().mean().item() / TOKENS
    rows: dict[str, Any] = {}
    print(f"[{BATCH}, {HEADS}, {TOKENS}, {arguments.head_dim}], columns kept {kept:.1%}")
    print(f"{'':9}{'':11} wall ms   cpu ms  GFLOP/s  times torch: wall, cpu")
    for name, case in cases.items():
        rows[name] = {"max_errors": errors[name]}
        base = times[f"{name} torch"]
        for kind in case.variants():
            row: dict[str, float] = dict(times[f"{name} {kind}"])
            wall, cpu = row["median_ms"], row["median_cpu_ms"]
            share = kept if kind in ("sparse", "merged") else 1.0
            row["gflops"] = round(share * flops / wall / 1e6, 1)
            row["speedup"] = round(base["median_ms"] / wall, 3)
            row["cpu_time_speedup"] = round(base["median_cpu_ms"] / cpu, 3)
            rows[name][kind] = row
            print(
                f"{name:9}{kind:>11} {wall:8.2f} {cpu:8.2f} {row['gflops']:8.1f}"
                f"  {row['speedup']:11.2f} {row['cpu_time_speedup']:11.2f}"
            )
    if not arguments.no_write:
        shape = dict(
            batch=BATCH,
            heads=HEADS,
            tokens=TOKENS,
            head_dim=arguments.head_dim,
            query_group=QUERY_GROUP,
            kept=kept,
        )
        name = (
            "attention_cpu" if arguments.head_dim == 64 else f"attention_cpu_{arguments.head_dim}"
        )
        result = {"op": "attention", "shape": shape, "rounds": arguments.rounds, "dtypes": rows}
        print(write(name, result))


if __name__ == "__main__":
    main()
