"""Times the column-sparse MLP against torch's dense one on the CPU.

    python bench/bench_mlp_cpu.py [--sparsity 0.7] [--rounds 30] [--pause 0.01] [--no-write]

Both run in one process, in turn. "sparse" is fc1 with its cache update and fc2, as one call of
`ck.column_sparse_mlp`; "dense" is Linear, GELU(tanh), Linear in eager torch without gradients.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import torch
from timing import alternate, write
from torch.nn import functional

import chipmunk_kernels as ck
from chipmunk_kernels.reference import column_sparse_mlp as reference_mlp
from chipmunk_kernels.reference import dense_mlp

TOKENS, CHANNELS, HIDDEN, OUT_CHANNELS = 1024, 768, 3072, 768
ACTIVATION = "gelu_tanh"


class Case:
    """One dtype's weights, caches and lists."""

    def __init__(self, dtype: torch.dtype, sparsity: float) -> None:
        generator = torch.Generator().manual_seed(0)

        def normal(*shape: int, scale: float = 1.0) -> torch.Tensor:
            return (torch.randn(*shape, generator=generator) * scale).to(dtype)

        self.x = normal(1, TOKENS, CHANNELS)
        self.w1 = normal(HIDDEN, CHANNELS, scale=CHANNELS**-0.5)
        self.b1 = normal(HIDDEN)
        self.w2t = normal(HIDDEN, OUT_CHANNELS, scale=HIDDEN**-0.5)
        self.w2 = self.w2t.t().contiguous()
        self.b2 = normal(OUT_CHANNELS)
        scores = torch.rand(1, TOKENS // 128, HIDDEN, generator=generator)
        count = round((1 - sparsity) * HIDDEN)
        self.columns = ck.select_columns(scores, count=count, query_group=128)
        # The state a step earlier: x has moved since.
        self.activations, self.output = dense_mlp(
            normal(1, TOKENS, CHANNELS), self.w1, self.b1, self.w2t, self.b2, ACTIVATION
        )
        self.cache = ck.MlpCache(self.activations.clone(), self.output.clone())

    def sparse(self) -> torch.Tensor:
        return ck.column_sparse_mlp(
            self.x, self.w1, self.b1, self.w2t, self.columns, self.cache, activation=ACTIVATION
        )

    def dense(self) -> torch.Tensor:
        with torch.inference_mode():
            hidden = functional.linear(self.x, self.w1, self.b1)
            hidden = functional.gelu(hidden, approximate="tanh")
            return functional.linear(hidden, self.w2, self.b2)

    def check(self) -> dict[str, float]:
        """Largest errors against float64, ours and dense torch's in this dtype; raises if ours is
        more than twice torch's and a rounding."""
        inputs = [t.double() for t in (self.x, self.w1, self.b1, self.w2t)]
        indices, counts = self.columns.indices, self.columns.counts
        activations = self.activations.double()
        expected = reference_mlp(
            *inputs, indices, counts, activations, self.output.double(), activation=ACTIVATION
        )
        ours = (self.sparse().double() - expected).abs().max().item()
        _, dense = dense_mlp(*inputs, self.b2.double(), ACTIVATION)
        torchs = (self.dense().double() - dense).abs().max().item()
        floor = torch.finfo(self.x.dtype).eps * expected.abs().max().item()
        if not ours <= 2 * torchs + floor:
            raise SystemExit(f"{self.x.dtype}: error {ours}, dense torch {torchs}")
        return {"max_error_sparse": ours, "max_error_dense": torchs}


def main() -> None:
    """Checks, times, prints and writes the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sparsity", type=float, default=0.7, help="share of columns left out")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--pause", type=float, default=0.01, help="seconds before each run")
    parser.add_argument("--no-write", action="store_true", help="leave bench/results alone")
    arguments = parser.parse_args()

    cases = {
        "float32": Case(torch.float32, arguments.sparsity),
        "bfloat16": Case(torch.bfloat16, arguments.sparsity),
        "float16": Case(torch.float16, arguments.sparsity),
    }
    errors = {name: case.check() for name, case in cases.items()}
    variants: dict[str, Callable[[], object]] = {}
    for name, case in cases.items():
        variants[f"{name} dense"] = case.dense
        variants[f"{name} sparse"] = case.sparse
    times = alternate(variants, rounds=arguments.rounds, pause_s=arguments.pause)

    flops = 2 * TOKENS * HIDDEN * (CHANNELS + OUT_CHANNELS)
    kept = cases["float32"].columns.counts.double().mean().item() / HIDDEN
    rows: dict[str, Any] = {}
    print(f"tokens {TOKENS}, {CHANNELS} -> {HIDDEN} -> {OUT_CHANNELS}, columns kept {kept:.1%}")
    for name in cases:
        dense, sparse = (times[f"{name} {kind}"]["median_ms"] for kind in ("dense", "sparse"))
        rows[name] = {
            "dense": times[f"{name} dense"],
            "sparse": times[f"{name} sparse"],
            "dense_gflops": round(flops / dense / 1e6, 1),
            "sparse_gflops": round(kept * flops / sparse / 1e6, 1),
            "speedup": round(dense / sparse, 3),
            **errors[name],
        }
        print(
            f"{name:9} dense {dense:7.2f} ms ({rows[name]['dense_gflops']:6.1f} GFLOP/s)   "
            f"sparse {sparse:7.2f} ms ({rows[name]['sparse_gflops']:6.1f} GFLOP/s)   "
            f"speed-up {dense / sparse:.2f}"
        )
    if not arguments.no_write:
        shape = dict(
            tokens=TOKENS, channels=CHANNELS, hidden=HIDDEN, out_channels=OUT_CHANNELS, kept=kept
        )
        result = {"op": "column_sparse_mlp", "activation": ACTIVATION, "shape": shape}
        settings = {"rounds": arguments.rounds, "pause_s": arguments.pause}
        print(write("mlp_cpu", {**result, **settings, "dtypes": rows}))


if __name__ == "__main__":
    main()
