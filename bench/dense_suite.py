"""The suite "dense": dense attention and column sums, beside FlashAttention-3 and cuDNN."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from attention_cases import (
    Inputs,
    Variant,
    check,
    dense_flops,
    described,
    reason,
    sampled_rows,
)
from attention_peers import Peer
from attention_report import MODES, Row, time_cells
from gpu_machine import Machine, timed
from shapes import (
    CUDNN,
    FA3,
    FLUX_1024,
    HUNYUAN_720P,
    TOKENS_16K,
    WAN_720P,
    AttentionCase,
    AttentionShape,
)
from torch import Tensor

import chipmunk_kernels as ck
from chipmunk_kernels import reference

DENSE_SUITE = "dense"
DENSE, SUMS, EXACT_SUMS = "dense", "column sums", "exact column sums"
SUMS_ALLOWED = torch.finfo(torch.bfloat16).eps  # one rounding of a group's greatest sum
HEADER = (
    f"{'heads x tokens x head dim':<24}  {'variant':<18} {'cold ms':>9} {'sust. ms':>9} "
    f"{'TFLOP/s':>8} {'/ fa3':>6} {'/ dense':>7}"
)


@dataclass(frozen=True)
class DenseCase:
    """One shape, all keys."""

    shape: AttentionShape
    dtype: str = "bfloat16"

    @property
    def query_group(self) -> int:
        return 192 if self.shape.head_dim < 256 else 128

    @property
    def title(self) -> str:
        """For messages."""
        return f"dense {self.shape.name}, head dim {self.shape.head_dim}, {self.dtype}"

    @property
    def attention(self) -> AttentionCase:
        """As the peers take it."""
        return AttentionCase(self.shape, self.shape.tokens, dtype=self.dtype)


CASES = (
    DenseCase(FLUX_1024),
    DenseCase(TOKENS_16K),
    DenseCase(WAN_720P),
    DenseCase(HUNYUAN_720P),
    *(
        DenseCase(AttentionShape("16k", heads=heads, tokens=16_384, head_dim=head_dim))
        for heads, head_dim in ((48, 64), (32, 96), (12, 256))
    ),
    DenseCase(TOKENS_16K, "float16"),
)


def all_keys(_head: int, _row: int) -> slice:
    """The keys of a query row."""
    return slice(None)


def ours(
    case: DenseCase, inputs: Inputs, machine: Machine
) -> tuple[dict[str, Callable[[], Any]], dict[str, Any], dict[str, str]]:
    """Our variants that give the right result, their errors, and why others are missing."""
    q, k, v = inputs.q, inputs.k, inputs.v
    part = (inputs.out, inputs.lse)
    lse = ck.dense_attention(q, k, v)[1]
    groups = -(-case.shape.tokens // case.query_group)
    shape = (1, case.shape.heads, groups, case.shape.tokens)
    sums = torch.empty(shape, dtype=torch.bfloat16, device=machine.device)
    with_sums = partial(
        ck.dense_attention_column_sums, q, k, v, query_group=case.query_group, out=(*part, sums)
    )
    calls = {
        DENSE: partial(ck.dense_attention, q, k, v, out=part),
        SUMS: partial(with_sums, reference_lse=lse),
        EXACT_SUMS: with_sums,
    }
    runs, checks, left_out = {}, {}, {}
    for name, call in calls.items():
        inputs.poison()
        sums.fill_(float("nan"))

        def result(call: Callable[[], Any] = call) -> Any:
            return call()[:2]

        variant = Variant(name, result, dense_flops(case.attention), q, k, v, all_keys)
        found = check(variant, sampled_rows(case.attention))
        error = 0.0 if name == DENSE else sums_error(inputs, lse, sums, case.query_group)
        checks[name] = {**vars(found), "sums_error": error}
        if found.passed and error <= SUMS_ALLOWED:
            runs[name] = call
        else:
            left_out[name] = f"WRONG: {found}, column sums {error:.3g}"
    return runs, checks, left_out


def sums_error(inputs: Inputs, lse: Tensor, sums: Tensor, query_group: int) -> float:
    """Of the first, middle and last group, over the greatest sum of the group."""
    worst = 0.0
    heads, groups = sums.shape[1], sums.shape[2]
    for index in (0, heads * groups // 2, heads * groups - 1):
        head, group = divmod(index, groups)
        rows = slice(group * query_group, (group + 1) * query_group)
        exact = reference.dense_attention_column_sums(
            inputs.q[:, head : head + 1, rows].double(),
            inputs.k[:, head : head + 1].double(),
            inputs.v[:, head : head + 1].double(),
            reference_lse=lse[:, head : head + 1, rows].double(),
            query_group=query_group,
        )[2][0, 0, 0]
        error = (sums[0, head, group].double() - exact).abs().max() / exact.abs().max()
        worst = max(worst, error.nan_to_num(torch.inf).item())
    return worst


def measure(
    case: DenseCase, options: argparse.Namespace, peers: Mapping[str, Peer], machine: Machine
) -> Row:
    """One row: checked, timed, with derived figures."""
    generator = torch.Generator(machine.device).manual_seed(0)
    inputs = Inputs.random(case.attention, generator)
    runs, checks, left_out = ours(case, inputs, machine)
    for name in (FA3, CUDNN):
        if name not in peers:
            continue
        try:
            variant = peers[name](case.attention, inputs, machine.timer, generator)
            found = check(variant, sampled_rows(case.attention))
            checks[name] = vars(found)
            if not found.passed:
                raise RuntimeError(f"WRONG: {found}")
            runs[name] = variant.run
        except Exception as error:  # somebody else's kernel: the others go on
            left_out[name] = reason(error)
    flops = dense_flops(case.attention)
    row: Row = {
        **described(case),
        "dense_gflop": flops / 1e9,
        "variants": timed(runs, options, machine),
        "checks": checks,
        "left_out": left_out,
    }
    derive(row, flops)
    return row


def derive(row: Row, flops: int) -> None:
    """Adds TFLOP/s and the times over FlashAttention-3's and over plain dense attention's."""
    for mode in MODES:
        times = {n: v[mode]["median_ms"] for n, v in row["variants"].items() if mode in v}
        for name, ms in times.items():
            figures = row["variants"][name][mode]
            figures["tflops"] = round(flops / ms / 1e9, 1)
            for peer in (FA3, DENSE):
                if peer in times and name != peer:
                    figures[f"time_over_{peer}"] = round(ms / times[peer], 4)


def lines(row: Row) -> Iterator[str]:
    """The row as lines of the table."""
    lead = f"{row['heads']} x {row['tokens']:,} x {row['head_dim']}"
    lead = f"{lead:<24}"
    for name, variant in row["variants"].items():
        figures = variant.get("sustained") or variant.get("launches", {})
        ratios = (figures.get(f"time_over_{peer}") for peer in (FA3, DENSE))
        cells = [
            *time_cells(variant),
            f"{figures['tflops']:8.0f}",
            *(f"{ratio:6.3f}" if ratio is not None else f"{'-':>6}" for ratio in ratios),
        ]
        yield f"{lead}  {name:<18} {' '.join(cells)}".rstrip()
        lead = " " * len(lead)
    for name, why in row["left_out"].items():
        yield f"{lead}  {name:<18} left out: {why}"
        lead = " " * len(lead)
